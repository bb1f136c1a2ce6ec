"""Runs as files for other programs: Hugging Face folders and GGUF files, and their comparison."""
