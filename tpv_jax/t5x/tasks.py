"""Tasks for T5X by name: ours, registered with seqio, or one that seqio knows."""

import importlib
from collections.abc import Sequence

import gin

from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.core.files import PathLike
from tpv_jax.data import registry
from tpv_jax.data.labels import check_labels
from tpv_jax.data.papers import definition
from tpv_jax.data.tasks import Task
from tpv_jax.data.vocabularies import Vocabulary

PREFIX = "tpv_"
"""The prefix of our tasks' names in seqio."""

_STREAMED: dict[str, tuple[str, int]] = {}
"""The data directory and the seed of each task that `streamed` registered."""


def registered(task: Task, vocabulary: Vocabulary) -> str:
  """Returns the name under which seqio has one of our tasks, registering it if needed.

  Raises:
    UserError: seqio's task of that name has another vocabulary, or the vocabulary cannot
      write a label.
  """
  import seqio

  from tpv_jax.data import seqio_tasks

  name = PREFIX + task.name
  if name not in seqio.TaskRegistry.names():
    seqio_tasks.register(task, vocabulary, name)
  named(name, vocabulary)
  if task.labels is not None:
    check_labels(task.labels, vocabulary, whose=f"task '{task.name}'")
  return name


def streamed(
  name: str,
  vocabulary: Vocabulary,
  data_dir: PathLike | None = None,
  seed: int = definition.SEED,
) -> str:
  """Returns seqio's name of a task of the registry that streams its raw rows.

  It is registered if needed. `registered` with an exported task gives the same examples,
  but holds them in memory.

  Args:
    name: in `registry.DEFINITIONS`.
    vocabulary: the backbone's.
    data_dir: see `sources.data_directory`.
    seed: of the splits.

  Raises:
    UserError: there is no such task, the vocabulary cannot write one of its labels, or
      seqio's task of that name has another vocabulary, data directory or seed.
  """
  import seqio

  from tpv_jax.data import seqio_tasks, sources

  which = registry.definition(name)
  if which.words is not None:
    check_labels(which.words, vocabulary, whose=f"task '{name}'")
  wanted = (str(sources.data_directory(data_dir)), seed)
  if (found := PREFIX + name) not in seqio.TaskRegistry.names():
    seqio_tasks.register_streamed(which, vocabulary, data_dir, seed, found)
    _STREAMED[found] = wanted
  elif (there := _STREAMED.get(found, wanted)) != wanted:
    raise UserError(
      f"seqio's task '{found}' streams from '{there[0]}' with seed {there[1]} in this "
      f"process, so it cannot stream from '{wanted[0]}' with seed {wanted[1]} as well. "
      "Use one data directory and seed, or another process."
    )
  return named(found, vocabulary)


def name_of(mixture: str) -> str:
  """Returns a task's name for provenance: our own if `streamed` registered it."""
  return mixture.removeprefix(PREFIX) if mixture in _STREAMED else mixture


def named(name: str, vocabulary: Vocabulary, modules: Sequence[str] = ()) -> str:
  """Returns the name of a task or mixture of seqio, after checking its vocabulary.

  Args:
    name: of the task or mixture.
    vocabulary: the backbone's.
    modules: imported first, so that their tasks are registered.

  Raises:
    UserError: there is no such task or mixture; its vocabulary cannot be read or is another
      one; or its sources end as T5's, and the vocabulary is a decoder-only model's.
  """
  import seqio
  import tensorflow as tf

  import tpv_jax.embedded.seqio_tasks  # noqa: F401  (registers its tasks)
  from tpv_jax.data import seqio_tasks

  for module in modules:
    try:
      # T5X has locked gin by now, and the T5 package registers configurables.
      with gin.unlock_config():
        importlib.import_module(module)
    except ModuleNotFoundError as error:
      raise UserError(
        f"Cannot import '{module}', which should register the task '{name}' ({error}). "
        "Install it, or put its folder on PYTHONPATH."
      ) from error
  known = seqio.TaskRegistry.names() | seqio.MixtureRegistry.names()
  if name not in known:
    raise UserError(
      f"seqio has no task or mixture '{name}'.{near_misses(name, known)} Name the "
      "modules that register it: --gin.TASK_MODULES='[\"t5.data.mixtures\"]'."
    )
  features = seqio.get_mixture_or_task(name).output_features
  expected = seqio_tasks.seqio_vocabulary(vocabulary)
  for feature in ("inputs", "targets"):
    if feature not in features:
      raise UserError(
        f"seqio's task '{name}' has the features {', '.join(features)}; prompt tuning needs "
        "'inputs' and 'targets'. Choose a text-to-text task."
      )
    found = features[feature].vocabulary
    try:
      same = seqio_tasks.is_same(found, expected)
    except (OSError, tf.errors.OpError) as error:
      raise UserError(
        f"The vocabulary of seqio's task '{name}' cannot be read ({error}), so it cannot "
        "be compared with the backbone's. Go online, or have a module of TASK_MODULES "
        "register the task with a copy of it."
      ) from error
    if not same:
      raise UserError(
        f"The {feature} of seqio's task '{name}' have the vocabulary {found}, the backbone "
        f"has {expected}: ids would mean other words. Choose the task's VOCABULARY_FILE, "
        "or a task with the backbone's."
      )
  if vocabulary.first_id and features["inputs"].add_eos:
    raise UserError(
      f"seqio's task '{name}' puts an end token behind each source, as T5's have it; a "
      "decoder-only model would take the text to be over there. Choose a file of "
      "gin_configs/tasks, or register the task by tpv_jax.data.seqio_tasks.register."
    )
  return name
