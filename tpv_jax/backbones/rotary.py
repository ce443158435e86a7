"""The numbers that stretch rotary positions, by which a model reads longer texts.

Each pair of a head's features turns with a frequency; a scaling divides the frequencies.
Hugging Face's files name the scaling. No array is made here.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tpv_jax.core.errors import UserError
from tpv_jax.formats import hugging_face
from tpv_jax.formats.hugging_face import short

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


def of_config(
  content: Mapping[str, Any],
  head_dim: int,
  positions: Any,
  source: str,
  otherwise: float = 10_000.0,
) -> tuple[float, tuple[float, ...]]:
  """Returns the base of the frequencies that config.json states, and their divisors.

  `transformers` 4 writes `rope_theta` and `rope_scaling`, and 5 writes `rope_parameters`.

  Args:
    content: of config.json; of it only these fields count.
    head_dim: features of a head.
    positions: of the model, for a scaling that does not state the first length.
    source: the file, for messages.
    otherwise: the base if none is stated.

  Raises:
    UserError: the spellings differ, a number is missing, or the scaling is none of those
      here.
  """
  older, newer = (content.get(key) for key in ("rope_scaling", "rope_parameters"))
  for key, stated in (("rope_scaling", older), ("rope_parameters", newer)):
    if not isinstance(stated, dict | None):
      raise UserError(
        f"'{source}' states {key} {short(stated)}, which is no object. Take another copy."
      )
  older, newer = dict(older or {}), dict(newer or {})
  theta = newer.pop("rope_theta", None)
  if theta is None:
    theta = older.pop("rope_theta", None)
  above = content.get("rope_theta")
  if theta is None:
    theta = otherwise if above is None else above
  elif above is not None and above != theta:
    raise UserError(
      f"'{source}' states rope_theta twice, {short(above)} and {short(theta)}, and "
      "versions of transformers disagree about which counts. Remove the wrong one."
    )
  theta = hugging_face.positive(theta, "rope_theta", source)
  share = newer.get("partial_rotary_factor", content.get("partial_rotary_factor"))
  if share not in (None, 1) or isinstance(share, bool):
    raise UserError(
      f"'{source}' states partial_rotary_factor {short(share)}; the network turns whole "
      "heads only. Choose another model."
    )
  old, new = (
    _divisors(one, theta, head_dim, positions, source) for one in (older, newer)
  )
  if older and newer and old != new:
    raise UserError(
      f"'{source}' states rope_scaling {short(older)} and rope_parameters {short(newer)}, "
      "which differ, and versions of transformers disagree about which counts. Remove "
      "the wrong one."
    )
  return theta, new if newer else old


def _divisors(
  stated: Mapping[str, Any], theta: float, head_dim: int, positions: Any, source: str
) -> tuple[float, ...]:
  """Returns the divisors of a scaling, as config.json states it; () for none."""
  kind = stated.get("rope_type", stated.get("type", "default"))

  def number(name: str, otherwise: Any = None) -> float:
    found = stated.get(name, otherwise)
    return hugging_face.positive(found, f"a rope scaling whose {name} is", source)

  if kind == "default":
    return ()
  if kind == "linear":
    return linear(head_dim, number("factor"))
  if kind == "llama3":
    low, high = number("low_freq_factor"), number("high_freq_factor")
    if low >= high:
      raise UserError(
        f"'{source}' states a rope scaling whose low_freq_factor {low} is not below its "
        f"high_freq_factor {high}. Take another copy."
      )
    original = number("original_max_position_embeddings", positions)
    return llama3(head_dim, theta, number("factor"), low, high, original)
  raise UserError(
    f"'{source}' states a rope scaling of the type {short(kind)}; only "
    "'default', 'linear' and 'llama3' are read. Choose another model."
  )


def scaling(divisors: tuple[float, ...], head_dim: int, theta: float) -> dict[str, Any]:
  """Returns Hugging Face's name and numbers for the divisors.

  Raises:
    UserError: the format has no name for them.
  """
  if not divisors:
    return {"rope_type": "default"}
  factor = max(divisors)
  if _close(divisors, linear(head_dim, factor)):
    return {"rope_type": "linear", "factor": factor}
  for original in (ORIGINAL, *_first_lengths(divisors, head_dim, theta)):
    if _close(divisors, llama3(head_dim, theta, factor, original=original)):
      return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": original,
      }
  raise UserError(
    "The rotary frequencies of this model are divided by numbers for which config.json "
    "of Hugging Face has no name: neither linear scaling nor LLaMA 3.1's. Write a "
    ".safetensors file of ours or a T5X checkpoint instead."
  )


def _first_lengths(
  divisors: tuple[float, ...], head_dim: int, theta: float
) -> Iterator[int]:
  """Yields the first lengths at which `llama3` gives one of the divisors that go over."""
  factor = max(divisors)
  for pair, divisor in enumerate(divisors):
    if 1 < divisor < factor:
      kept = (1 / divisor - 1 / factor) / (1 - 1 / factor)
      turns = LOW + kept * (HIGH - LOW)
      yield round(turns * 2 * math.pi * theta ** (2 * pair / head_dim))


def _close(some: tuple[float, ...], others: tuple[float, ...]) -> bool:
  """Returns whether numbers are equal as far as fp32 tells."""
  return all(
    math.isclose(one, other, rel_tol=1e-6)
    for one, other in zip(some, others, strict=True)
  )
