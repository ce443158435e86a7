"""The checks of a diagnosis, each of its own idea.

A check takes the `Evidence` of a run and returns a `Finding`, or None if it sees nothing
wrong or cannot tell. None of them needs JAX or the backbone: the manifest states what they
need of it. A new check is a function and a line here.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence

from tpv_jax.core import errors, files
from tpv_jax.core.errors import printable
from tpv_jax.runs.diagnosis import answers, training
from tpv_jax.runs.diagnosis.evidence import Evidence, Finding

CHECKS: dict[str, Callable[[Evidence], Finding | None]] = {
  check.__name__: check
  for check in (
    training.diverged,
    training.exploded,
    training.rate_too_small,
    training.rate_too_large,
    training.warm_up_too_long,
    training.flat,
    training.no_gradient,
    answers.targets_lost,
    answers.sources_cut,
    answers.sources_unknown,
    answers.never_exact,
    answers.one_answer,
    answers.near_majority,
    training.long_rows,
    training.overfitted,
    training.worse_again,
    training.still_improving,
  )
}
"""Name -> check, in the order in which findings are shown: causes before effects."""


def findings(evidence: Evidence) -> list[Finding]:
  """Returns what the checks find, in their order."""
  found = (check(evidence) for check in CHECKS.values())
  return [finding for finding in found if finding is not None]


def hints(runs: Mapping[files.Path, Sequence[Finding]]) -> list[str]:
  """Returns the lines at the end of runs with findings, one for runs with the same.

  Args:
    runs: folder -> what the checks found.
  """
  alike: dict[str, list[files.Path]] = {}
  for run, found in runs.items():
    if found:
      alike.setdefault("; ".join(one.what for one in found), []).append(run)
  return [
    f"Something may be wrong{_with(some, len(runs))}: {what}. "
    f"'tpv diagnose {shlex.quote(str(some[0]))}' explains."
    for what, some in alike.items()
  ]


def _with(some: Sequence[files.Path], of: int) -> str:
  """Returns which runs are meant, where there are several."""
  if of == 1:
    return ""
  if len(some) == of:
    return f" with all {of} prompts"
  return f" with {errors.some([printable(run.name) for run in some])}"


def lines(found: Sequence[Finding]) -> list[str]:
  """Returns findings for people: what is wrong, the evidence, what to change."""
  if not found:
    return [f"\nNothing is wrong by any of {len(CHECKS)} checks."]
  return [
    line
    for number, finding in enumerate(found, start=1)
    for line in (
      f"\n{number}. {finding.what}",
      f"   evidence: {finding.evidence}",
      f"   change:   {finding.change}",
    )
  ]
