"""EPT's equations, one function each, for NumPy and JAX arrays alike.

EPT (Lan et al., arXiv 2405.11464) decomposes a soft prompt into a short prompt and a
low-rank update of the source's embeddings, as DePT does (Shi & Lipani 2023). To the short
prompt it adds two parts: the result of an attention over the low-rank update (prompt
fusion), and a projection into several subspaces, weighted by a gate (multi-space
projection). EPT has no public code: docs/methods.md, "EPT" states our definition, and a
number such as (3.4) is its equation. Nothing here depends on the source, so everything is
computed once a step, and a trained prompt folds to the two arrays of `Folded`.

Letters: S short-prompt tokens, M longest source, D width of the backbone, R rank, H width
of the fusion's attention, K subspaces, Q width of a subspace's bottleneck.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float

from tpv_jax.core.errors import UserError, at_least, near_misses

Leaves = Mapping[str, Any]
"""Parameters by name, NumPy or JAX arrays."""

ALPHA = 8.0
"""DePT's alpha, the numerator of the low-rank update's scale, (2.1)."""

DECOMPOSITIONS = ("svd", "dept")
"""How a long prompt is decomposed: (3.1) to (3.3), or DePT's start."""


class Folded(NamedTuple):
  """All that a trained soft prompt does to an encoder, (3.12).

  Attributes:
    prompt: [S, D], prepended to the source.
    delta: [M, D], added to the embeddings of the source's tokens by position; None for a
      plain prompt.
  """

  prompt: Any
  delta: Any = None

  @classmethod
  def of(cls, leaves: Leaves) -> "Folded":
    """Returns the folded prompt with these leaves.

    Raises:
      UserError: they are not those of a folded prompt, but parameters, for instance.
    """
    if "prompt" not in leaves or set(leaves) - set(cls._fields):
      raise UserError(
        f"A folded prompt has the leaves 'prompt' and perhaps 'delta', not "
        f"{', '.join(sorted(leaves))}. Fold the prompt first: tpv fold."
      )
    return cls(leaves["prompt"], leaves.get("delta"))

  def leaves(self) -> dict[str, Any]:
    """Returns 'prompt', and 'delta' if there is one."""
    return {name: leaf for name, leaf in self._asdict().items() if leaf is not None}


def low_rank_update(
  low_rank_a: Float[Any, "M R"], low_rank_b: Float[Any, "R D"], alpha: float
) -> Float[Any, "M D"]:
  """Returns delta = alpha / sqrt(R) * low_rank_a @ low_rank_b.

  (2.1): DePT, with the scale of its public code.
  """
  return (alpha / math.sqrt(low_rank_b.shape[0])) * (low_rank_a @ low_rank_b)


def fusion_attention(
  short_prompt: Float[Any, "S D"],
  delta: Float[Any, "M D"],
  fusion_query: Float[Any, "D H"],
  fusion_key: Float[Any, "D H"],
) -> Float[Any, "S M"]:
  """Returns softmax((short_prompt W_q)(delta W_k)^T / sqrt(H)); each row sums to 1.

  (3.4), ours: the attention of prompt fusion, over all M rows of delta.
  """
  scores = (short_prompt @ fusion_query) @ (delta @ fusion_key).T
  return _softmax(scores / math.sqrt(fusion_query.shape[1]))


def fused(
  attention: Float[Any, "S M"], delta: Float[Any, "M D"], fusion_gamma: Float[Any, ""]
) -> Float[Any, "S D"]:
  """Returns gamma * attention @ delta, which prompt fusion adds: (3.5), ours."""
  return fusion_gamma * (attention @ delta)


def gate(
  short_prompt: Float[Any, "S D"],
  gate_kernel: Float[Any, "D K"],
  gate_bias: Float[Any, " K"],
) -> Float[Any, "S K"]:
  """Returns softmax(short_prompt W_g + b_g), each prompt token's weights of the subspaces.

  (3.7), ours: the gating network.
  """
  return _softmax(short_prompt @ gate_kernel + gate_bias)


