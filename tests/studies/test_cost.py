"""What a study is said to cost is what it does when it runs."""

import collections
import dataclasses
import json
import pathlib
import re
import shutil

import pytest
import studies_at_work

from tpv_jax import cli
from tpv_jax.cli import study_cost
from tpv_jax.core.errors import UserError
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.studies import base, cost, registry
from tpv_jax.training import estimate

DEMO = "--gin_file=gin_configs/runs/demo.gin"


@pytest.fixture(scope="module")
def counted(tiny, tmp_path_factory):
  """Returns the planned jobs of a study, the rows that it scored, and its run folders."""

  def run(name):
    folder = tmp_path_factory.mktemp(name)
    arguments = studies_at_work.ARGUMENTS[name](tiny, folder)
    function = registry.study(name).run
    with base.set_up() as found:
      function(**arguments, output_dir=folder / "out")
    assert not (folder / "out").exists()
    scored = collections.Counter()
    hits, everything = base.Split.hits, Evaluator.evaluate_all

    def counting_hits(split, asked):
      for _, task in asked.values():
        scored[task] += len(split._examples[task])
      return hits(split, asked)

    def counting_all(evaluator, cells):
      for _, task, split in cells:
        scored[task.name] += len(task.examples(split))
      return everything(evaluator, cells)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(base.Split, "hits", counting_hits)
      patch.setattr(Evaluator, "evaluate_all", counting_all)
      function(**arguments, output_dir=folder / "out")
    runs = sorted(path.parent for path in (folder / "out/runs").rglob("manifest.json"))
    return found[0], scored, runs

  return run


@pytest.mark.parametrize("name", ["study", "moving"])
def test_runs_steps_validations_and_scored_rows_are_those_of_the_study(counted, name):
  study, scored, runs = counted(name)
  jobs = cost.jobs_of(study)
  planned = collections.Counter()
  for rows in jobs.scoring.values():
    planned.update(rows)
  assert planned == scored
  manifests = [json.loads((run / "manifest.json").read_text()) for run in runs]
  assert jobs.runs == len(runs)
  assert jobs.steps == sum(one["last_step"] for one in manifests)
  validated = [
    len(_validations(run)) + ("untuned" in one)
    for run, one in zip(runs, manifests, strict=True)
  ]
  assert sum(one.validations * len(one.tasks) for one in jobs.tuning) == sum(validated)
  for one in jobs.tuning:
    for manifest in manifests:
      found = manifest["data"]["counts"]["validation"]["examples"]
      assert one.validation_rows[manifest["task"]] == found


def test_a_finished_run_tells_how_fast_its_operations_were(counted):
  study, _, runs = counted("moving")
  known = {
    task.name: cost.tokens_of(task, study.settings.vocabulary, study.settings.lengths)
    for task in study.tasks
  }
  path = runs[0] / "manifest.json"
  manifest = json.loads(path.read_text())
  manifest.pop("bank", None)
  path.write_text(json.dumps(manifest))
  (variant,) = [
    one
    for one in cost.jobs_of(study).tuning
    if one.prompt_length == manifest["settings"]["prompt"]["length"]
  ][:1]
  one_run = dataclasses.replace(variant, tasks=[manifest["task"]])
  due = cost.cost_of(cost.Jobs([one_run], {}), study.model, known).flops
  seconds, flops, what = study_cost._speed(str(runs[0]), study, known)
  assert (seconds, flops) == (manifest["seconds_since_start"], due)
  assert f"whose {variant.steps} steps and validations took" in what
  for change, message in (
    ({"bank": {}}, "was tuned in a bank"),
    ({"status": "training"}, "has not finished"),
    ({"seconds_from_step": 4}, "was continued after step 4"),
    ({"settings": {"network": {}, "prompt": None}}, "tuned no prompt"),
    (
      {"settings": {"network": {"emb_dim": 3}, "prompt": {"length": 4}}},
      r"has emb_dim 3, and the study 16",
    ),
    (
      {"settings": manifest["settings"] | {"prompt": {"length": 4, "rank": 2}}},
      "tuned a DePT or EPT prompt, and the study tunes plain ones",
    ),
  ):
    path.write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match=message):
      study_cost._speed(str(runs[0]), study, known)


