"""What stands in the way of merging vectors: signs, lengths, tokens, row spaces.

Values are widened to fp64. matplotlib is imported only when something is drawn.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from tpv_jax.core.errors import UserError
from tpv_jax.core.figures import SIZE, Sheet, wrapped
from tpv_jax.vectors import algebra, arithmetic, compatibility
from tpv_jax.vectors.loaded import Loaded

MOST_DRAWN = 12
"""The most vectors in a picture: 66 pairs."""

_WIDTH, _ROW = 5.0, 0.22
"""Inches of a panel, and of a pair in it."""


@dataclasses.dataclass(frozen=True)
class Pair:
  """How two vectors stand to each other.

  Attributes:
    names: of the two.
    cosine: docs/methods.md, (4.6).
    same_sign: the share of the elements with equal signs among those that are 0 in neither
      vector; about 0.5 by chance. None if there is no such element.
    norms: of the two.
    tokens: leaf -> the cosine of each row with its counterpart; None where a row is 0.
    angles: leaf -> the principal angles between the row spaces, in degrees, ascending.
    overlap: leaf -> the mean squared cosine of these angles, and what random row spaces of
      these ranks have on average: the larger rank / D.
  """

  names: tuple[str, str]
  cosine: float
  same_sign: float | None
  norms: tuple[float, float]
  tokens: dict[str, list[float | None]]
  angles: dict[str, list[float]]
  overlap: dict[str, tuple[float, float]]

  @property
  def ratio(self) -> float:
    """The larger norm divided by the smaller one."""
    return max(self.norms) / min(self.norms)

  def to_json(self) -> dict[str, Any]:
    """Returns the numbers as JSON."""
    overlap = {
      leaf: {"found": found, "by_chance": chance}
      for leaf, (found, chance) in self.overlap.items()
    }
    content = {**dataclasses.asdict(self), "norm_ratio": self.ratio, "overlap": overlap}
    return {**content, "names": list(self.names), "norms": list(self.norms)}


def conflicts(vectors: Sequence[Loaded], names: Sequence[str]) -> list[Pair]:
  """Returns all pairs of the vectors.

  Row spaces have numerical rank (`arithmetic.negligible`). Leaves without rows, such as
  biases of the factor space, have neither tokens nor angles.

  Args:
    vectors: at least two.
    names: one for each.

  Raises:
    UserError: fewer than two vectors, a prompt, or as `algebra.cosine`.
  """
  if len(vectors) < 2:
    raise UserError("Conflicts are between vectors: give at least two.")
  for vector in vectors:
    compatibility.require_vector(vector)
  cosines = algebra.cosine(vectors)  # Refuses what can't be compared.
  norms = [arithmetic.norm(vector.leaves) for vector in vectors]
  matrices = [_matrices(vector) for vector in vectors]
  spaces = [{leaf: _row_space(rows) for leaf, rows in one.items()} for one in matrices]
  return [
    _pair(
      (names[i], names[j]),
      float(cosines[i, j]),
      _same_sign(vectors[i], vectors[j]),
      (norms[i], norms[j]),
      {leaf: _cosines(rows, matrices[j][leaf]) for leaf, rows in matrices[i].items()},
      {leaf: (space, spaces[j][leaf]) for leaf, space in spaces[i].items()},
    )
    for i, j in itertools.combinations(range(len(vectors)), 2)
  ]


def rows(pairs: Sequence[Pair]) -> list[list[str]]:
  """Returns a table, its header first: a row for each pair, all leaves together."""
  header = ["", "cosine", "same sign", "norms", "ratio", "tokens", "angles", "overlap"]
  return [header, *([" and ".join(pair.names), *_cells(pair)] for pair in pairs)]


def draw(pairs: Sequence[Pair]) -> bytes:
  """Returns a PNG: cosines by token and principal angles of all pairs, leaf by leaf.

  Raises:
    UserError: the pairs are those of more than `MOST_DRAWN` vectors, which nobody could
      read, or there is no leaf with rows.
  """
  if len(pairs) > MOST_DRAWN * (MOST_DRAWN - 1) // 2:
    raise UserError(
      f"The picture shows at most {MOST_DRAWN} vectors. Name fewer, or take --json."
    )
  if not pairs[0].tokens:
    raise UserError(
      "These vectors have no leaf with rows, so there is nothing to draw."
    )
  sheet = Sheet(2, "What stands in the way of merging")
  labels = [wrapped(" and ".join(pair.names), 2.5, lines=1) for pair in pairs]
  height = max(1.2, _ROW * len(pairs))
  for leaf in pairs[0].tokens:
    values = np.array([pair.tokens[leaf] for pair in pairs], float)
    axes = sheet.panel(_WIDTH, height, f"{leaf}: cosine by token")
    extent = (0.5, values.shape[1] + 0.5, len(pairs) - 0.5, -0.5)
    shown = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r", "interpolation": "nearest"}
    image = axes.imshow(values, aspect="auto", extent=extent, **shown)
    axes.set_yticks(range(len(pairs)), labels, fontsize=SIZE, parse_math=False)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("token")
    sheet.colorbar(axes, image)
    axes = sheet.panel(_WIDTH, max(height, 2.4), f"{leaf}: principal angles")
    for label, pair in zip(labels, pairs, strict=True):
      angles = pair.angles[leaf]
      axes.plot(range(1, len(angles) + 1), angles, marker=".", label=label)
    axes.set_ylim(-2, 92)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("number of the angle")
    axes.set_ylabel("degrees")
    if len(pairs) <= 10:
      legend = axes.legend(fontsize=SIZE, loc="upper left", bbox_to_anchor=(1.0, 1.0))
      for text in legend.get_texts():
        text.set_parse_math(False)
  return sheet.png()


def _pair(
  names: tuple[str, str],
  cosine: float,
  same_sign: float | None,
  norms: tuple[float, float],
  tokens: dict[str, list[float | None]],
  spaces: dict[str, tuple[np.ndarray, np.ndarray]],
) -> Pair:
  angles, overlap = {}, {}
  for leaf, (first, second) in spaces.items():
    products = np.linalg.svd(first @ second.T, compute_uv=False)
    products = np.clip(products, 0.0, 1.0)
    angles[leaf] = np.degrees(np.arccos(products)).tolist()
    chance = max(len(first), len(second)) / first.shape[1]
    overlap[leaf] = float(np.mean(products**2)) if len(products) else 0.0, chance
  return Pair(names, cosine, same_sign, norms, tokens, angles, overlap)


def _matrices(vector: Loaded) -> dict[str, Float64[np.ndarray, "_ _"]]:
  return {
    name: leaf.astype(np.float64)
    for name, leaf in vector.leaves.items()
    if leaf.ndim == 2
  }


def _row_space(rows: Float64[np.ndarray, "P D"]) -> Float64[np.ndarray, "R D"]:
  """Returns an orthonormal basis of the space that the rows span."""
  _, values, basis = np.linalg.svd(rows, full_matrices=False)
  return basis[values > arithmetic.negligible(values, rows.shape)]


def _cosines(
  first: Float64[np.ndarray, "P D"], second: Float64[np.ndarray, "P D"]
) -> list[float | None]:
  lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
  products = (first * second).sum(axis=1)
  return [
    float(product / length) if length else None
    for product, length in zip(products, lengths, strict=True)
  ]


def _same_sign(first: Loaded, second: Loaded) -> float | None:
  same = both = 0
  for name, leaf in first.leaves.items():
    signs = np.sign(leaf) * np.sign(second.leaves[name])
    same += int((signs > 0).sum())
    both += int((signs != 0).sum())
  return same / both if both else None


def _cells(pair: Pair) -> list[str]:
  tokens = [one for some in pair.tokens.values() for one in some if one is not None]
  angles = [one for some in pair.angles.values() for one in some]
  several = len(pair.overlap) > 1
  overlap = [
    f"{f'{leaf} ' if several else ''}{found:.2f} (chance {chance:.2f})"
    for leaf, (found, chance) in pair.overlap.items()
  ]
  return [
    f"{pair.cosine:.4f}",
    "-" if pair.same_sign is None else f"{pair.same_sign:.3f}",
    f"{pair.norms[0]:.4g}, {pair.norms[1]:.4g}",
    f"{pair.ratio:.3g}",
    f"{min(tokens):.2f} to {max(tokens):.2f}" if tokens else "-",
    f"{min(angles):.0f} to {max(angles):.0f}" if angles else "-",
    ", ".join(overlap) or "-",
  ]
