"""From a study's folder to a bundle of its prompts, and their scores measured again."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from tpv_jax.core import files, identity
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.data.task_files import TaskFile
from tpv_jax.evaluation import predicting
from tpv_jax.formats import bundles, sources
from tpv_jax.formats.bundles import Bundled, Measured
from tpv_jax.studies import hits, measured
from tpv_jax.studies.base import Hits, Split
from tpv_jax.vectors import algebra


def of_study(
  folder: files.PathLike, licences: Mapping[str, str | None]
) -> list[Bundled]:
  """Returns the runs of a study, with what `measured.json` has of their own scores.

  Args:
    folder: of a study, or of runs, such as a bank's.
    licences: of the data of each task.

  Raises:
    UserError: there are no runs, one has not finished, or the scores are of other prompts.
  """
  root = pathlib.Path(folder)
  place = root / bundles.RUNS if (root / bundles.RUNS).is_dir() else root
  runs = [
    path
    for path in (sorted(place.iterdir()) if place.is_dir() else ())
    if sources.is_run_folder(path)
  ]
  if not runs:
    raise UserError(
      f"'{folder}' holds no runs. Give the folder of a study or of a bank."
    )
  path = root / measured.NAME
  content = files.read_json(path, most_bytes=1 << 26) if path.exists() else {}
  found = []
  for run in runs:
    one = bundles.of_run(run)
    found.append(
      dataclasses.replace(
        one, measured=_measured(content, one, path), licence=licences.get(one.task)
      )
    )
  return found


def _measured(
  content: Mapping[str, Any], run: Bundled, path: pathlib.Path
) -> Measured | None:
  """Returns what a study has measured of a run's prompt on the test rows, or None."""
  subject = content.get("subject", {})
  stated = subject.get("prompts", {}).get(run.name)
  best = run.prompts["best"]
  if stated is None or "single" not in content:
    return None
  if stated != identity.prompt_digest(best.leaves):
    raise UserError(
      f"'{path}' has the scores of another prompt '{run.name}' (digest {stated[:12]}…). "
      "Measure again: the command of the study goes on."
    )
  key = hits.name_of(("own", run.task, best.provenance.initial_seed, None))
  *_, rows = subject["tasks"][run.task]
  return Measured(rows, content["single"]["hits"][key])


@dataclasses.dataclass(frozen=True)
class Checked:
  """What a prompt answers now.

  Attributes:
    run: the prompt, with what was measured before.
    now: measured on the same number of rows.
    same_rows: whether they are the same rows.
  """

  run: Bundled
  now: Measured

  @property
  def same_rows(self) -> bool:
    """Whether both were measured on the same rows."""
    return self.run.measured is not None and self.run.measured.rows == self.now.rows

  @property
  def changed(self) -> int | None:
    """The number of rows that are answered right now and were not, or the reverse.

    Of the metric for which they are the most; None if the rows are other ones.
    """
    if self.run.measured is None or not self.same_rows:
      return None
    return max(
      sum(a != b for a, b in zip(self.run.measured.hits[name], text, strict=True))
      for name, text in self.now.hits.items()
    )


def check(
  runs: Mapping[str, Bundled],
  tasks: Mapping[str, TaskFile],
  backbone: str | None = None,
  batch_size: int = 64,
  progress: bool = False,
) -> list[Checked]:
  """Returns what each prompt answers on the test rows of its task, measured now.

  Args:
    runs: all of one backbone.
    tasks: by name; each has the labels that the runs were tuned on.
    backbone: where it is; None for the one that the runs state.
    batch_size: as of an evaluation.
    progress: show a progress bar.

  Raises:
    UserError: a task or its data is missing, or is another one; the backbone is missing,
      or the prompts are not for it.
  """
  asked = []
  for run in runs.values():
    if run.task not in tasks:
      raise UserError(
        f"No task file describes '{run.task}'.{near_misses(run.task, tasks)} Give it, too."
      )
    words = tuple(tasks[run.task].task.labels or ())
    stated = run.manifest.get("subject") or {}
    tuned_on = (stated.get("recipe") or {}).get("labels") or {}
    if words != tuple(dict.fromkeys(tuned_on.values())):
      raise UserError(
        f"The labels of '{tasks[run.task].path}' are {', '.join(words) or 'none'}, and "
        f"'{run.name}' was tuned on {', '.join(tuned_on.values()) or 'none'}. Give the "
        "task file that it was tuned with."
      )
    most = None if run.measured is None else run.measured.examples
    asked.append(tasks[run.task].task.shortened("test", most))
  _refuse_others(list(runs.values()))
  digests = {task.name: task.split_digest("test") for task in asked}
  first = next(iter(runs))
  with tempfile.TemporaryDirectory() as scratch:
    bundles.unpack({first: runs[first]}, scratch)
    predictor = predicting.load(
      predicting.Asked(f"{scratch}/{bundles.RUNS}/{first}"),
      backbone,
      batch_size=batch_size,
      progress=progress,
    )
  split = Split(predictor.evaluator, {task.name: task for task in asked}.values())
  found: Mapping[str, Hits] = split.hits(
    {
      name: (algebra.fold(run.prompts["best"]).leaves, run.task)
      for name, run in runs.items()
    }
  )
  texts = hits.to_json({(name,): one for name, one in found.items()})
  return [
    Checked(run, Measured(digests[run.task], texts[hits.name_of((name,))]))
    for name, run in runs.items()
  ]


def _refuse_others(runs: Sequence[Bundled]) -> None:
  """Raises `UserError` unless all were tuned on one backbone, in the same way."""
  ways: dict[str, Any] = {}
  for run in runs:
    stated = run.manifest.get("subject") or {}
    way = {name: value for name, value in stated.items() if name != "recipe"}
    fingerprint = run.prompts["best"].provenance.backbone_fingerprint
    ways[run.name] = {**way, "fingerprint": fingerprint}
  first = runs[0].name
  for name, way in ways.items():
    if way != ways[first]:
      raise UserError(
        f"'{first}' and '{name}' were tuned on other backbones, or with other lengths or "
        "precision, and one backbone is loaded. Name prompts of one kind."
      )
