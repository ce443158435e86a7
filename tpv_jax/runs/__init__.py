"""The folder of a run: its manifest and settings, its prompts, its metrics, its lock."""
