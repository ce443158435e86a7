"""A training run in its folder: prompts, vector, numbers."""

import dataclasses
import html
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from tpv_jax.api.settings import spelled
from tpv_jax.api.tables import Table
from tpv_jax.core import files, tables
from tpv_jax.core.errors import UserError, near_misses, printable
from tpv_jax.formats import sources
from tpv_jax.runs import records, summary
from tpv_jax.runs.diagnosis import evidence, registry
from tpv_jax.runs.diagnosis.evidence import Finding
from tpv_jax.runs.run_folder import RunFolder
from tpv_jax.vectors import algebra
from tpv_jax.vectors.loaded import Loaded


class Run:
  """A run in its folder; everything is read when it is asked for."""

  def __init__(self, path: files.PathLike):
    """Finds the run; `open_run` says what is wrong if there is none."""
    self._folder = RunFolder(path)

  @property
  def path(self) -> files.Path:
    """The run's folder."""
    return self._folder.path

  @property
  def name(self) -> str:
    """The name of its folder."""
    return self.path.name

  @property
  def manifest(self) -> dict[str, Any]:
    """What manifest.json states: settings, versions, seeds, digests, status."""
    return self._folder.manifest()

  @property
  def task(self) -> str | None:
    """The name of its task; None if it has not begun."""
    return self.manifest.get("task")

  @property
  def status(self) -> str:
    """How it is: 'finished', 'running', 'stopped' or 'failed'."""
    return str(self.manifest.get("status", "not begun"))

  @property
  def initial(self) -> Loaded:
    """The prompt that it started from."""
    return sources.load(self.path, "initial")

  @property
  def prompt(self) -> Loaded:
    """Its best prompt, or the last one if it keeps no best."""
    return sources.load(self.path, self._kept())

  @property
  def metrics(self) -> Table:
    """The logged numbers of training and validation, a row for each step and kind."""
    return Table(self._folder.metrics())

  def vector(self, which: str | None = None, space: str = "effective") -> Loaded:
    """Returns its task prompt vector, prompt - initial.

    Args:
      which: 'best' or 'last'; None for that of `prompt`.
      space: 'factor' for the difference of an EPT or DePT prompt's parameters.

    Raises:
      UserError: the run has no such prompt.
    """
    tuned = sources.load(self.path, which or self._kept())
    return algebra.diff(tuned, self.initial, space=space)

  @property
  def keeps_best(self) -> bool:
    """Whether it has a best prompt; without one `prompt` is the last."""
    return self._folder.prompt("best").exists()

  def _kept(self) -> str:
    return "best" if self.keeps_best else "last"

  @property
  def summary(self) -> dict[str, Any]:
    """What `tpv show RUN --json` states: status, scores on validation, settings."""
    return summary.to_json(self.path, self.manifest, self.metrics)

  def diagnose(self) -> "Findings":
    """Returns why it does not learn, as `tpv diagnose`; none if no check found anything."""
    return Findings(
      dataclasses.replace(one, change=spelled(one.change))
      for one in registry.findings(evidence.read(self.path))
    )

  def _lines(self) -> tuple[list[tuple[str, Any]], list[str]]:
    """Returns what it states of itself, and its table of scores on validation."""
    known = self.manifest
    return summary.rows(self.path, known), summary.reached(known, self.metrics)

  def __repr__(self) -> str:
    """Returns one line: the folder, the task and the best score."""
    known = self.manifest
    best = [
      f"best {metric} {value:.4g} after step {known.get('best_step')}"
      for metric, value in known.get("best_metric", {}).items()
    ]
    shown = ", ".join(map(str, (self.task, self.status, *best)))
    return f"<run '{self.path}': {shown}>"

  def __str__(self) -> str:
    """Returns what `tpv show` prints of it: its state, settings and scores."""
    rows, scores = self._lines()
    labels = [(label, printable(str(value))) for label, value in rows]
    return "\n".join([tables.aligned(labels, left=2), *scores])

  def _repr_html_(self) -> str:
    rows, scores = self._lines()
    text = html.escape("\n".join(scores))
    return f"{tables.html(rows)}<pre>{text}</pre>"


class Findings(list[Finding]):
  """What is wrong with a run, each with `what`, `evidence` and what to `change`."""

  def __repr__(self) -> str:
    """Returns what `tpv diagnose` prints of it."""
    return "\n".join(registry.lines(self)).lstrip("\n")


class Runs(Sequence[Run]):
  """Several runs, in order; also found by the name of their folder."""

  def __init__(self, runs: Iterable[Run]):
    self._runs = list(runs)

  def __len__(self) -> int:
    """Returns how many there are."""
    return len(self._runs)

  def __iter__(self) -> Iterator[Run]:
    """Yields the runs."""
    return iter(self._runs)

  @overload
  def __getitem__(self, which: int | str) -> Run: ...
  @overload
  def __getitem__(self, which: slice) -> "Runs": ...
  def __getitem__(self, which: int | str | slice) -> "Run | Runs":
    """Returns the run at a place or of a name; those of a slice."""
    if isinstance(which, slice):
      return Runs(self._runs[which])
    if isinstance(which, int):
      return self._runs[which]
    names = [run.name for run in self]
    if which not in names:
      raise UserError(
        f"There is no run '{which}'.{near_misses(which, names)} The runs are "
        f"{', '.join(names)}."
      )
    return self._runs[names.index(which)]

  @property
  def table(self) -> Table:
    """A row for each run: its best step and the scores on validation after it.

    `untuned` and `majority` are the exact match of the initial prompt and of always
    answering with the most common label.
    """
    rows = []
    for run in self:
      known, scores = run.manifest, run.summary["validation"]
      best: dict[str, Any] = {}
      if "best_step" in known:
        best = next(iter(scores.values()), {})
      rows.append(
        {
          "run": os.fspath(run.path),
          "task": known.get("task"),
          "initial_seed": known.get("settings", {}).get("initial_seed"),
          "status": run.status,
          "best_step": known.get("best_step"),
          **best,
          "untuned": (known.get(records.UNTUNED) or {}).get("exact_match"),
          "majority": (known.get("majority") or {}).get("share"),
        }
      )
    return Table(rows)

  def vectors(self) -> list[Loaded]:
    """Returns the vector of each run."""
    return [run.vector() for run in self]

  def __repr__(self) -> str:
    """Returns the table as text."""
    return repr(self.table)

  def _repr_html_(self) -> str:
    return self.table._repr_html_()


def open_run(path: files.PathLike) -> Run:
  """Returns the run in a folder that `tpv train`, `tpv bank` or `train` wrote.

  Raises:
    UserError: there is none.
  """
  if not sources.is_run_folder(path):
    raise UserError(
      f"'{path}' is no run's folder: it has no manifest.json. Give the folder that "
      "tpv.train or tpv train wrote; a bank has one for each prompt below its own."
    )
  run = Run(path)
  _ = run.manifest
  return run


def refuse_vector(given: Any) -> None:
  """Raises `UserError` for a vector where a prompt is meant."""
  if isinstance(given, Loaded) and given.provenance.kind == "vector":
    raise UserError(
      f"'{given.name}' is a vector, a difference of prompts. Put it on an initial prompt: "
      "vector.on(run.initial)."
    )
