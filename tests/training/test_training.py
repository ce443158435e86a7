"""Training runs: what moves, what does not, and what survives a kill."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import optax
import pytest

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.formats import sources
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import plain
from tpv_jax.runs import run_settings
from tpv_jax.runs.run_folder import RunFolder
from tpv_jax.training import initial, loop, optimizers, sameness, signals
from tpv_jax.training.checkpoints import Checkpoints
from tpv_jax.training.task_data import TaskData
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.loaded import Loaded

TESTS = pathlib.Path(__file__).parents[1]


def deterministic_files(run: pathlib.Path) -> dict[str, bytes]:
  names = [
    "metrics.jsonl",
    "initial_prompt.safetensors",
    "best_prompt.safetensors",
    "last_prompt.safetensors",
  ]
  return {name: (run / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
  run = tmp_path_factory.mktemp("finished") / "a run"
  return run, tiny.train(run)


@pytest.fixture(scope="module")
def finished_ept(tiny, tmp_path_factory):
  run = tmp_path_factory.mktemp("finished") / "an ept run"
  return run, tiny.train(run, "ept")


def test_a_run_moves_the_prompt_and_lowers_the_loss(finished):
  run, manifest = finished
  before, _ = store.read(run / "initial_prompt.safetensors")
  after, provenance = store.read(run / "last_prompt.safetensors")
  assert before["prompt"].shape == after["prompt"].shape == (4, 16)
  assert (np.abs(after["prompt"] - before["prompt"]).max(axis=1) > 0.1).all()
  losses = [
    json.loads(line)["loss"]
    for line in (run / "metrics.jsonl").read_text().splitlines()
  ]
  assert losses[-1] < losses[0]
  assert provenance.terms[0].task == "parity"
  assert provenance.steps == 20
  assert provenance.initial_digest == identity.prompt_digest(before)
  assert manifest["status"] == "finished"
  assert manifest["last_digest"] == identity.prompt_digest(after)


def test_the_backbone_is_bit_identical_after_training(tiny, tmp_path):
  before = {
    path: leaf.copy() for path, leaf in identity.flatten(tiny.backbone.params).items()
  }
  model = tiny.model()
  placed = {}
  run = loop.Run  # The frozen leaves as the devices hold them, after the last step.
  place = run.place_frozen

  def keep(self):
    placed["frozen"] = place(self)
    return placed["frozen"]

  run.place_frozen = keep
  try:
    tiny.train(tmp_path / "run", model=model)
  finally:
    run.place_frozen = place
  assert set(placed["frozen"]) == set(before)
  for path, leaf in before.items():
    assert np.asarray(placed["frozen"][path]).tobytes() == leaf.tobytes(), path


def test_a_checkpoint_holds_the_prompt_and_not_the_backbone(finished):
  run, _ = finished
  manager = Checkpoints(run / "checkpoints")
  tree = manager._read(manager.latest_step())
  assert list(identity.flatten(tree["target"])) == ["prompt/prompt"]
  sizes = {
    path: np.size(leaf) for path, leaf in identity.flatten(tree["state"]).items()
  }
  # AdamW: two moments and two counters; the best prompt, its step and metric.
  assert sorted(sizes.values()) == [1, 1, 1, 1, 64, 64, 64]


def test_the_prompt_after_one_step_is_that_of_plain_adamw(tiny, tmp_path):
  model = tiny.model()
  tiny.train(tmp_path / "run", model=model, total_steps=1, log_period=1)
  start, _ = store.read(tmp_path / "run" / "initial_prompt.safetensors")
  params = {**tiny.backbone.params, "prompt": start}
  batch = tiny.data().batch_at(0)
  gradient = jax.grad(lambda p: model.loss_fn(p, batch, None)[0])(params)["prompt"]
  reference = optax.adamw(0.3, weight_decay=1e-5)
  update, _ = reference.update(gradient, reference.init(start), start)
  expected = np.asarray(start["prompt"] + update["prompt"])
  actual, _ = store.read(tmp_path / "run" / "last_prompt.safetensors")
  # fp32; Adam divides by the root of its own square, so near 0 a gradient is rounding.
  clear = np.abs(gradient["prompt"]) > 1e-5
  assert clear.mean() > 0.9
  np.testing.assert_allclose(
    actual["prompt"][clear], expected[clear], rtol=2e-4, atol=2e-5
  )


def test_microbatches_change_nothing_but_rounding(tiny, tmp_path, monkeypatch):
  results, rows = {}, set()
  loss_sums = SoftPromptModel.loss_sums

  def note_rows(model, params, batch, *others):
    rows.add(len(batch["decoder_target_tokens"]))
    return loss_sums(model, params, batch, *others)

  monkeypatch.setattr(SoftPromptModel, "loss_sums", note_rows)
  for parts in (1, 4):
    rows.clear()
    tiny.train(
      tmp_path / str(parts),
      microbatches=parts,
      total_steps=4,
      log_period=2,
      # Small: at 0.3 Adam turns a rounded gradient near 0 into a different step.
      learning_rate=optimizers.constant(0.001),
    )
    assert min(rows) == 8 // parts  # Validation has whole batches.
    lines = RunFolder(tmp_path / str(parts)).metrics()
    results[parts] = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in results[parts]] == [2, 4]
  for whole, split in zip(results[1], results[4], strict=True):
    for name in ("loss", "gradient_norm"):
      np.testing.assert_allclose(whole[name], split[name], rtol=1e-5)


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_accumulated_gradients_are_weighted_by_target_tokens(tiny, weight):
  """A batch whose rows have 1 and 2 target tokens: the mean is over tokens, not rows.

  Also where the weights of all tokens add up to less than 1.
  """
  from tpv_jax.devices import partitioning
  from tpv_jax.training import steps

  model = tiny.model(optimizer=optimizers.adamw())
  rng = np.random.default_rng(0)
  batch = {
    "encoder_input_tokens": rng.integers(3, 30, (4, 8)).astype(np.int32),
    "decoder_target_tokens": np.array([[5, 1], [6, 0], [7, 0], [8, 0]], np.int32),
    "decoder_input_tokens": np.array([[0, 5], [0, 6], [0, 7], [0, 8]], np.int32),
  }
  counted = batch["decoder_target_tokens"] > 0
  batch["decoder_loss_weights"] = counted * np.float32(weight)
  stacked = {name: value[None] for name, value in batch.items()}
  prompt = rng.normal(size=(4, 16)).astype(np.float32)
  params = {**tiny.backbone.params, "prompt": {"prompt": prompt}}
  trainable, frozen = model.split(params)
  gradient = jax.grad(lambda p: model.loss_fn(p, batch, None)[0])(params)
  expected = float(np.linalg.norm(gradient["prompt"]["prompt"]))
  for parts in (1, 2):
    built = steps.build(
      model, optimizers.constant(0.0), parts, partitioning.make_mesh()
    )
    state = built.initialise(dict(trainable))
    _, report = built.train(state, frozen, stacked, jax.random.key(0))
    np.testing.assert_allclose(report["gradient_norm"][0], expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("optimizer", "schedule"),
  [
    (optimizers.adafactor(), optimizers.constant(0.3, warmup_steps=4)),
    (optimizers.adamw(clip_norm=1.0), optimizers.linear(0.3, total_steps=20)),
  ],
)
def test_every_optimizer_and_schedule_lowers_the_loss(
  tiny, tmp_path, optimizer, schedule
):
  tiny.train(
    tmp_path / "run", model=tiny.model(optimizer=optimizer), learning_rate=schedule
  )
  lines = [
    json.loads(line)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  ]
  validation = [line["loss"] for line in lines if line["kind"] == "validation"]
  assert validation[-1] < lines[0]["loss"]


def test_the_best_prompt_is_the_one_of_the_best_validation(finished):
  run, manifest = finished
  lines = [
    json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
  ]
  validation = {
    line["step"]: line["loss"] for line in lines if line["kind"] == "validation"
  }
  best_step = min(validation, key=validation.get)
  assert manifest["best_step"] == best_step
  assert manifest["best_metric"]["loss"] == validation[best_step]
  _, provenance = store.read(run / "best_prompt.safetensors")
  assert provenance.steps == best_step


@pytest.mark.parametrize(("metric", "step"), [("loss", 10), ("exact_match", 15)])
def test_the_best_prompt_has_the_lowest_loss_or_the_highest_of_another_metric(
  tiny, tmp_path, monkeypatch, metric, step
):
  values = {0: 0.5, 5: 0.4, 10: 0.2, 15: 0.9, 20: 0.3}
  monkeypatch.setattr(
    loop.Run, "_validation", lambda run, state, _: {metric: values[int(state.step)]}
  )
  manifest = tiny.train(tmp_path / "run", best_metric=metric, eval_period=5)
  assert manifest["best_step"] == step
  assert manifest["best_metric"] == {metric: values[step]}
  _, provenance = store.read(tmp_path / "run" / "best_prompt.safetensors")
  assert provenance.steps == step


def test_a_finished_run_is_left_as_it_is(tiny, finished):
  run, manifest = finished
  before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
  assert tiny.train(run) == manifest
  # How often it was logged and saved is nothing that its prompts hang on.
  assert tiny.train(run, log_period=20, checkpoint_period=20) == manifest
  after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
  assert before == after


@pytest.mark.parametrize("name", ["log_period", "checkpoint_period"])
def test_an_unfinished_run_goes_on_with_the_periods_that_it_began_with(
  tiny, finished, tmp_path, name
):
  run = shutil.copytree(finished[0], tmp_path / "run")
  manifest = json.loads((run / "manifest.json").read_text())
  (run / "manifest.json").write_text(json.dumps(manifest | {"status": "stopped"}))
  with pytest.raises(UserError, match=f"another {name}: "):
    tiny.train(run, **{name: 20})


def test_other_settings_in_the_same_folder_are_refused(tiny, finished):
  run, _ = finished
  with pytest.raises(UserError, match="another total_steps: 20 there, 10 now"):
    tiny.train(run, total_steps=10)
  with pytest.raises(UserError, match="another data/batch_size: 8 there, 4 now"):
    tiny.train(run, data=tiny.data(batch_size=4))


@pytest.mark.parametrize("name", ["thesis.tex", "manifest.json"])
def test_a_folder_that_holds_something_else_is_not_touched(tiny, tmp_path, name):
  (tmp_path / name).write_text('{"name": "a web app"}')
  for overwrite in (False, True):
    with pytest.raises(UserError, match="holds no run of tpv_jax"):
      tiny.train(tmp_path, overwrite=overwrite)
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_overwrite_starts_again_and_leaves_what_lies_beside_the_run(tiny, tmp_path):
  run = tmp_path / "run"
  tiny.train(run, total_steps=10)
  (run / "notes.txt").write_text("mine")
  manifest = tiny.train(run, total_steps=5, overwrite=True)
  assert manifest["last_step"] == 5
  assert max(int(p.name[11:]) for p in (run / "checkpoints").iterdir()) == 5
  assert (run / "notes.txt").read_text() == "mine"


def test_a_stopped_run_continues_even_with_overwrite(tiny, finished, tmp_path):
  """So that one command serves for a first start and for every restart."""
  run = tmp_path / "run"
  tiny.train(run)
  for path in (run / "checkpoints").glob("checkpoint_20"):
    shutil.rmtree(path)
  manifest = json.loads((run / "manifest.json").read_text())
  (run / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
  initial = (run / "initial_prompt.safetensors").stat().st_mtime_ns
  tiny.train(run, overwrite=True)
  assert (run / "initial_prompt.safetensors").stat().st_mtime_ns == initial
  assert deterministic_files(run) == deterministic_files(finished[0])


def test_a_mistake_found_late_does_not_cost_the_old_run(tiny, tmp_path):
  run = tmp_path / "run"
  tiny.train(run, total_steps=5)
  start = functools.partial(initial.sampled_vocabulary, length=3)
  with pytest.raises(UserError, match="this run needs"):
    tiny.train(run, initial_prompt=start, overwrite=True)
  assert (run / "best_prompt.safetensors").exists()


GROUPED = functools.partial(
  optimizers.by_group,
  optimizers.adamw(weight_decay=1e-5),
)


@pytest.mark.parametrize(
  ("change", "name"),
  [
    ({"learning_rate": optimizers.constant(0.1)}, "learning_rate"),
    ({"initial_seed": 1}, "initial_seed"),
    (
      {"initial_prompt": functools.partial(initial.uniform, length=4)},
      "initial_digest",
    ),
    ({"model": optimizers.adamw(weight_decay=0.1)}, "optimizer"),
    ({"model": optimizers.adafactor()}, "optimizer"),
    ({"model": GROUPED({"prompt": 0.5})}, "optimizer"),
    (
      # A schedule that is 1 at its first steps, as the run's own optimizer.
      {"model": GROUPED({"prompt": lambda step: jax.numpy.where(step < 3, 1.0, 0.5)})},
      "optimizer",
    ),
  ],
)
def test_what_gin_cannot_show_is_compared_as_well(tiny, finished, change, name):
  if "model" in change:
    change = {"model": tiny.model(optimizer=change["model"])}
  with pytest.raises(UserError, match=f"holds a run with another {name}[: ]"):
    tiny.train(finished[0], **change)


@pytest.mark.parametrize("transformation", [optimizers.adamw, optimizers.adafactor])
@pytest.mark.parametrize(
  ("there", "now"),
  [(None, 10.0), (None, 6.0), (0.1, 0.01), (1.0, 0.9), (1.0, 1.05), (1e-4, 1e-5)],
)
def test_optimizers_that_clip_otherwise_are_stated_otherwise(
  transformation, there, now
):
  """At one size of gradients, all limits below it and all above it would be alike."""
  assert told_apart(transformation(clip_norm=there), transformation(clip_norm=now))


@pytest.mark.parametrize("now", [1e-5, 1e-7, 2e-8, 5e-9, 1e-10])
def test_optimizers_with_another_epsilon_are_stated_otherwise(now):
  assert told_apart(optimizers.adamw(), optimizers.adamw(eps=now))
  assert not told_apart(optimizers.adamw(eps=now), optimizers.adamw(eps=now))


def told_apart(there, now) -> str | None:
  """Returns how a run's manifest tells two optimizers apart."""
  settings = [
    run_settings.Settings(
      {"optimizer_by_size": sameness._directions_by_size(one, ["prompt/prompt"])}, {}
    )
    for one in (there, now)
  ]
  return run_settings.difference(settings[0].saved(), settings[1])


