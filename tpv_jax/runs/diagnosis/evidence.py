"""What a run has written about itself, as the checks of a diagnosis see it."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.formats import sources
from tpv_jax.runs import records
from tpv_jax.vectors import algebra

Line = Mapping[str, Any]
"""A line of metrics.jsonl."""

RATE = 0.05
"""A learning rate that suits Adam, in deviations of the embeddings (ours): SmolLM2 learns
well with 0.07 (0.01) and up to 0.7, T5 with 0.03 (0.3), the embedded backbone with 0.16."""

SCALED = 10.0
"""A direction of the optimizer that is so large stands for the size of parameters."""

FELL = 0.5
"""A loss has fallen a long way if it is below this part of the untuned prompt's."""

BEATS = 0.1
"""The part of the way from always giving one answer to perfect ones that is learning."""


@dataclasses.dataclass(frozen=True)
class Finding:
  """What is wrong with a run.

  Attributes:
    check: the name of the check, in `CHECKS`.
    what: is wrong, in a few words.
    evidence: the numbers that show it.
    change: what to change, naming the user's setting.
  """

  check: str
  what: str
  evidence: str
  change: str


@dataclasses.dataclass(frozen=True)
class Evidence:
  """What a run has written about itself.

  Attributes:
    manifest: of the run.
    lines: of metrics.jsonl.
    initial, tuned: the rows of the prompts that stand before a source, folded; None if the
      run has none.
    embeddings: {'deviation', 'norm'}; see `records.scale`. None if they are not known.
  """

  manifest: Mapping[str, Any]
  lines: Sequence[Line]
  initial: Float[np.ndarray, "P D"] | None
  tuned: Float[np.ndarray, "P D"] | None
  embeddings: Mapping[str, float] | None

  @functools.cached_property
  def train(self) -> list[Line]:
    """The log lines with a finite loss."""
    return self._of("train")

  @functools.cached_property
  def validation(self) -> list[Line]:
    """The validations with a finite loss."""
    return self._of("validation")

  def _of(self, kind: str) -> list[Line]:
    return [x for x in self.lines if x["kind"] == kind and x.get("loss") is not None]

  @property
  def settings(self) -> Mapping[str, Any]:
    """What the run was given and what follows from it."""
    found: Mapping[str, Any] = self.manifest.get("settings", {})
    return found

  @property
  def total_steps(self) -> int:
    """How many steps the run has in all."""
    return int(self.settings.get("total_steps") or self.manifest.get("steps") or 1)

  @property
  def untuned(self) -> Mapping[str, Any]:
    """The validation metrics of the initial prompt, {} if they are not known."""
    return self.manifest.get(records.UNTUNED) or {}

  def counts(self, split: str) -> Mapping[str, Any]:
    """Returns the numbers that a manifest states of the rows of a split."""
    found: Mapping[str, Any] = self.manifest.get("data", {}).get("counts", {})
    return found.get(split, {})

  @property
  def losses(self) -> tuple[float, float] | None:
    """The loss before the first step, or of the first steps, and the lowest after it.

    On validation where it is known, otherwise in training.
    """
    start, later = self.untuned.get("loss"), self.validation
    if start is None or not later:
      start, later = (self.train[0]["loss"] if self.train else None), self.train[1:]
    if start is None or not later:
      return None
    return float(start), min(float(line["loss"]) for line in later)

  @property
  def fell(self) -> bool:
    """Whether the loss fell a long way."""
    return self.losses is not None and self.losses[1] < FELL * self.losses[0]

  @property
  def learned(self) -> bool:
    """Whether the loss fell a long way, and answers beat always giving the same one.

    Learning how an answer looks alone takes the loss a long way.
    """
    exact, share = values(self.validation, "exact_match"), self.majority_share
    if not self.fell or not exact or share is None:
      return self.fell
    return max(exact) > share + BEATS * (1 - share)

  @property
  def majority_share(self) -> float | None:
    """The share of the most common validation target; None if it is not a common one."""
    majority = self.manifest.get("majority") or {}
    share, rows = (
      majority.get("share", 0.0),
      self.counts("validation").get("examples", 0),
    )
    return share if share * rows > 2 else None

  @property
  def moved(self) -> float | None:
    """How far a value of the prompt is from its start, in deviations of the embeddings."""
    if self.initial is None or self.tuned is None or not self._deviation:
      return None
    away = np.asarray(self.tuned, np.float64) - self.initial
    return float(np.sqrt(np.mean(away**2))) / self._deviation

  @property
  def _deviation(self) -> float:
    return float((self.embeddings or {}).get("deviation", 0.0))

  @property
  def step_size(self) -> float | None:
    """The largest step of a value of the prompt, in deviations of the embeddings.

    That is the learning rate times the optimizer's direction for a fixed gradient, which
    the settings state; it includes the rate of the prompt's group. None if it cannot be
    told, as for Adafactor with steps in proportion to the parameters.
    """
    rate = peak_rate(self)
    if not rate or not self._deviation or self._direction is None:
      return None
    return rate * self._direction / self._deviation

  @property
  def suitable_rate(self) -> float | None:
    """A learning rate that suits these embeddings, rounded to one digit, or None."""
    if not self._deviation or self._direction is None:
      return None
    return float(f"{RATE * self._deviation / self._direction:.1g}")

  @property
  def _direction(self) -> float | None:
    """The size of the optimizer's direction: 1 for Adam, times the rate of the group."""
    of_prompt = (self.settings.get("optimizer") or {}).get("prompt") or {}
    text = of_prompt.get("prompt") or of_prompt.get("short_prompt") or "1"
    numbers = [abs(float(number)) for number in text.split()]
    # Four values of the first step; then, of later steps, where a schedule has risen.
    found = float(np.median(numbers[:4])) or max(numbers)
    return found if 0 < found < SCALED else None


