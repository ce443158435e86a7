"""Tables and numbers as reports write them: percent, and mean ± standard deviation."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tpv_jax.core.tables import spread
from tpv_jax.embedded.suite import TASKS

Results = Mapping[str, Any]
Rows = Sequence[Sequence[str]]
Table = tuple[Sequence[str], Rows]
"""A header, and rows with as many cells."""

METRICS = {"exact_match": "exact match", "label_accuracy": "accuracy among labels"}
"""The names in reports of what studies measure (`base.METRICS`)."""

_EMBEDDED = "tpv_jax embedded"
"""The name of the embedded backbone in results."""


def of_the_suite(results: Results, names: Iterable[str]) -> bool:
  """Returns whether the backbone and these tasks are the embedded ones, not a user's own."""
  return results["backbone"]["name"] == _EMBEDDED and {*names} <= {*TASKS}


def percent(value: float | None) -> str:
  """Returns a fraction in percent, '-' for None."""
  return "-" if value is None else f"{100 * value:.1f}"


def mean_and_deviation(values: Sequence[float]) -> str:
  """Returns mean ± sample standard deviation (n - 1) of fractions, in percent."""
  deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
  return spread(float(np.mean(values)), float(deviation))


def difference(found: Mapping[str, Any]) -> str:
  """Returns a `minus_NAME` entry of `comparison.compare` as text, in points."""
  return (
    f"{100 * found['mean']:+.1f} ± {100 * found['deviation']:.1f} "
    f"({found['higher']} : {found['lower']})"
  )


def interval(found: Mapping[str, float]) -> str:
  """Returns a mean difference and its interval as text, in points."""
  low, high = 100 * found["low"], 100 * found["high"]
  return f"{100 * found['mean']:+.1f} ({low:+.1f} to {high:+.1f})"


def provenance(results: Results) -> list[str]:
  """Returns the paragraphs that state the date, device, versions and command."""
  known = ", ".join(f"{name} {v}" for name, v in results["versions"].items())
  command = [f"```\n{results['command']}\n```"] if results["command"] else []
  return [
    f"{results['date']}, {results['device']}, {results['seconds']:.0f} s for this call; "
    f"{known}.",
    *command,
  ]


def subject(results: Results) -> str:
  """Returns the words that name the initial prompts and the backbone."""
  seeds, backbone = results["initial_seeds"], results["backbone"]
  return (
    f"{len(seeds)} initial prompts (seeds {', '.join(map(str, seeds))}) on the backbone "
    f"`{backbone['name']}` (fingerprint `{backbone['fingerprint'][:12]}`)"
  )
