"""Measurements of a model: tasks, perplexity, tables, pictures, traces of the memories, the bridge to lm-eval."""
