"""Our tasks as seqio tasks, for T5X: the only module that imports TensorFlow and seqio.

Token ids are those of `batches.tokenize`, for T5's vocabularies and for those of
decoder-only models. Needs the extra `data`.
"""

import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from tpv_jax.core.errors import UserError
from tpv_jax.core.files import PathLike
from tpv_jax.data import exported, sources, tokenizer_files, vocabularies
from tpv_jax.data.batches import order, source_ids, target_ids
from tpv_jax.data.labels import check_labels, check_task, spelling
from tpv_jax.data.papers import definition
from tpv_jax.data.papers.definition import Definition
from tpv_jax.data.tasks import SPLITS, Example, Task, collapsed_source
from tpv_jax.data.vocabularies import Vocabulary


class SeqioVocabulary(seqio.Vocabulary):
  """One of our vocabularies as a seqio vocabulary; it gives the same ids."""

  def __init__(self, vocabulary: Vocabulary):
    """Wraps `vocabulary`, whose extra ids count as ordinary ones."""
    super().__init__(extra_ids=0)
    self.vocabulary = vocabulary

  @property
  def bos_id(self) -> None:
    """None: T5's decoder starts from padding, and `source_start` is in the sources."""
    return None

  @property
  def eos_id(self) -> int:
    """The id that ends a text."""
    return self.vocabulary.eos_id

  @property
  def unk_id(self) -> int | None:
    """The id of pieces that are not in the vocabulary; None if every text has ids."""
    return None if self.vocabulary.unk_id < 0 else self.vocabulary.unk_id

  @property
  def _base_vocab_size(self) -> int:
    return self.vocabulary.vocab_size

  def _encode(self, s: str) -> list[int]:
    return self.vocabulary.encode(s)

  def _decode(self, ids: Any) -> str:
    return self.vocabulary.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text: bytes | np.ndarray) -> np.ndarray:
      return np.asarray(self.vocabulary.encode(_text(text)), np.int32)

    ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
    return tf.ensure_shape(ids, [None])

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(rows: np.ndarray) -> np.ndarray:
      texts = [self.vocabulary.decode(row) for row in rows.reshape(-1, rows.shape[-1])]
      return np.array([t.encode() for t in texts], object).reshape(rows.shape[:-1])

    texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
    return tf.ensure_shape(texts, ids.shape[:-1])

  @property
  def identity(self) -> tuple[Any, ...]:
    """What determines the ids of a source and its target."""
    own = self.vocabulary
    chat = own.chat.digest if own.chat else None
    return own.digest, own.source_start, own.source_end, own.end_ids, chat

  def __eq__(self, other: object) -> bool:
    """Returns whether both wrap vocabularies of equal `identity`."""
    return isinstance(other, SeqioVocabulary) and self.identity == other.identity

  def __hash__(self) -> int:
    """Returns a hash of the content."""
    return hash(self.vocabulary.digest)

  def __str__(self) -> str:
    """Returns what tells it from others, for messages."""
    own = self.vocabulary
    chat = " with a chat template" if own.chat else ""
    return f"{own.digest[:12]}… of {own.vocab_size} ids{chat}"


def seqio_vocabulary(vocabulary: Vocabulary) -> seqio.Vocabulary:
  """Returns a seqio vocabulary with the same ids: seqio's own for SentencePiece, or ours."""
  if isinstance(vocabulary, vocabularies.SentencePieceVocabulary):
    return seqio.SentencePieceVocabulary(
      str(vocabulary.path), extra_ids=vocabulary.extra_ids
    )
  return SeqioVocabulary(vocabulary)


def is_same(one: seqio.Vocabulary, other: seqio.Vocabulary) -> bool:
  """Returns whether ids mean the same in both vocabularies, wherever their files lie.

  Two SentencePiece models are compared by their bytes, extra ids included; one of them and
  a vocabulary of ours by their pieces.

  Raises:
    OSError, tf.errors.OpError: a model cannot be read.
  """
  if isinstance(other, seqio.SentencePieceVocabulary):
    one, other = other, one
  if not isinstance(one, seqio.SentencePieceVocabulary):
    return one == other
  if isinstance(other, seqio.SentencePieceVocabulary):
    return one.sp_model == other.sp_model
  pieces = map(one.tokenizer.IdToPiece, range(one.vocab_size))
  ours = isinstance(other, SeqioVocabulary)
  return ours and tokenizer_files.digest(pieces) == other.vocabulary.digest


def register(task: Task, vocabulary: Vocabulary, name: str | None = None) -> seqio.Task:
  """Registers a task with seqio and returns it.

  Its features are 'inputs' and 'targets', with the tokens of `batches.tokenize`, trimmed to
  the lengths that the caller of `get_dataset` gives. Shuffling uses the seed
  given there (None means 0). Its metrics, of generated text, are `Task.scores`.

  Args:
    task: its texts are loaded when seqio first reads them.
    vocabulary: of both features.
    name: among seqio's tasks; the task's own by default.

  Raises:
    UserError: seqio has a task or a mixture of that name; when data are read, a label of
      the task can't be written at those lengths, or no target of the split can.
  """

  def dataset(
    split: str, shuffle_files: bool = False, seed: int | None = None
  ) -> tf.data.Dataset:
    check_task(task, vocabulary, None, (split,))
    examples = task.examples(split)
    if shuffle_files:
      # seqio itself shuffles only among 1,000 neighbours, and repeats before shuffling.
      examples = tuple(examples[i] for i in order(len(examples), seed or 0))
    features = [_features(example) for example in examples]
    return tf.data.Dataset.from_tensor_slices(
      {key: [row[key] for row in features] for key in FEATURES}
    )

  return _add(name or task.name, task, vocabulary, dataset)


