"""BABILong: bAbI's facts scattered over books; samples, the result table's cells, scores, rows for training."""

TASKS = tuple(f"qa{n}" for n in range(1, 11))
