"""The tasks of both papers: their definition, and a table for each suite."""
