"""Other tools' formats of backbones and prompts, to read and to write. NumPy only."""
