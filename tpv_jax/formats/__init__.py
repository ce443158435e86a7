"""What other tools write and read: backbones and prompts, in and out. NumPy only."""
