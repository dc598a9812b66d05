"""Forecasting models against the parts of a series: scores over all windows, and learning on the test stream."""
