"""Merging by rules that read data: what `tpv merge-by-data` does."""

from collections.abc import Mapping, Sequence
from typing import Any

from tpv_jax.api import settings as of_gin
from tpv_jax.api.backbones import Backbone
from tpv_jax.api.runs import Run
from tpv_jax.api.training import lengths_of, of_subjects
from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.data.tasks import Task
from tpv_jax.evaluation import candidates
from tpv_jax.vectors.loaded import Loaded


@of_subjects
def merge_by_data(
  backbone: Backbone,
  tasks: Task | Sequence[Task],
  vectors: Sequence[Run | candidates.Vector],
  initial: Run | candidates.Source,
  rule: str,
  *,
  options: Mapping[str, Any] | None = None,
  gin_file: files.PathLike | Sequence[files.PathLike] = (),
  progress: bool = False,
  **settings: Any,
) -> Loaded:
  """Returns vectors merged by a rule that tries them on their backbone.

  Args:
    backbone: of `load_backbone`.
    tasks: of `task`; one, or a list: those that the merged vector is for.
    vectors: vectors in memory or their files; runs, for the vectors of their best prompts.
    initial: the initial prompt on which they are tried, or a run for its own.
    rule: 'coefficient_search', 'fisher' or 'adamerging'.
    options: of the rule, by name.
    gin_file: files of the package or of yours.
    progress: show a progress bar.
    **settings: macros of gin_configs/runs/merge_by_data.gin in lower case:
      `weights`, `report`, `output`, `batch_size`, ...

  Raises:
    UserError: a setting is not known, or what is given does not belong together.
  """
  from tpv_jax.evaluation.merging import merge_by_data as by_data

  vectors = of_gin.as_list(vectors)
  if not isinstance(vectors, list):
    raise UserError(f"vectors is {vectors!r:.80}; it must be a list of vectors.")
  several = [tasks] if isinstance(tasks, Task) else list(tasks)
  own = {
    **backbone.macros,
    "TASKS": several,
    "VECTORS": [one.vector() if isinstance(one, Run) else one for one in vectors],
    "INITIAL": initial.initial if isinstance(initial, Run) else initial,
    "RULE": rule,
    "OPTIONS": dict(options or {}),
  }
  defaults = {"OUTPUT": None, **lengths_of(several)}
  arguments = {"backbone": backbone.loaded, "progress": progress, "printed": False}
  merged, _ = of_gin.call(
    by_data.merge_by_data, settings, own, arguments, gin_file, defaults
  )
  found: Loaded = merged
  return found
