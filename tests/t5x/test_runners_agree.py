"""Real T5X and the standalone runner on the same batches, from the same seeds.

The embedded backbone and suite, float32 on a CPU. Both runners compile the same model
into different programs, so sums are taken in another order: a loss agrees to 1e-5 of
itself at the first step. AdamW at rate 0.3 carries such differences on; over 50 steps
we allow 1e-3 in the loss and 0.02 in prompt values that move by several units.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tpv_jax import identity, optimizers, partitioning
from tpv_jax.backbone import loading
from tpv_jax.data import suite, vocabularies
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import initial, plain
from tpv_jax.runner import evaluation, steps, task_data
from tpv_jax.t5x.optimizer import TransformationOptimizer
from tpv_jax.vectors import sources

TASK = "sentiment"
LENGTH = 8
BATCH = 16


@pytest.fixture(scope="module")
def embedded():
  return loading.load_backbone("embedded")


@pytest.fixture(scope="module")
def data():
  vocabulary = vocabularies.embedded()
  return task_data.TaskData(suite.task(TASK), vocabulary, suite.LENGTHS, BATCH, seed=3)


def network():
  """The network of gin_configs/backbones/embedded.gin."""
  import gin

  from tpv_jax.backbone.network import Transformer
  from tpv_jax.runner import command_line

  command_line.parse_gin(["gin_configs/backbones/embedded.gin"])
  made = gin.get_configurable(Transformer)()
  gin.clear_config()
  return made


def model(transformation, for_t5x=True):
  vocabulary = vocabularies.embedded()
  made = network()
  return SoftPromptModel(
    made,
    plain.Prompt(length=LENGTH, features=made.emb_dim),
    vocabulary,
    vocabulary,
    optimizer_def=TransformationOptimizer(transformation)
    if for_t5x
    else transformation,
  )


def standalone(backbone, transformation, rate, batches, microbatches=1):
  """Returns the losses of the steps and the prompt after them."""
  mesh = partitioning.make_mesh()
  compiled = steps.build(model(transformation, for_t5x=False), rate, microbatches, mesh)
  table = np.asarray(backbone.params["token_embedder"]["embedding"], np.float32)
  start = initial.sampled_vocabulary(table, 0, LENGTH)
  state = compiled.initialise({"prompt/prompt": jnp.asarray(start)})
  frozen = identity.flatten(backbone.params)
  state, report = compiled.train(
    state, frozen, steps.put_batches(compiled, batches), jax.random.key(0)
  )
  return np.asarray(report["loss"]), np.asarray(state.trainable["prompt/prompt"])


def in_t5x(parts, rate, batches, microbatches=None):
  """Returns the losses of the steps and the prompt after them."""
  trainer = parts.trainer(rate, microbatches)
  losses = []
  for batch in batches:
    result = trainer.train(iter([batch]), 1).result()
    losses.append(float(result["loss"].value))
  prompt = np.asarray(trainer.train_state.params["prompt"]["prompt"])
  trainer.close()
  return np.asarray(losses), prompt


@pytest.fixture
def embedded_parts(under_t5x, tmp_path):
  return lambda transformation, **settings: under_t5x(
    tmp_path / "t5x",
    model=model(transformation),
    backbone="embedded",
    vocabulary=vocabularies.embedded(),
    **settings,
  )


def uneven(batch):
  """The batch with a third of its rows, all at its end, not counted."""
  weights = batch["decoder_loss_weights"].copy()
  weights[-(BATCH // 3) :] = 0
  return batch | {"decoder_loss_weights": weights}


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_loss_and_gradient_agree_whatever_the_microbatches(
  embedded_parts, embedded, data, microbatches
):
  """With the direction -g and the rate 1, a step moves the prompt by its gradient."""
  batch, descent = uneven(data.batch_at(0)), optax.scale(-1.0)
  rate = optimizers.constant(1.0)
  loss, prompt = standalone(embedded, descent, rate, [batch])
  parts = embedded_parts(descent)
  loss_t5x, prompt_t5x = in_t5x(parts, rate, [batch], microbatches)
  start = np.asarray(sources.load(parts.model_dir, "initial").leaves["prompt"])
  assert np.abs(prompt - start).max() > 1e-3
  if microbatches == 1:
    assert loss_t5x == pytest.approx(loss, rel=1e-5)
  np.testing.assert_allclose(
    prompt_t5x - start, prompt - start, rtol=1e-3, atol=2e-6
  )  # differences of values near 1: half a unit in their last place is 6e-8


def test_fifty_steps_agree(embedded_parts, embedded, data):
  adamw = optimizers.adamw(weight_decay=1e-5)
  rate = optimizers.constant(0.3, warmup_steps=10)
  batches = [data.batch_at(step) for step in range(50)]
  losses, prompt = standalone(embedded, adamw, rate, batches)
  losses_t5x, prompt_t5x = in_t5x(embedded_parts(adamw), rate, batches)
  assert losses[-5:].mean() < 0.5 * losses[:5].mean()
  np.testing.assert_allclose(losses_t5x, losses, atol=1e-3)
  np.testing.assert_allclose(prompt_t5x, prompt, atol=0.02)


@pytest.fixture
def evaluated_by_t5x(embedded_parts, tmp_path):
  """Returns what T5X decodes on a batch with the prompt of a run, restored by T5X."""
  from t5x import utils

  from tpv_jax.t5x import mesh, restoring

  def answers(run, batch):
    output, made = str(tmp_path / "eval"), model(optax.identity())
    width = made.network.emb_dim
    path = restoring.checkpoint_of(output, LENGTH, width, str(run), which="last")
    partitioner = mesh.partitioner()
    state, _ = utils.create_checkpoint_manager_and_restore(
      restoring.Initializer(
        optimizer_def=None,
        init_fn=made.get_initial_variables,
        input_shapes={},
        partitioner=partitioner,
        backbone="embedded",
        output_dir=output,
      ),
      partitioner,
      utils.RestoreCheckpointConfig(path=path, mode="specific", dtype="float32"),
      path,
      None,
      use_orbax=True,
    )
    tokens = jax.jit(functools.partial(made.predict_batch, rng=None))(
      state.params, batch
    )
    decode = vocabularies.embedded().decode
    return int(state.step), [decode(row) for row in np.asarray(tokens).tolist()]

  return answers


@pytest.mark.parametrize("trained_by", ["t5x", "standalone"])
def test_a_prompt_trained_by_either_is_evaluated_by_the_other(
  embedded_parts, evaluated_by_t5x, embedded, data, tmp_path, trained_by
):
  from tpv_jax.runner import training
  from tpv_jax.t5x import saving

  adamw, rate, count = optimizers.adamw(), optimizers.constant(0.3), 20
  if trained_by == "standalone":
    training.train(
      model=model(adamw, for_t5x=False),
      data=data,
      run_dir=(run := tmp_path / "run"),
      total_steps=count,
      learning_rate=rate,
      backbone=embedded,
      initial_prompt=functools.partial(initial.sampled_vocabulary, length=LENGTH),
      eval_period=count,
      progress=False,
    )
  else:
    parts = embedded_parts(adamw)
    run, trainer = parts.model_dir, parts.trainer(rate)
    trainer.train(iter(map(data.batch_at, range(count))), count).result()
    saving.SavePrompt(run, TASK)(trainer.train_state.state_dict(), {})
    trainer.close()
  batch = next(iter(data.validation_batches()))
  step, texts = evaluated_by_t5x(run, batch)
  evaluator = evaluation.Evaluator(
    model(adamw), embedded.params, vocabularies.embedded(), suite.LENGTHS, BATCH
  )
  prompt = sources.load(run, "last").leaves
  examples = suite.task(TASK).examples("validation")[:BATCH]
  assert texts == evaluator.answer(prompt, evaluator.tokenize(examples), None)[0]
  assert step == count
  right = sum(
    text == example.targets for text, example in zip(texts, examples, strict=True)
  )
  assert right > 0.7 * BATCH  # a coin gets half
