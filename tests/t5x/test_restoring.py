"""Where a T5X job's parameters come from, under real T5X, on the tiny backbone."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from tpv_jax.backbones import conversion, loading
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies
from tpv_jax.formats import sources
from tpv_jax.io import orbax
from tpv_jax.prompts import ept, equations, plain
from tpv_jax.t5x import saving
from tpv_jax.training import initial, optimizers
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.loaded import Loaded

RATE = 0.3


def ept_module(**changes):
  lengths = {"length": 3, "features": 16, "source_length": 8}
  parts = {"rank": 2, "fusion_width": 2, "spaces": 2}
  return ept.EPT(**(lengths | parts | changes))


MODULES = {"plain": plain.Prompt(length=4, features=16), "ept": ept_module()}


def with_prompt(tiny, module, trainable="prompt/.*", for_t5x=True):
  from tpv_jax.model import SoftPromptModel
  from tpv_jax.t5x.optimizer import TransformationOptimizer

  adamw = optimizers.adamw(weight_decay=1e-5)
  return SoftPromptModel(
    tiny.network,
    module,
    tiny.vocabulary,
    tiny.vocabulary,
    TransformationOptimizer(adamw, trainable) if for_t5x else adamw,
    trainable,
  )


def frozen_of(params):
  return {
    path: np.asarray(leaf)
    for path, leaf in identity.flatten(params).items()
    if not path.startswith("prompt/")
  }


def assert_same(leaves, others):
  assert leaves.keys() == others.keys()
  for path, leaf in leaves.items():
    np.testing.assert_array_equal(leaf, others[path], err_msg=path)


def save_with_t5x(tiny, under_t5x, folder, use_orbax, drop=(), add=()):
  """Writes the tiny backbone as a pre-training run of T5X would, at step 1000."""
  from t5x import checkpoints, partitioning, train_state

  partitioner = partitioning.PjitPartitioner(
    num_partitions=None, model_parallel_submesh=(1, 1, 1, 1)
  )
  model = tiny.model(prompt=None)
  variables = model.get_initial_variables(jax.random.key(0), {})
  flat = identity.flatten(tiny.backbone.params)
  axes = identity.flatten(variables["params_axes"])
  for path in drop:
    del flat[path], axes[path + "_axes"]
  for path in add:
    flat[path], axes[path + "_axes"] = (
      flat["decoder/decoder_norm/scale"],
      axes["decoder/decoder_norm/scale_axes"],
    )
  state = train_state.InferenceState.create(
    {"params": identity.unflatten(flat), "params_axes": identity.unflatten(axes)}
  ).replace_step(np.int32(1000))
  folder.mkdir()
  if use_orbax:
    manager = checkpoints.OrbaxCheckpointManagerInterface(
      str(folder), state, partitioner, save_dtype="float32"
    )
    manager.save(state)
    manager.close()
  else:
    checkpoints.Checkpointer(state, partitioner, str(folder)).save(state)
  return folder / "checkpoint_1000"


@pytest.mark.parametrize("use_orbax", [True, False], ids=["orbax", "legacy"])
@pytest.mark.parametrize("spelled", ["{}", "pretrained/x/../{.name}"])
def test_a_t5x_checkpoint_gives_the_backbone_and_training_starts_at_step_zero(
  tiny, under_t5x, tmp_path, monkeypatch, use_orbax, spelled
):
  path = save_with_t5x(tiny, under_t5x, tmp_path / "pretrained", use_orbax)
  monkeypatch.chdir(tmp_path)
  state = under_t5x(tmp_path / "run", backbone=spelled.format(path)).state()
  assert_same(frozen_of(state.params), identity.flatten(tiny.backbone.params))
  assert int(state.step) == 0
  provenance = sources.load(tmp_path / "run", "initial").provenance
  assert provenance.backbone_fingerprint == tiny.backbone.fingerprint
  assert provenance.backbone_name == "pretrained/checkpoint_1000"


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_the_start_is_the_one_of_the_standalone_runner(
  tiny, under_t5x, tmp_path, module
):
  model = with_prompt(tiny, module, for_t5x=False)
  tiny.train(tmp_path / "own", model, total_steps=1, initial_seed=3)
  parts = under_t5x(
    tmp_path / "t5x", model=with_prompt(tiny, module), initial_seed=3, length=4
  )
  state = parts.state()
  mine = sources.load(tmp_path / "t5x", "initial")
  own = sources.load(tmp_path / "own", "initial")
  assert_same(mine.leaves, own.leaves)
  assert_same(jax.tree.map(np.asarray, dict(state.params["prompt"])), own.leaves)
  assert mine.provenance == dataclasses.replace(
    own.provenance, versions=mine.provenance.versions
  )
  assert mine.provenance.initial_seed == 3


def trained(tiny, parts, first, count, state=None):
  trainer = parts.trainer(optimizers.constant(RATE, warmup_steps=2), state=state)
  batches = map(tiny.data().batch_at, range(first, first + count))
  trainer.train(iter(batches), count).result()
  trainer.close()
  return trainer.train_state


def hooks(parts):
  return [saving.SavePrompt(parts.model_dir, "parity"), saving.KeepOnlyTrainable()]


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(
  tiny, under_t5x, tmp_path, module
):
  model = with_prompt(tiny, module)
  under_t5x = functools.partial(under_t5x, model=model, length=4)
  unbroken = trained(tiny, under_t5x(tmp_path / "unbroken"), 0, 8)

  parts = under_t5x(tmp_path / "run")
  half = trained(tiny, parts, 0, 4)
  manager = parts.manager()
  manager.save(half, hooks(parts))
  manager.close()
  again = under_t5x(tmp_path / "run")
  restored = again.manager().restore(step=4)
  assert int(restored.step) == 4
  assert_same(frozen_of(restored.params), identity.flatten(tiny.backbone.params))
  resumed = trained(tiny, again, 4, 4, state=restored)
  assert_same(
    {k: np.asarray(v) for k, v in identity.flatten(resumed.params).items()},
    {k: np.asarray(v) for k, v in identity.flatten(unbroken.params).items()},
  )


def test_a_checkpoint_that_t5x_restores_by_itself_is_of_this_run_and_in_fp32(
  tiny, under_t5x, tmp_path
):
  parts = under_t5x(tmp_path / "run")
  manager = parts.manager()
  manager.save(trained(tiny, parts, 0, 4), hooks(parts))
  manager.close()
  other = under_t5x(tmp_path / "other").manager()
  with pytest.raises(UserError, match=r"not of the run in .*other.*INITIAL_PROMPT"):
    other.restore(path=str(tmp_path / "run" / "checkpoint_4"))
  rounding = under_t5x(tmp_path / "run").manager(restore_dtype="bfloat16")
  with pytest.raises(UserError, match="in bfloat16, which rounds steps and prompts"):
    rounding.restore(step=4)


def test_what_an_ept_run_writes_is_folded_for_eval_and_says_its_origin(
  tiny, under_t5x, tmp_path
):
  from tpv_jax.t5x import restoring

  module = MODULES["ept"]
  parts = under_t5x(tmp_path / "run", model=with_prompt(tiny, module), length=4)
  state = trained(tiny, parts, 0, 3)
  saving.SavePrompt(parts.model_dir, "parity")(state.state_dict(), {})
  last = sources.load(parts.model_dir, "last")
  assert_same(jax.tree.map(np.asarray, dict(state.params["prompt"])), last.leaves)
  known = last.provenance
  assert (known.method, known.space, known.alpha) == ("ept", "factor", module.alpha)

  subject = restoring.subject(parts.model_dir, which="last")
  start = algebra.fold(sources.load(parts.model_dir, "initial"))
  assert subject.provenance.space == "effective"
  assert subject.provenance.initial_digest == identity.prompt_digest(start.leaves)
  expected = equations.fold_exactly(last.leaves, module.alpha)
  assert_same(subject.leaves, expected.leaves())
  folded = restoring.model_of(subject, parts.model).prompt
  assert folded == plain.Prompt(3, 16, source_length=8)
  saved = orbax.read_leaves(restoring.checkpoint_of(subject, str(tmp_path / "out")))
  assert_same(saved, subject.leaves)


def test_a_vector_of_an_ept_run_starts_another_one(tiny, under_t5x, tmp_path):
  """Its delta has rank 2, which is the run's, so that refactoring loses nothing."""
  model = with_prompt(tiny, MODULES["ept"])
  parts = under_t5x(tmp_path / "run", model=model, length=4)
  state = trained(tiny, parts, 0, 3)
  saving.SavePrompt(parts.model_dir, "parity")(state.state_dict(), {})
  tuned, start = (
    algebra.fold(sources.load(parts.model_dir, which)) for which in ("last", "initial")
  )
  vector = algebra.diff(tuned, start)
  store.write(tmp_path / "v.safetensors", vector.leaves, vector.provenance)
  on_initial = functools.partial(
    initial.from_vector,
    path=tmp_path / "v.safetensors",
    initial=functools.partial(initial.sampled_vocabulary, length=4),
  )
  again = under_t5x(tmp_path / "next", model=model, initial_prompt=on_initial).state()
  folded = model.prompt.apply({"params": again.params["prompt"]})
  np.testing.assert_allclose(folded.prompt, tuned.leaves["prompt"], atol=1e-6)
  np.testing.assert_allclose(
    folded.delta, tuned.leaves["delta"], atol=1e-5
  )  # factors in fp32, of a delta that fp32 was subtracted and added for
  known = sources.load(tmp_path / "next", "initial").provenance
  assert known.initial_seed == 0
  assert known.space == "factor"  # W_q and others are drawn


