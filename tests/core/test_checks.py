"""Checks: what an annotation refuses, and the line that says so."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from tpv_jax.core import checks
from tpv_jax.core.checks import (
  BelowOne,
  Lengths,
  NotNegative,
  OneOf,
  Scalar,
  Seed,
  Size,
)
from tpv_jax.core.errors import UserError
from tpv_jax.core.files import PathLike

WHICH = Annotated[str, OneOf(("best", "last"))]


class Duck:
  """Neither a string nor a number nor a container."""


@pytest.mark.parametrize(
  ("value", "annotation"),
  [
    (1, Size),
    (np.int64(1), Size),
    (1, NotNegative),
    (np.float32(0.5), NotNegative),
    (0, BelowOne),
    (2**32 - 1, Seed),
    ("last", WHICH),
    (None, WHICH | None),
    ({"inputs": 1, "targets": 1}, Lengths),
    (["a"], Sequence[str]),
    ((), Sequence[str]),
    ({0: "no", "1": True}, Mapping[Scalar, Scalar]),
    ([["a", 1]], Any),
    ("paper", Literal["paper"] | None),
    (len, Callable[[Any], int]),
    (Duck(), Duck),
    (Duck(), checks.Range),  # What behaves like another class may be given.
    (checks.Unknown(), Size),
    (checks.Unknown(), Sequence[str]),
  ],
)
def test_what_an_annotation_allows_is_no_misfit(value, annotation):
  assert checks.misfit(value, annotation, "X") is None


@pytest.mark.parametrize(
  ("value", "annotation", "message"),
  [
    (0, Size, "X is 0; it must be a whole number of at least 1."),
    (True, Size, "X is True; it must be a whole number of at least 1."),
    (1.0, Size, "X is 1.0; it must be a whole number of at least 1."),
    ("1", Size, "X is '1'; it must be a whole number of at least 1."),
    (None, Size, "X is None; it must be a whole number of at least 1."),
    (10**9, Size, "X is 1000000000; it must be a whole number of at most 1,048,576."),
    (2**63, Seed, f"X is {2**63}; it must be a whole number of at most 4,294,967,295."),
    (float("nan"), float, "X is nan; it must be a finite number."),
    (float("inf"), NotNegative, "X is inf; it must be a finite number."),
    (float("inf"), float | None, "X is inf; it must be a finite number."),
    (False, float, "X is False; it must be a number."),
    (1, bool, "X is 1; it must be True or False."),
    ("False", bool, "X is 'False'; it must be True or False."),
    (-0.1, NotNegative, "X is -0.1; it must be a number of at least 0."),
    (1, BelowOne, "X is 1; it must be a number below 1."),
    (0, checks.Positive, "X is 0; it must be a number above 0."),
    (b"a", str, "X is b'a'; it must be a string."),
    ("a\0", PathLike, "X is 'a\\x00'; it must be a string without the character NUL."),
    ("", PathLike, "X is ''; it must be a string with something in it."),
    (3, PathLike, "X is 3; it must be a string or a path."),
    (
      "ab",
      Sequence[str],
      "X is 'ab'; it must be a list whose elements are each a string.",
    ),
    (["a", 3], Sequence[str] | None, "X[1] is 3; it must be a string."),
    ([[1, "a"]], Sequence[Sequence[float]], "X[0][1] is 'a'; it must be a number."),
    ({"a": None}, Mapping[str, str], "X['a'] is None; it must be a string."),
    ({1: "a"}, Mapping[str, str], "The key 1 of X is 1; it must be a string."),
    (
      {"inputs": 24, "targets": 2, "labels": 2},
      Lengths,
      "X is {'inputs': 24, 'targets': 2, 'labels': 2}; it must be a mapping with the keys "
      "'inputs' and 'targets'.",
    ),
    (
      {"input": 24, "targets": 2},
      Lengths,
      "X is {'input': 24, 'targets': 2}; it must be a mapping with the keys 'inputs' and "
      "'targets'. Did you mean 'inputs'?",
    ),
    (
      "bets",
      WHICH,
      "X is 'bets'; it must be a string: 'best' or 'last'. Did you mean 'best'?",
    ),
    ("papr", Literal["paper"] | None, "X is 'papr'; it must be 'paper' or None."),
    (
      {"0": ["bad", "poor"]},
      Mapping[Scalar, Scalar] | Sequence[Scalar] | None,
      "X['0'] is ['bad', 'poor']; it must be a string, a number, True, False or None.",
    ),
    (
      "ab",
      Mapping[Scalar, Scalar] | Sequence[Scalar] | None,
      "X is 'ab'; it must be a mapping, a list or None.",
    ),
    (1j, Mapping[str, str], "X is 1j; it must be a mapping."),
    ({1}, Mapping[str, str], "X is {1}; it must be a mapping."),
    (3, Callable[[int], int], "X is 3; it must be a function."),
    (3, Duck, "X is 3; it must be a Duck."),
    (Duck, Duck, f"X is {Duck!r}; it must be a Duck."),
  ],
)
def test_what_an_annotation_refuses_is_one_line(value, annotation, message):
  assert str(checks.misfit(value, annotation, "X")) == message


def test_a_long_value_is_shown_in_part():
  line = str(checks.misfit([0] * 500 + ["a" * 500], Sequence[int] | None, "X"))
  assert "X[500] is 'aaa" in line
  assert "[…]" in line
  assert len(line) < 300


@checks.checked
def scaled(rates: Sequence[NotNegative], by: NotNegative = 2, *, name: str = "x"):
  """Multiplies."""
  return [rate * by for rate in rates], name


def test_a_checked_function_refuses_before_it_is_called():
  assert scaled([1], 3, name="y") == ([3], "y")
  with pytest.raises(UserError, match=r"rates\[0\] is -1; it must be a number of at"):
    scaled([-1])
  with pytest.raises(UserError, match="name is 3; it must be a string"):
    scaled([1], name=3)
  with pytest.raises(TypeError, match="missing a required argument: 'rates'"):
    scaled()
  # gin asks for the names of positional arguments.
  assert inspect.getfullargspec(scaled).args == ["rates", "by"]
  assert scaled.__doc__ == "Multiplies."


def test_fields_are_checked_when_a_dataclass_asks_for_it():
  @dataclasses.dataclass
  class Sizes:
    length: Size
    names: Sequence[str] = ()

    def __post_init__(self):
      checks.check_fields(self)

  Sizes(3, ["a"])
  with pytest.raises(UserError, match="length is 0; it must be a whole number of at"):
    Sizes(0)
  with pytest.raises(UserError, match="names is 'ab'; it must be a list"):
    Sizes(1, "ab")
