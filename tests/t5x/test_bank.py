"""A bank under real T5X against the runs of its prompts, each alone, on the same batches.

The tiny backbone, float32 on CPUs. A bank's program takes the same sums in another order,
and optimizers carry such differences on: over the steps here they were below 1e-6 in
values near 1; we allow 20 times that.
"""

import dataclasses
import functools
import json
import types

import device_programs
import jax
import numpy as np
import pytest

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies
from tpv_jax.embedded import suite
from tpv_jax.formats import sources
from tpv_jax.t5x import bank, saving
from tpv_jax.t5x.bank import Bank, Member
from tpv_jax.t5x.optimizer import TransformationOptimizer
from tpv_jax.training import optimizers
from tpv_jax.vectors.provenance import Term

BATCH = 8
STEPS = 12
MEMBERS = (
  Member("a-0", "a", "", initial_seed=0, seed=0, rate=1.0),
  Member("b-0", "b", "", initial_seed=0, seed=1, rate=0.5),
  Member("a-3", "a", "", initial_seed=3, seed=3, rate=2.0),
)
GROUPS = {"prompt": 1.0, "low_rank": 0.02, "fusion": 0.1, "spaces": 0.1}
OPTIMIZERS = {
  "adamw": functools.partial(optimizers.adamw, weight_decay=0.01),
  "adafactor": optimizers.adafactor,
}


def transformation(kind, name="adamw", clip_norm=None):
  made = OPTIMIZERS[name](clip_norm=clip_norm)
  return optimizers.by_group(made, GROUPS) if kind == "ept" else made


def model_of(tiny, kind="plain", made=None, **settings):
  model = tiny.model(kind, **settings)
  model.optimizer_def = TransformationOptimizer(
    made or transformation(kind), model.trainable
  )
  return model


@pytest.fixture
def parts(under_t5x, tmp_path):
  """Builds T5X's parts of a run; on several devices each parameter is cut in two."""
  from tpv_jax.t5x import mesh

  def build(name, model, **settings):
    split = mesh.partitioner(2 if jax.device_count() > 1 else 1)
    folder = tmp_path / name
    return under_t5x(folder, model=model, partitioner=split, length=4, **settings)

  return build


def batches_of(tiny, member):
  """A member's batches; of each some rows do not count, of other members others."""
  data = tiny.data(BATCH, member.seed)
  batches = [data.batch_at(step) for step in range(STEPS)]
  for batch in batches:
    batch["decoder_loss_weights"][: 1 + member.seed] = 0
  return batches


def side_by_side(batches):
  ids = np.repeat(np.arange(len(batches), dtype=np.int32), BATCH)
  joined = {name: np.concatenate([one[name] for one in batches]) for name in batches[0]}
  return joined | {"prompt_ids": ids}


@pytest.mark.parametrize(
  ("kind", "name", "microbatches"),
  [("plain", "adamw", 3), ("plain", "adafactor", None), ("ept", "adamw", 2)],
)
def test_a_bank_equals_the_runs_of_its_prompts_on_fixed_batches(
  tiny, parts, kind, name, microbatches
):
  """Gradients are clipped, in some steps, to a norm that each prompt has for itself."""
  made = transformation(kind, name, clip_norm=0.1)
  rate = optimizers.constant(0.3, warmup_steps=4)
  batches = [batches_of(tiny, member) for member in MEMBERS]
  metrics, after = parts("bank", Bank(model_of(tiny, kind, made), MEMBERS)).trained(
    rate,
    map(side_by_side, zip(*batches, strict=True)),
    microbatches,
  )
  model = model_of(tiny, kind, made)
  train = device_programs.on_one_device(tiny, model)
  for place, member in enumerate(MEMBERS):
    solo = parts(member.name, model, initial_seed=member.initial_seed)
    own_rate = functools.partial(lambda by, step: by * rate(step), member.rate)
    its_metrics, its_leaves = solo.trained(own_rate, batches[place])
    for metric in ("loss", "accuracy", "exact_match"):
      np.testing.assert_allclose(
        [step[f"{metric}/{member.name}"] for step in metrics],
        [step[metric] for step in its_metrics],
        atol=1e-5,
      )
    start = sources.load(solo.model_dir, "initial").leaves
    losses, leaves = train(start, own_rate, batches[place])
    np.testing.assert_allclose(
      [step["loss"] for step in its_metrics], losses, atol=1e-5
    )
    for leaf, value in its_leaves.items():
      assert np.abs(value - start[leaf]).max() > 0.005, leaf
      np.testing.assert_allclose(after[leaf][place], value, atol=2e-5, err_msg=leaf)
      np.testing.assert_allclose(leaves[leaf], value, atol=2e-5, err_msg=leaf)


