"""Benchmarks of speed and memory. Run each from the repository's root as `python -m benchmarks.NAME`."""
