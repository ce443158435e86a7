"""Scores and answers: many prompts, vectors and sums on many tasks in one pass."""