def test_a_checkpoint_of_a_run_holds_no_backbone_and_tpv_reads_it(
  tiny, under_t5x, tmp_path
):
  parts = under_t5x(tmp_path / "run")
  state = trained(tiny, parts, 0, 3)
  manager = parts.manager()
  manager.save(state, hooks(parts))
  manager.close()
  path = tmp_path / "run" / "checkpoint_3"
  assert set(orbax.shapes(path, "target")) == {"prompt/prompt"}
  loaded = sources.load(path)
  np.testing.assert_array_equal(
    loaded.leaves["prompt"], state.params["prompt"]["prompt"]
  )
  assert loaded.provenance.steps == 3
  assert loaded.provenance.terms[0].task == "parity"
  assert loaded.provenance.backbone_fingerprint == tiny.backbone.fingerprint


def test_the_schedule_starts_at_zero(tiny, under_t5x, tmp_path):
  """With two warm-up steps the first step has the rate 0 and changes nothing."""
  parts = under_t5x(tmp_path / "run")
  start = np.asarray(parts.state().params["prompt"]["prompt"])
  after = trained(tiny, parts, 0, 1)
  np.testing.assert_array_equal(after.params["prompt"]["prompt"], start)
  moved = trained(tiny, parts, 0, 2)
  assert not np.array_equal(moved.params["prompt"]["prompt"], start)


