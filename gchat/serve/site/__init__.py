"""The chat site: accounts, conversations that are kept, answers that stream, administration."""
