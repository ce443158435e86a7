"""Rules that merge task prompt vectors: a dataclass and a line in `registry` each."""
