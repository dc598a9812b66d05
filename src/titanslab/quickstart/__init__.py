"""The quickstart: two small models trained on the spot, one with a memory and one with a window alone."""
