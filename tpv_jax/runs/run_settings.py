"""Whether two runs are the same: their settings, compared by value and not by their text.

A manifest states three things:

    settings           what was chosen and what follows from it, as JSON
    settings_version   the version of the settings' names and meanings; 1 if none is stated
    defaults           by flat name, the defaults at the time of writing

Settings are compared flat, "network/emb_dim". A setting that the manifest lacks, because
it is newer than the code that wrote it, counts as today's default; a computed one of
`_LATER`, which has none, is taken to agree. One that today's code
lacks must have had the default of its time. Reports and notes for people are not settings.
When a setting changes its name or meaning, `VERSION` grows and `_upgraded` translates the
older one.
"""

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tpv_jax.core.version import VERSION as PACKAGE_VERSION
from tpv_jax.vectors.provenance import canonical_json

VERSION = 2

_COMPUTED = {"learning_rate": 6e-5, "optimizer": 6e-4, "optimizer_by_size": 6e-4}
"""Relative tolerances of computed settings, which are rounded to 5 and 4 digits: slightly
more than half a unit of the last digit, because another JAX or processor may differ."""

_OPTIMIZER = ("optimizer", "optimizer_by_size")
"""Settings that state the optimizer by the directions that it takes."""

_LATER = ("optimizer_by_size",)
"""Computed settings that old manifests lack."""

_ANOTHER_OPTIMIZER = (
  "optimizer (OPTIMIZER, TRANSFORMATION, WEIGHT_DECAY, GROUP_RATES, or what you bind of "
  "them, such as optimizers.adamw.clip_norm: compare its config.gin)"
)
"""What is said of a difference that numbers would not explain."""

_OF_ITS_WRITING = ("log_period", "checkpoint_period")
"""Settings of how a run is written: a finished run has the same prompts with others."""

_NOT_IN_1 = (
  "patience",
  "data/vocabulary",
  "data/validation_examples",
  "data/train_tokens",
  "data/validation_tokens",
)
"""Settings that manifests of version 1 never state."""

_MISSING = object()


class Settings(NamedTuple):
  """The settings of a run that is to be started.

  Attributes:
    values: as JSON, nested.
    defaults: the default values, nested alike; further names are ignored.
  """

  values: Mapping[str, Any]
  defaults: Mapping[str, Any]

  def saved(self) -> dict[str, Any]:
    """Returns the settings as a manifest states them."""
    flat, defaults = flatten(self.values), flatten(self.defaults)
    return {
      "settings_version": VERSION,
      "settings": dict(self.values),
      "defaults": {name: defaults[name] for name in flat if name in defaults},
    }

  def digest(self) -> str:
    """Returns 64 hex digits that name a run that starts with these settings."""
    return hashlib.sha256(canonical_json(self.values).encode()).hexdigest()


def difference(
  manifest: Mapping[str, Any], now: Settings, *, as_finished: bool = False
) -> str | None:
  """Returns the first setting that differs, with both values; None if all are equal.

  Of an optimizer, which is stated by numbers, it names the settings that may differ.

  Args:
    manifest: of the existing run, with `Settings.saved` in it.
    now: of the run that is to be started.
    as_finished: the run is finished and taken as it is, however it was logged.
  """
  version = manifest.get("settings_version", 1)
  writer = f"tpv_jax {manifest.get('versions', {}).get('tpv_jax', '(unknown)')}"
  if version not in range(1, VERSION + 1):
    return (
      f"version of its settings: {version} there, written by {writer}; this version "
      f"({PACKAGE_VERSION}) knows those up to {VERSION}"
    )
  here, defaults = flatten(as_json(now.values)), flatten(now.defaults)
  there = _upgraded(flatten(manifest["settings"]), version, here)
  defaults_there = manifest.get("defaults", {})
  for name in {**here, **there}:  # Chosen settings come before computed ones.
    if as_finished and name in _OF_ITS_WRITING:
      continue
    if name not in here:
      value = there[name]
      if value != defaults_there.get(name, _MISSING):
        return f"{name}: {value} there, written by {writer}; this run has none"
    else:
      unstated = here[name] if _within(name, _LATER) else _MISSING
      value = there.get(name, defaults.get(name, unstated))
      if value is _MISSING:
        return f"{name}: not stated there, {here[name]} now"
      if not _same(name, value, here[name]):
        told = f"{name}: {value} there, {here[name]} now"
        return _ANOTHER_OPTIMIZER if _within(name, _OPTIMIZER) else told
  return None


