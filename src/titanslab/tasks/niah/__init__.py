"""Needle in a haystack (RULER S-NIAH): samples, the result table's cells, scores, rows for training."""

VARIANTS = ("single_1", "single_2", "single_3")
