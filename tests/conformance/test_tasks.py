"""What every task of the papers' registry does; a new one is tested by being in a table."""

import json
import pathlib
import re

import numpy as np
import pytest

from tpv_jax.data import registry, sources
from tpv_jax.data.metrics import registry as metrics
from tpv_jax.data.papers import definition
from tpv_jax.data.registry import DEFINITIONS

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden_pairs.json").read_text())
"""Rows as the sources have them, and what they become."""

GIN_FILES = pathlib.Path(__file__).parents[2] / "gin_configs" / "tasks"

every_task = pytest.mark.parametrize("name", DEFINITIONS)


def raw_rows(name):
  """The golden rows of a task, with classes by name."""
  which = DEFINITIONS[name]
  return [sources.named(row, which.classes) for row in definition.example_rows(which)]


def test_the_golden_pairs_cover_the_table():
  assert set(GOLDEN["pairs"]) == set(DEFINITIONS)


@every_task
def test_it_is_found_by_its_name(name):
  assert registry.definition(name) is DEFINITIONS[name]
  assert re.fullmatch("[a-z][a-z0-9_]*", name)


@every_task
def test_rows_become_the_golden_pairs(name):
  for row, pair in zip(raw_rows(name), GOLDEN["pairs"][name], strict=True):
    found = DEFINITIONS[name].example(row, "here", "test")
    assert (found.inputs, found.targets) == (pair["inputs"], pair["targets"])
    assert list(found.answers) == pair.get("answers", [])
    assert found.group == pair.get("group", "")


@every_task
def test_the_columns_are_found_in_a_source_again(name):
  which = DEFINITIONS[name]
  row = raw_rows(name)[0]
  example = which.example(row, "here", "test")
  read = which.change(row, "here") if which.change else row
  expected = [str(read[column]) for column in which.columns]
  if which.data == "ag_news":  # Nothing tells the title from the description.
    expected = [" ".join(expected)]
  assert [example.inputs[start:end] for start, end in example.fields] == expected


@every_task
def test_metrics_are_known_and_suit_the_labels(name):
  which = DEFINITIONS[name]
  for metric in which.metrics:
    metrics.check_name(metric, which.words)


@every_task
def test_label_words_differ(name):
  words = DEFINITIONS[name].words
  assert words is None or len(set(words)) == len(words)


@pytest.mark.parametrize("count", [9, 3000])
@pytest.mark.parametrize(
  # Groups are told apart as they are read: see the test of MultiRC's questions.
  "name",
  [name for name, which in DEFINITIONS.items() if which.group is None],
)
def test_no_row_is_in_two_splits(name, count):
  which = DEFINITIONS[name]
  counts = {"train": count, which.held_out: count // 2, "else": 9}
  seen = [
    (source, row)
    for split in ("train", "validation", "test")
    for source, rows in [which.places(split, counts, seed=0)]
    for row in np.asarray(rows).tolist()
  ]
  assert len(seen) == len(set(seen)) == count + count // 2


@every_task
def test_it_has_a_gin_file(name):
  assert (GIN_FILES / f"{name}.gin").is_file()
