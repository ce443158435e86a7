"""Soft prompts on frozen language models in JAX: task prompt vectors and EPT."""

from tpv_jax.core.version import VERSION as __version__

__all__ = ["__version__"]
