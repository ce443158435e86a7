"""The worked examples of docs/extending, taken as they stand in the documents."""

import functools
import importlib
import inspect
import pathlib
import re
import sys

import numpy as np
import pytest

from tpv_jax import cli
from tpv_jax.backbones import registry as backbones
from tpv_jax.banks import bank
from tpv_jax.data import batches, vocabularies
from tpv_jax.embedded import suite
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.prompts import registry as prompts
from tpv_jax.runs.run_folder import RunFolder
from tpv_jax.training import initial, optimizers
from tpv_jax.training.task_data import TaskData
from tpv_jax.vectors import store
from tpv_jax.vectors.merging import registry as merge_rules

TESTS = pathlib.Path(__file__).parents[1]
DOCUMENTS = TESTS.parent / "docs" / "extending"
sys.path.append(str(TESTS / "conformance"))

import test_backbones  # noqa: E402
import test_merging  # noqa: E402
import test_prompts  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiles_faster")


def blocks(name):
  """Returns the Python of a document, block by block."""
  text = (DOCUMENTS / f"{name}.md").read_text()
  return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def module(tmp_path, monkeypatch):
  """Writes code into a module in a folder where it is run, and imports it."""

  def make(name, code):
    (tmp_path / f"{name}.py").write_text(code)
    return importlib.import_module(name)

  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  before = set(sys.modules)
  yield make
  for name in set(sys.modules) - before:
    if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(
      sys.modules[name].__file__
    ):
      del sys.modules[name]


def conforms(suite_of, *parameters):
  """Runs the tests of a conformance suite with these parameters."""
  for name, test in vars(suite_of).items():
    if name.startswith("test_"):
      given = dict(zip(inspect.signature(test).parameters, parameters, strict=False))
      more = {
        mark.args[0]: mark.args[1][0]
        for mark in getattr(test, "pytestmark", [])
        if mark.name == "parametrize" and mark.args[0] not in given
      }
      if "tmp_path" in inspect.signature(test).parameters:
        folder = pathlib.Path(name)
        folder.mkdir()
        given["tmp_path"] = folder
      test(**{**given, **more})


def test_a_backbone_of_its_own(module, monkeypatch):
  network, family, use = blocks("backbone")
  made = module("means", network + family)
  line = re.search(
    r'^  ("means": ".*"),$', (DOCUMENTS / "backbone.md").read_text(), re.M
  )
  assert line[1] == '"means": "tpv_jax.backbones.means:FAMILY"'
  monkeypatch.setitem(backbones.FAMILIES, "means", "means:FAMILY")
  conforms(test_backbones, "means", "means_tiny")
  names = dict(vars(made))
  exec(compile(use, "backbone.md", "exec"), names)
  folder = RunFolder("runs/means")
  assert names["manifest"]["status"] == "finished"
  losses = [line["loss"] for line in folder.metrics() if line["kind"] == "validation"]
  assert len(losses) == 3
  assert losses[-1] < losses[0]
  _bank_and_evaluation(names["model"], names["backbone"])


def _bank_and_evaluation(model, backbone):
  """Trains two prompts at once and scores them in one pass."""
  vocabulary = vocabularies.embedded()
  entries = [
    bank.Entry(
      TaskData(suite.task(task), vocabulary, suite.LENGTHS, 16, seed=seed),
      f"runs/{task}",
      initial_seed=seed,
      seed=seed,
    )
    for seed, task in enumerate(("sentiment", "topic"))
  ]
  manifests = bank.train_bank(
    model=model,
    entries=entries,
    backbone=backbone,
    total_steps=20,
    learning_rate=optimizers.constant(0.3),
    initial_prompt=functools.partial(initial.sampled_vocabulary, length=8),
    progress=False,
  )
  assert [one["status"] for one in manifests] == ["finished", "finished"]
  evaluator = Evaluator(model, backbone.params, vocabulary, suite.LENGTHS, 16)
  prompts_of = [
    RunFolder(f"runs/{task}").prompt("best") for task in ("sentiment", "topic")
  ]
  cells = [
    (store.read(path)[0], suite.task(task), "validation")
    for path, task in zip(prompts_of, ("sentiment", "topic"), strict=True)
  ]
  results = evaluator.evaluate_all(cells)
  assert [one.examples for one in results] == [250, 250]
  assert all(0 <= one.scores["label_accuracy"] <= 1 for one in results)


