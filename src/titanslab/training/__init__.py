"""Training: recipes, the run folder, and the wiring to the Hugging Face Trainer."""
