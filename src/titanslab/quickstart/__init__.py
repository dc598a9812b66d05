"""The quickstart: two small models, one with a memory and one with a window alone, are trained and compared."""
