"""Task prompt vectors on NumPy: neither JAX nor TensorFlow is imported here.

`algebra` decides what may be combined and combines it, with the numbers of `arithmetic`;
`merging` has the merge rules; `provenance` travels with the values; `store` is the file
format; `inspection` shows what the parts of EPT prompts do. `formats.sources` loads files.
DePT and EPT prompts are folded before anything is computed, unless the factor space is
asked for (docs/methods.md, "Two spaces").
"""
