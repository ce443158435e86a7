"""Groups of similar vectors: agglomerative clustering of their cosine distances.

SciPy, whose import takes longer than grouping, and matplotlib are imported only when
something is drawn.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from tpv_jax.core.errors import UserError
from tpv_jax.core.figures import SIZE, Sheet, wrapped
from tpv_jax.vectors import algebra, compatibility
from tpv_jax.vectors.loaded import Loaded


@dataclasses.dataclass(frozen=True)
class Groups:
  """Vectors in groups.

  Attributes:
    names: of the vectors.
    groups: of each vector, counted from 1 in the order of the vectors.
    cosine: of all pairs, docs/methods.md, (4.6).
    merges: as `scipy.cluster.hierarchy.linkage` has: the two clusters that were merged (those
      from N on are earlier merges), their distance, and the size of the result.
  """

  names: tuple[str, ...]
  groups: tuple[int, ...]
  cosine: Float64[np.ndarray, "N N"]
  merges: Float64[np.ndarray, "_ 4"]

  def members(self, group: int) -> list[int]:
    """Returns the places of the vectors of a group."""
    return [place for place, one in enumerate(self.groups) if one == group]

  def within(self, group: int) -> float | None:
    """Returns the mean cosine of a group's pairs, None for one vector."""
    inside = self.members(group)
    if len(inside) < 2:
      return None
    return float(
      self.cosine[np.ix_(inside, inside)][np.triu_indices(len(inside), 1)].mean()
    )

  def to_json(self) -> dict[str, Any]:
    """Returns the groups as JSON."""
    return {
      "groups": [
        {
          "names": [self.names[i] for i in self.members(one)],
          "cosine": self.within(one),
        }
        for one in range(1, max(self.groups) + 1)
      ],
      "names": list(self.names),
      "cosine": self.cosine.tolist(),
      "merges": self.merges.tolist(),
    }


def group(vectors: Sequence[Loaded], names: Sequence[str], number: int) -> Groups:
  """Returns the vectors in `number` groups.

  The two nearest clusters are merged until `number` are left. Their distance is the mean
  of 1 - cosine over their pairs ('average' linkage).

  Args:
    vectors: at least two.
    names: one for each.
    number: from 1 to the number of vectors.

  Raises:
    UserError: fewer than two vectors, a number outside these bounds, a prompt, or as
      `algebra.cosine`.
  """
  if len(vectors) < 2:
    raise UserError(
      f"Groups are of several vectors, and there are {len(vectors)}. Give at least two."
    )
  if not 1 <= number <= len(vectors):
    raise UserError(
      f"{number} groups of {len(vectors)} vectors cannot be made. Ask for 1 to "
      f"{len(vectors)}: -k {min(2, len(vectors))}."
    )
  for vector in vectors:
    compatibility.require_vector(vector)
  cosine = algebra.cosine(vectors)
  merges = linkage(np.maximum(0.0, 1 - cosine))
  return Groups(tuple(names), _cut(merges, number), cosine, merges)


def linkage(distances: Float64[np.ndarray, "N N"]) -> Float64[np.ndarray, "_ 4"]:
  """Returns the merges of the two nearest clusters until one is left, see `Groups`.

  The distance of two clusters is the mean over their pairs ('average' linkage): of a merged
  one the mean of its two parts' distances, weighted by their sizes. Of equal distances the
  first in the order of the vectors is taken.
  """
  number = len(distances)
  between = np.array(distances, np.float64)
  np.fill_diagonal(between, np.inf)
  names, sizes = np.arange(number), np.ones(number)
  merges = np.zeros((number - 1, 4))
  for step in range(number - 1):
    first, second = sorted(divmod(int(between.argmin()), number))
    distance = between[first, second]
    size = sizes[first] + sizes[second]
    low, high = sorted((names[first], names[second]))
    merges[step] = low, high, distance, size
    # The merged cluster stands in the place of the first part; the second's place is left.
    mean = (sizes[first] * between[first] + sizes[second] * between[second]) / size
    between[first], between[:, first] = mean, mean
    between[second], between[:, second] = np.inf, np.inf
    between[first, first] = np.inf
    names[first], sizes[first] = number + step, size
  return merges


def draw(found: Groups) -> bytes:
  """Returns a PNG with the dendrogram, each group's names in one colour."""
  from scipy.cluster import hierarchy

  tree = hierarchy.dendrogram(found.merges, no_plot=True)
  count = len(found.names)
  sheet = Sheet()
  title = f"{count} vectors in {max(found.groups)} groups by cosine distance"
  axes = sheet.panel(5.0, max(1.0, 0.25 * count), title)
  for places, distances in zip(tree["icoord"], tree["dcoord"], strict=True):
    axes.plot(distances, places, color="black", linewidth=1.0)
  # SciPy puts the leaves at 5, 15, 25, ...
  labels = [wrapped(found.names[leaf], 3.0, lines=1) for leaf in tree["leaves"]]
  ticks = [5 + 10 * place for place in range(count)]
  axes.set_yticks(ticks, labels, fontsize=SIZE, parse_math=False)
  for label, leaf in zip(axes.get_yticklabels(), tree["leaves"], strict=True):
    label.set_color(f"C{(found.groups[leaf] - 1) % 10}")
  axes.set_ylim(0, 10 * count)
  axes.set_xlim(left=0)
  axes.spines[["top", "right"]].set_visible(False)
  axes.set_xlabel("1 - cosine, mean over the pairs of two clusters", fontsize=SIZE)
  return sheet.png()


def _cut(merges: Float64[np.ndarray, "_ 4"], number: int) -> tuple[int, ...]:
  """Returns each vector's group, numbered from 1 in the order of their first members."""
  count = len(merges) + 1
  owners = np.arange(count)
  for step, (first, second, *_) in enumerate(merges[: count - number]):
    owners[(owners == first) | (owners == second)] = count + step
  numbers: dict[int, int] = {}
  return tuple(numbers.setdefault(int(one), len(numbers) + 1) for one in owners)
