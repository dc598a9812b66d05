"""Texts read into a model's memory, kept in files, asked and talked to."""
