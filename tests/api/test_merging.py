"""Merges by data from vectors in memory are those of `tpv merge-by-data`."""

import numpy as np
import pytest

import tpv_jax as tpv
from tpv_jax import cli
from tpv_jax.core import identity
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import Provenance, Term


@pytest.fixture(scope="module")
def backbone():
  return tpv.load_backbone("embedded")


@pytest.fixture(scope="module")
def given(backbone, tmp_path_factory):
  """The files of an initial prompt and of the vectors of two tasks, never trained."""
  folder = tmp_path_factory.mktemp("given")
  draw = np.random.default_rng(0)
  known = {"backbone_name": "x", "backbone_fingerprint": backbone.fingerprint}
  leaves = {"prompt": draw.normal(size=(2, 128)).astype(np.float32)}
  digest = identity.prompt_digest(leaves)
  start = Provenance("prompt", initial_digest=digest, **known)
  tpv.save(folder / "initial.safetensors", Loaded(leaves, start))
  for name in ("sentiment", "topic"):
    vector = {"prompt": draw.normal(size=(2, 128)).astype(np.float32)}
    of = Provenance("vector", (Term(name, 1.0),), initial_digest=digest, **known)
    tpv.save(folder / f"{name}.safetensors", Loaded(vector, of))
  return folder


def test_a_merge_is_that_of_the_command(backbone, given, tmp_path, capfd):
  tasks = [tpv.task(name, of="embedded") for name in ("sentiment", "topic")]
  files = [str(given / f"{task.name}.safetensors") for task in tasks]
  initial, output = given / "initial.safetensors", tmp_path / "m.safetensors"
  merged = tpv.merge_by_data(
    *(backbone, tasks, [tpv.load(path) for path in files], tpv.load(initial)),
    "fisher",
    options={"examples": 4, "fisher_floor": 1e-12},
    weights=[1, 2],
  )
  assert capfd.readouterr().out == ""
  settings = {
    "BACKBONE": "embedded",
    "TASK_NAMES": ["sentiment", "topic"],
    "RULE": "fisher",
    "VECTORS": files,
    "INITIAL": str(initial),
    "OPTIONS": {"examples": 4, "fisher_floor": 1e-12},
    "WEIGHTS": [1, 2],
    "OUTPUT": str(output),
  }
  call = ["merge-by-data", *(f"--gin.{k}={v!r}" for k, v in settings.items())]
  assert cli.main(call) == 0
  out = capfd.readouterr().out
  assert f"Wrote the vector '{output}': fisher(sentiment, topic)." in out
  assert "compiled 1 times" in out
  assert "note: " not in out
  written = tpv.load(output)
  assert written.leaves["prompt"].tobytes() == merged.leaves["prompt"].tobytes()
  assert written.provenance == merged.provenance
  assert cli.main(call) == 2
  assert "exists" in capfd.readouterr().err


def test_settings_that_cannot_be_are_refused_by_name(backbone, given):
  task = tpv.task("sentiment", of="embedded")
  vectors, initial = [given / "sentiment.safetensors"], given / "initial.safetensors"
  vectors = [str(one) for one in vectors]
  for rule, settings, message in (
    ("fischer", {}, "Did you mean 'fisher'"),
    ("fisher", {"options": {"exmples": 4}}, "no option 'exmples'"),
    ("fisher", {"batch_sze": 4}, "batch_sze is read by nothing"),
  ):
    with pytest.raises(tpv.UserError, match=message):
      tpv.merge_by_data(backbone, task, vectors, str(initial), rule, **settings)


def test_what_a_gin_file_says_of_a_merge_is_used_or_refused(backbone, given, tmp_path):
  task = tpv.task("sentiment", of="embedded")
  call = [backbone, task, [str(given / "sentiment.safetensors")]]
  call += [str(given / "initial.safetensors"), "fisher"]
  file = tmp_path / "mine.gin"
  file.write_text(f"OUTPUT = '{tmp_path / 'merged.safetensors'}'\n")
  tpv.merge_by_data(*call, options={"examples": 4}, gin_file=file)
  assert (tmp_path / "merged.safetensors").exists()
  file.write_text("RULE = 'adamerging'\n")
  with pytest.raises(
    tpv.UserError, match="sets rule, which is an argument of the call"
  ):
    tpv.merge_by_data(*call, gin_file=file)
