"""Two small tasks of real English for pre-trained models; the rows come with the package.

'sentiment': is a short review positive or negative? 'topic': is a sentence about business,
science, sports or travel? All rows were written for tpv_jax. Each split has as many of one
label as of any other, and no two texts share more than half of their words.
"""

import pathlib
from collections.abc import Sequence

from tpv_jax.core.checks import checked
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.data.tasks import SPLITS, Task
from tpv_jax.data.text_files import text_file_task

ROWS = pathlib.Path(__file__).with_name("english_rows")

TASKS = {
  "sentiment": ("Review: {text} Sentiment:", ("negative", "positive")),
  "topic": ("Sentence: {text} Topic:", ("business", "science", "sports", "travel")),
}
"""Name -> the template, of one line as `tpv infer` reads them, and the labels."""


@checked
def task(name: str) -> Task:
  """Returns the task `name` of `TASKS`; its own metric is exact match.

  Raises:
    UserError: there is no such task.
  """
  if name not in TASKS:
    raise UserError(
      f"There is no English task '{name}'.{near_misses(name, TASKS)} The tasks are "
      f"{', '.join(TASKS)}."
    )
  template, labels = TASKS[name]
  paths = {split: ROWS / f"{name}_{split}.jsonl" for split in SPLITS}
  return text_file_task(name, paths, template, target="label", labels=labels)


@checked
def tasks(names: Sequence[str] | None = None) -> tuple[Task, ...]:
  """Returns the tasks of `names`, or all of them.

  Raises:
    UserError: `names` is a string instead of a list, or there is no such task.
  """
  return tuple(task(name) for name in (TASKS if names is None else names))