def test_a_finished_run_with_another_limit_of_gradients_is_not_taken(tiny, tmp_path):
  def model(clip_norm):
    return tiny.model(optimizer=optimizers.adamw(clip_norm=clip_norm))

  tiny.train(tmp_path / "run", model(0.05))
  assert tiny.train(tmp_path / "run", model(0.05))["status"] == "finished"
  with pytest.raises(UserError, match=r"another optimizer .*such as .*clip_norm"):
    tiny.train(tmp_path / "run", model(0.01))


@pytest.mark.parametrize(
  ("parts", "text"),
  [
    ({"rank": 1}, "prompt/rank: 2 there, 1 now"),
    ({"spaces": 3}, "prompt/spaces: 2 there, 3 now"),
    ({"fusion_width": 0}, "prompt/fusion_width: 2 there, 0 now"),
  ],
)
def test_another_form_of_the_prompt_is_said_before_what_follows_from_it(
  tiny, finished_ept, parts, text
):
  with pytest.raises(UserError, match=text):
    tiny.train(finished_ept[0], tiny.model("ept", **parts))


def test_an_ept_run_moves_every_parameter_and_writes_them_in_the_factor_space(
  tiny, finished_ept
):
  run, manifest = finished_ept
  before, start = store.read(run / "initial_prompt.safetensors")
  after, end = store.read(run / "last_prompt.safetensors")
  assert set(before) == set(after) == set(tiny.ept_model.prompt.parameters())
  for name, leaf in after.items():
    assert (leaf != before[name]).mean() > 0.9, name
  assert (start.method, start.space, end.space) == ("ept", "factor", "factor")
  assert end.initial_digest == start.initial_digest == manifest["initial_digest"]
  assert "refactored" not in manifest
  losses = [line["loss"] for line in RunFolder(run).metrics()]
  assert losses[-1] < losses[0]


