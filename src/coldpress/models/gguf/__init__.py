"""GGUF files: read, and unpacked to Hugging Face folders."""
