"""The formats of other tools, for backbones and prompts, read and written. NumPy only."""