def spaces(
  short_prompt: Float[Any, "S D"],
  space_down: Float[Any, "K D Q"],
  space_up: Float[Any, "K Q D"],
) -> Float[Any, "K S D"]:
  """Returns space_k = relu(short_prompt U_k) V_k for every subspace k: (3.6), ours."""
  return (short_prompt @ space_down).clip(0) @ space_up


def projected(
  gate: Float[Any, "S K"], spaces: Float[Any, "K S D"]
) -> Float[Any, "S D"]:
  """Returns sum_k gate[:, k] * space_k, which multi-space projection adds: (3.8), ours."""
  return (gate.T[:, :, None] * spaces).sum(axis=0)


def fold(leaves: Leaves, alpha: float) -> Folded:
  """Returns prompt = short_prompt + fused + projected, and delta: (3.9) and (3.12), ours.

  A part is switched off if its leaves are missing.

  Args:
    leaves: the parameters, see `parameters`.
    alpha: as in `low_rank_update`.
  """
  prompt, delta = leaves["short_prompt"], None
  if "low_rank_a" in leaves:
    delta = low_rank_update(leaves["low_rank_a"], leaves["low_rank_b"], alpha)
  if "fusion_query" in leaves:
    attention = fusion_attention(
      leaves["short_prompt"], delta, leaves["fusion_query"], leaves["fusion_key"]
    )
    prompt = prompt + fused(attention, delta, leaves["fusion_gamma"])
  if "gate_kernel" in leaves:
    prompt = prompt + projected(
      gate(leaves["short_prompt"], leaves["gate_kernel"], leaves["gate_bias"]),
      spaces(leaves["short_prompt"], leaves["space_down"], leaves["space_up"]),
    )
  return Folded(prompt, delta)


def refuse_short_delta(source: int, delta: int) -> NoReturn:
  """Raises `UserError`: the sources are longer than the delta."""
  raise UserError(
    f"The sources have up to {source} tokens, and the prompt updates only the first "
    f"{delta}. Set the sources' length (LENGTHS) to at most {delta}, or train with a "
    "larger SOURCE_LENGTH."
  )


def fold_exactly(leaves: Leaves, alpha: float) -> Folded:
  """Returns `fold` of NumPy leaves: computed in fp64, rounded to fp32 once."""
  folded = fold(
    {name: np.asarray(leaf, np.float64) for name, leaf in leaves.items()}, alpha
  )
  return Folded(*(None if part is None else part.astype(np.float32) for part in folded))


@dataclasses.dataclass(frozen=True)
class Parameter:
  """The shape of one parameter, and the values that it starts from.

  Attributes:
    part: the part it belongs to: 'prompt', 'low_rank', 'fusion' or 'spaces'.
    axes: the logical name of each axis.
    shape: the size of each axis.
    std: standard deviation of the normal distribution that it is drawn from; 0: it starts
      from `constant`.
    constant: its initial value where `std` is 0.
  """

  part: Literal["prompt", "low_rank", "fusion", "spaces"]
  axes: tuple[str, ...]
  shape: tuple[int, ...]
  std: float = 0.0
  constant: float = 0.0

  @property
  def size(self) -> int:
    """The number of its values."""
    return math.prod(self.shape)


