"""Rules that read data: values against slow ways to the same numbers, and what they refuse."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import batches, tasks
from tpv_jax.devices import partitioning
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.evaluation.merging import fisher, learned
from tpv_jax.evaluation.merging.label_rows import Labels
from tpv_jax.evaluation.merging.merge_by_data import merge_by_data
from tpv_jax.evaluation.merging.subject import Subject
from tpv_jax.prompts.equations import Folded
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging import by_data, registry
from tpv_jax.vectors.provenance import Provenance, Term

pytestmark = pytest.mark.usefixtures("compiles_faster")

every_rule = pytest.mark.parametrize("rule", registry.BY_DATA)

BRIEF = {
  "coefficient_search": {"budget": 9, "examples": 20},
  "fisher": {"examples": 6},
  "adamerging": {"steps": 3, "batch_size": 4},
}
"""Options with which a rule takes a second."""

# The random backbone's label probabilities have gradients of 1e-3 to 1e-1 in these prompts;
# XLA adds in another order where rows are batched.
CLOSE = {"rtol": 2e-3, "atol": 1e-7}


@pytest.fixture(scope="module")
def two(tiny):
  """Tasks with two and three labels, on the words of `tiny`."""
  words = tiny.vocabulary.words

  def examples(split):
    rng = np.random.default_rng(len(split))
    rows = rng.integers(0, 29, (30, 4))
    return [
      tasks.Example(" ".join(words[i] for i in row), words[5 + row.min() % 3])
      for row in rows
    ]

  labels = tuple(words[5:8])
  return [tiny.task, tasks.Task("smallest", labels, "exact_match", examples)]


def loaded(tiny, leaves, kind, **known):
  provenance = Provenance(
    kind, backbone_name="tiny", backbone_fingerprint=tiny.backbone.fingerprint, **known
  )
  terms = provenance.terms
  return Loaded(leaves, provenance, f"of {terms[0].task}" if terms else kind)


def random_leaves(seed, delta):
  draw = np.random.default_rng(seed)
  shapes = {"prompt": (4, 16), **({"delta": (8, 16)} if delta else {})}
  return {
    name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
  }


def start_and_vectors(tiny, two, delta):
  """Returns the initial prompt and a vector of each task; with a delta as EPT's are."""
  method = {"method": "ept" if delta else "plain"}
  leaves = random_leaves(0, delta)
  digest = identity.prompt_digest(leaves)
  initial = loaded(tiny, leaves, "prompt", initial_digest=digest, **method)
  vectors = [
    loaded(
      tiny,
      random_leaves(seed, delta),
      "vector",
      terms=(Term(task.name, 1.0),),
      initial_digest=digest,
      **method,
    )
    for seed, task in enumerate(two, 1)
  ]
  return initial, vectors


@pytest.fixture(scope="module")
def plain(tiny, two):
  return start_and_vectors(tiny, two, delta=False)


@pytest.fixture(scope="module")
def with_delta(tiny, two):
  return start_and_vectors(tiny, two, delta=True)


@pytest.fixture(scope="module")
def run(tiny, two):
  """Merges vectors by a rule, on the tiny backbone."""

  def call(vectors, initial, rule, given_tasks=None, **settings):
    return merge_by_data(
      tiny.model(prompt=None),
      tiny.backbone,
      two if given_tasks is None else given_tasks,
      tiny.vocabulary,
      tiny.lengths,
      vectors,
      initial,
      rule,
      progress=False,
      printed=False,
      **settings,
    )

  return call


def evaluator_of(tiny, at_once=32):
  return Evaluator(
    tiny.model(prompt=None),
    tiny.backbone.params,
    tiny.vocabulary,
    tiny.lengths,
    at_once=at_once,
  )


def subject_of(tiny, two, initial, vectors):
  evaluator, mesh = evaluator_of(tiny), partitioning.make_mesh()
  weights = np.ones(len(vectors))
  return Subject(vectors, weights, initial, two, evaluator, mesh)


