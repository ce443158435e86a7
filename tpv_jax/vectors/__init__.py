"""Task prompt vectors on NumPy: neither JAX nor TensorFlow is imported here.

`sources` loads, `algebra` computes, `store` writes, `provenance` says what it is, and
`cli` is the console command `tpv`.
"""
