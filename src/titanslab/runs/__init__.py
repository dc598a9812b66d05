"""A run folder: its checkpoints, its versions, and how a model is opened from a name."""
