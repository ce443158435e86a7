"""Prompts one after the other."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from tpv_jax.vectors.merging.protocol import PromptRule


@dataclasses.dataclass(frozen=True)
class Concat(PromptRule):
  """The tokens of all prompts, one prompt after the other; of prompts, not of vectors."""

  source: ClassVar[str] = "PEFT, cat"
  ordered: ClassVar[bool] = True

  def joined(
    self, prompts: Sequence[Float[np.ndarray, "_ D"]]
  ) -> Float[np.ndarray, "Q D"]:
    """Returns the values one after the other, unchanged."""
    return np.concatenate(list(prompts))
