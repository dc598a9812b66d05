"""Nucleotides: their tokenizer, FASTA, labelled sequences, and the dataset of a classifier."""
