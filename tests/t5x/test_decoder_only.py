"""Decoder-only models under real T5X: seqio's own batches, where a backbone comes from.

T5X gets what `seqio.DecoderFeatureConverter` makes of a task, the standalone runner the
batches that it makes itself. Sums are taken in another order, and AdamW scales up the
difference where a gradient is near zero, as EPT has many at its start: over four steps we
allow 1e-4 of a loss, and 3 % of the way that a parameter moved.
"""

import functools

import jax
import jax.numpy as jnp
import llama_models
import llm_stand_in
import numpy as np
import pytest

from tpv_jax.backbones import conversion, networks
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.devices import partitioning
from tpv_jax.formats import sources
from tpv_jax.prompts.equations import Folded
from tpv_jax.training import initial, optimizers, steps

RATE = optimizers.constant(0.1)
START = {
  "plain": functools.partial(initial.small_normal, length=3),
  "ept": functools.partial(initial.sampled_vocabulary, length=8),
}


@pytest.fixture
def parts(llm, under_t5x, tmp_path):
  """Builds what T5X's train builds, traced with the shapes of seqio's batches."""

  def build(name, kind="plain", model=None, rows=8, backbone=None, **settings):
    width = sum(llm.lengths.values())
    names = ("target_tokens", "input_tokens", "loss_weights", "causal_attention")
    shapes = {f"decoder_{one}": (rows, width) for one in names}
    if hasattr(model, "members"):
      shapes["prompt_ids"] = (rows,)
    return under_t5x(
      tmp_path / name,
      model=model or llm.model(kind),
      backbone=backbone or llm.path,
      vocabulary=llm.vocabulary,
      initial_prompt=START[kind],
      input_shapes=shapes,
      **settings,
    )

  return build


def standalone(llm, model, start, rate, batches):
  """Returns the losses of the standalone runner's steps, and the leaves after them."""
  compiled = steps.build(model, rate, 1, partitioning.make_mesh())
  state = compiled.initialise(
    {f"prompt/{name}": jnp.asarray(leaf) for name, leaf in start.items()}
  )
  state, report = compiled.train(
    state,
    identity.flatten(llm.backbone.params),
    steps.put_batches(compiled, batches),
    jax.random.key(0),
  )
  after = {name: np.asarray(state.trainable[f"prompt/{name}"]) for name in start}
  return np.asarray(report["loss"]), after


def assert_near(found, expected, start):
  """Both moved the leaves to the same place, as far as rounding lets them."""
  for name, leaf in expected.items():
    way = np.linalg.norm(leaf - start[name])
    assert way > 0.01, name
    assert np.linalg.norm(found[name] - leaf) < 0.03 * way, name


@pytest.mark.parametrize(("kind", "with_sources"), [("plain", False), ("ept", True)])
def test_both_runners_take_the_same_steps(llm, parts, kind, with_sources):
  assert_same_steps(llm, parts, kind, with_sources)


def test_both_runners_take_the_same_steps_on_a_gemma(gemma, parts):
  assert gemma.network.window < sum(gemma.lengths.values())
  assert_same_steps(gemma, parts, "plain", False)


def assert_same_steps(llm, parts, kind, with_sources):
  theirs, ours = llm.batches(8, 4)
  settings = {"loss_on_sources": with_sources}
  made = parts("run", kind, llm.model(kind, **settings), backbone=llm.path)
  metrics, after = made.trained(RATE, theirs)
  start = sources.load(made.model_dir, "initial").leaves
  own = llm.model(kind, for_t5x=False, **settings)
  losses, leaves = standalone(llm, own, start, RATE, ours)
  np.testing.assert_allclose([one["loss"] for one in metrics], losses, rtol=1e-4)
  assert_near(after, leaves, start)


