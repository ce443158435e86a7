"""Coefficients of a sum that are learned by gradient: docs/methods.md, (4.30) and (4.31)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from tpv_jax.core.screen import Bar
from tpv_jax.data import batches
from tpv_jax.devices import partitioning, processes
from tpv_jax.evaluation.merging.label_rows import Labels
from tpv_jax.evaluation.merging.subject import Outcome, Subject, examples_of
from tpv_jax.model import Batch, Params, SoftPromptModel
from tpv_jax.prompts.equations import Folded
from tpv_jax.vectors import algebra
from tpv_jax.vectors.merging.by_data import AdaMerging

Stacked = Mapping[str, Float[Array, "N P D"]]
"""The leaves of N vectors."""

Coefficients = Float[Array, " N"] | Mapping[str, Float[Array, "N P"]]
"""One for each vector; or by leaf, for each vector and row."""

_MASKED = -1e9
"""The log-probability of what is no label: its exponential is 0, and it is finite."""


def learned(rule: AdaMerging, subject: Subject) -> Outcome:
  """Returns the sum with the coefficients after the last step.

  A step has as many examples of each task as `batch_size` says; its calls are of one task
  each and of equal shape, so that one function is compiled. For the entropy a source is
  encoded once, behind the prompt, and all labels of its task are scored against it.
  """
  evaluator = subject.evaluator
  start = dict(algebra.fold(subject.initial).leaves)
  evaluator.refuse_long_rows(start)
  stacked = {
    name: np.stack([vector.leaves[name] for vector in subject.vectors])
    for name in start
  }
  length = len(start["prompt"])
  feeds = _Feeds(rule, subject, length)
  whole = partitioning.replicated(subject.mesh)

  def put(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: processes.put(leaf, whole), tree)

  take = subject.once(
    ("gradient", rule.objective, len(subject.tasks)),
    lambda: jax.jit(_gradient(rule.objective, subject), out_shardings=whole),
  )
  optimizer = optax.adam(rule.learning_rate)
  move = subject.once(
    ("adam", rule.learning_rate),
    lambda: jax.jit(_update(optimizer, subject), out_shardings=whole),
  )
  fixed = put((start, stacked))
  coefficients = put(_initial(rule, stacked))
  nothing = put((np.zeros((), np.float32), jax.tree.map(np.zeros_like, coefficients)))
  state = put(jax.device_get(optimizer.init(coefficients)))
  values = []
  bar = functools.partial(Bar, desc="coefficients", unit="step", leave=False)
  with bar(range(rule.steps), disable=not evaluator.progress) as steps:
    for step in steps:
      sums = nothing
      for place in range(len(subject.tasks)):
        block = feeds.batch(place, step)
        batch = processes.put_all(block, partitioning.batch_sharding(subject.mesh))
        sums = take(coefficients, sums, *fixed, evaluator.backbone, batch)
        subject.note_gradients(length, block)
      coefficients, state = move(coefficients, state, sums[1])
      values.append(sums[0])
  return _outcome(
    subject,
    jax.device_get(coefficients),
    [float(one) for one in jax.device_get(values)],
    rule.steps * feeds.size * len(subject.tasks),
  )


def _gradient(kind: str, subject: Subject) -> Callable[..., Any]:
  """Returns what adds the objective of a task, and its gradient, to those of others."""
  evaluator, part = subject.evaluator, 1 / len(subject.tasks)

  def add(
    coefficients: Any, sums: Any, start: Any, stacked: Any, backbone: Any, batch: Any
  ) -> Any:
    evaluator.work.compiled += 1  # Runs only while JAX traces the function.
    value, found = jax.value_and_grad(objective)(
      coefficients, start, stacked, evaluator.model, backbone, batch, kind
    )
    total, gradients = sums
    added = jax.tree.map(lambda one, more: one + part * more, gradients, found)
    return total + part * value, added

  return add


def _update(
  optimizer: optax.GradientTransformation, subject: Subject
) -> Callable[..., Any]:
  """Returns a step of the optimizer."""

  def update(coefficients: Any, state: Any, gradients: Any) -> Any:
    subject.evaluator.work.compiled += 1  # Runs only while JAX traces the function.
    changes, state = optimizer.update(gradients, state)
    return optax.apply_updates(coefficients, changes), state

  return update


def objective(
  coefficients: Coefficients,
  start: Mapping[str, Float[Array, "P D"]],
  stacked: Stacked,
  model: SoftPromptModel,
  backbone: Params,
  batch: Batch,
  kind: str,
) -> Float[Array, ""]:
  """Returns the mean entropy of an example's label words, or the mean loss of a token.

  Args:
    coefficients: of the vectors.
    start: the leaves of the initial prompt, folded.
    stacked: the vectors.
    model: scores rows.
    backbone: the frozen parameters.
    batch: rows of one task; for the entropy those of `Labels.packed`, and which labels
      are `known` [E, C].
    kind: 'entropy' or 'loss'.
  """
  leaves = merged(coefficients, start, stacked)
  if kind == "loss":
    scores = model.score_rows(Folded.of(leaves), backbone, batch)
    # The weights are those of `data.batches.features`: 1 for each target token.
    return -jnp.sum(scores) / batches.target_count(batch)
  batch = dict(batch)
  known = batch.pop("known")
  bank = Folded.of({name: leaf[None] for name, leaf in leaves.items()})
  choices, _ = model.score_choices(bank, backbone, batch)
  scores = choices[:, 1 : known.shape[1] + 1]
  logits = jax.nn.log_softmax(jnp.where(known, scores, _MASKED))
  return -jnp.mean(jnp.sum(jnp.exp(logits) * logits, axis=1))


def merged(
  coefficients: Coefficients,
  start: Mapping[str, Float[Array, "P D"]],
  stacked: Stacked,
) -> dict[str, Float[Array, "P D"]]:
  """Returns the initial prompt plus the sum of the vectors times their coefficients."""

  def added(name: str) -> Float[Array, "P D"]:
    if isinstance(coefficients, Mapping):
      return jnp.einsum("np,npd->pd", coefficients[name], stacked[name])
    return jnp.einsum("n,npd->pd", coefficients, stacked[name])

  return {name: leaf + added(name) for name, leaf in start.items()}


class _Feeds:
  """The batches of each task, in an order of its own from the rule's seed."""

  def __init__(self, rule: AdaMerging, subject: Subject, length: int):
    """Tokenizes the examples; `length` is P, that of the prompt."""
    evaluator = subject.evaluator
    self._length = length
    self.size = size = evaluator.to_grain(rule.batch_size)
    tokenized = [
      evaluator.tokenize(examples_of(rule, task), f"{task.name}, {rule.split}")
      for task in subject.tasks
    ]
    self._batches = [batches.Batches(one, size, rule.seed) for one in tokenized]
    self._labels: Labels | None = None
    if rule.objective == "entropy":
      longest = evaluator.lengths["targets"]
      self._labels = Labels.of(subject.tasks, evaluator.vocabulary, longest)

  def batch(self, place: int, step: int) -> batches.Features:
    """Returns the batch of a task at a step."""
    found = self._batches[place]
    if self._labels is None:
      return found.batch_at(step)
    rows = found.rows_at(step)
    tasks = np.full(len(rows), place)
    sources = found.tokenized.inputs[rows]
    features = self._labels.packed(sources, tasks, self._length)
    return {**features, "known": self._labels.known[tasks]}


def _initial(rule: AdaMerging, stacked: Mapping[str, np.ndarray]) -> Any:
  def full(shape: Sequence[int]) -> np.ndarray:
    return np.full(shape, rule.initial_coefficient, np.float32)

  if rule.per_token:
    return {name: full(leaf.shape[:2]) for name, leaf in stacked.items()}
  return full((len(next(iter(stacked.values()))),))


def _outcome(
  subject: Subject, found: Any, values: Sequence[float], rows: int
) -> Outcome:
  report: dict[str, Any] = {"objective": list(values)}
  if not isinstance(found, Mapping):
    return Outcome(np.asarray(found, np.float64), report=report, gradient_rows=rows)
  exact = {name: np.asarray(one, np.float64) for name, one in found.items()}
  leaves = {
    name: np.einsum(
      "np,npd->pd",
      one,
      np.stack([vector.leaves[name] for vector in subject.vectors]).astype(np.float64),
    )
    for name, one in exact.items()
  }
  report["coefficients"] = {name: one.tolist() for name, one in exact.items()}
  return Outcome(leaves=leaves, report=report, gradient_rows=rows)
