"""What a T5X run writes: checkpoints without the backbone, prompts as files."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies
from tpv_jax.formats import sources
from tpv_jax.settings import gin_files
from tpv_jax.t5x import saving
from tpv_jax.t5x.bank import Member
from tpv_jax.vectors import store
from tpv_jax.vectors.provenance import Provenance, Term

FINGERPRINT = "ab" * 32
START = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def run(tmp_path):
  """The folder of a run that has written its initial prompt."""
  leaves = {"prompt": START}
  provenance = Provenance(
    kind="prompt",
    backbone_name="tiny",
    backbone_fingerprint=FINGERPRINT,
    initial_digest=identity.prompt_digest(leaves),
    initial_seed=5,
    steps=0,
  )
  saving.write(str(tmp_path), saving.INITIAL, leaves, provenance)
  return tmp_path


def tree(step, prompt):
  return {
    "target": {
      "prompt": {"prompt": jnp.asarray(prompt)},
      "encoder": {"kernel": jnp.ones((2, 2))},
    },
    "state": {"step": jnp.float32(step), "param_states": {"mu": jnp.zeros(3)}},
  }


def test_a_checkpoint_keeps_what_is_trained_and_the_whole_state():
  saved, infos = saving.KeepOnlyTrainable()(tree(1, START), tree(1, START))
  assert set(identity.flatten(saved["target"])) == {"prompt/prompt"}
  assert set(identity.flatten(infos["target"])) == {"prompt/prompt"}
  assert set(saved["state"]) == {"step", "param_states"}


def test_a_checkpoint_keeps_all_of_a_prompt_of_which_a_part_is_trained():
  """Nothing else holds the rest: the prompt is not in the backbone's files."""
  target = {"short_prompt": START, "fusion_gamma": np.float32(1)}
  state = {"target": {"prompt": target, "encoder": {"kernel": START}}, "state": {}}
  saved, _ = saving.KeepOnlyTrainable("prompt/short_prompt")(state, state)
  assert set(identity.flatten(saved["target"])) == {
    "prompt/short_prompt",
    "prompt/fusion_gamma",
  }


def test_a_lost_initial_prompt_leaves_what_the_leaves_say(tmp_path):
  state = tree(50, START)
  shapes = {"gate_kernel": (4, 2), "gate_bias": (2,)}
  shapes |= {"space_down": (2, 4, 1), "space_up": (2, 1, 4)}
  state["target"]["prompt"] = {
    "short_prompt": jnp.asarray(START),
    **{name: jnp.ones(shape) for name, shape in shapes.items()},
  }
  saving.SavePrompt(str(tmp_path), "sentiment")(state, state)
  known = sources.load(tmp_path, "last").provenance
  assert (known.method, known.space, known.alpha) == ("ept", "factor", None)
  assert known.terms == (Term("sentiment", 1.0),)
  assert "was lost" in known.notes[0]


def test_the_prompts_of_an_ept_run_keep_its_space_and_alpha(tmp_path):
  shapes = {"low_rank_a": (5, 2), "low_rank_b": (2, 4)}
  shapes |= {"fusion_query": (4, 2), "fusion_key": (4, 2)}
  leaves = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
  leaves |= {"short_prompt": START, "fusion_gamma": np.float32(1)}
  start = Provenance(
    kind="prompt",
    initial_digest=identity.prompt_digest(leaves),
    initial_folded_digest="cd" * 32,
    steps=0,
    method="ept",
    space="factor",
    alpha=8.0,
  )
  saving.write(str(tmp_path), saving.INITIAL, leaves, start)
  state = tree(50, START)
  state["target"]["prompt"] = {
    **leaves,
    "short_prompt": jnp.asarray(START + 1),
    "fusion_gamma": jnp.float32(2),
  }
  saving.SavePrompt(str(tmp_path), "sentiment")(state, state)
  saved, known = store.read(tmp_path / saving.LAST)
  assert saved["fusion_gamma"].shape == ()
  assert saved["fusion_gamma"] == 2
  np.testing.assert_array_equal(saved["short_prompt"], START + 1)
  assert known == dataclasses.replace(
    start, steps=50, terms=(Term("sentiment", 1.0),), versions=known.versions
  )


def test_each_save_writes_a_portable_prompt_with_full_provenance(run):
  hook = saving.SavePrompt(str(run), "sentiment")
  state = tree(50, START + 1)
  assert hook(state, state) == (state, state)
  for path in (run / "prompts/prompt_50.safetensors", run / saving.LAST):
    leaves, provenance = store.read(path)
    np.testing.assert_array_equal(leaves["prompt"], START + 1)
    assert provenance.terms == (Term("sentiment", 1.0),)
    assert provenance.steps == 50
    assert provenance.backbone_fingerprint == FINGERPRINT
    assert provenance.initial_digest == identity.prompt_digest({"prompt": START})
    assert provenance.initial_seed == 5
    assert {"jax", "tpv_jax", "t5x"} <= set(provenance.versions)


def test_prompts_state_the_chat_template_and_whether_the_backbone_was_trained(
  run, monkeypatch
):
  vocabulary = vocabularies.embedded()
  chat = types.SimpleNamespace(digest="cd" * 32)
  monkeypatch.setattr(type(vocabulary), "chat", chat)
  options = {"vocabulary": vocabulary}
  for trainable, fingerprint in (("prompt/.*", FINGERPRINT), (".*", None)):
    options["trainable"] = trainable
    saving.SavePrompt(str(run), "sentiment", **options)(tree(50, START), None)
    (run / saving.BEST).unlink(missing_ok=True)
    evaluate(saving.BestPrompt(str(run), "sentiment", **options), 50, START, 0.5)
    for name in (saving.LAST, saving.BEST):
      known = store.read(run / name)[1]
      assert known.chat_digest == chat.digest
      assert known.backbone_fingerprint == fingerprint
      assert ("the backbone was trained" in "".join(known.notes)) == (not fingerprint)


