"""A bank under real T5X against the runs of its prompts, each alone, on the same batches.

The tolerances are those of `test_runners_agree`: a bank's program takes the same sums in
another order, and AdamW carries such differences on.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from test_runners_agree import LENGTH, RATES, start_of
from test_runners_agree import model as model_of

from tpv_jax import optimizers
from tpv_jax.data import suite, vocabularies
from tpv_jax.errors import UserError
from tpv_jax.runner import task_data
from tpv_jax.vectors import sources
from tpv_jax.vectors.provenance import Term

BATCH = 8
STEPS = 15
OPTIMIZERS = {
  "adamw": functools.partial(optimizers.adamw, weight_decay=0.01, clip_norm=0.05),
  "adafactor": functools.partial(optimizers.adafactor, clip_norm=0.05),
}


@pytest.fixture
def members(t5x):
  from tpv_jax.t5x.bank import Member

  return [
    Member("sentiment-0", "sentiment", "tpv_sentiment", 0, 0, 1.0),
    Member("topic-0", "topic", "tpv_topic", 0, 0, 0.5),
    Member("sentiment-3", "sentiment", "tpv_sentiment", 3, 3, 2.0),
  ]


def batches_of(member, count=STEPS):
  """The batches of a member, some rows of each not counted: other members count more."""
  data = task_data.TaskData(
    suite.task(member.task), vocabularies.embedded(), suite.LENGTHS, BATCH, member.seed
  )
  batches = [data.batch_at(step) for step in range(count)]
  for batch in batches:
    batch["decoder_loss_weights"][: 1 + member.seed] = 0
  return batches


def side_by_side(batches):
  joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
  ids = np.repeat(np.arange(len(batches), dtype=np.int32), BATCH)
  return joined | {"prompt_ids": ids}


def trained(parts, rate, batches, microbatches=None):
  """Returns the metrics of each step, and the prompt's leaves after them."""
  trainer = parts.trainer(rate, microbatches)
  metrics = []
  for batch in batches:
    result = trainer.train(iter([batch]), 1).result()
    metrics.append({name: float(metric.value) for name, metric in result.items()})
  after = jax.tree.map(np.asarray, dict(trainer.train_state.params["prompt"]))
  trainer.close()
  return metrics, after


@pytest.fixture
def parts(under_t5x, tmp_path):
  """Builds T5X's parts of a run on the embedded backbone."""

  def build(name, kind, model, **settings):
    return under_t5x(
      tmp_path / name,
      model=model,
      backbone="embedded",
      vocabulary=vocabularies.embedded(),
      **({"initial_prompt": start_of(kind)} | settings),
    )

  return build


@pytest.mark.parametrize(
  "kind, optimizer, microbatches",
  [("plain", "adamw", None), ("plain", "adafactor", 3), ("ept", "adamw", 2)],
)
def test_a_bank_equals_the_runs_of_its_prompts_on_fixed_batches(
  parts, members, kind, optimizer, microbatches
):
  from tpv_jax.t5x.bank import Bank

  transformation = optimizers.by_group(OPTIMIZERS[optimizer](), RATES[kind])
  rate = optimizers.constant(0.3, warmup_steps=5)
  alone = [batches_of(member) for member in members]
  bank = Bank(model_of(kind, transformation), members)
  metrics, after = trained(
    parts("bank", kind, bank, members=members),
    rate,
    [side_by_side(step) for step in zip(*alone, strict=True)],
    microbatches,
  )
  for place, member in enumerate(members):
    solo = parts(
      member.name,
      kind,
      model_of(kind, transformation),
      initial_seed=member.initial_seed,
    )
    scaled = functools.partial(lambda by, step: by * rate(step), member.rate)
    its_metrics, its_leaves = trained(solo, scaled, alone[place])
    for name in ("loss", "accuracy", "exact_match"):
      np.testing.assert_allclose(
        [step[f"{name}/{member.name}"] for step in metrics],
        [step[name] for step in its_metrics],
        atol=1e-5,
      )
    start = sources.load(solo.model_dir, "initial").leaves
    for name, leaf in its_leaves.items():
      assert np.abs(leaf - start[name]).max() > 0.05, name
      np.testing.assert_allclose(after[name][place], leaf, atol=3e-4, err_msg=name)


def test_frozen_leaves_are_bit_identical_and_have_no_slot(parts, members):
  from tpv_jax import identity
  from tpv_jax.t5x.bank import Bank

  made = parts("bank", "plain", Bank(model_of("plain", optimizers.adamw()), members), members=members)
  state = made.state()
  before = {
    path: np.array(leaf)
    for path, leaf in identity.flatten(state.params).items()
    if not path.startswith("prompt/")
  }
  shapes = {np.shape(leaf) for leaf in jax.tree.leaves(state.param_states)}
  assert shapes == {(3, LENGTH, 128), (3,)}
  trainer = made.trainer(optimizers.constant(0.3), state=state)
  step = [side_by_side([batches_of(member, 1)[0] for member in members])]
  trainer.train(iter(step), 1).result()
  after = identity.flatten(trainer.train_state.params)
  trainer.close()
  for path, leaf in before.items():
    np.testing.assert_array_equal(np.asarray(after[path]), leaf, err_msg=path)


def dataset_config(rows, mixture=None, seed=None, split="train"):
  from t5x import utils

  return utils.DatasetConfig(
    mixture_or_task_name=mixture,
    task_feature_lengths=suite.LENGTHS,
    split=split,
    batch_size=rows,
    shuffle=split == "train",
    seed=seed,
    use_cached=False,
    pack=False,
  )


