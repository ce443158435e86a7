"""Settings are compared by value; what people read, and new or dead settings, are not."""

import copy
import json
import pathlib

import pytest

from tpv_jax.runs import run_settings
from tpv_jax.runs.run_settings import Settings, difference

RUNS = pathlib.Path(__file__).parents[1] / "fixtures" / "runs"


@pytest.fixture
def old():
  """A manifest of version 1."""
  return json.loads((RUNS / "plain_stopped" / "manifest.json").read_text())


@pytest.fixture
def now(old):
  """The same settings as today's code has them."""
  values = copy.deepcopy(old["settings"])
  del values["data"]["train"], values["data"]["validation"]
  values["data"] |= {
    "vocabulary": "a" * 64,
    "validation_examples": 24,
    "train_tokens": "b" * 64,
    "validation_tokens": "c" * 64,
  }
  values["patience"] = 3
  return Settings(values, {"network": {"dropout_rate": 0.0}, "z_loss": 0.0})


def changed(settings, name, value):
  """Returns settings of which one, by its flat name, has another value."""
  values = copy.deepcopy(settings.values)
  *parents, last = name.split("/")
  inside = values
  for parent in parents:
    inside = inside[parent]
  inside[last] = value
  return settings._replace(values=values)


@pytest.fixture
def saved(now):
  """A manifest as today's code writes it."""
  return {"versions": {"tpv_jax": "0.0.9"}, **json.loads(json.dumps(now.saved()))}


def test_settings_that_were_saved_are_equal_to_themselves(now, old, saved):
  assert difference(saved, now) is None
  assert difference(old, now) is None
  assert saved["settings_version"] == run_settings.VERSION
  assert saved["defaults"] == {"network/dropout_rate": 0.0, "z_loss": 0.0}


def test_a_reworded_report_and_another_place_of_the_data_change_nothing(old, now):
  old["settings"]["data"]["train"] = "24 rows; nothing was cut"
  old["settings"]["data"]["origin"] = {"train": "'/home/me/rows.jsonl'"}
  assert difference(old, now) is None


def test_the_number_of_validation_examples_is_read_from_an_old_report(old, now):
  fewer = changed(now, "data/validation_examples", 10)
  assert difference(old, fewer) == "data/validation_examples: 24 there, 10 now"


@pytest.mark.parametrize("name", ["network/gates", "gates", "prompt/gates"])
@pytest.mark.parametrize("manifest", ["old", "saved"])
def test_a_setting_that_came_later_was_at_todays_default(request, now, name, manifest):
  there = request.getfixturevalue(manifest)
  part, _, key = name.rpartition("/")
  defaults = {key: 7} if not part else {part: {key: 7}}
  now = Settings(now.values, {**now.defaults, **defaults})
  assert difference(there, changed(now, name, 7)) is None
  assert difference(there, changed(now, name, 8)) == f"{name}: 7 there, 8 now"


def test_a_setting_that_came_later_and_has_no_default_is_another(saved, now):
  told = difference(saved, changed(now, "network/gates", 7))
  assert told == "network/gates: not stated there, 7 now"


def test_a_setting_that_is_gone_must_have_been_at_the_default_of_then(saved, now):
  saved["settings"]["network"]["gates"] = 4
  told = difference(saved, now)
  assert told == "network/gates: 4 there, written by tpv_jax 0.0.9; this run has none"
  saved["defaults"]["network/gates"] = 4
  assert difference(saved, now) is None


@pytest.mark.parametrize("version", [run_settings.VERSION + 1, 0, "two", None])
def test_settings_of_a_version_to_come_are_refused_by_name(saved, now, version):
  saved["settings_version"] = version
  told = difference(saved, now)
  assert told.startswith(
    f"version of its settings: {version} there, written by tpv_jax"
  )


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("total_steps", 13),
    ("best_metric", None),
    ("initial_seed", 1),
    ("backbone", "0" * 64),
    ("data/lengths/inputs", 9),
    ("data/train_digest", "0" * 64),
    ("network/dropout_rate", 0.1),
    ("network/mlp_activations", ["relu"]),
    ("network/remat", 1),
    ("prompt", None),
    ("learning_rate", [0.3, 0.3, 0.3, 0.2999]),
    ("learning_rate", [0.3, 0.3]),
  ],
)
@pytest.mark.parametrize("manifest", ["old", "saved"])
def test_a_real_change_is_told_by_its_name(request, now, name, value, manifest):
  told = difference(request.getfixturevalue(manifest), changed(now, name, value))
  assert told.startswith(name)


@pytest.mark.parametrize("manifest", ["old", "saved"])
def test_another_optimizer_is_told_by_its_settings_and_not_by_numbers(
  request, now, manifest
):
  there = request.getfixturevalue(manifest)
  told = difference(
    there, changed(now, "optimizer/prompt/prompt", "-1.011 -0.99 1 -1.001")
  )
  assert told.startswith("optimizer (OPTIMIZER, TRANSFORMATION, WEIGHT_DECAY, ")
  assert "config.gin" in told
  assert "-1.011" not in told


def test_how_an_optimizer_takes_sizes_is_compared_where_it_is_stated(old, now):
  values = {**now.values, "optimizer_by_size": {"prompt": "-0.5 -0.7"}}
  today = now._replace(values=values)
  assert difference(old, today) is None
  assert difference(now.saved(), today) is None
  other = changed(today, "optimizer_by_size/prompt", "-0.5 -0.6")
  assert difference(today.saved(), other).startswith("optimizer (")


def test_what_is_computed_may_differ_in_the_last_digit_only(saved, now):
  text = now.values["optimizer"]["prompt"]["prompt"]
  assert "-0.7508" in text
  there = changed(now, "optimizer/prompt/prompt", text.replace("-0.7508", "-0.7507"))
  assert difference(saved, there) is None
  rates = changed(now, "learning_rate", [0.3, 0.3, 0.3, 0.30001])
  assert difference(saved, rates) is None
  # What is chosen may not.
  assert difference(saved, changed(now, "z_loss", 1e-9)) is not None


def test_lists_of_settings_are_compared_flat(now):
  there = changed(now, "data/phases", [{"start": 0, "weight": 1}])
  told = difference(
    there.saved(), changed(now, "data/phases", [{"start": 0, "weight": 2}])
  )
  assert told == "data/phases/0/weight: 1 there, 2 now"


def test_a_function_is_stated_by_its_name_and_not_its_address():
  assert run_settings.as_json([json.dumps]) == ["dumps"]
