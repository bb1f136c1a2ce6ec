"""The processes of one run: finding one another, telling, agreeing, failing together."""
