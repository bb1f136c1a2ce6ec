"""Asking a model at the command line: conversations in the terminal, and files of questions."""
