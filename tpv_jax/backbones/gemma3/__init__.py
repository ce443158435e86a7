"""Gemma 3: the text models, and the text part of those that see images."""
