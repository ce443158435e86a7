"""Metrics of predicted texts; each is a function and a line in `registry`."""