def log_p(tiny, leaves, sources, labels):
  """Yields the labels' normalised log-probabilities and their gradients, by example."""
  model = tiny.model(prompt=None)

  @jax.jit
  def both(own, batch):
    def found(own):
      return jax.nn.log_softmax(
        model.score_batch(tiny.backbone.params | {"prompt": own}, batch)
      )

    return found(own), jax.jacrev(found)(own)

  for source in sources:
    tokenized = batches.tokenize(
      [tasks.Example(source, label) for label in labels], tiny.vocabulary, tiny.lengths
    )
    found, slopes = both(leaves, batches.features(tokenized.inputs, tokenized.targets))
    yield (
      np.asarray(found, np.float64),
      {name: np.asarray(slope, np.float64) for name, slope in slopes.items()},
    )


def slow_fisher(tiny, leaves, examples, labels):
  """Returns the diagonal Fisher information, a gradient of each label at a time."""
  total = {name: np.zeros(leaf.shape) for name, leaf in leaves.items()}
  for found, slopes in log_p(tiny, leaves, [one.inputs for one in examples], labels):
    for place in range(len(labels)):
      for name, slope in slopes.items():
        total[name] += np.exp(found[place]) * slope[place] ** 2
  return {name: leaf / len(examples) for name, leaf in total.items()}


def test_fisher_is_the_weighted_average_of_slow_gradients(
  tiny, two, with_delta, run, tmp_path
):
  initial, vectors = with_delta
  floor, weights = 1e-9, [1.0, 2.0]
  top, bottom, norms = {}, {}, []
  for vector, task, weight in zip(vectors, two, weights, strict=True):
    tuned = algebra.apply(vector, initial).leaves
    found = slow_fisher(tiny, tuned, task.examples("train")[:3], task.labels)
    norms.append(np.sqrt(sum(np.square(leaf).sum() for leaf in found.values())))
    raised = {name: np.maximum(leaf, floor) for name, leaf in found.items()}
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in raised.values()))
    for name, leaf in raised.items():
      part = weight * leaf / norm
      top[name] = top.get(name, 0) + part * vector.leaves[name]
      bottom[name] = bottom.get(name, 0) + part
  merged = run(
    *(vectors, initial, "fisher"),
    weights=weights,
    options={"examples": 3, "fisher_floor": floor, "batch_size": 6},
    report=tmp_path / "report.json",
  )
  report = json.loads((tmp_path / "report.json").read_text())["fisher"]
  np.testing.assert_allclose([one["norm"] for one in report], norms, rtol=2e-3)
  for name, leaf in merged.leaves.items():
    np.testing.assert_allclose(leaf, top[name] / bottom[name], rtol=2e-3, atol=1e-3)


def test_the_fisher_values_of_a_bank_are_those_of_each_vector_alone(tiny, two, plain):
  initial, vectors = plain
  rule = by_data.Fisher(examples=7)
  subject = subject_of(tiny, two, initial, vectors)
  together = fisher.diagonals(rule, subject, [0, 1])
  assert subject.evaluator.work.compiled == 1
  for place, vector in enumerate(vectors):
    # Other rows share its calls, and the number of label columns is another one.
    one = subject_of(tiny, two, initial, [vector])
    fewer = dataclasses.replace(rule, batch_size=4)
    (alone,) = fisher.diagonals(fewer, one, [place])
    np.testing.assert_allclose(together[place]["prompt"], alone["prompt"], **CLOSE)
    assert alone["prompt"].max() > 1e-6


def test_fisher_says_where_it_is_an_average(plain, run):
  initial, vectors = plain
  merged = run(*(vectors, initial, "fisher"), options={"fisher_floor": 1e9})
  average = np.mean([one.leaves["prompt"] for one in vectors], axis=0)
  np.testing.assert_allclose(merged.leaves["prompt"], average, rtol=1e-6)
  assert sum("100% of the Fisher values" in one for one in merged.provenance.notes) == 2


def slow_objective(tiny, leaves, rows, labels, kind):
  """Returns the objective on some examples of one task, and its gradient by the prompt."""
  if kind == "loss":
    tokenized = batches.tokenize(rows, tiny.vocabulary, tiny.lengths)
    batch = batches.features(tokenized.inputs, tokenized.targets)
    model = tiny.model(prompt=None)

    @jax.jit
    def loss(own):
      return model.loss_fn(tiny.backbone.params | {"prompt": own}, batch, None)[0]

    return loss(leaves), jax.jit(jax.grad(loss))(leaves)
  total, slope = 0.0, {name: 0.0 for name in leaves}
  for found, slopes in log_p(tiny, leaves, [one.inputs for one in rows], labels):
    total -= np.exp(found) @ found / len(rows)
    # dH = -sum p (log p + 1) dlog p
    for name, one in slopes.items():
      by_label = np.exp(found) * (found + 1)
      slope[name] -= np.tensordot(by_label, one, axes=1) / len(rows)
  return total, slope


