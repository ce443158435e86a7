"""More steps on a run that has ended."""

import functools
import json

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.training import initial, optimizers


def content(run):
  """Returns what a run's files hold that a run in one go would hold as well."""
  manifest = json.loads((run / "manifest.json").read_text())
  manifest = {k: v for k, v in manifest.items() if not k.startswith("seconds_")}
  prompts = {path.name: path.read_bytes() for path in run.glob("*_prompt.safetensors")}
  return (run / "metrics.jsonl").read_bytes(), prompts, manifest


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
  run = tmp_path_factory.mktemp("whole") / "run"
  tiny.train(run, total_steps=30)
  return content(run)


def test_a_longer_run_equals_an_unbroken_one(tiny, tmp_path, whole, capsys):
  run = tmp_path / "run"
  tiny.train(run)
  capsys.readouterr()
  manifest = tiny.train(run, total_steps=30)
  assert manifest["last_step"] == 30
  assert "was to end after 20 steps, and goes on" in capsys.readouterr().out
  *files, ended = content(run)
  assert tuple(files) == whole[:2]
  # Each run has its own identity from when it began; all else is stated alike.
  assert ended.pop("run") != whole[2]["run"]
  assert ended == {name: value for name, value in whole[2].items() if name != "run"}


def test_a_killed_run_may_be_given_more_steps(tiny, tmp_path, whole, monkeypatch):
  run = tmp_path / "run"
  train = functools.partial(tiny.train, run)
  with monkeypatch.context() as patch:
    patch.setattr("tpv_jax.training.loop.Run.finish", dies)
    with pytest.raises(ConnectionError):
      train()
  train(total_steps=30)
  assert content(run)[:2] == whole[:2]


def dies(*_, **__):
  raise ConnectionError("the machine is gone")


@pytest.mark.parametrize(
  ("settings", "longer", "message"),
  [
    (
      {"learning_rate": optimizers.linear(0.3, total_steps=20)},
      {"learning_rate": optimizers.linear(0.3, total_steps=30)},
      r"has 20 steps and cannot go on to 30: its steps depend on where it ends, "
      r"or it has another learning_rate: ",
    ),
    ({"total_steps": 15}, {}, "it ended between two validations, which are every 10"),
    ({"initial_seed": 1}, {}, "another total_steps: 20 there, 30 now"),
  ],
)
def test_a_run_that_would_have_gone_otherwise_is_refused(
  tiny, tmp_path, settings, longer, message
):
  run = tmp_path / "run"
  tiny.train(run, **settings)
  before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
  with pytest.raises(UserError, match=message):
    tiny.train(run, **{"total_steps": 30, **longer})
  assert before == {
    path: path.read_bytes() for path in run.rglob("*") if path.is_file()
  }


def test_a_prompt_of_a_bank_is_refused(tiny, tmp_path):
  tiny.train_bank(tmp_path, 2)
  with pytest.raises(UserError, match="cannot go on to 30: it was trained in a bank"):
    tiny.train(tmp_path / "0", total_steps=30)


def test_a_linear_schedule_to_another_end_goes_on(tiny, tmp_path):
  """Its rates do not depend on the run's own end."""
  schedule = optimizers.linear(0.3, total_steps=40)
  start = functools.partial(initial.sampled_vocabulary, length=4)
  settings = {"learning_rate": schedule, "initial_prompt": start}
  tiny.train(tmp_path / "run", **settings)
  assert tiny.train(tmp_path / "run", total_steps=40, **settings)["last_step"] == 40