def test_a_bank_equals_the_runs_of_its_prompts_on_seqios_batches(llm, parts):
  from tpv_jax.t5x.bank import Bank, Member

  members = (
    Member("a-0", "a", "", initial_seed=0, rate=1.0),
    Member("b-3", "b", "", initial_seed=3, rate=0.5),
  )
  theirs, ours = llm.batches(8, 6)
  model = Bank(llm.model(loss_on_sources=True), members)
  joined = [
    {name: np.concatenate([one[name], other[name]]) for name in one}
    | {"prompt_ids": np.repeat(np.arange(2, dtype=np.int32), 8)}
    for one, other in zip(theirs[::2], theirs[1::2], strict=True)
  ]
  made = parts("bank", model=model, rows=16)
  metrics, after = made.trained(RATE, joined)
  own = llm.model(for_t5x=False, loss_on_sources=True)
  for place, member in enumerate(members):
    start = sources.load(f"{made.model_dir}/{member.name}", "initial").leaves
    rate = functools.partial(lambda by, step: by * RATE(step), member.rate)
    losses, leaves = standalone(llm, own, start, rate, ours[place::2])
    found = [one[f"loss/{member.name}"] for one in metrics]
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    assert_near({"prompt": after["prompt"][place]}, leaves, start)
  assert not np.array_equal(*after["prompt"])


def test_every_form_of_a_backbone_starts_the_same_run(llm, parts, tmp_path):
  content = {**llm_stand_in.CONFIG, "vocab_size": llm.network.vocab_size}
  llama_models.write(tmp_path / "folder", content)
  for name in ("checkpoint_0", "tiny.safetensors"):
    with conversion.planned(llm.path, conversion.target_of(name, None)) as plan:
      conversion.convert(plan, llm.path, tmp_path / name, lambda *_: None)
  found = {}
  for name in ("checkpoint_0", "tiny.safetensors", "folder"):
    path = str(tmp_path / name)
    assert networks.network(path) == llm.network
    state = parts(f"run_{name}", backbone=path).state()
    flat = identity.flatten(state.params)
    for leaf, value in identity.flatten(llm.backbone.params).items():
      np.testing.assert_array_equal(flat[leaf], value, err_msg=f"{name} {leaf}")
    start = sources.load(tmp_path / f"run_{name}", "initial").provenance
    assert start.architecture == "decoder_only"
    found[start.backbone_fingerprint, start.initial_digest] = name
  assert {fingerprint for fingerprint, _ in found} == {llm.backbone.fingerprint}
  assert len(found) == 1


def test_rows_that_the_model_cannot_hold_are_refused_before_anything_is_written(
  llm, parts, tmp_path
):
  short = llm.network.clone(max_positions=17)
  model = llm.model()
  model.network = short
  with pytest.raises(UserError, match=r"18 positions, and the backbone has 17"):
    parts("run", model=model)
  other = llm.model()
  other.lengths = {"inputs": 20, "targets": 3}
  with pytest.raises(UserError, match=r"row of 15 ids.*lengths = %LENGTHS"):
    parts("run", model=other)
  assert not list(tmp_path.rglob("*.safetensors"))


def test_an_evaluated_model_keeps_its_settings(llm, t5x):
  """The folded prompt comes from a file; all else is the model's."""
  from tpv_jax.t5x import restoring
  from tpv_jax.vectors.loaded import Loaded
  from tpv_jax.vectors.provenance import of_leaves

  leaves = {"prompt": np.zeros((5, llm.network.emb_dim), np.float32)}
  model = llm.model(num_beams=3)
  made = restoring.model_of(Loaded(leaves, of_leaves(leaves), "a"), model)
  assert (made.prompt.length, made.choice.num_beams) == (5, 3)
  assert made.lengths == llm.lengths
  assert model.prompt.length == 3
  theirs, ours = llm.batches(4, 1)
  folded = Folded.of(leaves)
  params = {**llm.backbone.params, "prompt": folded.leaves()}
  decode = jax.jit(lambda batch: made.predict_batch_with_aux(params, batch))
  jax.tree.map(np.testing.assert_array_equal, decode(theirs[0]), decode(ours[0]))
