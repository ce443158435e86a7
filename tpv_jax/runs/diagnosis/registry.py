"""The checks of a diagnosis, each of its own idea.

A check takes the `Evidence` of a run and returns a `Finding`, or None if it sees nothing
wrong or cannot tell. None of them needs JAX or the backbone: the manifest states what they
need of it. A new check is a function and a line here.
"""

import shlex
from collections.abc import Callable, Sequence

from tpv_jax.core import files
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


def hint(run: files.Path, found: Sequence[Finding]) -> list[str]:
  """Returns the line at the end of a run with findings, [] without any."""
  if not found:
    return []
  what = "; ".join(finding.what for finding in found)
  command = f"tpv diagnose {shlex.quote(str(run))}"
  return [f"Something may be wrong: {what}. '{command}' explains."]


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