@pytest.mark.parametrize(
  ("kind", "form", "per_token"),
  [("entropy", "plain", False), ("loss", "with_delta", True)],
)
def test_coefficients_are_those_of_adam_on_slow_gradients(
  request, tiny, two, kind, form, per_token
):
  initial, vectors = request.getfixturevalue(form)
  first = 0.45
  rule = by_data.AdaMerging(
    per_token, kind, 3, 0.05, first, batch_size=4, seed=3, examples=13
  )
  subject = subject_of(tiny, two, initial, vectors)
  outcome = learned.learned(rule, subject)
  assert subject.evaluator.work.compiled == 2  # The gradient and Adam, once each.

  names = list(initial.leaves)
  own = {name: np.full((2, len(initial.leaves[name]), 1), first) for name in names}
  if not per_token:
    own = {name: np.full((2, 1, 1), first) for name in names}
  mean = {name: 0.0 for name in names}
  square = {name: 0.0 for name in names}
  values = []
  taus = {name: np.stack([one.leaves[name] for one in vectors]) for name in names}
  for step in range(1, 4):
    leaves = {
      name: np.float32(initial.leaves[name] + (own[name] * taus[name]).sum(axis=0))
      for name in names
    }
    value, slope = 0.0, {name: 0.0 for name in names}
    for task in two:
      examples = task.examples("train")[:13]
      order = batches.order(len(examples), 3)[(step - 1) * 4 : step * 4]
      rows = [examples[i] for i in order]
      more, found = slow_objective(tiny, leaves, rows, task.labels, kind)
      value += float(more) / 2
      for name in names:
        by_row = (np.asarray(found[name]) * taus[name]).sum(axis=2, keepdims=True)
        slope[name] += by_row / 2
    values.append(value)
    if not per_token:
      total = sum(one.sum(axis=1, keepdims=True) for one in slope.values())
      slope = {name: total for name in names}
    for name in names:
      mean[name] = 0.9 * mean[name] + 0.1 * slope[name]
      square[name] = 0.999 * square[name] + 0.001 * slope[name] ** 2
      steep = np.sqrt(square[name] / (1 - 0.999**step)) + 1e-8
      own[name] = own[name] - 0.05 * mean[name] / (1 - 0.9**step) / steep
  np.testing.assert_allclose(outcome.report["objective"], values, rtol=1e-4)
  if not per_token:
    np.testing.assert_allclose(outcome.coefficients, own["prompt"][:, 0, 0], atol=1e-3)
    return
  for name, leaf in outcome.leaves.items():
    stated = np.array(outcome.report["coefficients"][name])
    # Adam's first steps have the length of the rate whatever the gradient, so a gradient
    # of almost 0 may turn: the mean tells more than the largest difference.
    assert np.abs(stated - own[name][..., 0]).mean() < 2e-3
    expected = sum(
      c[:, None] * one.leaves[name] for c, one in zip(stated, vectors, strict=True)
    )
    np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backbone", ["tiny", "tiny_decoder"])
def test_labels_that_share_a_source_score_as_in_rows_of_their_own(
  request, two, backbone
):
  own = request.getfixturevalue(backbone)
  labels = Labels.of(two, own.vocabulary, own.lengths["targets"])
  examples = [one for task in two for one in task.examples("train")[:3]]
  sources = batches.tokenize(examples, own.vocabulary, own.lengths).inputs
  places = np.repeat([0, 1], 3)
  leaves = {k: jnp.asarray(leaf) for k, leaf in random_leaves(0, delta=True).items()}
  model, backbone = own.model(prompt=None), own.backbone.params

  @jax.jit
  def both(leaves):
    shared = model.score_choices(
      Folded.of({name: leaf[None] for name, leaf in leaves.items()}),
      backbone,
      labels.packed(sources, places, len(leaves["prompt"])),
    )[0]
    alone = model.score_rows(
      Folded.of(leaves), backbone, labels.features(sources, places)
    )
    return shared[:, 1 : labels.most + 1], alone.reshape(6, -1)

  shared, alone = (np.asarray(one)[labels.known[places]] for one in both(leaves))
  np.testing.assert_allclose(shared, alone, rtol=1e-5, atol=1e-5)
  assert shared.std() > 0.1


