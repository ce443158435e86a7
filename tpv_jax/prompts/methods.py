"""The NumPy half of each prompt method: the names of its leaves, and how they fold."""

from collections.abc import Collection, Mapping

import numpy as np

from tpv_jax.prompts import equations
from tpv_jax.prompts.equations import Folded


class Plain:
  """The plain soft prompt of prompt tuning, and the folded form of every other prompt."""

  names = ("plain",)
  module = "tpv_jax.prompts.plain:Prompt"
  space = "effective"
  rows = "prompt"
  groups: Mapping[str, str] = {"prompt": "prompt", "delta": "low_rank"}

  def name_of(self, leaves: Collection[str]) -> str | None:
    """Returns 'plain'; None if there is a delta, since several methods fold to that."""
    return "plain" if set(leaves) == {"prompt"} else None

  def shapes(self, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all leaves, given the prompt's own."""
    rows, width = _size(found, "prompt", 0), _size(found, "prompt", 1)
    due: dict[str, tuple[int, ...]] = {"prompt": (rows, width)}
    if "delta" in found:
      due["delta"] = (_size(found, "delta", 0), width)
    return due

  def fold(self, leaves: Mapping[str, np.ndarray], alpha: float | None) -> Folded:
    """Returns the leaves themselves, which are folded already."""
    del alpha
    return Folded.of(leaves)


class EPT:
  """EPT and, without its fusion and subspaces, DePT; see `equations`."""

  names = ("ept", "dept")
  module = "tpv_jax.prompts.ept:EPT"
  space = "factor"
  rows = "short_prompt"
  groups: Mapping[str, str] = {
    name: form.part
    for name, form in equations.parameters(
      1, 1, rank=1, fusion_width=1, spaces=1
    ).items()
  }

  def name_of(self, leaves: Collection[str]) -> str | None:
    """Returns 'ept' if there is a fusion or a gate, otherwise 'dept'."""
    return "ept" if {"fusion_query", "gate_kernel"} & set(leaves) else "dept"

  def shapes(self, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all leaves, given the first leaf of each part."""
    if not _size(found, "short_prompt", 1):
      return {}
    forms = equations.parameters(
      length=_size(found, "short_prompt", 0),
      features=_size(found, "short_prompt", 1),
      source_length=_size(found, "low_rank_a", 0),
      rank=_size(found, "low_rank_a", 1),
      fusion_width=_size(found, "fusion_query", 1),
      spaces=_size(found, "gate_kernel", 1),
      bottleneck=_size(found, "space_down", 2),
    )
    due = {name: form.shape for name, form in forms.items()}
    if "fusion_query" in due and "low_rank_a" not in due:
      due |= {"low_rank_a": (0, 0), "low_rank_b": (0, 0)}
    return due

  def fold(self, leaves: Mapping[str, np.ndarray], alpha: float | None) -> Folded:
    """Returns docs/methods.md, (3.12), computed in fp64 and rounded to fp32 once."""
    assert alpha is not None  # `algebra.fold` has refused an unknown alpha.
    return equations.fold_exactly(leaves, alpha)


def _size(found: Mapping[str, tuple[int, ...]], name: str, axis: int) -> int:
  shape = found.get(name, ())
  return shape[axis] if axis < len(shape) else 0


PLAIN = Plain()
EPT_AND_DEPT = EPT()
