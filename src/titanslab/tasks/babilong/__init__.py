"""bAbI questions inside books (BABILong): samples, rows for training, scores."""