def test_on_eight_devices_it_equals_them_too(t5x):
  """Four data-parallel pairs of devices; a few lines of JAX on one say the same."""
  printed = device_programs.on_eight_devices(
    *("-m", "pytest", "-q", __file__, "-k", "fixed_batches and ept")
  )
  assert "1 passed" in printed


def test_frozen_leaves_are_bit_identical_and_have_no_slot(tiny, parts):
  made = parts("bank", Bank(model_of(tiny), MEMBERS))
  state = made.state()
  shapes = {np.shape(leaf) for leaf in jax.tree.leaves(state.param_states)}
  assert shapes == {(3, 4, 16), (3,)}
  trainer = made.trainer(optimizers.constant(0.3), state=state)
  step = side_by_side([batches_of(tiny, member)[0] for member in MEMBERS])
  trainer.train(iter([step]), 1).result()
  after = identity.flatten(trainer.train_state.params)
  trainer.close()
  for path, leaf in identity.flatten(tiny.backbone.params).items():
    np.testing.assert_array_equal(np.asarray(after[path]), leaf, err_msg=path)


def data_of(rows, mixture=None, seed=None, split="train"):
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


def read(dataset, count):
  return list(dataset.take(count).as_numpy_iterator())


def assert_side_by_side(joined, alone):
  """`joined` are the batches of 4 rows of each list in `alone`, one behind the other."""
  for number, batch in enumerate(joined):
    assert batch["prompt_ids"].tolist() == np.repeat(range(len(alone)), 4).tolist()
    assert batch.keys() == {*alone[0][number], "prompt_ids"}
    for place, batches in enumerate(alone):
      for name, rows in batches[number].items():
        found = batch[name][4 * place : 4 * place + 4]
        np.testing.assert_array_equal(found, rows, err_msg=name)


@pytest.fixture
def registered(t5x):
  """Members of tasks that seqio has."""
  tasks = [suite.task("sentiment"), suite.task("topic")]
  sentiment, again, topic, _ = bank.grid(tasks, vocabularies.embedded(), [0, 3])
  assert (again.name, again.task, topic.name) == ("sentiment-3", "sentiment", "topic-0")
  return [sentiment, topic, again]


@pytest.mark.parametrize(("done", "host"), [(0, 1), (4, 0)])
def test_a_bank_reads_the_batches_of_each_run(registered, tmp_path, done, host):
  import seqio
  from t5x import utils

  from tpv_jax.t5x import datasets

  for step in range(0, done + 1, 2) if done else ():
    (tmp_path / f"checkpoint_{step}").mkdir()
  of_host = (host, 2, seqio.EncDecFeatureConverter)
  joined = read(
    datasets.get_dataset(
      data_of(24), *of_host, model_dir=str(tmp_path), members=registered
    ),
    3,
  )
  alone = [
    read(utils.get_dataset(data_of(8, one.mixture, one.seed), *of_host), done + 3)[
      done:
    ]
    for one in registered
  ]
  assert_side_by_side(joined, alone)
  first, _, again = (batches[0]["encoder_input_tokens"] for batches in alone)
  assert not np.array_equal(first, again)


def test_a_bank_is_validated_on_the_batches_of_each_run(registered, monkeypatch):
  import seqio
  from t5x import utils

  from tpv_jax.t5x import datasets

  seeds, made = set(), utils.get_training_eval_datasets

  def noting(cfg, *rest):
    seeds.add(cfg.seed)
    return made(cfg, *rest)

  monkeypatch.setattr(utils, "get_training_eval_datasets", noting)
  rest = (0, 1, 2, seqio.EncDecFeatureConverter)
  joined = datasets.get_evaluation_datasets(
    data_of(12, split="validation", seed=42), *rest, members=registered
  )
  assert seeds == {42}  # as in a run of its own, whatever the order of training
  assert joined.keys() == {"bank"}
  batches = read(joined["bank"], 9)
  assert len(batches) == 2
  alone = [
    made(data_of(4, one.mixture, split="validation", seed=42), *rest)[one.mixture]
    for one in registered
  ]
  assert_side_by_side(batches, [read(dataset, 9) for dataset in alone])