def register_streamed(
  which: Definition,
  vocabulary: Vocabulary,
  data_dir: PathLike | None = None,
  seed: int = definition.SEED,
  name: str | None = None,
) -> seqio.Task:
  """Registers a task of the registry over its raw rows, and returns it.

  Nothing is exported or held in memory: rows stream from TFDS's files, or from those of
  `sources.prepare`, and the examples are those of `exported.examples`. Everything else is
  as in `register`, except that examples are shuffled among `NEIGHBOURS`.

  Args:
    which: the task.
    vocabulary: of both features.
    data_dir: see `sources.data_directory`.
    seed: of the splits.
    name: among seqio's tasks; 'tpv_' and the task's by default.

  Raises:
    UserError: seqio has a task or a mixture of that name; at the first use, if the rows
      are not prepared.
  """

  def dataset(
    split: str, shuffle_files: bool = False, seed: int | None = None
  ) -> tf.data.Dataset:
    del shuffle_files, seed  # Rows are chosen by number, so their order is fixed.
    return _streamed(which, split, sources.raw(which, data_dir), split_seed)

  split_seed = seed
  task = exported.task(which.name, data_dir)
  return _add(name or f"tpv_{which.name}", task, vocabulary, dataset, NEIGHBOURS)


FEATURES = ("inputs", "targets", "answers", "group", "fields")
"""The features of an example before it is tokenised; answers and fields are JSON lists."""

NEIGHBOURS = 10_000
"""Size of the buffer in which streamed, tokenised examples are shuffled."""


def _features(example: Example) -> dict[str, str]:
  answers, fields = json.dumps(example.answers), json.dumps(example.fields)
  texts = (example.inputs, example.targets, answers, example.group, fields)
  return dict(zip(FEATURES, texts, strict=True))


def _example(features: dict[str, Any]) -> Example:
  """Returns the example whose features seqio's evaluator kept."""
  names = ("inputs_pretokenized", "targets_pretokenized", "answers", "group")
  inputs, targets, answers, group = (_text(features[name]) for name in names)
  return Example(inputs, targets, tuple(json.loads(answers)), group)


def _text(value: bytes | np.ndarray) -> str:
  # TensorFlow gives bytes in a graph, otherwise an array without axes.
  return np.asarray(value, object).item().decode()


def _add(
  name: str,
  task: Task,
  vocabulary: Vocabulary,
  dataset: Callable[..., tf.data.Dataset],
  neighbours: int = seqio.dataset_providers.SHUFFLE_BUFFER_SIZE,
) -> seqio.Task:
  if name in seqio.TaskRegistry.names() | seqio.MixtureRegistry.names():
    raise UserError(
      f"seqio has a task or mixture '{name}' already. Register it under another name."
    )

  def answer(
    text: str, example: dict[str, Any], is_target: bool
  ) -> str | tuple[Example, str | None]:
    """Returns the prediction; for a target, the example and how its target is written."""
    if not is_target:
      return text
    right = _example(example)
    return right, spelling(right.targets, vocabulary) if example["whole"] else None

  def scores(
    targets: list[tuple[Example, str | None]], predictions: list[str]
  ) -> dict[str, float]:
    examples, written = zip(*targets, strict=True)
    return task.scores(examples, predictions, written)

  feature = functools.partial(seqio.Feature, seqio_vocabulary(vocabulary))
  ended = functools.partial(_ended, task=task, vocabulary=vocabulary)
  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(dataset, splits=SPLITS),
    preprocessors=[functools.partial(_continued, task=task, vocabulary=vocabulary)]
    if vocabulary.first_id
    else [seqio.preprocessors.tokenize, ended],
    output_features={
      "inputs": feature(add_eos=bool(vocabulary.source_end)),
      "targets": feature(add_eos=True),
    },
    postprocess_fn=answer,
    metric_fns=[scores],
    shuffle_buffer_size=neighbours,
  )


