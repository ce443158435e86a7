"""The folder of a run: what it states of itself, its prompts, its metrics, its lock."""