def read(run: files.Path, embeddings: Mapping[str, float] | None = None) -> Evidence:
  """Returns the evidence in a run's folder.

  Args:
    run: the folder.
    embeddings: for a run whose manifest does not state them.

  Raises:
    UserError: there is no run of ours, or a line of its metrics is damaged.
  """
  manifest = records.manifest(run)
  if manifest is None:
    raise UserError(
      f"'{run}' is not the folder of a run: it has no manifest.json of 'tpv train' or 'tpv "
      "bank'. Give a RUN_DIR."
    )
  return Evidence(
    manifest,
    records.metrics(run),
    _rows(run, "initial"),
    # Where the run has come to, whether or not it was best on the way.
    _rows(run, "last"),
    manifest.get("embeddings") or embeddings,
  )


def _rows(run: files.Path, which: str) -> Float[np.ndarray, "P D"] | None:
  try:
    return algebra.fold(sources.load(run, which)).leaves["prompt"]
  except (UserError, OSError):
    return None


def values(lines: Sequence[Line], metric: str) -> list[float]:
  return [float(line[metric]) for line in lines if line.get(metric) is not None]


def peak_rate(evidence: Evidence) -> float:
  """Returns the highest learning rate that was set or logged, 0 if none is known."""
  rates = [float(rate) for rate in evidence.settings.get("learning_rate") or []]
  logged = [line.get("learning_rate") or 0.0 for line in evidence.train]
  # A manifest rounds it to 5 digits, a log line has its fp32.
  rates.append(float(f"{max(logged, default=0.0):.5g}"))
  return max((rate for rate in rates if math.isfinite(rate)), default=0.0)


def lower_rate(evidence: Evidence) -> str:
  """Returns the advice to lower the learning rate, with a number if it is beyond that."""
  suitable = evidence.suitable_rate
  number = suitable is not None and peak_rate(evidence) > suitable
  return "Lower LEARNING_RATE" + (f" (about {suitable:g})" if number else "")


def another_rate(evidence: Evidence) -> str:
  """Returns the advice to change the learning rate, with a number if it is far from it."""
  suitable, peak = evidence.suitable_rate, peak_rate(evidence)
  far = suitable is not None and not suitable / 3 < peak < 3 * suitable
  return "another LEARNING_RATE" + (f" (about {suitable:g})" if far else "")
