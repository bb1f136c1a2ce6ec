"""Training conversations that a program writes: identity, passages as answers, functions."""
