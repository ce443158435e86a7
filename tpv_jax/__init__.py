"""Soft prompts on frozen language models in JAX: task prompt vectors and EPT.

    import tpv_jax as tpv

    backbone = tpv.load_backbone("embedded")
    tasks = [tpv.task(name, of="embedded") for name in ("sentiment", "topic")]
    runs = tpv.train(backbone, tasks, "runs")
    both = sum(runs.vectors()).on(runs[0].initial)
    print(tpv.evaluate(backbone, tasks, {"sum": both, "none": None}))

What is listed in `__all__` is loaded when it is used; importing the package loads nothing.
"""

from typing import TYPE_CHECKING, Any

from tpv_jax.core.registry import entry as _entry
from tpv_jax.core.version import VERSION as __version__  # noqa: N811

if TYPE_CHECKING:
  from tpv_jax.api.backbones import Backbone as Backbone
  from tpv_jax.api.backbones import load_backbone as load_backbone
  from tpv_jax.api.evaluation import evaluate as evaluate
  from tpv_jax.api.merging import merge_by_data as merge_by_data
  from tpv_jax.api.prediction import predict as predict
  from tpv_jax.api.runs import Run as Run
  from tpv_jax.api.runs import Runs as Runs
  from tpv_jax.api.runs import open_run as open_run
  from tpv_jax.api.tables import Table as Table
  from tpv_jax.api.tasks import task as task
  from tpv_jax.api.training import train as train
  from tpv_jax.core.errors import UserError as UserError
  from tpv_jax.data.tasks import Example as Example
  from tpv_jax.data.tasks import Task as Task
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
  "Backbone": "api.backbones",
  "load_backbone": "api.backbones",
  "evaluate": "api.evaluation",
  "merge_by_data": "api.merging",
  "predict": "api.prediction",
  "Run": "api.runs",
  "Runs": "api.runs",
  "open_run": "api.runs",
  "Table": "api.tables",
  "task": "api.tasks",
  "train": "api.training",
  "Example": "data.tasks",
  "Task": "data.tasks",
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
