"""Reading texts into a model's memory, memory files, and answers from them."""
