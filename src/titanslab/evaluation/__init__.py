"""Measures a model: runs tasks against it, perplexity, tables and pictures."""
