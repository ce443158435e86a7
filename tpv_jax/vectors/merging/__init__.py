"""Rules that merge task prompt vectors: a dataclass and a line in `registry` each.

Their equations are docs/methods.md, (4.9) to (4.25).
"""