def parameters(
  length: int,
  features: int,
  source_length: int = 0,
  rank: int = 0,
  fusion_width: int = 0,
  spaces: int = 0,
  bottleneck: int = 1,
) -> dict[str, Parameter]:
  """Returns every parameter of EPT by name; a part of size 0 has none.

  The short prompt and the low-rank matrices start from a decomposition (`decompose`), the
  others as stated here (docs/methods.md, "Starts and first gradients"; ours).

  Args:
    length: S.
    features: D.
    source_length: M.
    rank: R.
    fusion_width: H.
    spaces: K.
    bottleneck: Q.
  """
  wide = 1 / math.sqrt(features)
  found = {
    "short_prompt": Parameter("prompt", ("prompt", "prompt_embed"), (length, features))
  }
  if rank:
    found["low_rank_a"] = Parameter(
      "low_rank", ("source_position", "rank"), (source_length, rank)
    )
    found["low_rank_b"] = Parameter(
      "low_rank", ("rank", "prompt_embed"), (rank, features), std=wide
    )
  if fusion_width:
    axes, shape = ("prompt_embed", "fusion"), (features, fusion_width)
    found["fusion_query"] = Parameter("fusion", axes, shape, std=wide)
    found["fusion_key"] = Parameter("fusion", axes, shape, std=wide)
    found["fusion_gamma"] = Parameter("fusion", (), (), constant=1.0)
  if spaces:
    found["space_down"] = Parameter(
      "spaces",
      ("space", "prompt_embed", "bottleneck"),
      (spaces, features, bottleneck),
      std=wide,
    )
    found["space_up"] = Parameter(
      "spaces", ("space", "bottleneck", "prompt_embed"), (spaces, bottleneck, features)
    )
    found["gate_kernel"] = Parameter(
      "spaces", ("prompt_embed", "space"), (features, spaces), std=0.02
    )
    found["gate_bias"] = Parameter("spaces", ("space",), (spaces,))
  return found


def refuse_impossible(
  length: int,
  features: int,
  source_length: int,
  rank: int,
  fusion_width: int,
  spaces: int,
  bottleneck: int,
) -> None:
  """Raises `UserError` for sizes that no EPT prompt can have."""
  sizes = {
    "length": length,
    "features": features,
    "source_length": source_length,
    "bottleneck": bottleneck,
  }
  for name, size in sizes.items():
    at_least(name, size, 1)
  parts = {"rank": rank, "fusion_width": fusion_width, "spaces": spaces}
  for name, size in parts.items():
    at_least(name, size, 0)
  largest = min(source_length, features)
  if rank > largest:
    raise UserError(
      f"Rank {rank} is more than a matrix of {source_length} source positions x "
      f"{features} features can have. Set it to at most {largest}."
    )
  if fusion_width and not rank:
    raise UserError(
      "Prompt fusion attends to the low-rank update, and rank 0 switches that off. "
      "Give a rank, or set fusion_width to 0."
    )


def refuse_unknown(decomposition: str) -> None:
  """Raises `UserError` unless `decomposition` is one of `DECOMPOSITIONS`."""
  if decomposition not in DECOMPOSITIONS:
    raise UserError(
      f"There is no decomposition '{decomposition}'. Choose 'svd' (EPT) or 'dept'."
      f"{near_misses(decomposition, DECOMPOSITIONS)}"
    )