def test_subjects_that_share_a_memory_compute_a_fisher_information_once(
  tiny, two, plain
):
  initial, vectors = plain
  rule = by_data.Fisher(examples=3)
  one = subject_of(tiny, two, initial, vectors)
  first = fisher.diagonals(rule, one, [0, 1])
  calls = one.evaluator.work.calls["gradients"].total()
  again = dataclasses.replace(one, vectors=vectors[1:], tasks=two[1:])
  assert fisher.diagonals(rule, again, [0]) == first[1:]
  assert one.evaluator.work.calls["gradients"].total() == calls
  longer = by_data.Fisher(examples=4)  # Other rows, other gradients.
  fisher.diagonals(longer, again, [0])
  assert one.evaluator.work.calls["gradients"].total() > calls


@pytest.mark.parametrize("kind", ["entropy", "loss"])
def test_the_gradient_is_the_slope_of_the_objective(tiny, two, plain, kind):
  initial, vectors = plain
  rule = by_data.AdaMerging(objective=kind, batch_size=8)
  feeds = learned._Feeds(rule, subject_of(tiny, two, initial, vectors), 4)
  batch = feeds.batch(1, 0)
  stacked = {"prompt": jnp.stack([one.leaves["prompt"] for one in vectors])}

  @jax.jit
  def value(coefficients):
    return learned.objective(
      coefficients,
      {"prompt": jnp.asarray(initial.leaves["prompt"])},
      stacked,
      tiny.model(prompt=None),
      tiny.backbone.params,
      batch,
      kind,
    )

  at, found = jnp.asarray([0.3, 0.4]), []
  for place in range(2):
    step = np.zeros(2, np.float32)
    step[place] = 0.01
    found.append(float(value(at + step) - value(at - step)) / 0.02)
  # Differences of fp32 values of 1 over 0.02 are known to about 1e-5.
  np.testing.assert_allclose(jax.grad(value)(at), found, rtol=0.02, atol=1e-4)


def tried(tmp_path, run, given, **settings):
  initial, vectors = given
  options = {"budget": 11, "examples": 20, **settings.pop("options", {})}
  merged = run(
    *(vectors, initial, "coefficient_search"),
    options=options,
    report=tmp_path / "report.json",
    overwrite=True,
    **settings,
  )
  return merged, json.loads((tmp_path / "report.json").read_text())


def test_a_search_tries_as_many_sums_as_its_budget_and_returns_the_best(
  tiny, two, plain, run, tmp_path
):
  initial, vectors = plain
  merged, report = tried(tmp_path, run, plain)
  assert len(report["tried"]) == 11
  assert report["work"]["compiled"] == 1
  assert report["tried"][0]["coefficients"] == [1, 1]
  assert report["tried"][1]["coefficients"] == [0.5, 0.5]
  every = [tuple(one["coefficients"]) for one in report["tried"]]
  assert len(set(every)) == 11
  assert np.min(every) >= 0
  assert np.max(every) <= 1.5
  means = [np.mean(list(one["scores"].values())) for one in report["tried"]]
  best = every[int(np.argmax(means))]
  stated = {term.task: term.coefficient for term in merged.provenance.terms}
  assert (stated.get("parity", 0), stated.get("smallest", 0)) == best
  evaluator = evaluator_of(tiny)
  for one in report["tried"][:3]:
    total = algebra.sum_vectors(vectors, one["coefficients"])
    for task in two:
      examples = evaluator.tokenize(task.examples("validation")[:20])
      leaves = algebra.apply(total, initial).leaves
      assert one["scores"][task.name] == evaluator.exact_match(leaves, examples)


def test_a_search_ends_early_where_nothing_is_left_to_try(plain, run, tmp_path):
  initial, vectors = plain
  options = {"budget": 2000, "high": 1e-3, "examples": 2}
  _, report = tried(tmp_path, run, (initial, vectors[:1]), options=options)
  assert len(report["tried"]) <= 11  # 0 to 0.001 in steps of 0.0001


