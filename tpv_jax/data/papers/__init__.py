"""The tasks of both papers: what one is, and a table for each suite."""
