"""The run files of this package that a command takes if it is given none.

They are chosen by BACKBONE. So one file of a user's settings (a backbone, tasks, steps) serves
train, bank, eval and infer, and a short call needs no file at all.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tpv_jax.backbones import loading, networks
from tpv_jax.core.errors import UserError
from tpv_jax.core.files import PathLike
from tpv_jax.settings import gin_files

VERBS = {
  "training.train": ("{}",),
  "bank.train_bank": ("bank_{}",),
  "evaluation.evaluate": ("eval_{}",),
  "evaluation.infer": ("infer_{}",),
  "merge_by_data.merge_by_data": ("merge_by_data_{}",),
  "study.study": ("study", "tuning_{}"),
  "few_shot.compare_starts": ("few_shot_study", "tuning_{}"),
  "merging.compare_rules": ("merging_study", "tuning_{}"),
  "moving.moving": ("moving", "tuning_{}"),
  "ablation.ablation": ("ablation_study", "tuning_{}"),
}
"""What a command calls -> the names of its run files for a kind of backbone."""

TASK_FILES = "gin_configs/tasks/files.gin"
"""The gin file that reads the macro TASK_FILES."""

EMBEDDED = "embedded"


def kind_of(backbone: PathLike) -> str:
  """Returns the kind of a backbone, as it is part of a run file's name.

  Raises:
    UserError: there is no such backbone.
  """
  if str(backbone) == loading.EMBEDDED:
    return EMBEDDED
  architecture = networks.network(str(backbone)).ARCHITECTURE
  return {"decoder_only": "llm", "encoder_decoder": "t5"}[architecture]


def complete(
  entry: Callable[..., Any],
  files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
) -> list[str]:
  """Returns the shipped files that the given ones lack; none if they are complete.

  These are the run files for BACKBONE, to be read before them, if no given file says what
  model `entry` runs; and `TASK_FILES`, to be read after them, if that macro is set and no
  given file reads it.

  Args:
    entry: what the command calls.
    files: gin files in order.
    bindings: 'NAME=VALUE', applied after the files.
    search_paths: more folders in which to look for files.

  Raises:
    UserError: there is no run file for `entry`, or no BACKBONE to choose it by.
  """
  given = gin_files.bound(files, bindings, search_paths)
  name = f"{entry.__module__.rpartition('.')[2]}.{entry.__name__}"
  found = []
  if name in VERBS and not {f"{name}.model", f"{name}.network"} & {*given}:
    backbone = given.get("BACKBONE")
    if not isinstance(backbone, str):
      raise UserError(
        "BACKBONE must be given, to choose a run file by: --gin.BACKBONE=smollm2, a folder "
        "of Hugging Face, or another one. Or give a run file, --gin_file=...: "
        f"{', '.join(_known(VERBS[name]))}."
      )
    kind = kind_of(backbone)
    found += [f"gin_configs/runs/{file.format(kind)}.gin" for file in VERBS[name]]
  if "TASK_FILES" in given and not any(one.startswith("task_files.") for one in given):
    found.append(TASK_FILES)
  return found


def _known(names: Sequence[str]) -> list[str]:
  """Returns the run files of a command."""
  known = dict.fromkeys(
    f"gin_configs/runs/{name.format(kind)}.gin"
    for name in names
    for kind in ("embedded", "llm", "t5")
  )
  return [file for file in known if file in gin_files.shipped()]
