"""Metrics of predicted texts: a function and a line in `registry` each."""