@pytest.fixture
def vector(tiny, tmp_path):
  """A run of the standalone runner and its vector's file."""
  tiny.train(tmp_path / "own", total_steps=5)
  tuned, start = (
    sources.load(tmp_path / "own", which) for which in ("last", "initial")
  )
  made = algebra.diff(tuned, start)
  store.write(tmp_path / "v.safetensors", made.leaves, made.provenance)
  return tmp_path / "own", tmp_path / "v.safetensors", tuned, start


def test_train_starts_from_a_prompt_or_from_a_vector_on_an_initial_one(
  tiny, under_t5x, tmp_path, vector
):
  run, file, tuned, _ = vector
  from_prompt = functools.partial(initial.from_file, path=run, which="last")
  state = under_t5x(tmp_path / "a", initial_prompt=from_prompt).state()
  np.testing.assert_array_equal(
    state.params["prompt"]["prompt"], tuned.leaves["prompt"]
  )
  on_initial = functools.partial(
    initial.from_vector,
    path=file,
    initial=functools.partial(initial.sampled_vocabulary, length=4),
  )
  state = under_t5x(tmp_path / "b", initial_prompt=on_initial).state()
  np.testing.assert_allclose(
    state.params["prompt"]["prompt"], tuned.leaves["prompt"], atol=1e-6
  )  # (after - before) + before, rounded once