def test_a_prompt_method_of_its_own(module, monkeypatch):
  numpy_half, flax_half, use = blocks("prompt_method")
  module("gained", numpy_half)
  made = module("gained_module", flax_half)
  monkeypatch.setitem(prompts.METHODS, "gained", "gained:METHOD")
  optimizers_know_the_groups(monkeypatch)
  conforms(test_prompts, "gained")
  names = dict(vars(made))
  exec(compile(use, "prompt_method.md", "exec"), names)
  start, tuned = (
    names["sources"].load("runs/gained", which=which).leaves
    for which in ("initial", "last")
  )
  assert start["gained_rows"].tobytes() == tuned["gained_rows"].tobytes()
  assert np.abs(tuned["gain"]).max() > 0.01
  vector = names["vector"].leaves["prompt"]
  expected = tuned["gained_rows"] * tuned["gain"] + tuned["shift"]
  best = names["sources"].load("runs/gained").leaves
  expected = best["gained_rows"] * best["gain"] + best["shift"]
  np.testing.assert_allclose(vector, expected, atol=1e-6)


def optimizers_know_the_groups(monkeypatch):
  """A method registered after the import is known to the optimizers, too."""
  monkeypatch.setattr(optimizers, "_GROUP_OF", prompts.groups())


def test_a_merge_rule_of_its_own(module, monkeypatch, capsys):
  rule, use = blocks("merge_rule")
  module("projections", rule)
  text = (DOCUMENTS / "merge_rule.md").read_text()
  line = re.search(r'^  ("projections": ".*"),$', text, re.M)
  assert line[1] == '"projections": "tpv_jax.vectors.merging.projections:Projections"'
  monkeypatch.setitem(merge_rules.RULES, "projections", "projections:Projections")
  conforms(test_merging, "projections")
  names = {}
  exec(compile(use, "merge_rule.md", "exec"), names)
  merged, one = (names[name].leaves["prompt"].ravel() for name in ("merged", "one"))
  # Exact but for the ridge of a hundredth.
  assert merged @ one / (one @ one) == pytest.approx(1, abs=0.02)
  vectors = [names["one"], names["two"]]
  for vector in vectors:
    store.write(f"{vector.name}.safetensors", vector.leaves, vector.provenance)
  command = re.search(r"`tpv (merge .* -o both\.safetensors)`", text)
  assert cli.main(command[1].split()) == 0
  written, _ = store.read("both.safetensors")
  assert written["prompt"].tobytes() == names["merged"].leaves["prompt"].tobytes()
  capsys.readouterr()
  assert cli.main(["merge", "--list"]) == 0
  assert "takes --ridge (default 0)" in capsys.readouterr().out


def test_a_task_of_its_own():
  (code,) = blocks("task")
  names = {}
  exec(compile(code, "task.md", "exec"), names)
  task = names["task"]
  assert len(task.examples("train")) == 60
  assert {one.targets for one in task.examples("test")} == {"fruit", "animal"}
  words = {
    word
    for split in ("train", "validation", "test")
    for one in task.examples(split)
    for word in (*one.inputs.split(), one.targets)
  }
  data = TaskData(
    task,
    vocabularies.WordVocabulary(sorted(words)),
    {"inputs": 8, "targets": 2},
    batch_size=4,
  )
  assert (
    batches.token_counts(data.batch_at(0)["decoder_target_tokens"]).tolist() == [2] * 4
  )


def test_every_document_is_tried_here():
  assert {path.stem for path in DOCUMENTS.glob("*.md")} == {
    *("backbone", "merge_rule", "prompt_method", "task")
  }
