"""Fisher-weighted averages of vectors: docs/methods.md, (4.27) and (4.28)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.core.screen import Bar
from tpv_jax.data.tasks import Task
from tpv_jax.devices import partitioning, processes
from tpv_jax.evaluation.merging.label_rows import Labels
from tpv_jax.evaluation.merging.subject import Outcome, Subject, digest_of, examples_of
from tpv_jax.model import Batch, Params, SoftPromptModel
from tpv_jax.prompts.equations import Folded
from tpv_jax.vectors import algebra, arithmetic
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging.by_data import Fisher
from tpv_jax.vectors.merging.sums import shares

FLOORED = 0.5
"""The share of values at the floor from which on the result is said to be mostly average."""


def averaged(rule: Fisher, subject: Subject) -> Outcome:
  """Returns sum_i w_i F_i v_i / sum_i w_i F_i.

  Raises:
    UserError: a weight is below 0, or a vector is not of one task among the subject's or
      was not taken from this initial prompt.
  """
  parts = shares(subject.weights)
  owners = [_task_of(vector, subject.tasks) for vector in subject.vectors]
  notes = _check_origins(subject)
  found = diagonals(rule, subject, owners)
  floored, weights = [], []
  for weight, one in zip(parts, found, strict=True):
    low = [leaf < rule.fisher_floor for leaf in one.values()]
    floored.append(float(np.mean(np.concatenate([part.reshape(-1) for part in low]))))
    floor = np.float32(rule.fisher_floor)
    raised = {name: np.maximum(leaf, floor) for name, leaf in one.items()}
    scale = weight / arithmetic.norm(raised)
    weights.append({name: scale * leaf for name, leaf in raised.items()})
  leaves = {
    name: np.sum(
      [
        one[name] * vector.leaves[name].astype(np.float64)
        for one, vector in zip(weights, subject.vectors, strict=True)
      ],
      axis=0,
    )
    / np.sum([one[name] for one in weights], axis=0)
    for name in subject.vectors[0].leaves
  }
  for vector, share in zip(subject.vectors, floored, strict=True):
    if share > FLOORED:
      notes.append(
        f"{share:.0%} of the Fisher values of '{vector.name}' are below fisher_floor "
        f"{rule.fisher_floor:g}, where it counts as in an average"
      )
  report = [
    {
      "vector": vector.name,
      "task": subject.tasks[owner].name,
      "norm": arithmetic.norm(one),
      "below_floor": share,
    }
    for vector, owner, one, share in zip(
      subject.vectors, owners, found, floored, strict=True
    )
  ]
  read = (subject.tasks[owner] for owner in owners)
  rows = sum(len(examples_of(rule, one)) * len(one.labels or ()) for one in read)
  return Outcome(
    leaves=leaves,
    notes=tuple(notes),
    report={"fisher": report},
    tasks=[subject.tasks[owner] for owner in sorted(set(owners))],
    gradient_rows=rows,
  )


def diagonals(
  rule: Fisher, subject: Subject, owners: Sequence[int]
) -> list[dict[str, Float32[np.ndarray, "P D"]]]:
  """Returns the diagonal Fisher information of each vector's tuned prompt, by leaf.

  All vectors are a bank, whose rows share calls of one compiled function; sums over
  examples are in fp32. What the subject remembers of earlier merges is not computed again.

  Args:
    rule: says which examples are read.
    subject: the vectors, and where they are tried.
    owners: for each vector the index of its task.
  """
  keys = [
    (
      *("fisher", identity.prompt_digest(subject.prompt(vector) or {})),
      *(subject.tasks[owner].name, digest_of(rule, subject.tasks[owner])),
    )
    for vector, owner in zip(subject.vectors, owners, strict=True)
  ]
  new = [place for place, key in enumerate(keys) if key not in subject.memory]
  if new:
    some = dataclasses.replace(subject, vectors=[subject.vectors[i] for i in new])
    found = _diagonals(rule, some, [owners[i] for i in new])
    subject.memory.update(zip([keys[i] for i in new], found, strict=True))
  return [subject.memory[key] for key in keys]


def _diagonals(
  rule: Fisher, subject: Subject, owners: Sequence[int]
) -> list[dict[str, Float32[np.ndarray, "P D"]]]:
  """Returns what `diagonals` does, computed now."""
  evaluator = subject.evaluator
  prompts = [subject.prompt(vector) or {} for vector in subject.vectors]
  for leaves in prompts:
    evaluator.refuse_long_rows(leaves)
  used = sorted(set(owners))
  tasks = [subject.tasks[owner] for owner in used]
  labels = Labels.of(tasks, evaluator.vocabulary, evaluator.lengths["targets"])
  tokenized = [
    evaluator.tokenize(examples_of(rule, task), f"{task.name}, {rule.split}")
    for task in tasks
  ]
  places = [used.index(owner) for owner in owners]
  sources = np.concatenate([tokenized[place].inputs for place in places])
  counts = [len(tokenized[place]) for place in places]
  prompt_ids = np.repeat(np.arange(len(places)), counts)
  task_ids = np.repeat(places, counts)
  size = evaluator.to_grain(rule.batch_size // labels.most)
  whole = partitioning.replicated(subject.mesh)
  bank = {
    name: processes.put(np.stack([leaves[name] for leaves in prompts]), whole)
    for name in prompts[0]
  }

  def add(sums: Any, bank: Any, backbone: Any, block: Any) -> Any:
    evaluator.work.compiled += 1  # Runs only while JAX traces the function.
    found = squares(evaluator.model, bank, backbone, block)
    return jax.tree.map(jnp.add, sums, found)

  step = subject.once(("squares",), lambda: jax.jit(add, out_shardings=whole))
  sums: Any = {
    name: processes.put(np.zeros(leaf.shape, np.float32), whole)
    for name, leaf in bank.items()
  }
  bar = functools.partial(Bar, desc="Fisher", unit="example", leave=False)
  with bar(total=len(sources), disable=not evaluator.progress) as shown:
    for first in range(0, len(sources), size):
      rows = np.arange(first, first + size)
      there = rows < len(sources)
      rows = np.where(there, rows, first)  # The last call is filled with copies.
      block = {
        **labels.features(sources[rows], task_ids[rows]),
        "prompt_ids": prompt_ids[rows].astype(np.int32),
        "known": labels.known[task_ids[rows]],
        "weights": there.astype(np.float32),
      }
      placed = processes.put_all(block, partitioning.batch_sharding(subject.mesh))
      sums = step(sums, bank, evaluator.backbone, placed)
      subject.note_gradients(len(prompts[0]["prompt"]), block)
      shown.update(int(there.sum()))
  totals = jax.device_get(sums)
  return [
    {name: leaf[k] / np.float32(count) for name, leaf in totals.items()}
    for k, count in enumerate(counts)
  ]


def squares(
  model: SoftPromptModel,
  bank: Mapping[str, Float[Array, "N P D"]],
  backbone: Params,
  block: Batch,
) -> dict[str, Float[Array, "N P D"]]:
  """Returns sum_x sum_y p(y|x) (d log p(y|x))^2 for each prompt of a bank, in fp32.

  p is over the known labels of an example. Every row has a prompt of its own, so that one
  backward pass gives the gradient of each row's log-probability s: with these,
  d log p(y) = ds_y - sum_z p(z) ds_z.

  Args:
    model: scores rows.
    bank: the leaves of folded prompts.
    backbone: the frozen parameters.
    block: the features of [E * C] rows; of the E examples `prompt_ids` [E], which labels
      are `known` [E, C], and `weights` [E], 0 for an example that does not count.
  """
  ids, known = jnp.asarray(block["prompt_ids"]), jnp.asarray(block["known"])
  examples, labels = known.shape
  rows = {name: jnp.repeat(leaf[ids], labels, axis=0) for name, leaf in bank.items()}
  scores, pull_back = jax.vjp(_scorer(model, backbone, block), rows)
  (gradients,) = pull_back(jnp.ones_like(scores))
  p = jax.nn.softmax(
    jnp.where(known, scores.reshape(examples, labels), -jnp.inf), axis=1
  )
  counted = p * jnp.asarray(block["weights"])[:, None]

  def summed(gradient: Float[Array, "rows P D"]) -> Float[Array, "N P D"]:
    each = gradient.astype(jnp.float32).reshape(examples, labels, *gradient.shape[1:])
    centred = each - jnp.einsum("ec,ecpd->epd", p, each)[:, None]
    of_example = jnp.einsum("ec,ecpd->epd", counted, jnp.square(centred))
    return jax.ops.segment_sum(
      of_example, ids, num_segments=len(next(iter(bank.values())))
    )

  return {name: summed(gradient) for name, gradient in gradients.items()}


def _scorer(
  model: SoftPromptModel, backbone: Params, block: Batch
) -> Callable[[Mapping[str, Array]], Float[Array, " rows"]]:
  return lambda leaves: model.score_rows(Folded.of(leaves), backbone, block)


def _task_of(vector: Loaded, tasks: Sequence[Task]) -> int:
  """Returns the index of the one task that a vector is of."""
  terms, names = vector.provenance.terms, [task.name for task in tasks]
  if len(terms) != 1 or terms[0].merge is not None or terms[0].coefficient != 1:
    raise UserError(
      f"'{vector.name}' is not the vector of one task, and the merge rule 'fisher' asks how "
      "much the answers of each vector's task depend on each value. Give vectors of single "
      "tasks (tpv diff)."
    )
  (term,) = terms
  if term.task is None:
    raise UserError(
      f"'{vector.name}' does not state its task, by which the merge rule 'fisher' finds "
      "the examples. Make it again with its name: tpv diff ... --task NAME."
    )
  if term.task not in names:
    raise UserError(
      f"'{vector.name}' is of the task '{term.task}', which is not among the tasks "
      f"{', '.join(names)}.{near_misses(term.task, names)} Add it to TASKS."
    )
  return names.index(term.task)


def _check_origins(subject: Subject) -> list[str]:
  """Returns what is not known of the vectors' origins; refuses another initial prompt."""
  notes = []
  for vector in subject.vectors:
    moved = algebra.apply(vector, subject.initial).provenance.cross_origin
    if moved:
      raise UserError(
        f"INITIAL is not the initial prompt of '{vector.name}', at whose tuned prompt the "
        "merge rule 'fisher' takes gradients. Give the one that it was trained from."
      )
    if moved is None:
      notes.append(
        f"that '{vector.name}' was trained from this initial prompt is the user's word"
      )
  return notes