def _validations(run):
  lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
  return [line for line in lines if line["kind"] == "validation"]


def test_operations_are_those_of_the_steps_and_of_the_rows_that_are_scored(
  tiny_decoder,
):
  model, network = tiny_decoder.plain_model, tiny_decoder.network
  tokens = {"a": cost.Tokens(5.0, 2.0, 4)}
  tuning = cost.Tuning(["a", "a"], 3, 16, 2, {"a": 24}, 4)
  found = cost.cost_of(cost.Jobs([tuning], {"x": {"a": 80}}), model, tokens)

  def build(**layers):
    prompt = cost.plain.Prompt(4, network.emb_dim)
    made = network.clone(**layers)
    return cost.SoftPromptModel(made, prompt, None, None)

  def work(rows, target, **more):
    layers = {"num_layers": network.num_layers}
    return estimate.work(build, layers, rows, 5, target, **more)

  assert found.tuning == 2 * 3 * work(16, 2).flops
  assert found.validating == 2 * 2 * work(24, 2, backward=False).flops
  assert found.scoring == work(80, 4, backward=False).flops
  assert found.kept == work(16, 2).kept
  assert found.trained == 2 * 3 * 16 * (4 + 5 + 2)
  assert found.reads == 2 * 2 * 3 + 6 + 2
  # fp32, the output layer is the embedding table.
  params = tiny_decoder.backbone.params
  leaves = cost.identity.flatten(params).values()
  assert found.backbone == sum(4 * leaf.size for leaf in leaves)


def test_hours_are_those_of_the_slower_of_computing_and_reading():
  chip = estimate.Chip("x", (1, 1), 1, flops=1e12 / estimate.UTILISATION, bandwidth=1e9)
  made = cost.Cost(10**15, 10**15, 10**15, 10, 1, 10**9, 1)
  assert made.hours(chip) == pytest.approx(3000 / 3600)
  reading = cost.Cost(1, 1, 1, 7200, 1, 10**9, 1)
  assert reading.hours(chip) == pytest.approx(2)


def test_the_command_prints_the_cost_of_a_study_and_writes_nothing(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  assert cli.main(["plan", DEMO, "--gin.OUTPUT_DIR=out"]) == 0
  text = capsys.readouterr().out
  assert "study: 5 tasks x 3 initial prompts on embedded, float32" in text
  assert "15 prompts" in text
  assert "one h100" in text
  assert "assumed and not measured" in text
  assert not [*tmp_path.iterdir()]


@pytest.fixture
def run(tmp_path):
  """A run on the embedded backbone that has finished, as release 0.1.0 wrote it."""
  whole = pathlib.Path(__file__).parents[1] / "fixtures/runs/plain_finished"
  shutil.copytree(whole, tmp_path / "run")
  return tmp_path / "run"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], r"Name a SIZE, such as smollm2_135m, or a study"),
    (["--like", "run"], "--like is for a study"),
    (["t5_v1_1_small", DEMO], "'t5_v1_1_small' is a size"),
    ([DEMO, "--mesh", "4x8"], "--mesh is of a SIZE"),
    ([DEMO, "--prompt-length", "3"], "--prompt-length is of a SIZE"),
    ([DEMO, "--gin.OUTPUT_DIR=out", "--like", "run"], "does not state its tokens and"),
    (["--gin_file=gin_configs/runs/embedded.gin"], "The gin files set no study"),
    (
      ["--gin_file=gin_configs/runs/merging_embedded.gin", "--gin.OUTPUT_DIR=out"],
      "The cost of .* is not counted",
    ),
  ],
)
@pytest.mark.usefixtures("run")
def test_what_cannot_be_planned_is_said_in_one_line(
  tmp_path, monkeypatch, capsys, arguments, message
):
  monkeypatch.chdir(tmp_path)
  assert cli.main(["plan", *arguments]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert re.search(message, line)
