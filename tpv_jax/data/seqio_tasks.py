"""Our tasks as seqio tasks, for T5X: the one module that imports TensorFlow and seqio.

Importing it registers the embedded suite as `tpv_embedded_<task>` (T5X's
`MIXTURE_OR_TASK_MODULE` expects tasks to be there after an import). Token ids are those
of `batches.tokenize`. Needs the extra `data`.
"""

from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from tpv_jax.data import metrics, suite, vocabularies
from tpv_jax.data.batches import order
from tpv_jax.data.tasks import SPLITS, Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.errors import UserError

PREFIX = "tpv_embedded_"
"""Of the names of the embedded suite among seqio's tasks."""


class SeqioVocabulary(seqio.Vocabulary):
  """One of our vocabularies as seqio's; equal ids, because ours does all the work."""

  def __init__(self, vocabulary: Vocabulary):
    """Wraps `vocabulary`, whose extra ids count as ordinary ones."""
    super().__init__(extra_ids=0)
    self.vocabulary = vocabulary

  @property
  def bos_id(self) -> None:
    """None: T5's decoder starts from padding."""
    return None

  @property
  def eos_id(self) -> int:
    """The id that ends a text."""
    return self.vocabulary.eos_id

  @property
  def unk_id(self) -> int:
    """The id of what the vocabulary cannot say."""
    return self.vocabulary.unk_id

  @property
  def _base_vocab_size(self) -> int:
    return self.vocabulary.vocab_size

  def _encode(self, s: str) -> list[int]:
    return self.vocabulary.encode(s)

  def _decode(self, ids: Any) -> str:
    return self.vocabulary.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text: bytes | np.ndarray) -> np.ndarray:
      # TensorFlow gives bytes in a graph, an array of no dimension otherwise.
      decoded = np.asarray(text, object).item().decode()
      return np.asarray(self.vocabulary.encode(decoded), np.int32)

    ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
    return tf.ensure_shape(ids, [None])

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(rows: np.ndarray) -> np.ndarray:
      texts = [self.vocabulary.decode(row) for row in rows.reshape(-1, rows.shape[-1])]
      return np.array([t.encode() for t in texts], object).reshape(rows.shape[:-1])

    texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
    return tf.ensure_shape(texts, ids.shape[:-1])

  def __eq__(self, other: object) -> bool:
    """Returns whether both wrap vocabularies of equal content."""
    return (
      isinstance(other, SeqioVocabulary)
      and self.vocabulary.digest == other.vocabulary.digest
    )

  def __hash__(self) -> int:
    """Returns a hash of the content."""
    return hash(self.vocabulary.digest)


def seqio_vocabulary(vocabulary: Vocabulary) -> seqio.Vocabulary:
  """Returns seqio's vocabulary of the same ids: its own for SentencePiece, or ours."""
  if isinstance(vocabulary, vocabularies.SentencePieceVocabulary):
    return seqio.SentencePieceVocabulary(
      str(vocabulary.path), extra_ids=vocabulary.extra_ids
    )
  return SeqioVocabulary(vocabulary)


def register(task: Task, vocabulary: Vocabulary, name: str | None = None) -> seqio.Task:
  """Registers a task with seqio and returns it.

  Its features are 'inputs' and 'targets', trimmed to the lengths that the caller of
  `get_dataset` gives and then ended by EOS; shuffled data follows the seed given there
  (None: 0). Its metrics, of generated text, are exact
  match and the task's own.

  Args:
    task: gives the texts, when seqio first asks for them.
    vocabulary: of both features.
    name: among seqio's tasks; the task's own by default.

  Raises:
    UserError: seqio has a task or a mixture of that name.
  """
  name = name or task.name
  if name in seqio.TaskRegistry.names() | seqio.MixtureRegistry.names():
    raise UserError(
      f"seqio has a task or mixture '{name}' already. Register it under another name."
    )
  names = {"exact_match", task.metric} - {"label_accuracy"}

  def dataset(
    split: str, shuffle_files: bool = False, seed: int | None = None
  ) -> tf.data.Dataset:
    examples = task.examples(split)
    if shuffle_files:
      # seqio shuffles among 1,000 neighbours only, and repeats before it shuffles.
      examples = tuple(examples[i] for i in order(len(examples), seed or 0))
    return tf.data.Dataset.from_tensor_slices(
      {
        "inputs": [example.inputs for example in examples],
        "targets": [example.targets for example in examples],
      }
    )

  def scores(targets: list[str], predictions: list[str]) -> dict[str, float]:
    return metrics.compute(sorted(names), targets, predictions, task.labels)

  feature = seqio.Feature(seqio_vocabulary(vocabulary), add_eos=True)
  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(dataset, splits=SPLITS),
    preprocessors=[
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos_after_trim,
    ],
    output_features={"inputs": feature, "targets": feature},
    metric_fns=[scores],
  )


def register_suite() -> tuple[str, ...]:
  """Registers the embedded tasks that are not yet, and returns the names of all."""
  for name in suite.TASKS:
    if PREFIX + name not in seqio.TaskRegistry.names():
      register(suite.task(name), vocabularies.embedded(), PREFIX + name)
  return tuple(PREFIX + name for name in suite.TASKS)


register_suite()
