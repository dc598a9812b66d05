"""Every tolerance of the suite, in one place."""

# float64 against the token loop: error relative to 1 + the largest entry
EXACT = 1e-9
# float32 may lose at most this many times what eager PyTorch loses in float32, both against float64
LOW_PRECISION_FACTOR = 2.0
# below this an eager error is rounding of the last digit, and the factor says nothing
FLOAT32_FLOOR = 2e-6