@pytest.fixture
def registered(members):
  from tpv_jax.t5x import bank

  grid = bank.grid(
    [suite.task("sentiment"), suite.task("topic")],
    vocabularies.embedded(),
    initial_seeds=[0, 3],
    rates=[1.0],
  )
  assert [one.name for one in grid] == ["sentiment-0", "sentiment-3", "topic-0", "topic-3"]
  return [grid[0], grid[2], dataclasses.replace(grid[1], rate=2.0)]


@pytest.mark.parametrize("done", [0, 2])
def test_a_bank_reads_the_batches_of_each_run(registered, tmp_path, done):
  import seqio

  from tpv_jax.t5x import datasets

  for step in range(0, done + 1, 2) if done else ():
    (tmp_path / f"checkpoint_{step}").mkdir()
  read = functools.partial(
    datasets.get_dataset,
    shard_id=0,
    num_shards=1,
    feature_converter_cls=seqio.EncDecFeatureConverter,
    model_dir=str(tmp_path),
  )
  joined = list(read(dataset_config(12), members=registered).take(3).as_numpy_iterator())
  for place, member in enumerate(registered):
    own = read(dataset_config(4, member.mixture, member.seed)).take(3).as_numpy_iterator()
    for batch, its in zip(joined, own, strict=True):
      assert (batch["prompt_ids"] == np.repeat([0, 1, 2], 4)).all()
      for name, rows in its.items():
        np.testing.assert_array_equal(batch[name][4 * place : 4 * place + 4], rows)


def test_validation_is_by_member_and_so_is_the_best_prompt(parts, registered, tmp_path):
  """Trained at rates of their own, the prompts are best at different steps."""
  import seqio

  from tpv_jax.t5x import datasets, saving
  from tpv_jax.t5x.bank import Bank

  bank = Bank(model_of("plain", optimizers.adamw()), registered)
  made = parts("bank", "plain", bank, members=registered)
  evaluation = datasets.get_evaluation_datasets(
    dataset_config(24, split="validation"), 0, 1, 2, seqio.EncDecFeatureConverter,
    members=registered,
  )
  trainer = made.trainer(optimizers.constant(0.3))
  action = saving.BestPrompt(made.model_dir, None, members=registered)
  saver = saving.SavePrompt(made.model_dir, None, members=registered)
  seen = {member.name: [] for member in registered}
  batches = [batches_of(member, 8) for member in registered]
  for first in (0, 4):
    steps = map(side_by_side, zip(*(one[first : first + 4] for one in batches), strict=True))
    trainer.train(steps, 4).result()
    metrics = trainer.eval({"validation": evaluation["bank"].as_numpy_iterator()})
    action.run(trainer.train_state, metrics)
    saver(trainer.train_state.state_dict(), {})
    for member in registered:
      seen[member.name].append(float(metrics["validation"][f"loss/{member.name}"].value))
  trainer.close()
  assert len({values[-1] for values in seen.values()}) == 3
  for place, member in enumerate(registered):
    folder = tmp_path / "bank" / member.name
    assert sources.is_run_folder(folder)
    last, best = sources.load(folder, "last"), sources.load(folder, "best")
    leaf = np.asarray(trainer.train_state.params["prompt"]["prompt"])[place]
    np.testing.assert_array_equal(last.leaves["prompt"], leaf)
    assert last.provenance.terms == (Term(member.task, 1.0),)
    assert last.provenance.initial_seed == member.initial_seed
    assert last.provenance.steps == 8
    lowest = min(seen[member.name])
    assert best.provenance.notes[-1] == f"best loss on validation: {lowest!r}"
    assert best.provenance.steps == 4 * (1 + seen[member.name].index(lowest))


def test_the_bank_goes_on_with_its_own_prompts_only(parts, members, tmp_path):
  from tpv_jax.t5x.bank import Bank

  def made(members):
    model = model_of("plain", optimizers.adamw())
    return parts(
      "bank", "plain", Bank(model, members) if members else model, members=members
    )

  run = made(members)
  state, manager = run.state(), run.manager()
  manager.save(state)
  manager.close()
  assert [one["name"] for one in json.loads((tmp_path / "bank/bank.json").read_text())] == [
    member.name for member in members
  ]
  made(members)
  swapped = [members[1], members[0], members[2]]
  with pytest.raises(UserError, match="prompt 0 has name 'sentiment-0' there and 'topic-0'"):
    made(swapped)
  with pytest.raises(UserError, match="is a bank of 3, this one a bank of 2"):
    made(members[:2])
  with pytest.raises(UserError, match="is a bank of 3, this one of one prompt|holds another"):
    made(None)


def test_what_does_not_fit_a_bank_is_named(members, registered):
  import seqio

  from tpv_jax.t5x import datasets
  from tpv_jax.t5x.bank import Bank

  model = model_of("plain", optimizers.adamw())
  with pytest.raises(UserError, match="each has a folder of its own"):
    Bank(model, [members[0], members[0]])
  with pytest.raises(UserError, match="there must be at least one"):
    Bank(model, [])
  bank = Bank(model, members)
  with pytest.raises(UserError, match="PROMPT_PATH"):
    bank.predict_batch({}, {})
  with pytest.raises(UserError, match="do not divide over 3 prompts and 2 hosts"):
    datasets.get_dataset(
      dataset_config(9), 0, 2, seqio.EncDecFeatureConverter, model_dir="x", members=registered
    )
  model.network = dataclasses.replace(model.network, dropout_rate=0.1)
  with pytest.raises(UserError, match="without dropout"):
    Bank(model, members)
