"""Shape annotations are checked while the tests run; JAX runs on the CPU."""

import os

import jaxtyping

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jaxtyping.install_import_hook("tpv_jax", "beartype.beartype")
