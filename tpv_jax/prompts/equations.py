"""EPT's equations, one function each, for NumPy and JAX arrays alike.

EPT (Lan et al., arXiv 2405.11464) decomposes a soft prompt into a short prompt and a
low-rank update of the embedded source (as DePT, Shi & Lipani 2023), adds to the short
prompt what an attention over that update finds (prompt fusion) and what several
subspaces make of it, weighted by a gate (multi-space projection). There is no public
code of EPT: where its text leaves a choice, the choice is ours, and methods.md,
section 3, has its number. Nothing here depends on the source, so all of it is computed
once a step, and a trained prompt folds to the two arrays of `Folded`.

Letters: S short-prompt tokens, M longest source, D width, R rank, H width of the
fusion's attention, K subspaces, Q width of a subspace's bottleneck.
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
"""DePT's numerator of the low-rank update's scale."""

DECOMPOSITIONS = ("svd", "dept")
"""EPT's own decomposition of a long prompt, and DePT's start."""


class Folded(NamedTuple):
  """All that a trained soft prompt does to an encoder.

  Attributes:
    prompt: stands before the source [S, D].
    delta: is added to the embedding of each source token, by its position [M, D]. None
      for a plain prompt.
  """

  prompt: Any
  delta: Any = None

  @classmethod
  def of(cls, leaves: Leaves) -> "Folded":
    """Returns the folded prompt whose leaves these are.

    Raises:
      UserError: they are the parameters of a module, or something else.
    """
    if "prompt" not in leaves or set(leaves) - set(cls._fields):
      raise UserError(
        f"A folded prompt has the leaves 'prompt' and perhaps 'delta', not "
        f"{', '.join(sorted(leaves))}. Fold the prompt first: tpv fold."
      )
    return cls(leaves["prompt"], leaves.get("delta"))

  def leaves(self) -> dict[str, Any]:
    """Returns 'prompt' and, where there is one, 'delta'."""
    return {name: leaf for name, leaf in self._asdict().items() if leaf is not None}


def low_rank_update(
  low_rank_a: Float[Any, "M R"], low_rank_b: Float[Any, "R D"], alpha: float
) -> Float[Any, "M D"]:
  """Returns delta = alpha / sqrt(R) * low_rank_a @ low_rank_b (DePT; its code's scale)."""
  return (alpha / math.sqrt(low_rank_b.shape[0])) * (low_rank_a @ low_rank_b)


def fusion_attention(
  short_prompt: Float[Any, "S D"],
  delta: Float[Any, "M D"],
  fusion_query: Float[Any, "D H"],
  fusion_key: Float[Any, "D H"],
) -> Float[Any, "S M"]:
  """Returns softmax((short_prompt W_q)(delta W_k)^T / sqrt(H)), rows summing to 1.

  The attention of prompt fusion (ours, point 3), over all M rows of delta.
  """
  scores = (short_prompt @ fusion_query) @ (delta @ fusion_key).T
  return _softmax(scores / math.sqrt(fusion_query.shape[1]))


def fused(
  attention: Float[Any, "S M"], delta: Float[Any, "M D"], fusion_gamma: Float[Any, ""]
) -> Float[Any, "S D"]:
  """Returns fused = gamma * attention @ delta, prompt fusion's part (ours, point 3)."""
  return fusion_gamma * (attention @ delta)


def gate(
  short_prompt: Float[Any, "S D"],
  gate_kernel: Float[Any, "D K"],
  gate_bias: Float[Any, " K"],
) -> Float[Any, "S K"]:
  """Returns softmax(short_prompt W_g + b_g): each token's weights of the subspaces.

  The gating network (ours, point 4).
  """
  return _softmax(short_prompt @ gate_kernel + gate_bias)


def spaces(
  short_prompt: Float[Any, "S D"],
  space_down: Float[Any, "K D Q"],
  space_up: Float[Any, "K Q D"],
) -> Float[Any, "K S D"]:
  """Returns space_k = relu(short_prompt U_k) V_k for every k (ours, point 4)."""
  return (short_prompt @ space_down).clip(0) @ space_up


def projected(
  gate: Float[Any, "S K"], spaces: Float[Any, "K S D"]
) -> Float[Any, "S D"]:
  """Returns sum_k gate[:, k] * space_k, multi-space projection's part (ours, point 4)."""
  return (gate.T[:, :, None] * spaces).sum(axis=0)


def fold(leaves: Leaves, alpha: float) -> Folded:
  """Returns prompt = short_prompt + fused + projected, and delta (ours, points 5, 7).

  A part whose leaves are missing is switched off.

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
  """Raises `UserError`: sources are longer than what a delta updates."""
  raise UserError(
    f"The sources have up to {source} tokens, and the prompt updates only the first "
    f"{delta}. Set the sources' length (LENGTHS) to at most {delta}, or train with a "
    "larger SOURCE_LENGTH."
  )


def fold_exactly(leaves: Leaves, alpha: float) -> Folded:
  """Returns `fold` of NumPy leaves, computed in fp64 and rounded to fp32 once."""
  folded = fold(
    {name: np.asarray(leaf, np.float64) for name, leaf in leaves.items()}, alpha
  )
  return Folded(*(None if part is None else part.astype(np.float32) for part in folded))


@dataclasses.dataclass(frozen=True)
class Parameter:
  """The form of one parameter, and what it is at a fresh start.

  Attributes:
    part: what it belongs to: 'prompt', 'low_rank', 'fusion' or 'spaces'.
    axes: the logical name of each axis.
    shape: the size of each axis.
    std: of the normal distribution that it starts from; 0 for a constant.
    constant: what it starts from otherwise.
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

  The short prompt and the low-rank matrices start from a decomposition
  (`decompose`), the others as stated here (ours, points 3 and 4).

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
  """Raises `UserError` for sizes that no EPT prompt has."""
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
  """Raises `UserError` for a way to decompose that there is not."""
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
  """Returns the short prompt and the low-rank matrices that a long prompt starts (fp32).

  The short prompt is its first S rows, and low_rank_a @ low_rank_b is 0, so that step 0
  is plain tuning with the short prompt (ours, point 1).

  Args:
    long_prompt: P0.
    length: S, at most P.
    source_length: M.
    rank: R; 0 for no low-rank update.
    rng: drawn from by 'dept' only.
    how: 'svd': low_rank_b = diag(Sigma[:R])^(1/2) Vt[:R] of P0 = U Sigma Vt and
      low_rank_a = 0, so the update starts in the space that the long prompt spans.
      Where Sigma is 0 the row of Vt is taken as it is, for a row of zeros beside a
      column of zeros would stay so (ours).
      'dept': low_rank_a uniform in +-1/sqrt(R), low_rank_b = 0 (DePT's code).

  Raises:
    UserError: the long prompt has fewer than S rows, or with 'svd' than R; or there is
      no such way.
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
  """Returns the low-rank matrices nearest to a delta, in Frobenius' norm (fp32).

  The way back from a folded prompt (ours, point 8): the SVD of delta, cut at rank R. What
  it does not need of the rank starts as a direction of low_rank_b with a zero in
  low_rank_a, so that it can be learned.
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
  """Returns |given - exact| / |exact| in Frobenius' norm; 0 where both are 0."""
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
  """Returns U, Sigma, Vt in fp64, the largest entry of each row of Vt positive (ours).

  The sign makes the factors the same wherever they are computed, but for rounding. What
  of Sigma is rounding of an fp32 matrix is 0.
  """
  u, sigma, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
  sigma = np.where(sigma > sigma[0] * 1e-7, sigma, 0.0)
  largest = vt[np.arange(len(vt)), np.abs(vt).argmax(axis=1)]
  sign = np.where(largest < 0, -1.0, 1.0)
  return u * sign, sigma, vt * sign[:, None]


def _directions(
  root: Float[np.ndarray, " R"], vt: Float[np.ndarray, "rows D"]
) -> Float[np.ndarray, "R D"]:
  """Returns the first R rows of Vt, each times its root where that is not 0."""
  return np.where(root > 0, root, 1.0)[:, None] * vt[: len(root)]
