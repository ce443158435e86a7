"""Soft prompts on frozen language models in JAX: task prompt vectors and EPT.

    import tpv_jax as tpv

    initial = tpv.load("runs/sst2", which="initial")
    vectors = [tpv.diff(tpv.load(f"runs/{task}"), initial) for task in ("sst2", "rte")]
    tpv.save("both.safetensors", tpv.apply(tpv.sum_vectors(vectors), initial))

What is listed in `__all__` is loaded when it is used; importing the package loads nothing.
"""

from typing import TYPE_CHECKING, Any

from tpv_jax.core.registry import entry as _entry
from tpv_jax.core.version import VERSION as __version__  # noqa: N811

if TYPE_CHECKING:
  from tpv_jax.core.errors import UserError as UserError
  from tpv_jax.formats.sources import load as load
  from tpv_jax.formats.sources import save as save
  from tpv_jax.vectors.algebra import analogy as analogy
  from tpv_jax.vectors.algebra import apply as apply
  from tpv_jax.vectors.algebra import cosine as cosine
  from tpv_jax.vectors.algebra import diff as diff
  from tpv_jax.vectors.algebra import fold as fold
  from tpv_jax.vectors.algebra import negate as negate
  from tpv_jax.vectors.algebra import scale as scale
  from tpv_jax.vectors.algebra import sum_vectors as sum_vectors
  from tpv_jax.vectors.loaded import Loaded as Loaded
  from tpv_jax.vectors.merging.merge import merge as merge
  from tpv_jax.vectors.provenance import Provenance as Provenance
  from tpv_jax.vectors.provenance import Term as Term

_PLACES = {
  "UserError": "core.errors",
  "load": "formats.sources",
  "save": "formats.sources",
  "Loaded": "vectors.loaded",
  "analogy": "vectors.algebra",
  "apply": "vectors.algebra",
  "cosine": "vectors.algebra",
  "diff": "vectors.algebra",
  "fold": "vectors.algebra",
  "negate": "vectors.algebra",
  "scale": "vectors.algebra",
  "sum_vectors": "vectors.algebra",
  "merge": "vectors.merging.merge",
  "Provenance": "vectors.provenance",
  "Term": "vectors.provenance",
}
"""Public name -> the module that has it; the imports above say the same to type checkers."""

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
  if name not in _PLACES:
    raise AttributeError(f"module 'tpv_jax' has no attribute '{name}'")
  return _entry(f"tpv_jax.{_PLACES[name]}:{name}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
