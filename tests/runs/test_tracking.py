"""Metrics in Weights & Biases, in its offline mode."""

import json
import sys

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.runs import tracking

wandb = pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
  monkeypatch.setenv("WANDB_MODE", "offline")
  for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
    monkeypatch.setenv(name, str(tmp_path / name))
  yield
  wandb.teardown()  # It keeps what the environment says.


def records(path):
  """Yields the records of a file of W&B: LevelDB's log behind a header of 7 bytes."""
  content, place, block, parts = path.read_bytes(), 7, 1 << 15, []
  while place + 7 <= len(content):
    if (
      left := block - place % block
    ) < 7:  # Too small for a header: filled with zeros.
      place += left
      continue
    size = int.from_bytes(content[place + 4 : place + 6], "little")
    kind = content[place + 6]
    parts.append(content[place + 7 : place + 7 + size])
    place += 7 + size
    if kind in (1, 4):  # Whole, or the last part.
      yield b"".join(parts)
      parts = []


def sent(folder):
  """Returns (run ids, lines of metrics) of all offline data below a run's folder."""
  from wandb.proto import wandb_internal_pb2

  ids, lines = set(), []
  for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
    for data in records(path):
      record = wandb_internal_pb2.Record()
      record.ParseFromString(data)
      if record.HasField("run"):
        ids.add((record.run.project, record.run.run_id))
      if record.HasField("history"):
        items = [
          (one.key or "/".join(one.nested_key), json.loads(one.value_json))
          for one in record.history.item
        ]
        lines.append({key: value for key, value in items if not key.startswith("_")})
  return ids, lines


def as_sent(folder):
  """Returns the lines of metrics.jsonl as they are to be sent."""
  lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  found = []
  for line in lines:
    step, kind = line.pop("step"), line.pop("kind")
    found.append({"step": step, **{f"{kind}/{key}": line[key] for key in line}})
  return found


def test_a_runs_metrics_go_to_its_project(tiny, tmp_path):
  run = tmp_path / "run"
  manifest = tiny.train(run, wandb_project="prompts")
  ids, lines = sent(run)
  assert ids == {("prompts", manifest["wandb"]["id"])}
  speeds = [line.pop("train/examples_per_s", None) for line in lines]
  assert all(speed > 0 for speed in speeds if speed is not None)
  assert lines == as_sent(run)


def test_a_killed_run_goes_on_with_its_run_there(tiny, tmp_path, monkeypatch):
  import functools

  train = tiny.train
  monkeypatch.setattr(tiny, "train", functools.partial(train, wandb_project="prompts"))
  manifest = tiny.train_killed(tmp_path / "run", monkeypatch)
  ids, lines = sent(tmp_path / "run")
  assert ids == {("prompts", manifest["wandb"]["id"])}
  assert {line["step"] for line in lines} == {5, 10, 15, 20}
  assert manifest["status"] == "finished"


def test_nothing_of_it_changes_what_a_run_is(tiny, tmp_path):
  tiny.train(tmp_path / "run")
  before = (tmp_path / "run/manifest.json").read_bytes()
  tiny.train(tmp_path / "run", wandb_project="prompts")  # Finished, and left as it is.
  assert (tmp_path / "run/manifest.json").read_bytes() == before


def test_without_the_package_it_is_one_clear_line(tiny, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    UserError, match="WANDB_PROJECT is 'p', and wandb is not installed"
  ):
    tiny.train(tmp_path / "run", wandb_project="p")
  assert not (tmp_path / "run").exists()


def test_without_a_login_it_is_one_clear_line(tiny, tmp_path, monkeypatch):
  monkeypatch.setenv("WANDB_MODE", "online")
  monkeypatch.setenv("WANDB_API_KEY", "short")
  monkeypatch.setenv("HOME", str(tmp_path))
  with pytest.raises(
    UserError, match=r"cannot begin a run of the project 'p': .*offline"
  ):
    tiny.train(tmp_path / "run", wandb_project="p")
