"""DNA: a classifier against labelled sequences, and tracks of a causal model along a genome."""
