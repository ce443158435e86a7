"""Checks on rates, losses, gradients and the norm of the prompt.

The bounds are ours, chosen so that runs that learn, slowly or fast, give no finding.
"""

import math
from collections.abc import Sequence

import numpy as np

from tpv_jax.core.errors import printable
from tpv_jax.runs.diagnosis.evidence import (
  RATE,
  Evidence,
  Finding,
  another_rate,
  lower_rate,
  peak_rate,
  values,
)

RATE_SMALL, RATE_LARGE = RATE / 10, 20 * RATE
"""Learning rates, in deviations of the embeddings, that are worth a look."""

HARDLY_MOVED = 0.1
"""A prompt has hardly moved if its values differ from the start by less (root mean square, in
deviations of the embeddings)."""

FLAT = 0.02
"""A loss that fell by less than this part has not fallen."""

SOLVED = 0.95
"""An exact match at which no rate is wrong."""

CONVERGED = 0.05
"""A difference of losses that does not matter, in nats per target token."""

EXPLODED = 1.5
"""A loss has exploded if it is this many times what it was at the start."""

OVERFITTED = 1.1
"""The last validation loss in that of the best one."""

LONG = 10.0
"""The norm of a prompt's row in that of an embedding that is worth a look."""

NO_GRADIENT = 1e-8
"""A norm of the gradient at which Adam's steps end."""


def diverged(evidence: Evidence) -> Finding | None:
  """The run ended because a number was not finite."""
  if evidence.manifest.get("status") != "failed":
    return None
  why = evidence.manifest.get("why", "loss, gradient or prompt became NaN or infinite")
  norms = [
    line["gradient_norm"] for line in evidence.train if line.get("gradient_norm")
  ]
  last = f"; the last gradient norms: {_numbers(norms[-3:])}" if norms else ""
  return Finding(
    "diverged",
    "the run diverged",
    f"{printable(str(why))}{last}",
    f"{lower_rate(evidence)}, or clip gradients (optimizers.adamw."
    "clip_norm = 1.0), and start in another folder. With DTYPE = 'bfloat16' also try "
    "'float32'.",
  )


def exploded(evidence: Evidence) -> Finding | None:
  """The loss rose far above where it began."""
  start = evidence.untuned.get("loss")
  if start is None and evidence.train:
    start = evidence.train[0]["loss"]
  ends = (evidence.validation or evidence.train)[-1:]
  if start is None or not ends or evidence.manifest.get("status") == "failed":
    return None
  last = float(ends[0]["loss"])
  if last < EXPLODED * start or last - start < 1.0:
    return None
  return Finding(
    "exploded",
    "the loss exploded",
    f"{start:.4g} before the first step, {last:.4g} after step {ends[0]['step']}.",
    f"{lower_rate(evidence)}, or clip gradients (optimizers.adamw.clip_norm = 1.0).",
  )


def rate_too_small(evidence: Evidence) -> Finding | None:
  """A step is tiny beside the embeddings, and the prompt has hardly moved."""
  size, moved = evidence.step_size, evidence.moved
  if size is None or size >= RATE_SMALL or evidence.learned:
    return None
  if moved is not None and moved >= HARDLY_MOVED:
    return None
  rate = peak_rate(evidence)
  went = (
    "" if moved is None else f" In all, its values moved by {moved:.2g} deviations."
  )
  return Finding(
    "rate_too_small",
    "the learning rate is too small for these embeddings",
    f"LEARNING_RATE = {rate:g} moves a value of the prompt by at most {size:.2g} of the "
    f"embeddings' deviation ({evidence._deviation:.4g}) at each step; about {RATE:g} is "
    f"usual, {RATE / size:,.0f} times as much.{went}",
    f"Set LEARNING_RATE = {evidence.suitable_rate:g}. The rates of fine-tuning are far too "
    "small for a prompt.",
  )


def rate_too_large(evidence: Evidence) -> Finding | None:
  """A step is as large as the embeddings, and answers are not nearly all right."""
  size, exact = evidence.step_size, values(evidence.validation, "exact_match")
  if size is None or size < RATE_LARGE or max(exact, default=0.0) >= SOLVED:
    return None
  return Finding(
    "rate_too_large",
    "the learning rate is too large for these embeddings",
    f"LEARNING_RATE = {peak_rate(evidence):g} moves a value of the prompt by up to "
    f"{size:.2g} times the embeddings' deviation ({evidence._deviation:.4g}) at each "
    f"step; about {RATE:g} is usual.",
    f"Set LEARNING_RATE = {evidence.suitable_rate:g}.",
  )


def warm_up_too_long(evidence: Evidence) -> Finding | None:
  """The learning rate still rises in the second half of the run."""
  rates = [float(rate) for rate in evidence.settings.get("learning_rate") or []]
  if len(rates) != 4 or not all(map(math.isfinite, rates)):
    return None
  first, second, half, last = rates
  if half >= 0.99 * last or second <= first:
    return None
  rise = second - first
  steps = last / rise if rise else math.inf
  length = (
    f"at least {evidence.total_steps}"
    if steps > 0.98 * (evidence.total_steps - 1)
    else f"about {steps:,.0f}"
  )
  return Finding(
    "warm_up_too_long",
    "the warm-up takes most of the run",
    f"The learning rate is {half:g} at step {evidence.total_steps // 2} and {last:g} at the "
    f"last step: it rises over {length} of {evidence.total_steps} steps.",
    f"Set WARMUP_STEPS = {evidence.total_steps // 20}, or more TRAIN_STEPS.",
  )


