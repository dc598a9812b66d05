"""The compiled CPU kernels: their sources, how they are built, and how they are called."""
