"""Training of prompts: what `tpv train` and `tpv bank` do."""

import functools
import typing
from collections.abc import Callable, Sequence
from typing import Any, overload

from tpv_jax.api import settings as of_gin
from tpv_jax.api.backbones import Backbone
from tpv_jax.api.runs import Run, Runs
from tpv_jax.banks import bank, grid
from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.data.tasks import Task
from tpv_jax.settings import calling

Function = typing.TypeVar("Function", bound=Callable[..., Any])


def of_subjects(function: Function) -> Function:
  """Returns the function with a check that it is given a backbone and tasks in memory."""

  @functools.wraps(function)
  def checking(backbone: Any, tasks: Any, *args: Any, **options: Any) -> Any:
    if not isinstance(backbone, Backbone):
      raise UserError(
        f"The backbone is {backbone!r:.80}. Load it first: tpv.load_backbone('smollm2')."
      )
    several = tasks if isinstance(tasks, list | tuple) else [tasks]
    if not several:
      raise UserError("There is no task. Give one or more, which tpv.task(...) makes.")
    for one in several:
      if not isinstance(one, Task):
        raise UserError(
          f"A task is {one!r:.80}. Make it first: tpv.task('reviews.toml'), or "
          "tpv.task('sentiment', of='embedded')."
        )
    return function(backbone, tasks, *args, **options)

  return typing.cast(Function, checking)


@overload
def train(
  backbone: Backbone,
  tasks: Task,
  folder: files.PathLike,
  *,
  initial_seeds: None = None,
  rates: None = None,
  gin_file: files.PathLike | Sequence[files.PathLike] = (),
  progress: bool = True,
  **settings: Any,
) -> Run: ...
@overload
def train(
  backbone: Backbone,
  tasks: Task | Sequence[Task],
  folder: files.PathLike,
  *,
  initial_seeds: Sequence[int] | None = None,
  rates: Sequence[float] | None = None,
  gin_file: files.PathLike | Sequence[files.PathLike] = (),
  progress: bool = True,
  **settings: Any,
) -> Runs: ...
@of_subjects
def train(
  backbone: Backbone,
  tasks: Task | Sequence[Task],
  folder: files.PathLike,
  *,
  initial_seeds: Sequence[int] | None = None,
  rates: Sequence[float] | None = None,
  gin_file: files.PathLike | Sequence[files.PathLike] = (),
  progress: bool = True,
  **settings: Any,
) -> Run | Runs:
  """Trains a prompt, or several at once, and returns the run or the runs.

  One task gives a `Run` in `folder`, as `tpv train` does. Several tasks, or
  `initial_seeds` or `rates`, give `Runs` in folders below it, as `tpv bank` does. Called
  again it continues what was stopped, and leaves what is finished.

  Args:
    backbone: of `load_backbone`.
    tasks: of `task`; one, or a list.
    folder: of the run, or of the runs.
    initial_seeds: of initial prompts, a run for each; vectors of one seed can be added.
    rates: factors of the learning rate, a run for each.
    gin_file: files of the package or of yours, such as 'gin_configs/prompts/ept.gin'.
    progress: show a progress bar and the summary at the end.
    **settings: macros of the gin files in lower case: `train_steps`, `learning_rate`,
      `batch_size`, `prompt_length`, `initial_seed`, `lengths`, ...

  Raises:
    UserError: a setting is not known, or does not fit; the folder holds something else.
    Stopped: SIGINT or SIGTERM came; the state is saved.
  """
  from tpv_jax.training import training

  lists = {"initial_seeds": initial_seeds, "rates": rates}
  grids = {n: of_gin.as_list(one) for n, one in lists.items() if one is not None}
  alone = isinstance(tasks, Task) and not grids
  several = [tasks] if isinstance(tasks, Task) else list(tasks)
  own = backbone.macros | (
    {"RUN_DIR": folder, "TASK": several[0]}
    if alone
    else {"OUTPUT_DIR": folder, "TASKS": several}
  )
  arguments = {
    "backbone": backbone.loaded,
    "progress": progress,
    "config": calling.record,
  }
  function = training.train if alone else bank.train_bank
  _, used = of_gin.call(
    function, {**settings, **grids}, own, arguments, gin_file, lengths_of(several)
  )
  if alone:
    return Run(folder)
  seeds, rates = (of_gin.value_of(used, name) for name in ("INITIAL_SEEDS", "RATES"))
  place = files.to_path(folder)
  return Runs(
    Run(place / name) for *_, name in grid.entries(several, list(seeds), list(rates))
  )


def lengths_of(tasks: Sequence[Task]) -> dict[str, Any]:
  """Returns LENGTHS for tasks together, the largest of each feature, where they state any."""
  stated = [one.lengths for one in tasks if one.lengths is not None]
  if len(stated) < len(tasks):
    return {}
  return {"LENGTHS": {key: max(one[key] for one in stated) for key in stated[0]}}
