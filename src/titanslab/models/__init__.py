"""The Titans models, as Hugging Face models."""
