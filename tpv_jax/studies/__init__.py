"""Studies: what is trained, compared and reported to answer a question of a paper."""
