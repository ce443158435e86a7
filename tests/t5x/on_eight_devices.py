"""An EPT prompt that real T5X cuts over eight devices; `test_cut_prompts` runs this."""

import device_programs
import jax
import numpy as np
import pytest

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.formats import sources
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import plain
from tpv_jax.t5x import saving
from tpv_jax.t5x.bank import Bank, Member
from tpv_jax.t5x.optimizer import TransformationOptimizer
from tpv_jax.training import optimizers

RATE = optimizers.constant(0.3)
RATES = {"prompt": 1.0, "low_rank": 0.02, "fusion": 0.1, "spaces": 0.1}
SHORT, SOURCE, WIDTH = 3, 8, 16  # Of the tiny backbone, and its EPT prompt.
MEMBERS = tuple(Member(f"a-{seed}", "a", "", seed, seed) for seed in range(8))


@pytest.fixture
def parts(under_t5x, tiny, tmp_path):
  """Builds T5X's parts on a mesh of (8 / model_parallel) x model_parallel devices."""
  from tpv_jax.t5x import mesh

  def build(model, model_parallel=2, bank=False, backbone=None, **settings):
    model.optimizer_def = TransformationOptimizer(
      optimizers.by_group(optimizers.adamw(weight_decay=0.01, clip_norm=0.1), RATES)
    )
    if bank:
      model = Bank(model, MEMBERS)
    return under_t5x(
      tmp_path / "run",
      model=model,
      partitioner=mesh.partitioner(model_parallel, **settings),
      backbone=backbone,
      length=SHORT,
    )

  return build


def folded_form(tiny):
  """The model whose trained leaves are what an EPT prompt amounts to."""
  prompt = plain.Prompt(SHORT, WIDTH, SOURCE)
  return SoftPromptModel(
    tiny.network, prompt, tiny.vocabulary, tiny.vocabulary, optimizer_def=None
  )


def gathered(made, batch, microbatches=2):
  """What the train step of T5X's trainer moves between devices."""
  trainer = made.trainer(RATE, microbatches)
  step = trainer._partitioned_train_step.lower(trainer.train_state, batch)
  trainer.close()
  return device_programs.gathered(step.compile())


def test_each_device_holds_a_part_of_what_has_the_width_and_of_its_moments(tiny, parts):
  state = parts(tiny.model("ept"), 4).state()
  leaves = {f"prompt/{name}": leaf for name, leaf in state.params["prompt"].items()}
  assert len(leaves) == 10
  assert len(state.param_states) > 20
  for name, leaf in {**leaves, **state.param_states}.items():
    share = leaf.sharding.shard_shape(leaf.shape)
    assert share == tuple(4 if size == WIDTH else size for size in leaf.shape), name


def test_only_the_folded_prompt_is_gathered_and_once_a_step(tiny, parts):
  batch = tiny.data(16).batch_at(0)
  others = gathered(parts(folded_form(tiny)), batch)
  folded = {f"f32[{SHORT},{WIDTH}]": 1, f"f32[{SOURCE},{WIDTH}]": 1}
  assert not folded.keys() & others.keys()
  assert gathered(parts(tiny.model("ept")), batch) == others | folded


def test_a_bank_is_cut_along_both_axes_and_gathered_as_its_folded_prompts(tiny, parts):
  made = parts(tiny.model("ept"), bank=True)
  state = made.state()
  for name, leaf in state.params["prompt"].items():
    share = leaf.sharding.shard_shape(leaf.shape)
    inner = (8 if size == WIDTH else size for size in leaf.shape[1:])
    assert share == (2, *inner), name
  rows = tiny.data(16).batch_at(0)
  batch = rows | {"prompt_ids": np.arange(16, dtype=np.int32) % 8}
  others = gathered(parts(folded_form(tiny), bank=True), batch)
  # Of the folded prompts alone each device has its own, whole; here half of their width.
  folded = {f"f32[2,{SHORT},{WIDTH}]": 1, f"f32[2,{SOURCE},{WIDTH}]": 1}
  assert gathered(made, batch) == others | folded
  assert others[f"f32[8,{SHORT},{WIDTH}]"] == others[f"f32[8,{SOURCE},{WIDTH}]"] == 1


def test_the_prompts_of_a_bank_that_is_cut_are_trained_as_on_one_device(tiny, parts):
  data = [tiny.data(8, member.seed) for member in MEMBERS]
  made = parts(tiny.model("ept"), bank=True)
  trainer = made.trainer(RATE, 2)
  for step in range(4):
    batches = [one.batch_at(step) for one in data]
    joined = {name: np.concatenate([x[name] for x in batches]) for name in batches[0]}
    joined["prompt_ids"] = np.repeat(np.arange(8, dtype=np.int32), 8)
    trainer.train(iter([joined]), 1).result()
  after = jax.device_get(dict(trainer.train_state.params["prompt"]))
  trainer.close()
  model = tiny.model("ept")
  model.optimizer_def = made.model.optimizer_def
  train = device_programs.on_one_device(tiny, model)
  for place in (0, 7):
    folder = f"{made.model_dir}/{MEMBERS[place].name}"
    start = sources.load(folder, "initial").leaves
    _, alone = train(start, RATE, [data[place].batch_at(step) for step in range(4)])
    for name, leaf in alone.items():
      # Sums in other orders, carried on by AdamW: 1e-6 in values near 1.
      np.testing.assert_allclose(after[name][place], leaf, atol=2e-5, err_msg=name)