def decompose(
  long_prompt: Float[np.ndarray, "P D"],
  length: int,
  source_length: int,
  rank: int,
  rng: np.random.Generator,
  how: str = "svd",
) -> dict[str, np.ndarray]:
  """Returns the short prompt and low-rank matrices (fp32) that start from a long prompt.

  The short prompt is the first S rows of the long one, and low_rank_a @ low_rank_b is 0,
  so step 0 is plain tuning with the short prompt: (3.1) to (3.3), ours.

  Args:
    long_prompt: P0.
    length: S, at most P.
    source_length: M.
    rank: R; 0 for no low-rank update.
    rng: used by 'dept' only.
    how: 'svd': low_rank_b = diag(Sigma[:R])^(1/2) Vt[:R] of P0 = U Sigma Vt and
      low_rank_a = 0, so the update starts in the space that the long prompt spans. Where
      Sigma is 0, the row of Vt is taken as it is: a row of zeros in low_rank_b would get
      no gradient from the column of zeros in low_rank_a, nor the other way round.
      'dept': low_rank_a uniform in +-1/sqrt(R), low_rank_b = 0 (DePT's code).

  Raises:
    UserError: `how` is unknown; the long prompt has fewer than S rows or, with 'svd',
      fewer than R rows or columns.
  """
  refuse_unknown(how)
  total, features = long_prompt.shape
  if length > total:
    raise UserError(
      f"A short prompt of {length} tokens cannot start from a long prompt of {total}. "
      "Set SHORT_LENGTH to at most PROMPT_LENGTH."
    )
  leaves = {"short_prompt": long_prompt[:length].astype(np.float32)}
  if not rank:
    return leaves
  if how == "dept":
    bound = 1 / math.sqrt(rank)
    low_rank_a = rng.uniform(-bound, bound, (source_length, rank))
    low_rank_b = np.zeros((rank, features))
  else:
    if rank > min(total, features):
      raise UserError(
        f"Rank {rank} is more than a long prompt of shape {(total, features)} has. Set "
        f"RANK to at most {min(total, features)}, or DECOMPOSITION to 'dept'."
      )
    _, sigma, vt = _svd(long_prompt)
    low_rank_a = np.zeros((source_length, rank))
    low_rank_b = _directions(np.sqrt(sigma[:rank]), vt)
  leaves["low_rank_a"] = low_rank_a.astype(np.float32)
  leaves["low_rank_b"] = low_rank_b.astype(np.float32)
  return leaves


def truncate(
  delta: Float[np.ndarray, "M D"], rank: int, alpha: float
) -> dict[str, np.ndarray]:
  """Returns the low-rank matrices (fp32) nearest to a delta in the Frobenius norm.

  (3.14), ours: the way back from a folded prompt, by the SVD of delta, cut at rank R. If
  delta has a lower rank, the rows of low_rank_b that are left over are directions of Vt
  and their columns of low_rank_a zeros, so that they can be learned.
  """
  u, sigma, vt = _svd(delta)
  root = np.sqrt(sigma[:rank] / (alpha / math.sqrt(rank)))
  return {
    "low_rank_a": (u[:, :rank] * root).astype(np.float32),
    "low_rank_b": _directions(root, vt).astype(np.float32),
  }


def relative_error(
  given: Float[np.ndarray, "..."], exact: Float[np.ndarray, "..."]
) -> float:
  """Returns |given - exact| / |exact| in the Frobenius norm, (3.15); 0 if both are 0."""
  exact = np.asarray(exact, np.float64)
  distance = np.linalg.norm(np.asarray(given, np.float64) - exact)
  size = np.linalg.norm(exact)
  return float(distance / size) if size else (math.inf if distance else 0.0)


def _softmax(scores: Float[Any, "rows columns"]) -> Float[Any, "rows columns"]:
  shifted = scores - scores.max(axis=-1, keepdims=True)
  weights = shifted.__array_namespace__().exp(shifted)
  return weights / weights.sum(axis=-1, keepdims=True)


def _svd(
  matrix: Float[np.ndarray, "rows D"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns U, Sigma, Vt in fp64, with the largest entry of each row of Vt positive (ours).

  The signs make the factors the same on every machine, up to rounding. Singular values
  below 1e-7 of the largest are rounding errors of an fp32 matrix and are set to 0.
  """
  u, sigma, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
  sigma = np.where(sigma > sigma[0] * 1e-7, sigma, 0.0)
  largest = vt[np.arange(len(vt)), np.abs(vt).argmax(axis=1)]
  sign = np.where(largest < 0, -1.0, 1.0)
  return u * sign, sigma, vt * sign[:, None]


def _directions(
  root: Float[np.ndarray, " R"], vt: Float[np.ndarray, "rows D"]
) -> Float[np.ndarray, "R D"]:
  """Returns the first R rows of Vt, each multiplied by its root unless that is 0."""
  return np.where(root > 0, root, 1.0)[:, None] * vt[: len(root)]
