"""Models made elsewhere, brought in as run folders: Hugging Face folders, GGUF files."""