def test_a_source_longer_than_the_update_is_refused_before_anything_is_written(
  tiny, tmp_path
):
  model = tiny.model("ept", source_length=7)
  with pytest.raises(UserError, match=r"up to 8 tokens, and .* only the first 7"):
    tiny.train(tmp_path / "run", model)
  assert not (tmp_path / "run").exists()


def summed_prompt(runs: list[pathlib.Path], path: pathlib.Path) -> Loaded:
  """Writes the sum of the runs' vectors, and returns what it makes of their start."""
  start = algebra.fold(sources.load(str(runs[0]), "initial"))
  vectors = [
    algebra.diff(algebra.fold(sources.load(str(run), "last")), start) for run in runs
  ]
  total = algebra.sum_vectors(vectors, [1.0, 1.0])
  store.write(path, total.leaves, total.provenance)
  return algebra.apply(total, start)


def test_a_start_from_a_summed_vector_says_what_refactoring_lost(
  tiny, finished_ept, tmp_path, capsys
):
  other = tmp_path / "other"
  rates = {"prompt": 1.0, "low_rank": 1.0, "fusion": 0.1, "spaces": 0.1}
  fast = tiny.model("ept", optimizers.by_group(optimizers.adamw(), rates))
  tiny.train(other, fast, data=tiny.data(seed=5))
  vector = tmp_path / "sum.safetensors"
  given = summed_prompt([finished_ept[0], other], vector)
  drawing = functools.partial(initial.sampled_vocabulary, length=4)
  start = functools.partial(initial.from_vector, path=str(vector), initial=drawing)
  run = tmp_path / "run"
  manifest = tiny.train(run, "ept", initial_prompt=start, total_steps=5)

  prompt, delta = given.leaves["prompt"], given.leaves["delta"]
  u, sigma, vt = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
  assert sigma[3] > 1e-3 * sigma[0]  # The sum of two updates of rank 2 has rank 4.
  lost = np.sqrt((sigma[2:] ** 2).sum() / (sigma**2).sum())
  truncated = (u[:, :2] * sigma[:2]) @ vt[:2]
  batch = next(iter(tiny.data().validation_batches()))
  exact, ours = (
    np.asarray(
      tiny.network.apply(
        {"params": tiny.backbone.params},
        batch["encoder_input_tokens"],
        batch["decoder_input_tokens"],
        batch["decoder_target_tokens"],
        prompt=prompt,
        delta=update.astype(np.float32),
      )
    )[batch["decoder_target_tokens"] > 0]
    for update in (delta, truncated)
  )
  errors = manifest["refactored"]["relative_errors"]
  assert errors["prompt"] == 0.0
  assert errors["delta"] == pytest.approx(lost, rel=1e-5)  # The factors are fp32.
  expected = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
  assert expected > 1e-6
  assert errors["logits"] == pytest.approx(expected, rel=1e-2)  # Of a small difference.
  assert "to rank 2; relative errors (Frobenius): prompt 0, delta" in (
    capsys.readouterr().out
  )

  # A resumed run keeps what was measured at its start.
  (run / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
  shutil.rmtree(run / "checkpoints" / "checkpoint_5")
  again = tiny.train(run, "ept", initial_prompt=start, total_steps=5)
  assert again["refactored"] == manifest["refactored"]
  assert again["last_digest"] == manifest["last_digest"]


def test_the_last_prompt_is_that_of_the_newest_checkpoint_at_any_time(tiny, tmp_path):
  run, seen = tmp_path / "run", []
  data = tiny.data()
  batch_at = data.batch_at

  def spying(step):
    steps = [int(p.name[11:]) for p in (run / "checkpoints").glob("checkpoint_*[0-9]")]
    _, provenance = store.read(run / "last_prompt.safetensors")
    seen.append((max(steps), provenance.steps))
    return batch_at(step)

  data.batch_at = spying
  tiny.train(run, data=data)
  assert {newest for newest, _ in seen} == {0, 10}
  assert all(newest == last for newest, last in seen)


def test_a_prompt_of_another_backbone_cannot_be_a_start(tiny, tmp_path):
  tiny.train(tmp_path / "run", total_steps=5)
  leaves, provenance = store.read(tmp_path / "run" / "best_prompt.safetensors")
  foreign = dataclasses.replace(
    provenance, backbone_fingerprint="0" * 64, backbone_name="elsewhere"
  )
  store.write(tmp_path / "foreign.safetensors", leaves, foreign)
  start = functools.partial(
    initial.from_file, path=str(tmp_path / "foreign.safetensors")
  )
  with pytest.raises(UserError, match=r"belongs to the backbone 'elsewhere' \(0000"):
    tiny.train(tmp_path / "next", initial_prompt=start)
  start = functools.partial(initial.from_file, path=str(tmp_path / "run"))
  tiny.train(tmp_path / "next", initial_prompt=start, total_steps=5, initial_seed=3)
  _, started = store.read(tmp_path / "next" / "initial_prompt.safetensors")
  assert started.initial_seed is None  # It came from a file, not from seed 3.


def test_a_prompt_tuned_with_its_backbone_does_not_claim_the_old_one(tiny, tmp_path):
  tiny.train(tmp_path / "run", model=tiny.model(trainable=".*"), total_steps=5)
  _, start = store.read(tmp_path / "run" / "initial_prompt.safetensors")
  _, end = store.read(tmp_path / "run" / "last_prompt.safetensors")
  assert start.backbone_fingerprint == tiny.backbone.fingerprint
  assert end.backbone_fingerprint is None
  assert "trained as well" in end.notes[0]


def test_a_step_to_infinity_is_found_before_it_is_saved(tiny, tmp_path):
  with pytest.raises(UserError, match=r"NaN or infinite at step 1\b.*checkpoint 0"):
    tiny.train(tmp_path / "run", learning_rate=optimizers.constant(1e39))
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [
    "checkpoint_0"
  ]


def test_texts_that_are_too_long_are_said_on_the_screen(tiny, tmp_path, capsys):
  data = TaskData(tiny.task, tiny.vocabulary, {"inputs": 4, "targets": 2}, 8)
  manifest = tiny.train(tmp_path / "run", data=data, total_steps=1)
  line = "parity, train: 40 examples, 240 tokens (longest source 4 of 4); sources: 40 trimmed"
  assert line in capsys.readouterr().out
  assert "sources: 40 trimmed" in manifest["data"]["train"]


def test_nan_stops_the_run_and_keeps_the_last_good_state(tiny, tmp_path):
  data = tiny.data()
  good = data.batch_at

  def poisoned(step):
    batch = good(step)
    if step >= 12:
      batch["decoder_loss_weights"] = batch["decoder_loss_weights"] * np.float32("nan")
    return batch

  data.batch_at = poisoned
  run = tmp_path / "run"
  with pytest.raises(UserError, match=r"NaN or infinite at step 13.*checkpoint 10"):
    tiny.train(run, data=data)
  assert json.loads((run / "manifest.json").read_text())["status"] == "failed"
  best, _ = store.read(run / "best_prompt.safetensors")
  assert np.isfinite(best["prompt"]).all()
  checkpoints = Checkpoints(run / "checkpoints")
  assert checkpoints.latest_step() == 10
  assert np.isfinite(checkpoints._read(10)["target"]["prompt"]["prompt"]).all()


def test_a_prompt_of_another_length_is_refused_before_the_first_step(tiny, tmp_path):
  start = functools.partial(initial.sampled_vocabulary, length=3)
  with pytest.raises(UserError, match=r"\(3, 16\)}; this run needs .*\(4, 16\)"):
    tiny.train(tmp_path / "run", initial_prompt=start)


def test_unknown_metric_and_bad_periods_are_refused(tiny, tmp_path):
  with pytest.raises(UserError, match=r"best_metric is 'f1'; it must be .*'loss'"):
    tiny.train(tmp_path / "run", best_metric="f1")
  with pytest.raises(UserError, match="eval_period is -1; it must be a whole number"):
    tiny.train(tmp_path / "run", eval_period=-1)
  with pytest.raises(UserError, match="batch of 8 rows does not divide"):
    tiny.train(tmp_path / "run", microbatches=3)
  with pytest.raises(UserError, match="microbatches is 0"):
    tiny.train(tmp_path / "run", microbatches=0)
  with pytest.raises(UserError, match="batch_size is 0"):
    tiny.data(batch_size=0)
  assert not list(tmp_path.iterdir())


def test_pre_training_trains_everything_from_random_parameters(tiny, tmp_path):
  model = tiny.model(prompt=None, trainable=".*")
  run = tmp_path / "run"
  tiny.train(
    run,
    model=model,
    backbone=None,
    initial_prompt=None,
    best_metric=None,
    learning_rate=optimizers.constant(0.01),
  )
  checkpoints = Checkpoints(run / "checkpoints")
  target = identity.flatten(checkpoints._read(20)["target"])
  assert set(target) == set(identity.flatten(tiny.backbone.params))
  assert not list(run.glob("*.safetensors"))


SCRIPT = textwrap.dedent(
  """
  import sys, time
  sys.path.insert(0, {tests!r})
  import conftest
  tiny = conftest.Tiny()
  data = tiny.data()
  fast = data.batch_at
  def slow(step):
    print("step", step, flush=True)
    time.sleep({delay})
    return fast(step)
  data.batch_at = slow
  tiny.train({run!r}, {model!r}, data=data)
  """
)


def start_slow_run(
  run: pathlib.Path, model: str | None, delay: float = 0.1
) -> subprocess.Popen:
  script = SCRIPT.format(tests=str(TESTS), run=str(run), model=model, delay=delay)
  return subprocess.Popen(
    [sys.executable, "-c", script],
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, "XLA_FLAGS": ""},
  )