def test_each_prompt_has_the_files_of_a_run_and_its_own_best(tiny, parts, tmp_path):
  losses = {
    "a-0": (0.5, 0.25, 0.75),
    "b-0": (0.25, 0.5, 0.75),
    "a-3": (0.75, 0.5, 0.25),
  }
  made = parts("bank", Bank(model_of(tiny), MEMBERS))
  trainer = made.trainer(optimizers.constant(0.3))
  best = saving.BestPrompt(made.model_dir, None, members=MEMBERS)
  save = saving.SavePrompt(made.model_dir, None, members=MEMBERS)
  batches = [batches_of(tiny, member) for member in MEMBERS]
  seen = []
  for number in range(3):
    step = side_by_side([one[number] for one in batches])
    trainer.train(iter([step]), 1).result()
    found = trainer.eval({"validation": iter([step])})
    for name, values in losses.items():
      found["validation"][f"loss/{name}"] = types.SimpleNamespace(value=values[number])
    assert best.run(trainer.train_state, metrics_by_task=found) is False
    save(trainer.train_state.state_dict(), {})
    seen.append(np.asarray(trainer.train_state.params["prompt"]["prompt"]))
  trainer.close()
  for place, member in enumerate(MEMBERS):
    folder = tmp_path / "bank" / member.name
    assert sources.is_run_folder(folder)
    assert {path.name for path in (folder / "prompts").iterdir()} == {
      f"prompt_{step}.safetensors" for step in (1, 2, 3)
    }
    lowest = int(np.argmin(losses[member.name]))
    for which, number in (("last", 2), ("best", lowest)):
      found = sources.load(folder, which)
      np.testing.assert_array_equal(found.leaves["prompt"], seen[number][place])
      assert found.provenance.terms == (Term(member.task, 1.0),)
      assert found.provenance.initial_seed == member.initial_seed
      assert found.provenance.steps == 1 + number


@pytest.fixture
def saved(tiny, parts):
  """The state of a bank after two steps, of which a checkpoint is there."""
  run = parts("bank", Bank(model_of(tiny), MEMBERS))
  trainer = run.trainer(optimizers.constant(0.3))
  batches = zip(*(batches_of(tiny, member)[:2] for member in MEMBERS), strict=True)
  trainer.train(map(side_by_side, batches), 2).result()
  manager = run.manager()
  manager.save(trainer.train_state, [saving.KeepOnlyTrainable()])
  manager.close()
  trainer.close()
  return trainer.train_state


def test_a_bank_goes_on_from_its_checkpoint_with_its_prompts_only(
  tiny, parts, saved, tmp_path
):
  again = parts("bank", Bank(model_of(tiny), MEMBERS)).manager().restore(step=2)
  for one, other in (
    (again.params, saved.params),
    (again.param_states, saved.param_states),
  ):
    assert one.keys() == other.keys()
    for path, leaf in identity.flatten(one).items():
      np.testing.assert_array_equal(leaf, identity.flatten(other)[path], err_msg=path)
  names = [one["name"] for one in json.loads((tmp_path / "bank/bank.json").read_text())]
  assert names == ["a-0", "b-0", "a-3"]
  first, second, third = MEMBERS
  for members, message in (
    ((second, first, third), "prompt 0 has another name: a-0 there, b-0 now"),
    (
      (first, second, dataclasses.replace(third, rate=1.0)),
      r"2 has another rate: 2\.0 there, 1",
    ),
    (
      (first, second),
      r"is a bank of 3, this one a bank of 2\. Give that run's gin files",
    ),
  ):
    with pytest.raises(UserError, match=message):
      parts("bank", Bank(model_of(tiny), members))
  with pytest.raises(UserError, match=r"is a bank of 3, this one of one prompt\."):
    parts("bank", model_of(tiny))
  with pytest.raises(UserError, match="holds the 3 prompts of a bank"):
    sources.load(tmp_path / "bank" / "checkpoint_2")
  (tmp_path / "bank" / "bank.json").write_text("[1]")
  with pytest.raises(UserError, match=r"Cannot read '.*bank\.json'"):
    parts("bank", Bank(model_of(tiny), MEMBERS))


def test_a_run_of_one_prompt_forgets_a_bank_that_ended_before_its_first_step(
  tiny, parts, tmp_path
):
  parts("run", Bank(model_of(tiny), MEMBERS)).state()
  assert (tmp_path / "run" / "bank.json").exists()
  parts("run", model_of(tiny)).state()
  assert not (tmp_path / "run" / "bank.json").exists()


