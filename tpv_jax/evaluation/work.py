"""How much an evaluation computes."""

import collections
from typing import Any


class Work:
  """What an evaluator has computed since it was made.

  Attributes:
    calls: 'scoring' or 'decoding' -> (rows, source positions, target positions) ->
      number of calls.
    used: how many source positions held a token or a row of a prompt.
    compiled: how often a function was compiled; it should be once for each shape and
      form of prompt.
  """

  def __init__(self) -> None:
    """Starts with nothing done."""
    self.calls: dict[str, collections.Counter[tuple[int, int, int]]] = {}
    self.used = 0
    self.compiled = 0

  def note(self, what: str, shape: tuple[int, int, int], calls: int) -> None:
    """Counts calls of a shape."""
    self.calls.setdefault(what, collections.Counter())[shape] += calls

  @property
  def positions(self) -> int:
    """Returns how many source positions were computed, the prompts' included."""
    return sum(
      rows * width * calls
      for counted in self.calls.values()
      for (rows, width, _), calls in counted.items()
    )

  @property
  def padding_share(self) -> float:
    """Returns the share of those positions that were padding."""
    return 1 - self.used / max(self.positions, 1)

  def to_json(self) -> dict[str, Any]:
    """Returns the work as a report states it."""
    names = ("rows", "source_positions", "target_positions")
    return {
      "shapes": {
        name: [
          {**dict(zip(names, shape, strict=True)), "calls": calls}
          for shape, calls in counted.items()
        ]
        for name, counted in self.calls.items()
      },
      "padding_share": round(self.padding_share, 4),
      "compiled": self.compiled,
    }

  def __str__(self) -> str:
    """Returns the work as one line of text."""
    shapes = [
      f"{calls} calls of {rows} x {width} + {targets} ({name})"
      for name, counted in self.calls.items()
      for (rows, width, targets), calls in counted.items()
    ]
    return (
      f"{', '.join(shapes)}; {self.padding_share:.1%} of the source positions were "
      f"padding; compiled {self.compiled} times"
    )
