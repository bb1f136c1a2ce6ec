"""Vocabularies beyond the standard: forced single tokens, SentencePiece."""
