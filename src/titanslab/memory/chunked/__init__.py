"""The exact parallel form of the memory in PyTorch operations."""
