"""Models made elsewhere, brought in as ordinary run folders: Hugging Face folders and GGUF files."""