def test_eval_uses_a_vector_on_an_initial_prompt_and_keeps_what_it_was(
  tiny, t5x, tmp_path, vector
):
  from tpv_jax.t5x import restoring

  run, file, _, start = vector
  subject = restoring.subject(vector=str(file), initial=str(run), coefficient=0.5)
  path = restoring.checkpoint_of(subject, str(tmp_path / "out"))
  saved = orbax.read_leaves(path)["prompt"]
  expected = start.leaves["prompt"] + 0.5 * store.read(file)[0]["prompt"]
  np.testing.assert_allclose(saved, expected, atol=1e-6)
  leaves, provenance = store.read(tmp_path / "out" / restoring.SUBJECT)
  np.testing.assert_array_equal(leaves["prompt"], saved)
  assert provenance.terms[0].coefficient == 0.5


def test_missing_and_foreign_leaves_of_a_checkpoint_are_named(
  tiny, under_t5x, tmp_path
):
  path = save_with_t5x(
    tiny,
    under_t5x,
    tmp_path / "other",
    True,
    drop=["encoder/encoder_norm/scale"],
    add=["adapter/scale"],
  )
  with pytest.raises(UserError, match=r"1 missing \(encoder/encoder_norm/scale\)") as e:
    under_t5x(tmp_path / "run", backbone=path)
  assert "1 foreign (adapter/scale)" in str(e.value)


def test_a_backbone_that_is_not_there_is_said(under_t5x, tmp_path):
  with pytest.raises(UserError, match="There is no backbone"):
    under_t5x(tmp_path / "run", backbone=tmp_path / "nothing")


def test_a_quantised_backbone_is_refused(tiny, under_t5x, tmp_path):
  model = under_t5x(tmp_path / "before").model
  model.network = tiny.network.clone(quantize="int8")
  with pytest.raises(
    UserError, match="QUANTIZE = 'int8': T5X's states hold plain arrays"
  ):
    under_t5x(tmp_path / "run", model=model)
  assert not (tmp_path / "run").exists()


def test_another_vocabulary_than_the_backbones_is_refused(tiny, under_t5x, tmp_path):
  larger = vocabularies.WordVocabulary([f"word{i}" for i in range(60)])
  path = save_with_t5x(tiny, under_t5x, tmp_path / "pretrained", True)
  with pytest.raises(UserError, match="63"):
    under_t5x(tmp_path / "run", backbone=path, vocabulary=larger)


def test_what_a_conversion_noted_beside_a_checkpoint_is_compared(
  tiny, under_t5x, tmp_path
):
  source, path = tmp_path / "tiny.safetensors", tmp_path / "checkpoint_0"
  words = vocabularies.WordVocabulary([f"word{i}" for i in range(20)])
  flat = identity.flatten(tiny.backbone.params)
  loading.save_backbone(source, flat, "small", words.digest)
  with conversion.planned(source, "t5x") as plan:
    conversion.convert(plan, source, path, lambda doing, size: None)
  under_t5x(tmp_path / "run", backbone=path, vocabulary=words).state()
  known = saving.read_provenance(str(tmp_path / "run"), saving.INITIAL)
  assert known.backbone_name == "small"
  other = vocabularies.WordVocabulary([f"other{i}" for i in range(20)])
  with pytest.raises(UserError, match="was trained with another vocabulary"):
    under_t5x(tmp_path / "other", backbone=path, vocabulary=other)
  noted = json.loads((path / loading.BESIDE).read_text())
  noted["fingerprint"] = "ab" * 32
  (path / loading.BESIDE).write_text(json.dumps(noted))
  with pytest.raises(UserError, match=r"altered or damaged.* states abababababab"):
    under_t5x(tmp_path / "altered", backbone=path).state()


@pytest.mark.parametrize(
  ("before", "after", "message"),
  [
    ("plain", plain.Prompt(6, 16), r"prompt is \(4, 16\); in this run it is \(6, 16\)"),
    ("plain", "ept", r"fusion_gamma is not there; in this run it is \(\)"),
    ("ept", "plain", r"fusion_gamma is \(\); in this run it is not there"),
    ("ept", ept_module(rank=1), r"low_rank_a is \(8, 2\); in this run it is \(8, 1\)"),
    ("ept", ept_module(alpha=4.0), r"with alpha 8\.0; this one has 4\.0"),
  ],
)
def test_a_run_with_a_prompt_of_another_form_is_refused_before_anything_is_loaded(
  tiny, under_t5x, tmp_path, before, after, message
):
  parts = under_t5x(
    tmp_path / "run", model=with_prompt(tiny, MODULES[before]), length=4
  )
  manager = parts.manager()
  manager.save(parts.state(), hooks(parts))
  manager.close()
  other = with_prompt(tiny, MODULES[after] if isinstance(after, str) else after)
  with pytest.raises(UserError, match=message):
    under_t5x(tmp_path / "run", model=other)


