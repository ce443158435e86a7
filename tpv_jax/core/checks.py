"""Checks of values against annotations: the signature alone says what an argument may be.

`checked` and `check_fields` check the arguments of a function or dataclass when it is
called, and the commands check gin's settings before anything runs. Imports nothing but
the standard library and `tpv_jax.core.errors`.
"""

import collections.abc
import dataclasses
import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from tpv_jax.core.errors import UserError, near_misses

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Range:
  """A number's bounds: `least` and `most` are allowed, `above` and `below` are not."""

  least: float | None = None
  most: float | None = None
  above: float | None = None
  below: float | None = None

  def refuses(self, value: Any) -> str | None:
    """Returns the bound that a value breaks, as in 'of at least 1', or None."""
    if self.least is not None and value < self.least:
      return f"of at least {self.least:,}"
    if self.most is not None and value > self.most:
      return f"of at most {self.most:,}"
    if self.above is not None and value <= self.above:
      return f"above {self.above:,}"
    if self.below is not None and value >= self.below:
      return f"below {self.below:,}"
    return None

  def __str__(self) -> str:
    """Returns the bound to mention when the value is not even a number."""
    if self.least is not None:
      return f" of at least {self.least:,}"
    return "" if self.above is None else f" above {self.above:,}"


@dataclasses.dataclass(frozen=True)
class OneOf:
  """One of a few strings."""

  choices: tuple[str, ...]

  def refuses(self, value: Any) -> str | None:
    """Returns the choices, with near misses, unless `value` is one of them."""
    return (
      None if value in self.choices else f"{self}.{near_misses(value, self.choices)}"
    )

  def __str__(self) -> str:
    return f": {' or '.join(map(repr, self.choices))}"


@dataclasses.dataclass(frozen=True)
class Keys:
  """A mapping with exactly these keys."""

  names: tuple[str, ...]

  def refuses(self, value: Any) -> str | None:
    """Returns the keys, with near misses, unless `value` has exactly these."""
    strange = [key for key in value if key not in self.names]
    if not strange and len(value) == len(self.names):
      return None
    return f"{self}.{near_misses(str(strange[0]), self.names) if strange else ''}"

  def __str__(self) -> str:
    return f" with the keys {' and '.join(map(repr, self.names))}"


@dataclasses.dataclass(frozen=True)
class NotEmpty:
  """A string or container that is not empty."""

  def refuses(self, value: Any) -> str | None:
    """Returns 'with something in it' if `value` is empty, or None."""
    return None if len(value) else "with something in it"

  def __str__(self) -> str:
    return ""


LARGEST = 2**20
"""Largest size in tokens, rows, layers or features; more would fit no machine (ours)."""

Size = Annotated[int, Range(least=1, most=LARGEST)]
SizeOrNone = Annotated[int, Range(least=0, most=LARGEST)]
"""A size, or 0 to switch something off."""

Steps = Annotated[int, Range(least=1, most=2**31 - 1)]
StepsOrNone = Annotated[int, Range(least=0, most=2**31 - 1)]
Seed = Annotated[int, Range(least=0, most=2**32 - 1)]
"""The seeds that JAX's and NumPy's generators both distinguish."""