def wait_for_step(process: subprocess.Popen, step: int) -> None:
  for line in process.stdout:
    if line == f"step {step}\n":
      return
  raise AssertionError(f"the run ended before step {step}")


@pytest.mark.parametrize(
  ("model", "number", "at"),
  [
    (None, signal.SIGKILL, 3),
    (None, signal.SIGKILL, 16),
    (None, signal.SIGTERM, 12),
    (None, signal.SIGINT, 18),
    ("ept", signal.SIGKILL, 16),
    ("ept", signal.SIGTERM, 12),
  ],
)
def test_a_stopped_run_resumes_to_the_same_bits(
  tiny, request, tmp_path, model, number, at
):
  unbroken_run, _ = request.getfixturevalue("finished_ept" if model else "finished")
  run = tmp_path / "run"
  process = start_slow_run(run, model)
  wait_for_step(process, at)
  process.send_signal(number)
  process.communicate(timeout=120)
  assert process.returncode != 0
  manifest = json.loads((run / "manifest.json").read_text())
  assert manifest["status"] == ("running" if number == signal.SIGKILL else "stopped")
  tiny.train(run, model)
  assert deterministic_files(run) == deterministic_files(unbroken_run)
  for unbroken, resumed in zip(
    *(
      identity.flatten(Checkpoints(path / "checkpoints")._read(20)).items()
      for path in (unbroken_run, run)
    ),
    strict=True,
  ):
    assert unbroken[0] == resumed[0]
    assert unbroken[1].tobytes() == resumed[1].tobytes(), unbroken[0]


