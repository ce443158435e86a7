"""Merge rules that read data: they try vectors on their backbone."""
