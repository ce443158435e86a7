"""A prompt or vector in memory."""

import dataclasses

from tpv_jax.vectors.arithmetic import Leaves
from tpv_jax.vectors.provenance import Provenance


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A prompt or vector in memory: fp32 leaves, their provenance, a name for messages."""

  leaves: Leaves
  provenance: Provenance
  name: str = "a value in memory"