def test_a_half_written_checkpoint_is_not_taken_for_a_whole_one(
  tiny, finished, tmp_path
):
  """What a kill during a save leaves is Orbax's temporary folder."""
  run = tmp_path / "run"
  tiny.train(run, total_steps=20)
  manifest = json.loads((run / "manifest.json").read_text())
  manifest["status"] = "running"
  (run / "manifest.json").write_text(json.dumps(manifest))
  last = run / "checkpoints" / "checkpoint_20"
  last.rename(last.with_name("checkpoint_20.orbax-checkpoint-tmp-1"))
  tiny.train(run)
  assert deterministic_files(run) == deterministic_files(finished[0])


def stopped(tiny, run):
  """Trains a run and takes back that it finished."""
  tiny.train(run)
  manifest = json.loads((run / "manifest.json").read_text())
  (run / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))


def damage(checkpoint):
  for file in checkpoint.rglob("*"):
    if file.is_file() and file.stat().st_size > 100:
      file.write_bytes(file.read_bytes()[:50])


def test_a_damaged_checkpoint_is_trained_again_from_the_one_before(
  tiny, finished, tmp_path, capsys
):
  run = tmp_path / "run"
  stopped(tiny, run)
  damage(run / "checkpoints" / "checkpoint_20")
  (run / "initial_prompt.safetensors").unlink()
  tiny.train(run)
  assert deterministic_files(run) == deterministic_files(finished[0])
  told = r"checkpoint_20' cannot be read \(.*; continuing from step 10\n"
  assert re.search(told, capsys.readouterr().out)


