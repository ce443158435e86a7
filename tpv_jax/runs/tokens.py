"""The vocabulary's tokens that lie nearest to the rows of a prompt."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tpv_jax.backbones import loading
from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.runs import records, subject

_BLOCK = 8192
"""Rows of the table that are compared at once."""


@dataclasses.dataclass(frozen=True)
class Embeddings:
  """A backbone's embedded tokens, without the rest of it.

  Attributes:
    table: the rows, as they are stored.
    factor: between a row of the table and an embedded token.
    vocabulary: the words of the rows.
  """

  table: Float[np.ndarray, "V D"]
  factor: float
  vocabulary: Vocabulary

  def scale(self) -> dict[str, float]:
    """Returns deviation and norm, as a manifest states them."""
    return records.scale(self.table, self.factor)


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a prompt.

  Attributes:
    norm: in the mean norm of an embedded token.
    moved: the norm of its difference from the initial prompt, likewise.
    nearest: (token, cosine), the nearest first.
  """

  norm: float
  moved: float
  nearest: list[tuple[str, float]]


def of_run(run: files.Path, backbone: str | None, vocabulary: str | None) -> Embeddings:
  """Returns the embeddings of a run's backbone; only its table of tokens is read.

  Args:
    run: the folder, whose manifest names backbone and vocabulary.
    backbone: instead of the manifest's, if it is given.
    vocabulary: the vocabulary's file, likewise.

  Raises:
    UserError: the run states no backbone and none is given; it cannot be read; or its rows
      have another length than the prompt's.
  """
  if backbone is None:
    if not (records.manifest(run) or {}).get(subject.KEY):
      raise UserError(
        f"The manifest of '{run}' does not name its backbone. Give --backbone, and "
        "--vocabulary-file if the backbone does not bring its vocabulary."
      )
    known = subject.read(run)
    backbone, vocabulary = known.backbone, vocabulary or known.vocabulary_file
  words = vocabularies.of_backbone(backbone, vocabulary)
  with loading.opened(backbone, whole=False) as source:
    network = source.family.network(**source.numbers)
    table = np.asarray(source.leaves[network.TABLE], np.float32)
    loading.check_vocabulary(words, source.name, source.vocabulary, len(table))
  return Embeddings(table, float(network.embedding_scale), words)


def nearest(
  embeddings: Embeddings,
  tuned: Float[np.ndarray, "P D"],
  initial: Float[np.ndarray, "P D"],
  count: int = 3,
) -> list[Row]:
  """Returns what each row of a prompt is like.

  Raises:
    UserError: the rows have another length than those of the table.
  """
  table = embeddings.table
  if tuned.shape[1] != table.shape[1]:
    raise UserError(
      f"The prompt's rows have {tuned.shape[1]} features, and the backbone's tokens "
      f"{table.shape[1]}, so it was not tuned on that backbone. Give another --backbone."
    )
  unit = _unit(np.asarray(tuned, np.float32))
  cosines = np.concatenate(
    [
      unit @ _unit(np.asarray(table[first : first + _BLOCK], np.float32)).T
      for first in range(0, len(table), _BLOCK)
    ],
    axis=1,
  )
  norm = embeddings.scale()["norm"]
  rows = []
  for row, start, found in zip(tuned, initial, cosines, strict=True):
    order = np.argsort(-found, kind="stable")[:count]
    rows.append(
      Row(
        float(np.linalg.norm(row) / norm),
        float(np.linalg.norm(row - start) / norm),
        [(_word(embeddings.vocabulary, i), float(found[i])) for i in order.tolist()],
      )
    )
  return rows


def table_of(rows: Sequence[Row]) -> list[list[str]]:
  """Returns the rows as a table with a header."""
  return [
    ["row", "norm", "moved", "nearest tokens (cosine)"],
    *(
      [
        str(number),
        f"{row.norm:.2f}",
        f"{row.moved:.2f}",
        ", ".join(f"{word} ({cosine:.2f})" for word, cosine in row.nearest),
      ]
      for number, row in enumerate(rows)
    ),
  ]


def _word(vocabulary: Vocabulary, row: int) -> str:
  """Returns the text of a token, or its id if it has none."""
  token = row + vocabulary.first_id
  if token >= vocabulary.vocab_size:
    return f"<{token}>"
  text = vocabulary.decode([token])
  return repr(text) if text else f"<{token}>"


def _unit(rows: Any) -> Any:
  return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
