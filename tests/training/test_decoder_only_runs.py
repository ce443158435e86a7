"""A decoder-only backbone in the whole runner: runs, banks, evaluation, many devices."""

import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from tpv_jax.backbones import loading
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.formats import sources
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import plain
from tpv_jax.training import loop
from tpv_jax.training.task_data import TaskData
from tpv_jax.vectors import algebra

TESTS = pathlib.Path(__file__).parents[1]
FILES = (
  "metrics.jsonl",
  "initial_prompt.safetensors",
  "best_prompt.safetensors",
  "last_prompt.safetensors",
)


@pytest.fixture(scope="module")
def finished(tiny_decoder, tmp_path_factory):
  run = tmp_path_factory.mktemp("finished") / "run"
  return run, tiny_decoder.train(run)


def leaves(run, which="last"):
  return sources.load(run, which).leaves


def test_a_run_lowers_the_loss_and_leaves_the_backbone(tiny_decoder, finished):
  run, manifest = finished
  assert manifest["status"] == "finished"
  lines = [line for line in loop.RunFolder(run).metrics() if line["kind"] == "train"]
  assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
  assert set(leaves(run)) == {"prompt"}
  flat = identity.flatten(tiny_decoder.backbone.params)
  assert identity.backbone_fingerprint(flat) == tiny_decoder.backbone.fingerprint


def test_an_ept_run_moves_every_parameter(tiny_decoder, tmp_path):
  tiny_decoder.train(tmp_path / "run", "ept")
  before, after = (leaves(tmp_path / "run", which) for which in ("initial", "last"))
  for name, leaf in after.items():
    assert not np.array_equal(leaf, before[name]), name


def test_a_run_that_is_stopped_ends_with_the_same_bits(
  tiny_decoder, finished, tmp_path, monkeypatch
):
  tiny_decoder.train_killed(tmp_path / "run", monkeypatch)
  for name in FILES:
    assert (tmp_path / "run" / name).read_bytes() == (finished[0] / name).read_bytes()


def test_a_bank_trains_the_prompts_of_runs_alone(tiny_decoder, finished, tmp_path):
  tiny = tiny_decoder
  tiny.train_bank(tmp_path, prompts=3)
  start, solo = (leaves(finished[0], which)["prompt"] for which in ("initial", "last"))
  found = leaves(tmp_path / "0")["prompt"]
  # fp32 sums in another order, 20 steps of AdamW at 0.3.
  assert np.linalg.norm(found - solo) < 2e-2 * np.linalg.norm(solo - start)


@pytest.fixture(scope="module")
def evaluator(tiny_decoder):
  return Evaluator(
    tiny_decoder.plain_model,
    tiny_decoder.backbone.params,
    tiny_decoder.vocabulary,
    tiny_decoder.lengths,
    batch_size=8,
  )


def test_scoring_and_decoding_agree_in_one_pass(tiny_decoder, finished, evaluator):
  run, _ = finished
  tuned = dict(algebra.fold(sources.load(run, "last")).leaves)
  other = {"prompt": -tuned["prompt"]}
  task = tiny_decoder.task
  cells = [(one, task, "test") for one in (tuned, other, None)]
  tokenized = evaluator.tokenize(task.examples("test"))
  for prompt, result in zip(
    (tuned, other, None), evaluator.evaluate_all(cells), strict=True
  ):
    assert evaluator.exact_match(prompt, tokenized) == result.scores["exact_match"]
    decoded = evaluator.decode([(prompt, tokenized.inputs)])[0]
    texts = [tiny_decoder.vocabulary.decode(row.tolist()) for row in decoded]
    assert texts == result.generated
  assert evaluator.exact_match(tuned, tokenized) > 0


def test_prompts_in_one_pass_have_the_scores_of_prompts_alone(
  tiny_decoder, finished, evaluator
):
  tuned = leaves(finished[0])["prompt"]
  prompts = [{"prompt": factor * tuned} for factor in (1.0, 0.5, 0.0)]
  tokenized = evaluator.tokenize(tiny_decoder.task.examples("test"))
  together = evaluator.score([(one, tokenized, None) for one in prompts])
  for prompt, (scores, _) in zip(prompts, together, strict=True):
    alone = evaluator.score([(prompt, tokenized, None)])[0][0]
    np.testing.assert_allclose(scores, alone, rtol=1e-5)


def test_rows_longer_than_the_network_are_refused_before_a_run_begins(
  tiny_decoder, tmp_path
):
  tiny = tiny_decoder
  lengths = {"inputs": 63, "targets": 2}
  with pytest.raises(UserError, match=r"69 positions.* at most 58"):
    tiny.train(tmp_path / "run", data=TaskData(tiny.task, tiny.vocabulary, lengths, 8))
  assert not (tmp_path / "run" / "initial_prompt.safetensors").exists()
  long = Evaluator(
    tiny.plain_model, tiny.backbone.params, tiny.vocabulary, lengths, batch_size=8
  )
  with pytest.raises(UserError, match="at most 62"):
    long.evaluate(None, tiny.task, "test")


def test_eight_devices_give_the_numbers_of_one(tiny_decoder, finished, tmp_path):
  script = textwrap.dedent(
    f"""
    import sys
    sys.path.insert(0, {str(TESTS)!r})
    import conftest
    tiny = conftest.TinyDecoder()
    for n in (2, 4):
      tiny.train({str(tmp_path)!r} + f"/{{n}}", model_parallel=n)
    """
  )
  flags = "--xla_force_host_platform_device_count=8"
  done = subprocess.run(
    [sys.executable, "-c", script],
    check=True,
    env={**os.environ, "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
  )
  # Two heads of keys are cut over two devices; four do not divide them.
  assert "'joined_kv_groups' of size 2 is replicated" in done.stdout + done.stderr
  start, one = (leaves(finished[0], which)["prompt"] for which in ("initial", "last"))
  for number in (2, 4):
    other = leaves(tmp_path / str(number))["prompt"]
    assert np.linalg.norm(other - one) < 3e-2 * np.linalg.norm(one - start)


def test_a_training_step_lowers_for_tpus(tiny_decoder):
  network = tiny_decoder.network.clone(dtype="bfloat16", remat=True)
  words = tiny_decoder.vocabulary
  model = SoftPromptModel(network, plain.Prompt(4, 16), words, words)
  batch = tiny_decoder.data().batch_at(0)
  params = {
    **tiny_decoder.backbone.params,
    "prompt": {"prompt": np.ones((4, 16), np.float32)},
  }

  def loss(params):
    return model.loss_fn(params, batch, None)[0]

  traced = jax.jit(jax.grad(loss)).trace(params)
  assert "stablehlo" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_a_file_of_the_backbone_gives_the_same_run(tiny_decoder, finished, tmp_path):
  """The runner reads a backbone's file as it was made: no number of it is lost."""
  from tpv_jax.backbones import registry

  family = registry.family("llama")
  path = tmp_path / "tiny.safetensors"
  flat = identity.flatten(tiny_decoder.backbone.params)
  network = tiny_decoder.network
  numbers = {
    name: getattr(network, name)
    for name in family.tiny["llama_tiny"].keys() | {"rope_theta", "norm_epsilon"}
  }
  config = family.config_of(flat, "tiny", numbers=numbers)
  stated = loading.network_of(family, config)
  loading.save_backbone(path, flat, "tiny", network=stated)
  tiny_decoder.train(tmp_path / "run", backbone=str(path))
  name = "last_prompt.safetensors"
  assert np.array_equal(
    leaves(tmp_path / "run")["prompt"], leaves(finished[0])["prompt"]
  ), name