def test_a_search_without_a_best_one_names_what_it_took(plain, run, tmp_path, capsys):
  initial, vectors = plain
  for high, taken in ((1e-3, "the coefficients [0.001]"), (1.0, "the plain sum")):
    options = {"budget": 2, "high": high, "low": high - 1e-4, "examples": 1}
    tried(tmp_path, run, (initial, vectors[:1]), options=options)
    assert f"the search took {taken}." in capsys.readouterr().out


def test_searches_of_one_seed_are_equal_whatever_the_bank(plain, run, tmp_path):
  _, first = tried(tmp_path, run, plain)
  _, again = tried(tmp_path, run, plain, at_once=2)
  assert first["tried"] == again["tried"]
  _, other = tried(tmp_path, run, plain, options={"seed": 1})
  assert first["tried"] != other["tried"]


def test_a_search_compares_the_metric_that_is_asked_for(plain, run, tmp_path):
  options = {"metric": "label_accuracy", "split": "train"}
  _, report = tried(tmp_path, run, plain, options=options)
  assert max(max(one["scores"].values()) for one in report["tried"]) > 0.2
  assert report["settings"]["metric"] == "label_accuracy"


@every_rule
def test_a_rule_gives_the_same_bits_again(rule, plain, run):
  initial, vectors = plain
  one, again = (run(vectors, initial, rule, options=BRIEF[rule]) for _ in range(2))
  assert one.leaves["prompt"].tobytes() == again.leaves["prompt"].tobytes()
  assert one.provenance == again.provenance


@every_rule
@pytest.mark.parametrize("per_token", [False, True])
def test_what_is_written_states_the_rule_its_settings_and_the_data(
  rule, per_token, plain, run, two, tmp_path
):
  initial, vectors = plain
  if per_token and rule != "adamerging":
    pytest.skip("has no coefficients of tokens")
  options = BRIEF[rule] | ({"per_token": True} if per_token else {})
  output = tmp_path / "m.safetensors"
  merged = run(vectors, initial, rule, options=options, output=output)
  leaves, provenance = store.read(output)
  assert leaves["prompt"].tobytes() == merged.leaves["prompt"].tobytes()
  assert provenance == merged.provenance
  made = registry.data_rule_with_options(rule, options)
  read = {
    task.name: tasks.digest(task.examples(made.split)[: made.examples]) for task in two
  }
  start = identity.prompt_digest(initial.leaves)
  if made.linear:
    assert {term.task for term in provenance.terms} <= {task.name for task in two}
    (note,) = (one for one in provenance.notes if one.startswith(f"merged by {rule}"))
    assert f"initial {start[:12]}" in note
    for name, digest in read.items():
      assert f"data {name} {digest[:12]}" in note
    for name, value in options.items():
      assert f"{name} {value}" in note
    return
  (term,) = provenance.terms
  settings = dict(term.merge.settings)
  assert settings["initial"] == start
  assert {name: settings[f"data {name}"] for name in read} == read
  assert options.items() <= settings.items()
  parts = {identity.prompt_digest(one.leaves) for one in vectors}
  assert {one.digest for one in term.merge.parts} == parts
  assert set(term.merge.tasks) == set(read)


def test_only_the_data_that_fisher_read_is_stated(plain, run, two, tmp_path):
  initial, vectors = plain
  report = tmp_path / "report.json"
  merged = run(vectors[:1], initial, "fisher", options={"examples": 2}, report=report)
  ((name, _),) = json.loads(report.read_text())["data"].items()
  assert name == two[0].name
  settings = dict(merged.provenance.terms[0].merge.settings)
  assert [key for key in settings if key.startswith("data ")] == [f"data {name}"]


def test_vectors_of_zeros_are_left_out(tiny, plain, run):
  initial, vectors = plain
  nothing = dataclasses.replace(algebra.scale(vectors[1], 0.0), name="nothing")
  merged = run([vectors[0], nothing], initial, "fisher", options={"examples": 2})
  assert "'nothing' is all zeros and was left out" in merged.provenance.notes
  np.testing.assert_allclose(merged.leaves["prompt"], vectors[0].leaves["prompt"])


