"""Attention and cross-entropy, each with one entry point and an implementation by hardware."""
