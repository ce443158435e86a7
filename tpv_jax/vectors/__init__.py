"""Task prompt vectors on NumPy: neither JAX nor TensorFlow is imported here.

`formats.sources` loads, `algebra` says what may be combined and computes it by
`arithmetic`, `provenance` is what travels with the values, `store` is the file,
`inspection` looks into EPT prompts. DePT and EPT prompts are folded to what they do before
anything is computed, unless the factor space is asked for (`algebra`).
"""