def known(vector, **fields):
  return dataclasses.replace(
    vector, provenance=dataclasses.replace(vector.provenance, **fields)
  )


def test_what_does_not_fit_is_refused_in_one_line(tiny, two, plain, run, tmp_path):
  initial, vectors = plain
  other = dataclasses.replace(initial, leaves=random_leaves(9, False))
  free = dataclasses.replace(two[1], labels=None)
  again = dataclasses.replace(vectors[0], name="a copy")
  merge = known(vectors[0], terms=(Term("parity", 0.5), Term("smallest", 1.0)))
  mixed = known(vectors[0], initial_digest="c" * 64)
  written = tmp_path / "there.safetensors"
  store.write(written, vectors[0].leaves, vectors[0].provenance)
  for rule, given, start, settings, message in (
    ("ties", vectors, initial, {}, "'ties' reads no data.*tpv merge --rule ties"),
    ("ram", vectors, initial, {}, "'ram' is not offered"),
    ("fischer", vectors, initial, {}, "Did you mean 'fisher'"),
    ("fisher", vectors, initial, {"options": {"budget": 3}}, "option of coefficient"),
    ("fisher", vectors, initial, {"options": {"split": "test"}}, "'train' or 'valid"),
    ("adamerging", vectors, initial, {"weights": [1, 1]}, "takes no weights"),
    ("fisher", vectors, initial, {"weights": [1.0]}, r"weights \(1\) is not"),
    ("fisher", vectors, initial, {"weights": [1.0, -1.0]}, "weights like 1, -1"),
    ("fisher", [], initial, {}, "VECTORS is empty"),
    ("fisher", [vectors[0], vectors[0]], initial, {}, "twice"),
    ("fisher", [vectors[0], again], initial, {}, "of parity' twice, again as 'a copy'"),
    ("fisher", vectors, other, {}, "INITIAL is not the initial prompt of 'of parity'"),
    ("fisher", [merge], initial, {}, "not the vector of one task"),
    ("fisher", [known(vectors[0], terms=(Term(None, 1.0),))], initial, {}, "--task"),
    ("fisher", [known(vectors[0], terms=(Term("part", 1.0),))], initial, {}, "TASKS"),
    ("fisher", [mixed, vectors[1]], initial, {}, "different initial prompts"),
    ("fisher", vectors, vectors[0], {}, "is a vector"),
    ("fisher", [initial], initial, {}, "is a prompt"),
    ("fisher", vectors, initial, {"output": written}, "exists"),
    ("fisher", vectors, initial, {"output": tmp_path / "x.npz"}, "safetensors"),
    (
      *("fisher", vectors, initial),
      {"output": tmp_path / "x.safetensors", "report": f"{tmp_path}/./x.safetensors"},
      "OUTPUT and REPORT are one file",
    ),
    ("fisher", vectors, initial, {"given_tasks": [free]}, "'smallest' has none"),
    ("adamerging", vectors, initial, {"given_tasks": [free]}, "'smallest' has none"),
    ("coefficient_search", vectors, initial, {"options": {"low": 2.0}}, "nothing"),
    (
      *("coefficient_search", vectors, initial),
      {"given_tasks": [free], "options": {"metric": "label_accuracy"}},
      "no labels.*set OPTIONS = {'metric': 'own'}",
    ),
  ):
    with pytest.raises(UserError, match=message) as caught:
      run(given, start, rule, **settings)
    assert "\n" not in str(caught.value), rule


def test_the_training_loss_needs_no_labels(two, plain, run):
  initial, vectors = plain
  free = [dataclasses.replace(task, labels=None) for task in two]
  options = {**BRIEF["adamerging"], "objective": "loss"}
  assert run(vectors, initial, "adamerging", given_tasks=free, options=options)


def test_vectors_of_parameters_are_only_searched(tiny, plain, run):
  initial, vectors = plain
  parameters = [known(one, space="factor", method="dept") for one in vectors]
  with pytest.raises(UserError, match="use the rule coefficient_search"):
    run(parameters, initial, "fisher")


@every_rule
def test_a_rule_that_reads_data_is_no_rule_of_tpv_merge(rule):
  with pytest.raises(UserError, match=f"'{rule}' reads data: 'tpv merge-by-data'"):
    registry.with_options(rule, {})