def test_a_run_goes_on_with_another_mesh(tiny, parts):
  made = parts(tiny.model("ept"), 2)
  trainer = made.trainer(RATE)
  trainer.train(iter([tiny.data(16).batch_at(0)]), 1).result()
  before = trainer.train_state
  trainer.close()
  manager = made.manager()
  manager.save(before, [saving.KeepOnlyTrainable()])
  manager.close()
  manager = parts(tiny.model("ept"), 4).manager()
  after = manager.restore(step=1)
  manager.close()
  for one, other in zip(
    jax.tree.leaves((before.params["prompt"], before.param_states)),
    jax.tree.leaves((after.params["prompt"], after.param_states)),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)
  share = after.params["prompt"]["low_rank_b"].sharding.shard_shape((2, WIDTH))
  assert share == (2, 4)


def test_a_width_that_the_devices_do_not_divide_is_replicated_and_the_log_says_so(
  tiny, parts, caplog
):
  with caplog.at_level("WARNING", logger="absl"):
    made = parts(tiny.model("ept"), 8, bank=True, axis_rules=[("prompt", "model")])
  assert "'prompt' of size 3 is replicated: the 8 devices along 'model'" in caplog.text
  made.partitioner.get_mesh_axes(made.initializer._whole)  # As T5X asks more than once.
  short = made.state().params["prompt"]["short_prompt"]
  assert short.sharding.shard_shape(short.shape) == (8, 3, 2)


def test_rules_of_the_user_are_merged_over_ours(tiny, parts):
  params = parts(tiny.model("ept"), axis_rules=[("embed", "data")]).state().params
  flat = identity.flatten(params)
  table = flat["token_embedder/embedding"]
  assert table.sharding.shard_shape(table.shape) == (16, 4)
  b = flat["prompt/low_rank_b"]
  assert b.sharding.shard_shape(b.shape) == (2, 8)


def test_an_axis_without_a_rule_is_refused_by_its_name(tiny, parts, monkeypatch):
  from tpv_jax.devices import partitioning

  rules = tuple(rule for rule in partitioning.LOGICAL_AXIS_RULES if rule[0] != "rank")
  monkeypatch.setattr(partitioning, "LOGICAL_AXIS_RULES", rules)
  with pytest.raises(UserError, match=r"'prompt/low_rank_a' has an axis 'rank' for"):
    parts(tiny.model("ept"), 1)


def test_a_decoder_only_model_is_cut_by_whole_heads(llm, parts, caplog):
  with caplog.at_level("WARNING", logger="absl"):
    state = parts(llm.model("ept"), 4, backbone=llm.path).state()
  assert "'joined_kv_groups' of size 2 is replicated" in caplog.text
  flat = identity.flatten(state.params)
  attention = "decoder/layers_0/self_attention"
  for path, share in (
    (f"{attention}/query/kernel", (WIDTH, 4)),
    (f"{attention}/key/kernel", (WIDTH, 8)),
    ("decoder/layers_0/mlp/wi_0/kernel", (WIDTH, 5)),
    ("prompt/low_rank_b", (2, 4)),
    ("prompt/short_prompt", (SHORT, 4)),
  ):
    assert flat[path].sharding.shard_shape(flat[path].shape) == share, path
  two = identity.flatten(parts(llm.model(), 2, backbone=llm.path).state().params)
  key = two[f"{attention}/key/kernel"]
  assert key.sharding.shard_shape(key.shape) == (WIDTH, 4)


def test_of_a_decoder_only_models_prompt_only_the_folded_one_is_gathered(llm, parts):
  batch = llm.batches(16, 1)[0][0]
  longest = llm.lengths["inputs"]
  others = gathered(
    parts(
      llm.model().with_prompt(plain.Prompt(SHORT, WIDTH, longest)), backbone=llm.path
    ),
    batch,
  )
  folded = {f"f32[{SHORT},{WIDTH}]": 1, f"f32[{longest},{WIDTH}]": 1}
  assert gathered(parts(llm.model("ept"), backbone=llm.path), batch) == others | folded


def test_a_decoder_only_model_is_trained_as_on_one_device(llm, parts):
  theirs, ours = llm.batches(16, 3)
  made = parts(llm.model("ept"), backbone=llm.path)
  trainer = made.trainer(RATE, 2)
  for batch in theirs:
    trainer.train(iter([batch]), 1).result()
  after = jax.device_get(dict(trainer.train_state.params["prompt"]))
  trainer.close()
  model = llm.model("ept")
  model.optimizer_def = made.model.optimizer_def
  start = sources.load(made.model_dir, "initial").leaves
  _, alone = device_programs.on_one_device(llm, model)(start, RATE, ours)
  for name, leaf in alone.items():
    way = np.linalg.norm(leaf - start[name])
    assert np.linalg.norm(after[name] - leaf) < 0.03 * way, name