NotNegative = Annotated[float, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
Fraction = Annotated[float, Range(least=0, most=1)]
Share = Annotated[float, Range(above=0, most=1)]
BelowOne = Annotated[float, Range(least=0, below=1)]
Lengths = Annotated[Mapping[str, Size], Keys(("inputs", "targets"))]
"""{'inputs': T, 'targets': L} in tokens, EOS included."""

Scalar = str | int | float | bool | None
"""A cell of a table."""


class Unknown:
  """Stands for a value that is not known yet; it passes every check."""


@dataclasses.dataclass(frozen=True)
class Misfit:
  """A value that its annotation refuses.

  `whole` says that another kind of value is needed; otherwise an element or a bound is
  wrong, which makes the more precise message.
  """

  name: str
  value: Any
  wanted: str
  whole: bool

  def __str__(self) -> str:
    shown = repr(self.value)
    shown = shown if len(shown) <= 200 else f"{shown[:150]} […] {shown[-40:]}"
    return f"{self.name} is {shown}; it must be {self.wanted.rstrip('.?')}" + (
      "?" if self.wanted.endswith("?") else "."
    )


def misfit(value: Any, annotation: Any, name: str) -> Misfit | None:
  """Returns what is wrong with a value, or None.

  Stricter than Python's own types where those hide mistakes: True is not a number, a
  string is not a list, numbers are finite, strings have no NUL. An annotation that is a
  class other than a built-in one refuses only built-in values (None, numbers, strings,
  containers) and functions, so that objects that behave like the class pass.
  """
  if isinstance(value, Unknown) or annotation in (Any, inspect.Parameter.empty):
    return None
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is Annotated:
    kind, *bounds = arguments
    wrong = misfit(value, kind, name)
    if wrong is not None:
      return (
        dataclasses.replace(wrong, wanted=describe(annotation))
        if wrong.whole
        else wrong
      )
    for bound in bounds:
      if (refused := bound.refuses(value)) is not None:
        gap = "" if refused[0] in ":," else " "
        wanted = f"{describe(kind)}{gap}{refused.lstrip()}"
        return Misfit(name, value, wanted, whole=False)
    return None
  if origin in (typing.Union, types.UnionType):
    found = [misfit(value, branch, name) for branch in arguments]
    if None in found:
      return None
    within = [wrong for wrong in found if wrong is not None and not wrong.whole]
    return within[0] if within else Misfit(name, value, describe(annotation), True)
  if _is_kind(value, annotation, origin, arguments):
    return _misfit_within(value, origin, arguments, name)
  if annotation is float and isinstance(value, float):
    return Misfit(name, value, "a finite number", whole=False)
  if annotation is str and isinstance(value, str):
    return Misfit(name, value, "a string without the character NUL", whole=False)
  return Misfit(name, value, describe(annotation), whole=True)


def _is_kind(
  value: Any, annotation: Any, origin: Any, arguments: tuple[Any, ...]
) -> bool:
  """Returns whether a value has the outermost type; its elements are not checked."""
  if annotation in (None, types.NoneType):
    return value is None
  if annotation is bool:
    return isinstance(value, bool)
  if annotation is int:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if annotation is float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
      return False
    return isinstance(value, int) or math.isfinite(value)
  if annotation is str:
    return isinstance(value, str) and "\0" not in value
  if origin is typing.Literal:
    return any(value == one and type(value) is type(one) for one in arguments)
  kind = origin or annotation
  if kind is collections.abc.Callable:
    return callable(value)
  if not isinstance(kind, type):
    return True
  if kind in (collections.abc.Sequence, list, tuple) or issubclass(
    kind, collections.abc.Mapping
  ):
    return isinstance(value, kind) and not isinstance(value, str | bytes)
  try:
    return isinstance(value, kind) or not _is_plain(value)
  except TypeError:  # A protocol without isinstance, or a shape.
    return True


def _is_plain(value: Any) -> bool:
  """Returns whether a value is of a type that gin's language has, or a function."""
  plain = (str, bytes, int, float, complex, list, tuple, set, dict, types.NoneType)
  return (
    type(value) in (*plain, bool) or inspect.isroutine(value) or inspect.isclass(value)
  )


def _misfit_within(
  value: Any, origin: Any, arguments: tuple[Any, ...], name: str
) -> Misfit | None:
  """Returns the first misfit among the elements of a container."""
  if not arguments or not isinstance(origin, type):
    return None
  if issubclass(origin, collections.abc.Mapping):
    for key, item in value.items():
      wrong = misfit(key, arguments[0], f"The key {key!r} of {name}") or misfit(
        item, arguments[1], f"{name}[{key!r}]"
      )
      if wrong:
        return dataclasses.replace(wrong, whole=False)
  elif origin in (collections.abc.Sequence, list, tuple):
    for index, item in enumerate(value):
      if wrong := misfit(item, arguments[0], f"{name}[{index}]"):
        return dataclasses.replace(wrong, whole=False)
  return None


def describe(annotation: Any) -> str:
  """Returns what an annotation asks for, in words: 'a whole number of at least 1'."""
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is Annotated:
    return describe(arguments[0]) + "".join(map(str, arguments[1:]))
  if origin in (typing.Union, types.UnionType):
    if annotation == Scalar:
      return "a string, a number, True, False or None"
    parts = list(dict.fromkeys(_short(describe(branch)) for branch in arguments))
    return " or ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
  if origin is typing.Literal:
    return " or ".join(map(repr, arguments))
  words = {
    None: "None",
    types.NoneType: "None",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Any: "anything",
  }
  if annotation in words:
    return words[annotation]
  kind = origin or annotation
  if kind is collections.abc.Callable:
    return "a function"
  if isinstance(kind, type) and issubclass(kind, os.PathLike):
    return "a path"
  if isinstance(kind, type) and issubclass(kind, collections.abc.Mapping):
    return "a mapping"
  if kind in (collections.abc.Sequence, list, tuple):
    return "a list" + (
      f" whose elements are each {describe(arguments[0])}" if arguments else ""
    )
  name = getattr(kind, "__name__", str(kind))
  return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _short(description: str) -> str:
  return description.split(" whose elements are each ")[0]


@functools.cache
def annotations(function: Callable[..., Any]) -> dict[str, Any]:
  """Returns the annotations of a function's arguments, or of a class's."""
  if inspect.isclass(function):
    own = function.__dict__.get("__init__")
    if own is not None and not dataclasses.is_dataclass(function):
      return annotations(own)
  found = typing.get_type_hints(function, include_extras=True)
  return {
    name: found[name]
    for name in inspect.signature(function).parameters
    if name in found
  }


def check(values: Mapping[str, Any], function: Callable[..., Any]) -> None:
  """Raises `UserError` for the first value that the annotations refuse."""
  known = annotations(function)
  for name, value in values.items():
    if name in known and (wrong := misfit(value, known[name], name)):
      raise UserError(str(wrong))


def check_fields(instance: Any) -> None:
  """Raises `UserError` for a field of a dataclass that its annotation refuses."""
  kind: Callable[..., Any] = type(instance)
  check({name: getattr(instance, name) for name in annotations(kind)}, kind)


def checked(function: Function) -> Function:
  """Returns the function with a check of its arguments against their annotations.

  Raises:
    UserError: when called, with the argument, its value and what it must be.
  """
  signature = inspect.signature(function)

  @functools.wraps(function)
  def checking(*args: Any, **kwargs: Any) -> Any:
    check(signature.bind(*args, **kwargs).arguments, function)
    return function(*args, **kwargs)

  checking.__signature__ = signature  # type: ignore[attr-defined]  # For gin.
  return typing.cast(Function, checking)
