"""`python -m t5x.train` as one of several processes (see `scripts`)."""

from tpv_jax.t5x import scripts

if __name__ == "__main__":
  scripts.run("train")