def test_sources_that_ept_has_no_update_for_are_refused_before_anything_is_written(
  tiny, under_t5x, tmp_path
):
  model, run = with_prompt(tiny, MODULES["ept"]), tmp_path / "run"
  shapes = {
    name: (*leaf.shape[:1], 9) if name.startswith("encoder") else leaf.shape
    for name, leaf in tiny.data().batch_at(0).items()
  }
  with pytest.raises(UserError, match=r"9 tokens, and the prompt updates only.* 8"):
    under_t5x(run, model=model, input_shapes=shapes)
  assert not run.exists()


def test_a_run_is_not_continued_on_another_backbone(tiny, under_t5x, tmp_path):
  parts = under_t5x(tmp_path / "run")
  manager = parts.manager()
  manager.save(parts.state(), hooks(parts))
  manager.close()
  flat = identity.flatten(tiny.backbone.params)
  other = tmp_path / "other.safetensors"
  loading.save_backbone(other, {k: 2 * v for k, v in flat.items()}, "other")
  again = under_t5x(tmp_path / "run", backbone=other)
  with pytest.raises(UserError, match="was trained on the backbone 'tiny'"):
    again.manager().restore(step=0)


def test_a_run_is_continued_from_its_own_start_and_checkpoint_only(
  tiny, under_t5x, tmp_path
):
  for name, seed in (("run", 0), ("other", 1)):
    parts = under_t5x(tmp_path / name, initial_seed=seed)
    half = trained(tiny, parts, 0, 2)
    manager = parts.manager()
    manager.save(half, hooks(parts))
    manager.close()
  with pytest.raises(UserError, match=r"\(seed 0\); this one would .*\(seed 1\)"):
    under_t5x(tmp_path / "run", initial_seed=1).manager().restore(step=2)
  own, foreign = (tmp_path / name / "checkpoint_2" for name in ("run", "other"))
  shutil.rmtree(own)
  shutil.copytree(foreign, own)
  with pytest.raises(UserError, match="checkpoint of step 2 holds the prompt"):
    under_t5x(tmp_path / "run").manager().restore(step=2)


def test_a_mesh_or_a_batch_that_does_not_divide_is_refused(t5x):
  from tpv_jax.t5x import mesh

  with pytest.raises(UserError, match="MODEL_PARALLEL=3 does not divide the 1 devices"):
    mesh.partitioner(model_parallel=3)
  with pytest.raises(UserError, match="batch of 10 rows does not divide"):
    mesh.partitioner(batch_size=10, microbatches=4)


def test_weight_metrics_are_refused_because_of_their_cost(under_t5x, tmp_path):
  from tpv_jax.t5x import training

  parts = under_t5x(tmp_path / "run")
  with pytest.raises(UserError, match="full fine-tuning"):
    training.Trainer(
      model=parts.model,
      train_state=parts.state(),
      partitioner=parts.partitioner,
      train_state_axes=parts.initializer.train_state_axes,
      eval_names=[],
      summary_dir=None,
      rng=jax.random.PRNGKey(1),
      learning_rate_fn=optimizers.constant(RATE),
      num_microbatches=None,
      weight_metrics_computer=object(),
    )


def test_eval_says_what_cannot_be_used_as_a_prompt(tiny, t5x, vector):
  from tpv_jax.t5x import restoring

  _, file, tuned, _ = vector
  with pytest.raises(UserError, match="Give the prompt to use"):
    restoring.subject()
  with pytest.raises(UserError, match="holds a vector"):
    restoring.subject(prompt=str(file))
  wide = Loaded({"prompt": np.ones((4, 17), np.float32)}, tuned.provenance)
  with pytest.raises(UserError, match="have 17 features, the backbone's tokens 16"):
    restoring.model_of(wide, tiny.model())
