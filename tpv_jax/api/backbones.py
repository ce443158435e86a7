"""A frozen backbone whose weights are read once, for many calls."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tpv_jax.backbones import loading, networks
from tpv_jax.backbones.protocol import Network
from tpv_jax.core import files, identity, tables
from tpv_jax.data import vocabularies
from tpv_jax.data.chat_templates import Setting
from tpv_jax.data.vocabularies import Vocabulary


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Backbone:
  """A frozen model with its vocabulary, for `train`, `evaluate` and `predict`.

  Attributes:
    given: the name or path that it was loaded by.
    settings: what was chosen for it, by macro: DTYPE, QUANTIZE, CHAT, VOCABULARY_FILE.
    loaded: its weights, as they are kept.
    vocabulary: from texts to ids and back.
    network: its architecture, with its numbers.
  """

  given: str
  settings: Mapping[str, Any]
  loaded: loading.Backbone
  vocabulary: Vocabulary
  network: Network

  @property
  def name(self) -> str:
    """The name that it states."""
    return self.loaded.name

  @property
  def fingerprint(self) -> str:
    """64 hex digits that name its weights; vectors of one backbone can be added."""
    return self.loaded.fingerprint

  @property
  def macros(self) -> dict[str, Any]:
    """What gin files need to know of it."""
    return {"BACKBONE": self.given, **self.settings}

  def rows(self) -> list[tuple[str, Any]]:
    """Returns labels and values for people."""
    flat = identity.flatten(self.loaded.params)
    chosen = {name.lower(): value for name, value in self.settings.items()}
    return [
      ("backbone", self.name),
      ("given as", self.given),
      ("fingerprint", self.fingerprint),
      ("parameters", f"{sum(int(np.prod(leaf.shape)) for leaf in flat.values()):,}"),
      ("width", self.loaded.table.shape[1]),
      ("tokens", f"{self.vocabulary.vocab_size:,}"),
      *chosen.items(),
    ]

  def __repr__(self) -> str:
    """Returns one line for people."""
    _, _, _, (_, count), (_, width), *chosen = self.rows()
    more = "".join(f", {name} {value}" for name, value in chosen[1:])
    return f"<backbone '{self.name}': {count} parameters, width {width}{more}>"

  def _repr_html_(self) -> str:
    return tables.html(self.rows())


def load_backbone(
  name: files.PathLike,
  dtype: str | None = None,
  quantize: str | None = None,
  chat: Setting = None,
  vocabulary_file: files.PathLike | None = None,
) -> Backbone:
  """Returns a backbone with its weights in memory.

  Args:
    name: 'embedded', 'smollm2' (after `tpv fetch smollm2`), a folder of Hugging Face, a GGUF
      file, a file of `tpv convert` or a T5X checkpoint.
    dtype: of computation and weights, 'float32' or 'bfloat16'; None for the gin files' own.
    quantize: 'int8', 'int4' or 'nf4', how the frozen kernels are kept; None as they are.
    chat: True for sources as turns of a conversation, {'system': text} with this text.
    vocabulary_file: for a backbone that brings no vocabulary.

  Raises:
    UserError: there is no such backbone, or it cannot be used so.
  """
  given = os.fspath(name)
  chosen = {
    "DTYPE": dtype,
    "QUANTIZE": quantize,
    "CHAT": chat,
    "VOCABULARY_FILE": None if vocabulary_file is None else os.fspath(vocabulary_file),
  }
  of_network: dict[str, Any] = {"dtype": dtype} if dtype else {}
  network = networks.network(given, quantize=quantize, **of_network)
  vocabulary = vocabularies.of_backbone(given, vocabulary_file, chat)
  return Backbone(
    given,
    {macro: value for macro, value in chosen.items() if value is not None},
    loading.load_backbone(given, network, vocabulary),
    vocabulary,
    network,
  )