@pytest.mark.parametrize("name", ["manifest.json", saving.LAST, saving.BEST])
def test_a_new_run_writes_over_no_prompts_of_another(tiny, parts, tmp_path, name):
  for folder in ("bank/b-0", "other", "alone"):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / name).write_text("{}")
  for folder, model, where in (
    ("bank", Bank(model_of(tiny), MEMBERS), "bank/b-0"),
    ("other", Bank(model_of(tiny), MEMBERS), "other"),
    ("alone", model_of(tiny), "alone"),
  ):
    with pytest.raises(UserError, match=rf"{where}' has a {name} of another run"):
      parts(folder, model)


def test_what_is_no_bank_is_refused(tiny, parts, t5x):
  with pytest.raises(UserError, match=r"2 prompts of .* such as 'a-0'"):
    Bank(model_of(tiny), [*MEMBERS, MEMBERS[0]])
  with pytest.raises(UserError, match="The bank is empty"):
    Bank(model_of(tiny), [])
  with pytest.raises(UserError, match="Include a prompt file"):
    Bank(model_of(tiny, None), MEMBERS)
  with pytest.raises(UserError, match=r"also matches '(en|de)coder/"):
    parts("other", Bank(model_of(tiny, trainable="prompt/.*|.*/scale"), MEMBERS))
  made = Bank(model_of(tiny), MEMBERS)
  batch = tiny.data().batch_at(0)
  for method in (made.predict_batch, made.score_batch):
    with pytest.raises(UserError, match="PROMPT_PATH"):
      method({**tiny.backbone.params, "prompt": {}}, batch)
  model = model_of(tiny)
  model.network = dataclasses.replace(model.network, dropout_rate=0.1)
  with pytest.raises(UserError, match="trains without dropout"):
    Bank(model, MEMBERS)


def test_data_that_no_bank_can_have_are_refused(registered):
  import seqio

  from tpv_jax.t5x import datasets

  rest = (0, 2, seqio.EncDecFeatureConverter)
  with pytest.raises(UserError, match=r"The 9 rows .* over 3 prompts and 2 hosts"):
    datasets.get_dataset(data_of(9), *rest, model_dir="x", members=registered)
  both = [one.mixture for one in registered[:2]]
  name = "tpv_both_for_a_bank"
  if name not in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.add(name, both, default_rate=1.0)
  mixed = [dataclasses.replace(registered[0], mixture=name)]
  with pytest.raises(UserError, match=rf"'{name}', of the prompt 'sentiment-0', has 3"):
    datasets.get_evaluation_datasets(
      data_of(4, split="validation"),
      0,
      1,
      2,
      seqio.EncDecFeatureConverter,
      members=mixed,
    )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tasks": ["tpv_embedded_topik"]}, r"no task or mixture .*topic.*TASK_MODULES"),
    ({"tasks": ["x"], "modules": ["no.such"]}, r"Cannot import 'no\.such'"),
    ({"tasks": [3]}, r"TASKS has 3, not a task"),
    ({"initial_seeds": [-1]}, r"A seed of INITIAL_SEEDS is -1"),
    ({"rates": [-1]}, r"The rate of RATES is -1"),
  ],
)
def test_a_grid_of_what_is_none_is_refused(t5x, change, message):
  arguments = {"tasks": ["tpv_embedded_topic"], **change}
  with pytest.raises(UserError, match=message):
    bank.grid(vocabulary=vocabularies.embedded(), **arguments)


def test_a_grid_has_a_member_for_each_task_initial_prompt_and_rate(t5x):
  modules = ["tpv_jax.embedded.seqio_tasks"]
  names = ["tpv_embedded_topic"]
  vocabulary = vocabularies.embedded()
  found = bank.grid(names, vocabulary, [0, 4], [0.1, 3], modules)
  task = mixture = names[0]
  assert found == [
    Member("tpv_embedded_topic-0-0.1", task, mixture, 0, 0, 0.1),
    Member("tpv_embedded_topic-0-3", task, mixture, 0, 0, 3),
    Member("tpv_embedded_topic-4-0.1", task, mixture, 4, 4, 0.1),
    Member("tpv_embedded_topic-4-3", task, mixture, 4, 4, 3),
  ]
  assert bank.rows(found, 16) == 64