def test_damaged_checkpoints_are_one_clear_line(tiny, tmp_path):
  run = tmp_path / "run"
  stopped(tiny, run)
  damage(run / "checkpoints" / "checkpoint_10")
  pipe = run / "checkpoints" / "checkpoint_20" / "state" / "manifest.ocdbt"
  pipe.unlink()
  os.mkfifo(pipe)  # Whoever reads it waits for ever.
  told = r"continued: '.*checkpoint_20' cannot be read \('.*manifest.ocdbt' is a pipe"
  with pytest.raises(UserError, match=told):
    tiny.train(run)


@pytest.mark.parametrize(
  "changed", [{"custom_metadata": []}, {"commit_timestamp_nsecs": 1.5}]
)
def test_damaged_notes_of_orbax_are_one_clear_line(tiny, tmp_path, changed):
  run = tmp_path / "run"
  stopped(tiny, run)
  notes = run / "checkpoints" / "checkpoint_20" / "_CHECKPOINT_METADATA"
  notes.write_text(json.dumps(json.loads(notes.read_text()) | changed))
  with pytest.raises(UserError, match="_CHECKPOINT_METADATA there is damaged"):
    tiny.train(run)


def test_lines_of_metrics_that_are_lost_are_trained_again_or_said(
  tiny, finished, tmp_path
):
  run = tmp_path / "run"
  stopped(tiny, run)
  metrics = run / "metrics.jsonl"
  whole = metrics.read_bytes()
  *first, last = whole.splitlines(keepends=True)
  # Damage beside the lines costs nothing, a lost one the steps since the checkpoint
  # before it.
  for damaged in (
    b'{"step": 5, "ki\n\0\0\n{"kind": "train"}\n\n\xff\n[]\n' + whole,
    b"".join([*first[:-1], last]),
  ):
    metrics.write_bytes(damaged)
    tiny.train(run)
    assert deterministic_files(run) == deterministic_files(finished[0])
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
  metrics.write_bytes(b"".join(first[1:]) + last)
  with pytest.raises(UserError, match=r"lacks a line \(train, step 5\)"):
    tiny.train(run)


def stopped_at_10(run: pathlib.Path, finished: pathlib.Path) -> pathlib.Path:
  """Returns a copy of a finished run as it was after step 10."""
  shutil.copytree(finished, run)
  shutil.rmtree(run / "checkpoints" / "checkpoint_20")
  manifest = json.loads((run / "manifest.json").read_text())
  ended = ("last_digest", "best_digest", "best_step", "best_metric", "last_step")
  kept = {name: value for name, value in manifest.items() if name not in ended}
  (run / "manifest.json").write_text(json.dumps(kept | {"status": "running"}))
  return run


@pytest.mark.parametrize("metrics", [True, False])
def test_a_checkpoint_of_another_run_is_refused_by_name(
  tiny, finished, tmp_path, metrics
):
  tiny.train(tmp_path / "other", data=tiny.data(seed=1))
  run = stopped_at_10(tmp_path / "run", finished[0])
  if not metrics:  # With which an own checkpoint of step 20 would be dropped.
    RunFolder(run).keep_metrics_until(10)
  shutil.copytree(
    tmp_path / "other" / "checkpoints" / "checkpoint_20",
    run / "checkpoints" / "checkpoint_20",
  )
  before = (run / "last_prompt.safetensors").read_bytes()
  with pytest.raises(UserError, match=r"checkpoint_20' is not of this run: it states"):
    tiny.train(run)
  assert (run / "last_prompt.safetensors").read_bytes() == before
  assert (run / "checkpoints" / "checkpoint_20").is_dir()
  shutil.rmtree(run / "checkpoints" / "checkpoint_20")  # As the message says.
  tiny.train(run)
  assert deterministic_files(run) == deterministic_files(finished[0])


