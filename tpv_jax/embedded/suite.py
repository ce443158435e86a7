"""The embedded suite: small generated tasks on which prompt tuning really works.

Texts come from `tpv_jax.embedded.grammar`. Each task has its own label words, which were
one of several label sets of that attribute in the backbone's pre-training. So a prompt has
to select both the task and the words. No text is in two splits, and none was used in
pre-training.
"""

import functools
import hashlib
import random
from collections.abc import Sequence

from tpv_jax.core.checks import checked
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.data.recipes import Recipe
from tpv_jax.data.tasks import Example, Task
from tpv_jax.embedded import grammar, lexicon

TASKS = tuple(lexicon.LABEL_SETS)
"""The names of the tasks."""

LENGTHS = {"inputs": 24, "targets": 2}
"""The longest source and target in tokens, EOS included; no example is longer."""

SIZES = {"train": 2000, "validation": 250, "test": 500}
"""How many different examples a split has."""

SEED = 0
"""Seed of the examples; with any other seed, too, splits are disjoint."""


@checked
def task(name: str) -> Task:
  """Returns the task `name` of `TASKS`; its own metric is exact match.

  Raises:
    UserError: there is no such task.
  """
  if name not in TASKS:
    raise UserError(
      f"There is no embedded task '{name}'.{near_misses(name, TASKS)} The tasks are "
      f"{', '.join(TASKS)}."
    )
  return Task(
    name=name,
    labels=lexicon.labels(name),
    metric="exact_match",
    load=functools.partial(examples, name),
    recipe=Recipe(
      task=name,
      template="{text}",
      target="label",
      labels={word: word for word in lexicon.labels(name)},
    ),
  )


@checked
def tasks(names: Sequence[str] | None = None) -> tuple[Task, ...]:
  """Returns the tasks of `names`, or all of them.

  Raises:
    UserError: `names` is a string instead of a list, or there is no such task.
  """
  return tuple(task(name) for name in (TASKS if names is None else names))


@functools.cache
def examples(name: str, split: str, seed: int = SEED) -> tuple[Example, ...]:
  """Returns `SIZES[split]` different examples: a pure function of its arguments."""
  digest = hashlib.sha256(f"{seed}/{name}/{split}".encode()).digest()
  randomness = random.Random(int.from_bytes(digest, "little"))
  labels = lexicon.labels(name)
  found: dict[str, Example] = {}
  left = [SIZES[split] // len(labels)] * len(labels)
  for label in range(SIZES[split] % len(labels)):
    left[label] += 1
  while any(left):
    text, label = grammar.draw(name, split, randomness)
    if left[label] and text not in found:
      found[text] = Example(text, labels[label])
      left[label] -= 1
  return tuple(found.values())
