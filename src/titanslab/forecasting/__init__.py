"""Forecasts of a file's series by a trained model: what is read, the forecast, and the files that are written."""