def test_a_checkpoint_under_the_name_of_another_step_is_refused(
  tiny, finished, tmp_path
):
  run = stopped_at_10(tmp_path / "run", finished[0])
  checkpoints = run / "checkpoints"
  (checkpoints / "checkpoint_10").rename(checkpoints / "checkpoint_15")
  with pytest.raises(UserError, match=r"checkpoint_15' .* the state after step 10"):
    tiny.train(run)


def test_a_prompt_of_another_run_in_the_folder_is_said(tiny, finished, tmp_path):
  tiny.train(tmp_path / "other", total_steps=10, initial_seed=1)
  run = stopped_at_10(tmp_path / "run", finished[0])
  foreign = tmp_path / "other" / "best_prompt.safetensors"
  shutil.copy(foreign, run / "best_prompt.safetensors")
  with pytest.raises(UserError, match=r"best_prompt.safetensors' is of another run"):
    tiny.train(run)
  assert (run / "best_prompt.safetensors").read_bytes() == foreign.read_bytes()


def test_a_finished_run_whose_prompt_is_another_or_lost_says_so(
  tiny, finished, tmp_path
):
  run = pathlib.Path(shutil.copytree(finished[0], tmp_path / "run"))
  last, best = (run / f"{which}_prompt.safetensors" for which in ("last", "best"))
  shutil.copy(run / "initial_prompt.safetensors", best)
  with pytest.raises(
    UserError, match=r"is finished, but its best prompt is missing or .*stat"
  ):
    tiny.train(run)
  shutil.copy(finished[0] / best.name, best)
  last.unlink()
  with pytest.raises(UserError, match="is finished, but its last prompt is missing or"):
    tiny.train(run)
  tiny.train(run, overwrite=True)
  assert deterministic_files(run) == deterministic_files(finished[0])


class Gated(plain.Prompt):
  """A prompt with a field that came later."""

  gates: int = 5


def test_a_field_that_came_later_leaves_an_old_run_what_it_was(tiny, finished):
  model = tiny.model()
  model.prompt = Gated(length=4, features=16)
  assert tiny.train(finished[0], model) == finished[1]
  model.prompt = Gated(length=4, features=16, gates=6)
  with pytest.raises(UserError, match="another prompt/gates: 5 there, 6 now"):
    tiny.train(finished[0], model)


def test_chunks_end_at_the_same_steps_from_wherever_they_start():
  whole = loop.chunks(0, 47, (10, 15))
  assert whole == [(0, 10), (10, 15), (15, 20), (20, 30), (30, 40), (40, 45), (45, 47)]
  for start, _ in whole:
    assert loop.chunks(start, 47, (10, 15)) == [c for c in whole if c[0] >= start]
  assert loop.chunks(47, 47, (10, 15)) == []


MESHES = {
  1: {"data": 8, "model": 1},
  2: {"data": 4, "model": 2},
  4: {"data": 2, "model": 4},
}


@pytest.mark.parametrize(
  # Seen: 7e-3 of the way that the plain prompt went, of EPT's parameters 5e-6.
  ("model", "tolerance"),
  [(None, 3e-2), ("ept", 1e-4)],
  ids=["plain", "ept"],
)
def test_eight_devices_give_the_numbers_of_one(tiny, tmp_path, model, tolerance):
  script = textwrap.dedent(
    f"""
    import sys
    sys.path.insert(0, {str(TESTS)!r})
    import conftest
    tiny = conftest.Tiny()
    for n in {list(MESHES)!r}:
      tiny.train({str(tmp_path)!r} + f"/{{n}}", {model!r}, model_parallel=n)
    """
  )
  flags = "--xla_force_host_platform_device_count=8"
  subprocess.run(
    [sys.executable, "-c", script], check=True, env={**os.environ, "XLA_FLAGS": flags}
  )
  tiny.train(tmp_path / "one", model)
  one = RunFolder(tmp_path / "one").metrics()
  initial_leaves, _ = store.read(tmp_path / "one" / "initial_prompt.safetensors")
  leaves, _ = store.read(tmp_path / "one" / "last_prompt.safetensors")
  for number, mesh in MESHES.items():
    folder = RunFolder(tmp_path / str(number))
    assert folder.manifest()["mesh"] == mesh
    for expected, line in zip(one, folder.metrics(), strict=True):
      # Sums over eight devices round differently, and Adam at lr 0.3 amplifies it.
      np.testing.assert_allclose(line["loss"], expected["loss"], rtol=1e-3)
    others, _ = store.read(folder.prompt("last"))
    for name, leaf in leaves.items():
      moved = np.linalg.norm(leaf - initial_leaves[name])
      distance = np.linalg.norm(others[name] - leaf)
      assert distance < tolerance * moved, (mesh, name)


def test_a_run_compiles_each_function_once(tiny, tmp_path):
  from tpv_jax.devices import partitioning
  from tpv_jax.training import steps

  model, schedule = tiny.model(), optimizers.constant(0.3)
  for seed in (0, 1):
    tiny.train(
      tmp_path / str(seed), model=model, learning_rate=schedule, initial_seed=seed
    )
  built = steps.build(model, schedule, 1, partitioning.make_mesh())
  assert built.train._cache_size() == 1
  assert built.validate._cache_size() == 1


def test_steps_that_are_compiled_again_are_counted(tiny, tmp_path, capsys, monkeypatch):
  data = tiny.data()
  batch_at = data.batch_at

  def forgetful(step):
    if step == 12:  # Prepared while steps 6 to 10 run; those from 11 on compile again.
      jax.clear_caches()
    return batch_at(step)

  monkeypatch.setattr(data, "batch_at", forgetful)
  manifest = tiny.train(tmp_path / "run", data=data)
  assert manifest["recompiled"] == 1
  assert "compiled again 1 times" in capsys.readouterr().out