def changed(
  there: Mapping[str, Any], here: Mapping[str, Any], defaults: Mapping[str, Any]
) -> str | None:
  """Returns where saved values first differ from today's, compared as settings are."""
  saved = {"settings_version": VERSION, "settings": there}
  return difference(saved, Settings(here, defaults))


def fields(instance: Any) -> dict[str, Any]:
  """Returns the fields of a dataclass or Flax module as JSON."""
  parameters = inspect.signature(type(instance)).parameters
  return {
    name: as_json(getattr(instance, name))
    for name in parameters
    if name not in ("parent", "name")  # Flax's own.
  }


def defaults_of(*functions: Callable[..., Any]) -> dict[str, Any]:
  """Returns the defaults of the parameters of functions and the fields of classes."""
  return {
    name: as_json(parameter.default)
    for function in functions
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.default is not parameter.empty
  }


def as_json(value: Any) -> Any:
  """Returns a setting as JSON: numbers and strings unchanged, other values as strings."""
  if isinstance(value, Mapping):
    return {str(key): as_json(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [as_json(item) for item in value]
  if isinstance(value, np.generic | jax.Array) and np.ndim(value) == 0:
    return value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  if callable(value):  # Its repr has an address, which differs between processes.
    return getattr(value, "__qualname__", type(value).__qualname__)
  return value if isinstance(value, str | int | float | bool | None) else str(value)


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested settings by flat name; a list of plain values stays one setting."""
  flat: dict[str, Any] = {}

  def walk(value: Any, name: str) -> None:
    if isinstance(value, Mapping):
      items = value.items()
    elif isinstance(value, list) and any(isinstance(x, Mapping | list) for x in value):
      items = {str(place): item for place, item in enumerate(value)}.items()
    else:
      flat[name] = value
      return
    for key, item in items:
      walk(item, f"{name}/{key}" if name else str(key))

  walk(settings, "")
  return flat


def _same(name: str, one: Any, other: Any) -> bool:
  for prefix, tolerance in _COMPUTED.items():
    numbers, others = _numbers(one), _numbers(other)
    if _within(name, (prefix,)) and numbers and others:
      return len(numbers) == len(others) and all(
        math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-12)
        for a, b in zip(numbers, others, strict=True)
      )
  return one == other and isinstance(one, bool) == isinstance(other, bool)


def _numbers(value: Any) -> list[float]:
  """Returns the numbers in a list or string, or [] if it holds anything else."""
  items = value.split() if isinstance(value, str) else value
  try:
    numbers = [float(item) for item in items]
  except (TypeError, ValueError):
    return []
  return [] if any(map(math.isnan, numbers)) else numbers


def _upgraded(
  there: dict[str, Any], version: int, here: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns flat settings as today's code would have written them.

  Version 1 had reports for people among them. What it did not state is assumed to be as it
  is now.
  """
  if version > 1:
    return there
  reports = ("data/train", "data/validation", "data/origin")
  upgraded = {
    name: value for name, value in there.items() if not _within(name, reports)
  }
  for name in _NOT_IN_1:
    if name in here:
      upgraded[name] = here[name]
  # Only the report stated the number of validation examples.
  counted = re.match(r"\d+(?= examples)", str(there.get("data/validation")))
  if counted:
    upgraded["data/validation_examples"] = int(counted[0])
  return upgraded


def _within(name: str, parts: Sequence[str]) -> bool:
  return any(f"{name}/".startswith(f"{part}/") for part in parts)
