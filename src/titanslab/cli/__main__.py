"""`python -m titanslab.cli`, for torchrun and for where the script is not on the path."""

from titanslab.cli import main

main()