def _ended(
  dataset: tf.data.Dataset,
  output_features: dict[str, Any],
  sequence_length: dict[str, int] | None = None,
  *,
  task: Task,
  vocabulary: Vocabulary,
) -> tf.data.Dataset:
  """Returns tokenised examples with EOS; sources that are too long are cut as in `batches`.

  The feature 'whole' says whether the target is short enough not to be cut.
  """
  del output_features
  lengths = _checked_lengths(sequence_length, task, vocabulary)
  most = lengths.get("inputs")
  eos = tf.constant([vocabulary.eos_id], tf.int32)

  def shortened(text: bytes, fields: bytes) -> np.ndarray:
    ids, _ = source_ids(_asked(text, fields), vocabulary, most or 1)
    return np.asarray(ids, np.int32)

  def ended(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    inputs = tf.concat([row["inputs"], eos], axis=0)
    targets = tf.concat([row["targets"], eos], axis=0)
    if most is not None:
      texts = [row["inputs_pretokenized"], row["fields"]]
      inputs = tf.cond(
        tf.size(inputs) > most,
        lambda: tf.numpy_function(shortened, texts, tf.int32, stateful=False),
        lambda: inputs,
      )
      inputs = tf.ensure_shape(inputs, [None])
    whole = tf.size(targets) <= lengths.get("targets", tf.int32.max)
    return {**row, "inputs": inputs, "targets": targets, "whole": whole}

  return dataset.map(ended, num_parallel_calls=tf.data.AUTOTUNE)


def _continued(
  dataset: tf.data.Dataset,
  output_features: dict[str, Any],
  sequence_length: dict[str, int] | None = None,
  *,
  task: Task,
  vocabulary: Vocabulary,
) -> tf.data.Dataset:
  """Returns tokenised examples of a decoder-only model: each target continues its source.

  There is no EOS behind a source. Targets are trimmed by seqio, as in `_ended`.
  """
  del output_features
  lengths = _checked_lengths(sequence_length, task, vocabulary)
  longest = {name: lengths.get(name, sys.maxsize) for name in ("inputs", "targets")}
  if "inputs" in lengths:  # A chat template's words alone may be longer.
    source_ids(Example("a " * lengths["inputs"], ""), vocabulary, lengths["inputs"])

  def ids(text: bytes, target: bytes, fields: bytes) -> list[np.ndarray]:
    one = _asked(text, fields, target)
    found = (
      source_ids(one, vocabulary, longest["inputs"]),
      target_ids(one, vocabulary, sys.maxsize),
    )
    return [np.asarray(tokens, np.int32) for tokens, _ in found]

  def continued(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    texts = [row["inputs"], row["targets"], row["fields"]]
    inputs, targets = tf.numpy_function(ids, texts, [tf.int32] * 2, stateful=False)
    return {
      **row,
      "inputs_pretokenized": row["inputs"],
      "targets_pretokenized": row["targets"],
      "inputs": tf.ensure_shape(inputs, [None]),
      "targets": tf.ensure_shape(targets, [None]),
      "whole": tf.size(targets) <= min(longest["targets"], tf.int32.max),
    }

  return dataset.map(continued, num_parallel_calls=tf.data.AUTOTUNE)


def _checked_lengths(
  lengths: dict[str, int] | None, task: Task, vocabulary: Vocabulary
) -> dict[str, int]:
  """Returns the lengths, within which the task's labels must be told apart."""
  lengths = lengths or {}
  if task.labels is not None and "targets" in lengths:
    check_labels(task.labels, vocabulary, lengths["targets"], f"task '{task.name}'")
  return lengths


def _asked(text: bytes, fields: bytes, target: bytes = b"") -> Example:
  """Returns the example of a source, the JSON of its columns' places, and a target."""
  spans = tuple((start, stop) for start, stop in json.loads(fields))
  return Example(_text(text), _text(target), fields=spans)


def _streamed(
  which: Definition, split: str, found: sources.Raw, seed: int
) -> tf.data.Dataset:
  """Returns the examples of a split as `FEATURES`."""
  source, places = which.places(split, found.counts, seed)
  if isinstance(found, sources.Lines):
    rows = tf.data.TextLineDataset(str(found.path(source)))
    rows = rows.map(lambda line: {"line": line})
  else:
    rows = found.builder.as_dataset(split=source, shuffle_files=False)
  refused = (
    exported.kept_from_validation(which, found, seed)
    if split == "validation"
    else frozenset()
  )

  def texts(number: np.int64, *values: Any) -> list[bytes | bool]:
    where, row = found.read(
      source, int(number), dict(zip(columns, values, strict=True))
    )
    example = which.example(row, where, split)
    if example is None or collapsed_source(example) in refused:
      return [*[b""] * len(FEATURES), False]
    return [*(text.encode() for text in _features(example).values()), True]

  columns = sorted(sources.flat(rows.element_spec))

  def features(number: tf.Tensor, row: dict[str, Any]) -> dict[str, tf.Tensor]:
    values = sources.flat(row)
    *made, kept = tf.numpy_function(
      texts,
      [number, *(values[column] for column in columns)],
      [tf.string] * len(FEATURES) + [tf.bool],
      stateful=False,
    )
    shaped = {
      key: tf.ensure_shape(text, []) for key, text in zip(FEATURES, made, strict=True)
    }
    return {**shaped, "kept": tf.ensure_shape(kept, [])}

  wanted = np.zeros(found.counts[source], bool)
  wanted[places] = True
  return (
    rows.enumerate()
    .filter(lambda number, _: tf.gather(tf.constant(wanted), number))
    .map(features, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    .filter(lambda row: row["kept"])
    .map(lambda row: {key: row[key] for key in FEATURES})
  )
