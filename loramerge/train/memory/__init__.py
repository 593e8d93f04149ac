"""Predictions of time and memory, from shapes alone."""