def test_a_backbone_in_bf16_lies_in_bf16_and_computes_the_same(tiny, tmp_path):
  model = tiny.model()
  model.network = tiny.network.copy(dtype="bfloat16")
  run = loop.Run(
    model=model,
    data=tiny.data(),
    folder=RunFolder(tmp_path),
    total_steps=1,
    learning_rate=tiny.schedule,
    backbone=tiny.backbone,
    initial_prompt=functools.partial(initial.sampled_vocabulary, length=4),
    initial_seed=0,
    seed=0,
    eval_period=1,
    log_period=1,
    checkpoint_period=1,
    best_metric="loss",
    microbatches=1,
    model_parallel=1,
    progress=False,
    defaults={},
  )
  frozen = run.place_frozen()
  names = {str(leaf.dtype): path for path, leaf in frozen.items()}
  assert set(names) == {"bfloat16", "float32"}
  assert names["float32"].endswith("rel_embedding")
  whole = {
    path: jax.numpy.asarray(leaf)
    for path, leaf in model.split(
      dict(tiny.backbone.params) | {"prompt": {"prompt": 0}}
    )[1].items()
  }
  trainable, batch = run.fresh_state().trainable, tiny.data().batch_at(0)
  found, expected = (
    run.steps.validate(trainable, leaves, batch)["loss"].compute()
    for leaves in (frozen, whole)
  )
  # XLA may leave out a rounding to bf16 that it finds in the program.
  assert float(found) == pytest.approx(float(expected), rel=2**-8)


@pytest.fixture
def interruptible():
  """SIGINT raises KeyboardInterrupt, also where a shell has started us with '&'."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_two_stops_act_at_once_and_one_is_noted():
  with signals.stop_signals() as requested:
    assert requested() is None
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    assert requested() == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 (it may come in either)
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(10)


def test_a_full_device_is_said_before_anything_half_written_is_left(
  tiny, tmp_path, monkeypatch
):
  run = tmp_path / "run"
  usage = shutil.disk_usage(tmp_path)
  calls = []

  def filling_up(path):
    calls.append(path)
    return usage if len(calls) == 1 else usage._replace(free=1000)

  monkeypatch.setattr(shutil, "disk_usage", filling_up)
  with pytest.raises(OSError, match="No space left on device"):
    tiny.train(run)
  assert [p.name for p in (run / "checkpoints").iterdir()] == ["checkpoint_0"]
  monkeypatch.undo()
  assert tiny.train(run)["status"] == "finished"


def test_orbax_running_out_of_space_leaves_no_temporary_folder(
  tiny, tmp_path, monkeypatch
):
  run = tmp_path / "run"

  def fails(self, step, **what):
    (self.directory / f"checkpoint_{step}.orbax-checkpoint-tmp").mkdir()
    raise ValueError("RESOURCE_EXHAUSTED: Error writing [os_error_code='28']")

  monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", fails)
  with pytest.raises(OSError, match="No space left on device"):
    tiny.train(run)
  assert not run.exists()


def test_tensorboard_reads_the_events_of_a_run(finished):
  from tensorboard.backend.event_processing import event_file_loader

  (path,) = finished[0].glob("events.out.tfevents.*")
  assert socket.gethostname() not in path.name
  events = list(event_file_loader.LegacyEventFileLoader(str(path)).Load())
  read = {
    (value.tag, event.step): value.simple_value
    for event in events
    for value in event.summary.value
  }
  lines = map(json.loads, (finished[0] / "metrics.jsonl").read_text().splitlines())
  for line in lines:
    for name in ("loss", "accuracy", "exact_match"):
      tag = f"{line['kind']}/{name}"
      assert read[tag, line["step"]] == pytest.approx(line[name])


def test_the_manifest_states_what_the_prompt_needs_to_be_used_again(
  tiny, tmp_path, monkeypatch
):
  from tpv_jax.backbones import loading
  from tpv_jax.core import identity
  from tpv_jax.data import recipes, vocabularies
  from tpv_jax.training.task_data import TaskData

  monkeypatch.chdir(tmp_path)
  flat = identity.flatten(tiny.backbone.params)
  loading.save_backbone("tiny.safetensors", flat, "tiny")
  (tmp_path / "words.txt").write_text("\n".join(tiny.vocabulary.words) + "\n")
  vocabulary = vocabularies.load("words.txt")
  model = tiny.model()
  model.input_vocabulary = vocabulary
  recipe = recipes.Recipe("parity", "{text}", "label")
  data = TaskData(
    dataclasses.replace(tiny.task, recipe=recipe), vocabulary, tiny.lengths, 8
  )
  settings = {"model": model, "data": data, "total_steps": 5}
  manifest = tiny.train("runs/one", backbone="tiny.safetensors", **settings)
  assert manifest["subject"] == {
    "backbone": "../../tiny.safetensors",
    "family": "t5",
    "vocabulary_file": "../../words.txt",
    "chat": None,
    "dtype": "float32",
    "quantize": None,
    "lengths": dict(tiny.lengths),
    "recipe": recipe.to_json(),
  }
  assert str(tmp_path) not in (tmp_path / "runs/one/manifest.json").read_text()
  assert "subject" not in manifest["settings"]
  in_memory = tiny.train("runs/two", total_steps=5)
  assert in_memory["subject"] is None
