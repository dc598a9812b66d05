"""The contents of a run folder (checkpoints, versions), and models opened from a name."""
