"""Needle in a haystack (RULER S-NIAH): samples, rows for training, scores."""
