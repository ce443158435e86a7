"""`python -m tpv_jax VERB` is `tpv VERB`."""

import sys

from tpv_jax.cli import main

if __name__ == "__main__":
  sys.exit(main())