def test_the_gin_files_pass_on_what_prompts_state():
  bound = gin_files.bound(["gin_configs/t5x/train.gin"])
  for what in ("SavePrompt", "BestPrompt"):
    assert bound[f"saving.{what}.vocabulary"] == "%VOCABULARY"
    assert bound[f"saving.{what}.trainable"] == "%TRAINABLE"


@pytest.mark.parametrize("action", [saving.SavePrompt, saving.BestPrompt])
@pytest.mark.parametrize("name", [saving.LAST, saving.BEST])
def test_a_run_of_another_task_or_start_is_not_continued(run, action, name):
  start, known = store.read(run / saving.INITIAL)
  tuned = dataclasses.replace(known, terms=(Term("sentiment", 1.0),), steps=5)
  saving.write(str(run), name, start, tuned)
  action(str(run), "sentiment")
  with pytest.raises(
    UserError, match=f"{name} of sentiment, and this run trains topic"
  ):
    action(str(run), "topic")
  other = dataclasses.replace(tuned, initial_digest="0" * 64)
  saving.write(str(run), name, start, other)
  with pytest.raises(
    UserError, match=f"{name} that was tuned from the initial prompt 0"
  ):
    action(str(run), "sentiment")


def test_a_checkpoint_is_that_of_the_prompt_that_was_saved_with_it(run):
  state = tree(50, START + 1)
  saving.SavePrompt(str(run), "sentiment")(state, state)
  saving.check_saved(str(run), 50, {"prompt": START + 1})
  saving.check_saved(str(run), 60, {"prompt": START})  # Nothing was saved there.
  with pytest.raises(UserError, match="checkpoint of step 50 holds the prompt"):
    saving.check_saved(str(run), 50, {"prompt": START})


def test_a_field_of_a_banks_prompts_that_came_later_is_at_its_default():
  here = saving.described([Member("a-0", "a", "a"), Member("b-0", "b", "b")])
  there = [{k: v for k, v in one.items() if k != "rate"} for one in here]
  assert saving.first_other(there, here) == ""
  here[1]["rate"] = 0.5
  told = "; prompt 1 has another rate: 1.0 there, 0.5 now"
  assert saving.first_other(there, here) == told


def test_the_save_before_the_first_step_writes_no_trained_prompt(run):
  saving.SavePrompt(str(run), "sentiment")(tree(0, START), None)
  assert not (run / saving.LAST).exists()


def test_a_run_of_t5x_is_a_run_folder_to_tpv(run):
  saving.SavePrompt(str(run), "sentiment")(tree(50, START + 1), None)
  assert sources.is_run_folder(run)
  assert sources.run_of(run / "checkpoint_50") == run
  np.testing.assert_array_equal(sources.load(run, "last").leaves["prompt"], START + 1)


def evaluate(action, step, prompt, value):
  params = tree(step, prompt)["target"]
  state = types.SimpleNamespace(step=jnp.float32(step), params=params)
  metrics = {"task": {action.metric: types.SimpleNamespace(value=jnp.float32(value))}}
  evaluated = saving.Evaluated(metrics, {"prompt": np.asarray(prompt)})
  assert action.run(state, metrics_by_task=evaluated) is False


def test_the_best_prompt_is_the_one_of_the_lowest_loss(run):
  action = saving.BestPrompt(str(run), "sentiment")
  for step, loss in ((10, 0.5), (20, 0.25), (30, 0.75), (40, float("nan"))):
    evaluate(action, step, START + step, loss)
  leaves, provenance = store.read(run / saving.BEST)
  np.testing.assert_array_equal(leaves["prompt"], START + 20)
  assert provenance.steps == 20


def test_metrics_without_their_prompt_are_refused_by_name(run):
  """On process 0 alone, where T5X runs actions, it could not be gathered any more."""
  action = saving.BestPrompt(str(run), "sentiment")
  with pytest.raises(UserError, match=r"training\.Trainer gives to actions of 'TRAIN_"):
    action.run(types.SimpleNamespace(step=jnp.float32(1)), {"task": {"accuracy": 0.5}})


def test_a_resumed_run_forgets_a_best_prompt_of_steps_it_trains_again(run):
  evaluate(saving.BestPrompt(str(run), "sentiment"), 30, START + 30, 0.25)
  action = saving.BestPrompt(str(run), "sentiment")  # resumed from step 10
  evaluate(action, 20, START + 20, 0.5)
  assert store.read(run / saving.BEST)[1].steps == 20
  evaluate(action, 30, START + 30, 0.75)
  assert store.read(run / saving.BEST)[1].steps == 20


@pytest.mark.parametrize("metric", ["accuracy", "exact_match"])
def test_a_metric_other_than_a_loss_is_better_when_higher(run, metric):
  action = saving.BestPrompt(str(run), "sentiment", metric)
  for step, value in ((10, 0.5), (20, 0.75), (30, 0.25)):
    evaluate(action, step, START + step, value)
  assert store.read(run / saving.BEST)[1].steps == 20


def test_a_user_may_say_that_a_higher_value_is_better(run):
  action = saving.BestPrompt(str(run), "sentiment", higher_is_better=True)
  evaluate(action, 10, START, 0.5)
  evaluate(action, 20, START + 1, 0.25)
  assert store.read(run / saving.BEST)[1].steps == 10