def flat(evidence: Evidence) -> Finding | None:
  """The loss has not fallen."""
  if evidence.losses is None or exploded(evidence) or diverged(evidence):
    return None
  start, lowest = evidence.losses
  if lowest < (1 - FLAT) * start or start < CONVERGED:
    return None
  where = "validation" if evidence.untuned and evidence.validation else "training"
  moved = evidence.moved
  went = (
    ""
    if moved is None
    else f" The prompt's values moved by {moved:.2g} of the embeddings' deviation."
  )
  return Finding(
    "flat",
    "the loss has not fallen",
    f"{start:.4g} on {where} at the start, {lowest:.4g} at its lowest.{went}",
    f"Try {another_rate(evidence)} or more TRAIN_STEPS; then look at a row of the task as "
    "the model reads it, with 'tpv tasks check' for a task of your own.",
  )


def no_gradient(evidence: Evidence) -> Finding | None:
  """The gradient vanishes although the loss does not."""
  lines = [line for line in evidence.train if line.get("gradient_norm") is not None]
  gone = [
    line
    for line in lines
    if line["gradient_norm"] < NO_GRADIENT and line["loss"] > CONVERGED
  ]
  if not gone or 2 * len(gone) < len(lines):
    return None
  return Finding(
    "no_gradient",
    "the prompt gets no gradient",
    f"The gradient's norm is below {NO_GRADIENT:g} in {len(gone)} of {len(lines)} log "
    f"lines, with a loss of {gone[-1]['loss']:.4g}.",
    "Set DTYPE = 'float32', and LENGTHS so that sources and targets are not empty.",
  )


def long_rows(evidence: Evidence) -> Finding | None:
  """The prompt's rows are far longer than embeddings, and it has not learned."""
  norm = (evidence.embeddings or {}).get("norm")
  if evidence.tuned is None or not norm or evidence.learned:
    return None
  lengths = np.linalg.norm(evidence.tuned.astype(np.float64), axis=1) / norm
  if lengths.mean() < LONG:
    return None
  return Finding(
    "long_rows",
    "the prompt is far longer than embedded tokens",
    f"A row's norm is {lengths.mean():.1f} times that of an embedded token on average, "
    f"{lengths.max():.1f} times at most.",
    f"{lower_rate(evidence)} or set a larger WEIGHT_DECAY.",
  )


def overfitted(evidence: Evidence) -> Finding | None:
  """Validation got worse while training got better."""
  lines, train = evidence.validation, evidence.train
  if len(lines) < 3 or len(train) < 2:
    return None
  best, last = min(lines, key=lambda line: line["loss"]), lines[-1]
  rise = last["loss"] - best["loss"]
  if last["loss"] < OVERFITTED * best["loss"] or rise < CONVERGED:
    return None
  then = [line for line in train if line["step"] <= best["step"]] or train[:1]
  if train[-1]["loss"] >= then[-1]["loss"]:
    return None
  rows = evidence.counts("train").get("examples")
  epochs = ""
  if rows and (batch := evidence.settings.get("data", {}).get("batch_size")):
    seen = last["step"] * batch / rows
    epochs = f" The {rows} training rows were seen {seen:.3g} times."
  return Finding(
    "overfitted",
    "it overfits",
    f"On validation the loss rose from {best['loss']:.4g} (step {best['step']}) to "
    f"{last['loss']:.4g} (step {last['step']}), in training it fell from "
    f"{then[-1]['loss']:.4g} to {train[-1]['loss']:.4g}.{epochs}",
    f"The best prompt is kept, so nothing is lost; TRAIN_STEPS = {best['step']} saves time. "
    "More training rows, a shorter PROMPT_LENGTH or a larger WEIGHT_DECAY may score higher.",
  )


def worse_again(evidence: Evidence) -> Finding | None:
  """The first validation was the best, and training does not explain it."""
  lines = evidence.validation
  if len(lines) < 3 or overfitted(evidence) or exploded(evidence):
    return None
  best = min(lines, key=lambda line: line["loss"])
  if (
    best is not lines[0] or min(x["loss"] for x in lines[1:]) < best["loss"] + CONVERGED
  ):
    return None
  return Finding(
    "worse_again",
    "the first validation was the best",
    f"The validation loss is {best['loss']:.4g} after step {best['step']}, and at least "
    f"{min(line['loss'] for line in lines[1:]):.4g} later.",
    f"{lower_rate(evidence)}, or let it fall: LEARNING_RATE_FN = @optimizers.linear().",
  )


def still_improving(evidence: Evidence) -> Finding | None:
  """The last validation was the best, by far."""
  lines = evidence.validation
  if len(lines) < 2 or evidence.manifest.get("status") != "finished":
    return None
  before = min(line["loss"] for line in lines[:-1])
  last = lines[-1]["loss"]
  if before - last < max(CONVERGED, 0.05 * before):
    return None
  how = "the same command continues the run unless its learning rate depends on where it ends"
  if "bank" in evidence.manifest:
    how = "the prompts of a bank end together, so in another OUTPUT_DIR"
  return Finding(
    "still_improving",
    "it was still improving when it ended",
    f"The last validation loss, {last:.4g} after step {lines[-1]['step']}, is the best; "
    f"the best before it was {before:.4g}.",
    f"Give more TRAIN_STEPS, such as {2 * evidence.total_steps}: {how}.",
  )


def _numbers(values: Sequence[float]) -> str:
  return ", ".join(f"{value:.3g}" for value in values)
