"""Frozen language models: loading, conversion and decoding; a folder for each family.

`t5` has T5's network in Flax and its sizes.
"""
