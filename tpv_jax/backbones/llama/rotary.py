"""The numbers that stretch rotary positions, by which a model reads longer texts.

Each pair of a head's features turns with a frequency; a scaling divides the frequencies.
Standard library only.
"""

import math

LOW, HIGH, ORIGINAL = 1.0, 4.0, 8_192
"""LLaMA 3.1's and 3.2's `low_freq_factor`, `high_freq_factor`, and first length."""


def linear(head_dim: int, factor: float) -> tuple[float, ...]:
  """Returns the divisors of linear scaling: `factor` for every frequency."""
  return (float(factor),) * (head_dim // 2)


def llama3(
  head_dim: int,
  theta: float,
  factor: float,
  low: float = LOW,
  high: float = HIGH,
  original: float = ORIGINAL,
) -> tuple[float, ...]:
  """Returns the divisors of LLaMA 3.1's scaling, by the formula of `transformers`.

  Args:
    head_dim: features of a head.
    theta: base of the frequencies.
    factor: divisor of the lowest frequencies.
    low: frequencies of fewer turns than this in `original` positions are divided whole.
    high: frequencies of more turns than this are kept; those between go over smoothly.
    original: positions that the model was first trained with.
  """
  divisors = []
  for pair in range(head_dim // 2):
    turns = original * theta ** (-2 * pair / head_dim) / (2 * math.pi)
    kept = min(max((turns - low) / (high - low), 0.0), 1.0)
    divisors.append(1.0 / ((1.0 - kept) / factor + kept))
  return tuple(divisors)
