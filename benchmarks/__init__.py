"""Speed and memory: one command each, run from the repository's root as `python -m benchmarks.NAME`."""
