"""Evaluation: scores agree with slower ways to the same numbers; inputs that do not fit."""

import dataclasses
import functools
import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import Tiny

from tpv_jax.backbones import decoding, loading
from tpv_jax.core import identity, screen
from tpv_jax.core.errors import UserError
from tpv_jax.data import batches, packing, tasks, vocabularies
from tpv_jax.data.metrics import registry as metrics
from tpv_jax.evaluation import candidates as candidates_of
from tpv_jax.evaluation import evaluation, report
from tpv_jax.evaluation import evaluator as evaluator_of
from tpv_jax.formats import sources
from tpv_jax.io import orbax
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts.equations import Folded
from tpv_jax.training import optimizers
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.provenance import Provenance, Term


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A tiny backbone that has learned something, so that not all answers are wrong."""
  tiny = Tiny()
  run = tmp_path_factory.mktemp("taught") / "run"
  tiny.train(
    run,
    model=tiny.model(prompt=None, trainable=".*"),
    backbone=None,
    initial_prompt=None,
    best_metric=None,
    learning_rate=optimizers.constant(0.003),
    total_steps=50,
    eval_period=50,
    log_period=50,
  )
  flat = orbax.read_leaves(run / "checkpoints" / "checkpoint_50", prefix="target")
  tiny.backbone = loading.Backbone(
    identity.unflatten(flat), "taught", identity.backbone_fingerprint(flat)
  )
  return tiny


@pytest.fixture(scope="module")
def evaluator(tiny):
  model = tiny.model(prompt=None)
  return evaluation.Evaluator(
    model, tiny.backbone.params, tiny.vocabulary, tiny.lengths, batch_size=16
  )


@pytest.fixture(scope="module")
def prompt(tiny, tmp_path_factory):
  run = tmp_path_factory.mktemp("evaluation") / "run"
  tiny.train(run, total_steps=20, best_metric="exact_match")
  return run, store.read(run / "last_prompt.safetensors")[0]


def test_exact_match_in_one_pass_equals_that_of_decoding(tiny, evaluator, prompt):
  _, leaves = prompt
  result = evaluator.evaluate(leaves, tiny.task, "test")
  assert 0.2 < result.scores["exact_match"] < 1
  tokenized = evaluator.tokenize(tiny.task.examples("test"))
  assert evaluator.exact_match(leaves, tokenized) == pytest.approx(
    result.scores["exact_match"]
  )


class UpperCase(vocabularies.WordVocabulary):
  """It reads upper case as lower case, so that it doesn't write all that it reads."""

  def encode(self, text):
    return super().encode(text.lower())


class Ignorant(vocabularies.WordVocabulary):
  """It doesn't know the word that the model writes most."""

  unk_id = 3


@pytest.mark.parametrize("case", ["normalised", "unknown", "trimmed"])
def test_exact_match_is_one_in_training_searches_and_evaluation(tiny, prompt, case):
  words = tiny.vocabulary.words
  written = tiny.task.labels[0]
  Ignorant.unk_id = words.index(written)
  vocabulary = {
    "normalised": UpperCase,
    "unknown": Ignorant,
    "trimmed": vocabularies.WordVocabulary,
  }[case](words)
  lengths = {**tiny.lengths, "targets": 1 if case == "trimmed" else 3}
  examples = [
    dataclasses.replace(one, targets=one.targets.upper())
    if case == "normalised"
    else one
    for one in tiny.task.examples("test")
  ]
  task = tasks.Task("free", None, "exact_match", lambda _: examples)
  model = SoftPromptModel(tiny.network, None, vocabulary, vocabulary)
  evaluator = evaluation.Evaluator(
    model, tiny.backbone.params, vocabulary, lengths, batch_size=16
  )
  leaves = prompt[1]
  tokenized = evaluator.tokenize(examples)
  batch = batches.features(tokenized.inputs, tokenized.targets)
  params = tiny.backbone.params | {"prompt": leaves}
  _, found_by_training = model.loss_fn(params, batch, None)
  _, sums = model.bank_loss_sums(
    Folded.of({name: leaf[None] for name, leaf in leaves.items()}),
    tiny.backbone.params,
    {**batch, "prompt_ids": np.zeros(len(examples), np.int32)},
  )
  result = evaluator.evaluate(leaves, task, "test")
  found = result.scores["exact_match"]
  by_label = dict.fromkeys(tiny.task.labels, 0)
  for one, text in zip(tiny.task.examples("test"), result.generated, strict=True):
    by_label[one.targets] += one.targets == text
  right = sum(by_label.values())
  assert by_label[written] > 0
  assert right > by_label[written]
  expected = {
    "normalised": right,
    "unknown": right - by_label[written],
    "trimmed": 0,
  }[case]
  assert found == pytest.approx(expected / len(examples))
  assert evaluator.exact_match(leaves, tokenized) == pytest.approx(found)
  assert found_by_training["exact_match"].compute() == pytest.approx(found)
  assert sums["exact_match"][0] / sums["examples"][0] == pytest.approx(found)


LENGTHS = {"inputs": 8, "targets": 4}


@functools.cache
def compiled(tiny):
  model = tiny.model(prompt=None)
  return jax.jit(model.predict_batch), jax.jit(model.score_batch)


def unpacked(tiny, prompt, rows, targets):
  """Returns what one prompt makes of each row with its target, without packing.

  The log-probability of the target, whether it is written greedily, what is written.
  """
  predict, score = compiled(tiny)
  params = tiny.backbone.params | ({} if prompt is None else {"prompt": prompt})
  examples = [tasks.Example(*one) for one in zip(rows, targets, strict=True)]
  tokenized = batches.tokenize(examples, tiny.vocabulary, LENGTHS)
  batch = batches.features(tokenized.inputs, tokenized.targets)
  written = np.asarray(predict(params, batch))
  exact = (written == tokenized.targets).all(axis=1)
  scores = np.asarray(score(params, batch))
  return scores, exact, [tiny.vocabulary.decode(row.tolist()) for row in written]


def candidates(leaves):
  """Returns prompts of three forms: plain, with a delta, and none."""
  rng = np.random.default_rng(0)
  prompts = [
    {"prompt": (scale * leaves["prompt"]).astype(np.float32)}
    for scale in (1, 0.5, 0, -1, 2)
  ]
  deltas = [
    {
      "prompt": rng.standard_normal((3, 16)).astype(np.float32),
      "delta": rng.standard_normal((9, 16)).astype(np.float32),
    }
    for _ in range(2)
  ]
  return [*prompts, None, *deltas]


def two_tasks(tiny):
  """Returns the tiny task, with 2 labels of a word, and one with 3 of one to three."""
  words = tiny.task.labels
  labels = (words[1], f"{words[0]} word7", "word3 word4 word5")

  def load(split):
    examples = tiny.task.load(split)
    return [
      tasks.Example(one.inputs, labels[number % 3])
      for number, one in enumerate(examples)
    ]

  other = dataclasses.replace(tiny.task, name="other", labels=labels, load=load)
  return [tiny.task, other]


def mixed(tiny, prompts, at_once=3):
  """Returns the answers for all prompts on both tasks, made in one pass."""
  evaluator = evaluation.Evaluator(
    tiny.model(prompt=None),
    tiny.backbone.params,
    tiny.vocabulary,
    LENGTHS,
    batch_size=16,
    at_once=at_once,
  )
  sets = [
    (evaluator.tokenize(task.examples(split)), task.labels)
    for task, split in zip(two_tasks(tiny), ("test", "validation"), strict=True)
  ]
  requests = [(prompt, *one) for prompt in prompts for one in sets]
  return evaluator, requests, evaluator.answer_all(requests)


@pytest.fixture(scope="module")
def many(tiny, prompt):
  """All candidates on both tasks in one pass, and their exact matches."""
  evaluator, requests, answers = mixed(tiny, candidates(prompt[1]))
  exact = evaluator.exact_matches([request[:2] for request in requests])
  return evaluator, requests, answers, exact


def test_any_mix_of_prompts_and_tasks_has_the_numbers_of_each_alone(tiny, many):
  _, requests, answers, exact = many
  by_labels, written = 0, []
  for (leaves, tokenized, labels), (texts, scored), found in zip(
    requests, answers, exact, strict=True
  ):
    sources = [tiny.vocabulary.decode(row.tolist()) for row in tokenized.inputs]
    targets = [tiny.vocabulary.decode(row.tolist()) for row in tokenized.targets]
    alone = [unpacked(tiny, leaves, sources, [label] * 40) for label in labels]
    expected = np.stack([scores for scores, _, _ in alone], axis=1)
    # fp32, other summation orders: 1e-6 of each of up to 4 summands.
    np.testing.assert_allclose(scored, expected, rtol=2e-5)
    assert texts == alone[0][2]
    written += texts
    by_labels += sum(hits.sum() for _, hits, _ in alone)
    assert found == unpacked(tiny, leaves, sources, targets)[1].mean()
  assert len(set(written)) > 1
  assert len(set(exact)) > 3
  # Only what is no label is decoded.
  assert 0 < by_labels < len(written)


def test_in_rows_of_several_tasks_each_example_has_its_own_prompt(many):
  evaluator, requests, answers, _ = many
  # Of prompt 0 the first task, of prompt 1 the second one: both share rows.
  some = [0, 3, 5]
  found = evaluator.answer_all([requests[i] for i in some])
  for (texts, scored), i in zip(found, some, strict=True):
    assert texts == answers[i][0]
    np.testing.assert_allclose(scored, answers[i][1], rtol=2e-5)


def test_rows_are_made_as_calls_need_them_and_packed_once_for_all_prompts(
  tiny, prompt, monkeypatch
):
  evaluator, requests, answers = mixed(tiny, candidates(prompt[1])[:5], at_once=2)
  made, needed, packed = [], [], []

  def watch(owner, name, note):
    function = getattr(owner, name)

    def noted(*arguments):
      note(*arguments)
      return function(*arguments)

    monkeypatch.setattr(owner, name, noted)

  def score(folded, backbone, features):
    needed.append(len(features["encoder_input_tokens"]))
    assert sum(made[:-1]) < sum(needed)  # The last part was begun, and none after it.

  watch(packing, "pack_choices", lambda *_: packed.append(1))
  watch(
    packing, "with_prompts", lambda rows, _: made.append(len(rows["encoder_positions"]))
  )
  watch(evaluator, "_score", score)
  again = evaluator.answer_all(requests)
  assert [texts for texts, _ in again] == [texts for texts, _ in answers]
  assert len(packed) == 1
  assert len(made) == 5
  assert len(needed) > 8


def test_progress_counts_the_examples_of_all_prompts(tiny, prompt, monkeypatch):
  bars = []

  class Bar(screen.Bar):
    def close(self):
      if not self.disable:
        bars.append((self.desc, self.n, self.total))
      super().close()

  monkeypatch.setattr(evaluator_of, "Bar", Bar)
  evaluator = evaluator_of.Evaluator(
    tiny.model(prompt=None),
    tiny.backbone.params,
    tiny.vocabulary,
    LENGTHS,
    batch_size=16,
    at_once=2,
    progress=True,
  )
  evaluator.title = "a stage"
  tokenized = evaluator.tokenize(tiny.task.examples("test"))
  leaves = candidates(prompt[1])[:3]
  evaluator.exact_matches([(one, tokenized) for one in leaves])
  evaluator.answer_all([(one, tokenized, None) for one in leaves])
  assert bars == [("a stage: scoring", 120, 120), ("a stage: decoding", 120, 120)]


def test_the_work_of_an_evaluation_is_reported(tiny, many):
  evaluator, requests, _, _ = many
  before = evaluator.work.to_json()
  assert set(before["shapes"]) == {"scoring", "decoding"}
  # Labels, targets, and one or two lengths of decoded rows, of each of 3 forms.
  assert 3 * 3 <= before["compiled"] <= 3 * 4
  assert 0 < before["padding_share"] < 0.6
  more = evaluator.tokenize(tiny.task.examples("train"))
  evaluator.exact_matches([(prompt, more) for prompt, _, _ in requests])
  after = evaluator.work.to_json()
  assert after["compiled"] == before["compiled"]

  def positions(work):
    return sum(
      shape["rows"] * shape["source_positions"] * shape["calls"]
      for shape in work["shapes"]["scoring"]
    )

  lengths = [0 if one is None else len(one["prompt"]) for one, _, _ in requests]
  used = sum(40 * length + np.count_nonzero(more.inputs) for length in lengths)
  assert used < positions(after) - positions(before) < 1.6 * used
  assert f"compiled {before['compiled']} times" in str(evaluator.work)


def test_groups_that_do_not_fit_at_once_change_nothing(tiny, many, prompt):
  _, _, answers, _ = many
  _, _, small = mixed(tiny, candidates(prompt[1])[:2], at_once=1)
  for (texts, scored), (other_texts, other) in zip(answers[:4], small, strict=True):
    assert texts == other_texts
    np.testing.assert_allclose(scored, other, rtol=2e-6)


def test_eight_devices_give_the_numbers_of_one(tiny, many, prompt, tmp_path):
  loading.save_backbone(
    tmp_path / "backbone.safetensors", identity.flatten(tiny.backbone.params), "tiny"
  )
  np.save(tmp_path / "prompt.npy", prompt[1]["prompt"])
  script = f"""
import json, pathlib, sys
import numpy as np
folder = pathlib.Path({str(tmp_path)!r})
sys.path[:0] = {[str(pathlib.Path(__file__).parents[i]) for i in (0, 1)]}
import jax
from conftest import Tiny
import test_evaluation
from tpv_jax.backbones import loading
tiny = Tiny()
path = str(folder / "backbone.safetensors")
tiny.backbone = loading.load_backbone(path, tiny.network, tiny.vocabulary)
prompts = test_evaluation.candidates({{"prompt": np.load(folder / "prompt.npy")}})
_, _, answers = test_evaluation.mixed(tiny, [prompts[1], prompts[-1]])
answers = [(texts, scored.tolist()) for texts, scored in answers]
drawn = test_evaluation.drawn(tiny, prompts[1], batch_size=24).tolist()
(folder / "found.json").write_text(json.dumps([jax.device_count(), answers, drawn]))
"""
  flags = "--xla_force_host_platform_device_count=8"
  subprocess.run(
    [sys.executable, "-c", script], env={**os.environ, "XLA_FLAGS": flags}, check=True
  )
  devices, found, answers = json.loads((tmp_path / "found.json").read_text())
  assert devices == 8
  assert drawn(tiny, candidates(prompt[1])[1], batch_size=40).tolist() == answers
  expected = [*many[2][2:4], *many[2][-2:]]
  for (texts, scored), (other_texts, other) in zip(expected, found, strict=True):
    assert texts == other_texts
    np.testing.assert_allclose(other, scored, rtol=2e-5)  # Other summation orders.


def drawn(tiny, leaves, batch_size, rows=slice(None)):
  """Returns the tokens that are drawn for examples of the test split."""
  model = tiny.model(prompt=None)
  model.choice = decoding.Choice(temperature=2.0, top_p=0.95, sampling_seed=5)
  drawing = evaluation.Evaluator(
    model, tiny.backbone.params, tiny.vocabulary, tiny.lengths, batch_size
  )
  inputs = drawing.tokenize(tiny.task.examples("test")).inputs
  numbers = [*range(len(inputs))][rows]
  return drawing.decode([(leaves, inputs[rows])], [numbers])[0]


def test_what_is_drawn_hangs_on_the_example_alone(tiny, prompt):
  whole = drawn(tiny, prompt[1], batch_size=40)
  assert len({*map(tuple, whole.tolist())}) > 5
  others = drawn(tiny, prompt[1], batch_size=16, rows=slice(None, None, -3))
  np.testing.assert_array_equal(others, whole[::-3])


def test_labels_do_not_stand_in_for_what_is_drawn(tiny, evaluator, prompt):
  model = tiny.model(prompt=None)
  model.choice = decoding.Choice(temperature=2.0, top_p=0.95, sampling_seed=5)
  drawing = evaluation.Evaluator(
    model, tiny.backbone.params, tiny.vocabulary, tiny.lengths, batch_size=40
  )
  found = drawing.evaluate(prompt[1], tiny.task, "test")
  rows = drawn(tiny, prompt[1], batch_size=40)
  assert found.generated == [tiny.vocabulary.decode(row) for row in rows]
  greedy = evaluator.evaluate(prompt[1], tiny.task, "test")
  assert found.generated != greedy.generated
  assert found.chosen == greedy.chosen


def test_sources_longer_than_a_delta_are_refused(tiny, evaluator):
  leaves = {
    "prompt": np.zeros((3, 16), np.float32),
    "delta": np.zeros((7, 16), np.float32),
  }
  tokenized = evaluator.tokenize(tiny.task.examples("test"))
  with pytest.raises(UserError, match="updates only the first 7"):
    evaluator.exact_match(leaves, tokenized)


def test_with_beams_no_label_stands_in_for_what_is_decoded(tiny, evaluator, prompt):
  searching = tiny.model(prompt=None)
  # With as many beams as tokens and this penalty the empty text is the best.
  searching.choice = decoding.Choice(num_beams=32, length_penalty=-30.0)
  beams = evaluation.Evaluator(
    searching, tiny.backbone.params, tiny.vocabulary, tiny.lengths, batch_size=16
  )
  found = beams.evaluate(prompt[1], tiny.task, "test")
  greedy = evaluator.evaluate(prompt[1], tiny.task, "test")
  assert found.chosen == greedy.chosen
  assert "" not in greedy.generated
  assert set(found.generated) == {""}


def test_the_last_batch_does_not_count_its_filling(tiny, evaluator, prompt):
  """40 examples in batches of 16 and in one of 40 give the same predictions."""
  whole = evaluation.Evaluator(
    tiny.model(prompt=None), tiny.backbone.params, tiny.vocabulary, tiny.lengths, 40
  )
  for leaves in (None, prompt[1]):
    one, other = (e.evaluate(leaves, tiny.task, "test") for e in (evaluator, whole))
    assert one == other
    assert len(one.generated) == one.examples == 40


def test_the_chosen_label_is_the_one_with_the_best_score_by_itself(
  tiny, evaluator, prompt
):
  _, leaves = prompt
  examples = tiny.task.examples("test")
  model = tiny.model(prompt=None)
  params = {**tiny.backbone.params, "prompt": leaves}
  scores = []
  for label in tiny.task.labels:
    rows = [type(examples[0])(example.inputs, label) for example in examples]
    tokenized = batches.tokenize(rows, tiny.vocabulary, tiny.lengths)
    batch = batches.features(tokenized.inputs, tokenized.targets)
    scores.append(np.asarray(model.score_batch(params, batch)))
  result = evaluator.evaluate(leaves, tiny.task, "test")
  expected = [tiny.task.labels[i] for i in np.argmax(scores, axis=0)]
  assert result.chosen == expected
  right = [label == e.targets for label, e in zip(expected, examples, strict=True)]
  assert result.scores["label_accuracy"] == pytest.approx(np.mean(right))


def test_chosen_labels_have_the_metrics_of_generated_text(tiny, evaluator, prompt):
  task = dataclasses.replace(tiny.task, metric="matthews", more_metrics=("f1",))
  result = evaluator.evaluate(prompt[1], task, "test")
  names = ("exact_match", "macro_f1", "matthews", "f1")
  chosen = ("label_accuracy", "label_macro_f1", "label_matthews", "label_f1")
  assert tuple(result.scores) == names + chosen
  again = task.scores(task.examples("test"), result.chosen)
  assert [result.scores[name] for name in chosen] == [again[name] for name in names]


def write_backbone(tiny, path):
  loading.save_backbone(path, identity.flatten(tiny.backbone.params), "tiny")
  return str(path)


def evaluate(tiny, tmp_path, tasks_given=None, backbone=None, **arguments):
  plain = tiny.model(prompt=None)
  if backbone is None:
    path = tmp_path / "backbone.safetensors"
    backbone = str(path) if path.exists() else write_backbone(tiny, path)
  return evaluation.evaluate(
    plain,
    backbone,
    [tiny.task] if tasks_given is None else tasks_given,
    tiny.vocabulary,
    tiny.lengths,
    progress=False,
    **arguments,
  )


def test_results_are_written_and_nothing_is_overwritten_unasked(tiny, prompt, tmp_path):
  output = tmp_path / "out" / "results.json"
  output.parent.mkdir()
  arguments = {"prompt": str(prompt[0]), "output": str(output), "predictions": True}
  report = evaluate(tiny, tmp_path, **arguments)
  assert json.loads(output.read_text()) == report
  lines = (tmp_path / "out" / "results.json.predictions.jsonl").read_text().splitlines()
  assert len(lines) == 40
  rows = [json.loads(line) for line in lines]
  right = np.mean([row["generated"] == row["target"] for row in rows])
  assert report["results"][0]["exact_match"] == pytest.approx(right)
  with pytest.raises(UserError, match=r"results\.json' exists"):
    evaluate(tiny, tmp_path, **arguments)


def test_a_vector_on_its_initial_prompt_scores_as_the_tuned_prompt(
  tiny, prompt, tmp_path
):
  run = prompt[0]
  vector = algebra.diff(
    sources.load(str(run), "best"), sources.load(str(run), "initial")
  )
  store.write(tmp_path / "v.safetensors", vector.leaves, vector.provenance)
  tuned = evaluate(tiny, tmp_path, prompt=str(run))
  applied = evaluate(
    tiny, tmp_path, vector=str(tmp_path / "v.safetensors"), initial=str(run)
  )
  assert applied["results"] == tuned["results"]
  nothing = evaluate(
    tiny,
    tmp_path,
    vector=str(tmp_path / "v.safetensors"),
    initial=str(run),
    coefficient=0.0,
  )
  initial = evaluate(tiny, tmp_path, prompt=str(run), which="initial")
  one_of_them = [str(run), str(run / "best_prompt.safetensors")]
  both = evaluate(tiny, tmp_path, prompt=one_of_them, which="initial")
  assert len(both["results"]) == 2 * len(initial["results"])
  for prompt in (one_of_them[1], [None]):
    with pytest.raises(UserError, match="which='initial' says which prompt"):
      evaluate(tiny, tmp_path, prompt=prompt, which="initial")
  assert nothing["results"] == initial["results"] != tuned["results"]


@pytest.fixture(scope="module")
def vectors(tiny, prompt, tmp_path_factory):
  """Two vectors' files, one of them of another task's name."""
  folder = tmp_path_factory.mktemp("vectors")
  run = str(prompt[0])
  vector = algebra.diff(sources.load(run), sources.load(run, "initial"))
  paths = [str(folder / name) for name in ("a.safetensors", "b.safetensors")]
  store.write(paths[0], vector.leaves, vector.provenance)
  flipped = {name: leaf[::-1].copy() for name, leaf in vector.leaves.items()}
  other = dataclasses.replace(vector.provenance, terms=(Term("other", 1.0),))
  store.write(paths[1], flipped, other)
  return paths


def test_many_prompts_and_sums_score_what_each_scores_in_a_call_of_its_own(
  tiny, prompt, vectors, tmp_path, capsys
):
  run, (a, b) = str(prompt[0]), vectors
  output = str(tmp_path / "many.json")
  report = evaluate(
    tiny,
    tmp_path,
    prompt=[None, run],
    vector=[a, [a, b], {a: 0.5, b: -1}],
    initial=run,
    coefficient=[0.5, 1],
    output=output,
    predictions=True,
  )
  assert json.loads(pathlib.Path(output).read_text()) == report
  names = [one["name"] for one in report["candidates"]]
  assert names == [
    "no prompt",
    run,
    f"0.5 * {a} on {run}",
    f"1 * {a} on {run}",
    f"0.5 * ({a} + {b}) on {run}",
    f"1 * ({a} + {b}) on {run}",
    f"0.5 * (0.5 {a} + -1 {b}) on {run}",
    f"1 * (0.5 {a} + -1 {b}) on {run}",
  ]
  rows = {row.pop("candidate"): row for row in report["results"]}
  assert list(rows) == names
  assert "prompt" not in report
  assert rows[names[3]] == rows[run]  # The vector on its own initial prompt.
  alone = evaluate(tiny, tmp_path, vector=a, initial=run, coefficient=0.5)
  assert rows[names[2]] == alone["results"][0]
  described = report["candidates"][2]
  assert described["prompt_digest"] == alone["prompt_digest"]
  assert described["prompt"] == alone["prompt"]
  loaded = [sources.load(path) for path in (a, b)]
  weighted = algebra.apply(
    algebra.sum_vectors(loaded, [0.5, -1]), sources.load(run, "initial")
  )
  digest = identity.prompt_digest(weighted.leaves)
  assert report["candidates"][-1]["prompt_digest"] == digest
  lines = pathlib.Path(f"{output}.predictions.jsonl").read_text().splitlines()
  assert len(lines) == 8 * 40
  assert json.loads(lines[-1])["candidate"] == names[-1]
  shown = capsys.readouterr().out
  assert f"  8  {names[-1]}\n" in shown
  assert "8 results in" in shown


def test_prompts_vectors_and_a_backbone_in_memory_score_as_their_files(
  tiny, prompt, vectors, tmp_path, capsys
):
  run, (a, b) = str(prompt[0]), vectors
  files = {"prompt": [None, run], "vector": [a, [a, b]], "initial": run}
  from_files = evaluate(tiny, tmp_path, **files)
  start = sources.load(run, "initial")
  capsys.readouterr()
  from_memory = evaluate(
    tiny,
    tmp_path,
    backbone=loading.load_backbone(tmp_path / "backbone.safetensors"),
    prompt=[None, sources.load(run)],
    vector=[sources.load(a), [sources.load(a), sources.load(b)]],
    initial=dataclasses.replace(start, name=run),
    printed=False,
  )
  assert capsys.readouterr().out == ""
  from_files.pop("work")
  from_memory.pop("work")
  assert from_memory == from_files
  with pytest.raises(UserError, match=r"PROMPT_PATH has '.*' twice"):
    evaluate(tiny, tmp_path, prompt=[sources.load(run), run])


def test_a_search_chooses_the_coefficient_with_the_best_mean(
  tiny, evaluator, prompt, vectors, tmp_path
):
  run, grid = str(prompt[0]), [-1, 0, 0.5, 1]
  report = evaluate(
    tiny,
    tmp_path,
    vector=vectors,
    initial=run,
    search=grid,
    search_examples=30,
    splits=["test", "train"],
  )
  start = sources.load(run, "initial")
  tokenized = evaluator.tokenize(tiny.task.examples("validation")[:30])
  for path, one in zip(vectors, report["candidates"], strict=True):
    scores = [
      evaluator.exact_match(
        algebra.apply(sources.load(path), start, c).leaves, tokenized
      )
      for c in grid
    ]
    assert one["search"]["scores"] == {"parity": scores}
    assert one["search"]["coefficients"] == grid
    assert one["coefficient"] == grid[int(np.argmax(scores))]
  assert [row["split"] for row in report["results"]] == ["test", "train"] * 2
  labels = evaluate(
    tiny, tmp_path, vector=vectors[0], initial=run, search=[1], splits=["validation"]
  )
  assert "search" not in labels["candidates"][0]  # There was nothing to choose.
  found = evaluate(
    tiny,
    tmp_path,
    vector=vectors[0],
    initial=run,
    search=[1, 0],
    search_metric="label_accuracy",
  )
  (searched,) = (one["search"]["scores"]["parity"] for one in found["candidates"])
  assert searched[0] == labels["results"][0]["label_accuracy"]


def test_a_search_whose_scores_are_all_equal_says_so(
  tiny, prompt, vectors, tmp_path, capsys
):
  run, (vector, _) = str(prompt[0]), vectors
  report = evaluate(
    tiny, tmp_path, vector=vector, initial=run, search=[1e-9, 0.0], search_examples=8
  )
  line = f"{vector} on {run}: all 2 tries score "
  assert line in (said := capsys.readouterr().out)
  assert "the search took 0, the smallest coefficient" in said
  assert report["candidates"][0]["coefficient"] == 0
  assert candidates_of.equal_scores("it", [0.5, 0.25], "x") is None
  assert candidates_of.equal_scores("it", [0.5], "x") is None


def test_a_table_in_a_log_has_every_name_whole(capsys):
  names = sorted(metrics.METRICS) + [f"label_{name}" for name in metrics.METRICS]
  scores = dict.fromkeys(names, 0.5)
  task = "super_glue_multirc"
  report.print_table([evaluator_of.Result(task, "test", 1, scores, [], None, 0)])
  shown = capsys.readouterr().out
  assert all(name in shown for name in (task, *names))


def test_a_search_by_the_tasks_own_metric_scores_as_an_evaluation_does(
  tiny, prompt, vectors, tmp_path
):
  def several(split):
    words = tiny.task.labels
    # Any label is right of each second example; exact match with the target knows one.
    return [
      dataclasses.replace(one, answers=words if number % 2 else ())
      for number, one in enumerate(tiny.task.load(split))
    ]

  free = dataclasses.replace(
    tiny.task, name="free", labels=None, metric="squad_exact_match", load=several
  )
  given = {"vector": vectors[0], "initial": str(prompt[0])}
  found = evaluate(
    tiny,
    tmp_path,
    [free],
    **given,
    search=[-3, 1],
    search_metric="own",
    search_examples=30,
  )
  shorter = dataclasses.replace(free, load=lambda split: several(split)[:30])
  expected = [
    evaluate(tiny, tmp_path, [shorter], **given, coefficient=c, splits=["validation"])
    for c in (-3.0, 1.0)
  ]
  rows = [one["results"][0] for one in expected]
  scores = [row["squad_exact_match"] for row in rows]
  assert scores[1] > rows[1]["exact_match"]
  assert scores[0] != scores[1]
  (searched,) = (one["search"] for one in found["candidates"])
  assert searched["scores"] == {"free": scores}
  assert found["candidates"][0]["coefficient"] == (-3.0, 1.0)[int(np.argmax(scores))]


def test_without_a_list_a_search_tries_21_coefficients_from_0_to_1():
  assert tuple(np.round(np.linspace(0, 1, 21), 2)) == candidates_of.GRID


def test_candidates_may_be_evaluated_on_their_own_tasks_only(
  tiny, prompt, vectors, tmp_path
):
  other = dataclasses.replace(tiny.task, name="other")
  settings = {"vector": vectors, "initial": str(prompt[0]), "own_tasks": True}
  tasks_given = [tiny.task, other]
  report = evaluate(tiny, tmp_path, tasks_given, **settings)
  assert [row["task"] for row in report["results"]] == ["parity", "other"]
  typo = dataclasses.replace(tiny.task, name="othre")
  with pytest.raises(UserError, match=r"on the task 'other'.*Did you mean 'othre'"):
    evaluate(tiny, tmp_path, [tiny.task, typo], **settings)


def test_the_backbone_of_an_evaluation_in_bf16_lies_in_bf16(tiny):
  model = tiny.model()
  model.network = tiny.network.copy(dtype="bfloat16")
  evaluator = evaluation.Evaluator(
    model, tiny.backbone.params, tiny.vocabulary, tiny.lengths
  )
  leaves = identity.flatten(evaluator.backbone)
  kept = {path for path, leaf in leaves.items() if leaf.dtype == np.float32}
  assert kept == {path for path in leaves if path.endswith("rel_embedding")}


def test_what_makes_no_evaluation_is_one_clear_line(tiny, prompt, vectors, tmp_path):
  run = str(prompt[0])
  applied = {"vector": vectors[0], "initial": run}
  free = dataclasses.replace(tiny.task, labels=None)
  for message, tasks_given, settings in (
    (
      r"coefficient\[0\] is 'half'; it must be a number",
      None,
      {"coefficient": ["half"]},
    ),
    ("coefficient is True", None, {"coefficient": True}),
    ("coefficient is nan", None, {"coefficient": float("nan")}),
    ("COEFFICIENT has '0.5' twice", None, {"coefficient": [0.5, 0.5]}),
    ("list of coefficients is empty", None, {"coefficient": []}),
    ("VECTOR has 'a' twice", None, {"vector": ["a", "a"]}),
    ("INITIAL has '.*' twice", None, {"initial": [run, run]}),
    ("VECTOR has an empty sum", None, {"vector": [[]]}),
    ("no vector was given", None, {"vector": None, "initial": None, "search": True}),
    ("search is 0.5; it must be True or False or a list", None, {"search": 0.5}),
    ("SEARCH chooses it", None, {"search": True, "coefficient": 0.5}),
    (
      "search_split is 'validate'; .*Did you mean 'validation'",
      None,
      {"search": True, "search_split": "validate"},
    ),
    (
      "'label_acuracy'; .*Did you mean 'label_accuracy'",
      None,
      {"search": True, "search_metric": "label_acuracy"},
    ),
    (
      "search_examples is -3",
      None,
      {"search": True, "search_examples": -3},
    ),
    (
      "'parity' has no labels to choose from",
      [free],
      {"search": True, "search_metric": "label_accuracy"},
    ),
    (
      "'parity', whose metric is squad_f1. Set SEARCH_METRIC = 'own'",
      [dataclasses.replace(free, metric="squad_f1")],
      {"search": True},
    ),
    ("'sentimant', not a task. Did you mean 'sentiment'", ["sentimant"], {}),
    ("TASKS has 'parity' twice", [tiny.task, tiny.task], {}),
    (r"splits\[0\] is 'tset'.*Did you mean 'test'", None, {"splits": ["tset"]}),
    (r"TASKS is \[\]. Give a list of at least one", [], {}),
    ("at_once is 0", None, {"at_once": 0}),
  ):
    with pytest.raises(UserError, match=message):
      evaluate(tiny, tmp_path, tasks_given, **(applied | settings))
  with pytest.raises(UserError, match="nothing to evaluate"):
    evaluate(tiny, tmp_path, prompt=[])


def test_texts_that_are_too_long_are_said_and_counted(tiny, tmp_path, capsys):
  short = {"inputs": 4, "targets": 2}
  backbone = write_backbone(tiny, tmp_path / "backbone.safetensors")
  report = evaluation.evaluate(
    tiny.model(prompt=None),
    backbone,
    [tiny.task],
    tiny.vocabulary,
    short,
    progress=False,
  )
  assert report["results"][0]["trimmed"] == 40
  assert "parity, test: 40 examples" in capsys.readouterr().out


def test_a_batch_is_rounded_up_to_suit_the_devices(tiny):
  """On 3 simulated devices, with 16 rows a batch."""
  script = f"""
import sys
sys.path.insert(0, {str(pathlib.Path(__file__).parents[1])!r})
from conftest import Tiny
from tpv_jax.evaluation import candidates as candidates_of
from tpv_jax.evaluation import evaluation
tiny = Tiny()
model = tiny.model(prompt=None)
evaluator = evaluation.Evaluator(model, tiny.backbone.params, tiny.vocabulary, tiny.lengths, 16)
assert evaluator.batch_size == 18
print(evaluator.evaluate(None, tiny.task, "test").examples)
"""
  flags = "--xla_force_host_platform_device_count=3"
  result = subprocess.run(
    [sys.executable, "-c", script],
    env={**os.environ, "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.splitlines()[-1] == "40"


def test_no_prompt_is_the_plain_backbone(tiny, tmp_path, evaluator):
  report = evaluate(tiny, tmp_path)
  assert report["prompt"] is None
  expected = evaluator.evaluate(None, tiny.task, "test").scores
  assert {k: report["results"][0][k] for k in expected} == expected


def test_inputs_that_do_not_belong_together_are_refused(tiny, prompt, tmp_path):
  with pytest.raises(UserError, match="Both a prompt and a vector"):
    candidates_of.subject("a", "b", None, 1.0, "best")
  with pytest.raises(UserError, match="no vector was given"):
    evaluate(tiny, tmp_path, initial="b")
  with pytest.raises(UserError, match="splits is 'test'; it must be a list"):
    evaluate(tiny, tmp_path, splits="test")
  with pytest.raises(UserError, match=r"the folder .*nowhere' does not exist"):
    evaluate(tiny, tmp_path, output=str(tmp_path / "nowhere" / "x.json"))
  with pytest.raises(UserError, match="must be applied to an initial prompt"):
    evaluate(tiny, tmp_path, vector="b")
  with pytest.raises(UserError, match="Predictions need a place"):
    evaluate(tiny, tmp_path, predictions=True)
  other = Provenance(
    kind="prompt", terms=(Term("x", 1.0),), backbone_fingerprint="0" * 64
  )
  path = str(tmp_path / "other.safetensors")
  store.write(path, prompt[1], other)
  with pytest.raises(UserError, match=r"was trained on the backbone .*000000000000"):
    evaluate(tiny, tmp_path, prompt=path)
  store.write(path, prompt[1], Provenance(kind="vector"), overwrite=True)
  with pytest.raises(UserError, match="A vector is a difference"):
    evaluate(tiny, tmp_path, prompt=path)
  store.write(
    path,
    {"prompt": prompt[1]["prompt"][:, :8]},
    Provenance(kind="prompt"),
    overwrite=True,
  )
  with pytest.raises(UserError, match="has width 8, the backbone 16"):
    evaluate(tiny, tmp_path, prompt=path)


def test_another_vocabulary_of_the_same_size_is_refused(tiny, tmp_path):
  path = tmp_path / "backbone.safetensors"
  flat = identity.flatten(tiny.backbone.params)
  loading.save_backbone(path, flat, "tiny", vocabulary=tiny.vocabulary.digest)
  evaluate(tiny, tmp_path)
  words = [*tiny.task.labels, *(f"other{i}" for i in range(27))]
  other = vocabularies.WordVocabulary(words)
  model = SoftPromptModel(tiny.network, None, other, other)
  with pytest.raises(UserError, match="trained with another vocabulary"):
    evaluation.evaluate(
      model, str(path), [tiny.task], other, tiny.lengths, progress=False
    )


def test_inference_answers_each_line(tiny, prompt, tmp_path, evaluator):
  lines = [example.inputs for example in tiny.task.examples("test")[:5]]
  (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
  backbone = write_backbone(tiny, tmp_path / "backbone.safetensors")

  def infer(**arguments):
    return evaluation.infer(
      tiny.model(prompt=None),
      backbone,
      tiny.vocabulary,
      tiny.lengths,
      str(tmp_path / "in.txt"),
      str(tmp_path / "out.jsonl"),
      str(prompt[0]),
      which="last",
      **arguments,
    )

  infer(labels=tiny.task.labels)
  rows = [
    json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()
  ]
  result = evaluator.evaluate(prompt[1], tiny.task, "test")
  assert [row["inputs"] for row in rows] == lines
  assert [row["generated"] for row in rows] == result.generated[:5]
  assert [row["label"] for row in rows] == result.chosen[:5]
  with pytest.raises(UserError, match="exists"):
    infer()
  (tmp_path / "in.txt").write_bytes("caf\u00e9".encode("latin-1"))
  with pytest.raises(UserError, match="not UTF-8"):
    infer(overwrite=True)
  (tmp_path / "in.txt").write_text("")
  with pytest.raises(UserError, match="is empty"):
    infer(overwrite=True)


def test_lines_of_a_pipe_are_answered_as_those_of_a_file(
  tiny, prompt, tmp_path, monkeypatch, capsys
):
  lines = [example.inputs for example in tiny.task.examples("test")[:3]]
  text = "".join(f"{line}\n" for line in lines)
  (tmp_path / "in.txt").write_text(text)
  backbone = write_backbone(tiny, tmp_path / "backbone.safetensors")
  given = (tiny.model(prompt=None), backbone, tiny.vocabulary, tiny.lengths)
  given[0].choice = decoding.Choice(temperature=2.0, top_p=0.95, sampling_seed=5)
  out = tmp_path / "out.jsonl"
  behind = {"prompt": str(prompt[0]), "which": "last"}
  labels = tiny.task.labels
  evaluation.infer(*given, str(tmp_path / "in.txt"), str(out), labels=labels, **behind)
  assert "Answers: drawn at temperature 2, top_p 0.95, seed 5.\n" in (
    capsys.readouterr().out
  )
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  for name, options in (("generated", {}), ("label", {"labels": labels})):
    stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert evaluation.infer(*given, **options, **behind) == 0
    assert capsys.readouterr().out == "".join(f"{row[name]}\n" for row in rows)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"input_file": "in.txt"}, "answers to INPUT_FILE need a place: give --gin.OUTPUT"),
    ({"output": "out.jsonl"}, r"OUTPUT = 'out.jsonl' is for the answers to INPUT_FILE"),
  ],
)
def test_a_file_and_its_answers_are_given_together(tiny, given, message):
  model = tiny.model(prompt=None)
  with pytest.raises(UserError, match=message):
    evaluation.infer(model, "none", tiny.vocabulary, tiny.lengths, **given)


@pytest.fixture
def infer(tiny, tmp_path, monkeypatch):
  """Infers from a text; gives the rows that were written. Nothing is computed."""

  def answer(evaluator, prompt, sources, labels):
    count = len(sources)
    return ["x"] * count, None if labels is None else np.zeros((count, len(labels)))

  monkeypatch.setattr(evaluation.Evaluator, "answer", answer)
  backbone = write_backbone(tiny, tmp_path / "backbone.safetensors")

  def run(text, name="in.txt", lengths=tiny.lengths, **arguments):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    out = tmp_path / "out.jsonl"
    evaluation.infer(
      tiny.model(prompt=None),
      backbone,
      tiny.vocabulary,
      lengths,
      str(tmp_path / name),
      str(out),
      overwrite=True,
      **arguments,
    )
    return [json.loads(line) for line in out.read_bytes().decode().splitlines()]

  return run


@pytest.mark.parametrize(
  ("text", "lines"),
  [
    ("a\nb\n", ["a", "b"]),
    ("a\nb", ["a", "b"]),
    ("a\r\nb\r\n", ["a", "b"]),
    ("\ufeffa\n\nb\n\n", ["a", "", "b", ""]),
    ("\n", [""]),
    *((f"a{end}b\n", [f"a{end}b"]) for end in "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"),
  ],
)
def test_inference_writes_as_many_rows_as_were_read(infer, text, lines):
  assert [row["inputs"] for row in infer(text)] == lines


@pytest.mark.parametrize("labels", [["word0", "word1"], {"0": "word0", "1": "word1"}])
def test_inference_takes_labels_as_words_or_as_a_task_has_them(infer, labels):
  (row,) = infer("a", labels=labels)
  assert row["label"] == "word0"
  assert list(row["scores"]) == ["word0", "word1"]


@pytest.mark.parametrize(
  ("text", "arguments", "message"),
  [
    (
      "a,b\n",
      {"name": "in.csv"},
      r"is a table \(\.csv\), and INPUT_FILE has one source",
    ),
    ("{}\n", {"name": "in.jsonl"}, "is a table"),
    ("a".encode("utf-16-le"), {}, "NUL byte"),
    ("a", {"labels": "word0"}, "are 'word0'; give a mapping"),
    (
      "a",
      {"labels": ["good"]},
      "label of LABELS could never be right. 'good' has words",
    ),
    ("a", {"labels": ["word0 word1", "word2"]}, r"LENGTHS\['targets'\] to at least 3"),
    ("a", {"coefficient": 2.0}, "no vector was given: give --gin.VECTOR"),
  ],
)
def test_inference_refuses_what_it_would_read_wrongly(infer, text, arguments, message):
  with pytest.raises(UserError, match=message):
    infer(text, **arguments)


def test_inference_applies_a_vector(infer, prompt, vectors, monkeypatch):
  seen = []

  def answer(evaluator, prompt, sources, labels):
    seen.append(prompt)
    return ["x"] * len(sources), None

  monkeypatch.setattr(evaluation.Evaluator, "answer", answer)
  run = str(prompt[0])
  infer("a", vector=vectors[0], initial=run, coefficient=0.5)
  start, move = sources.load(run, "initial"), sources.load(vectors[0])
  expected = start.leaves["prompt"] + 0.5 * move.leaves["prompt"]
  np.testing.assert_allclose(seen[0]["prompt"], expected, rtol=1e-5, atol=1e-6)
  with pytest.raises(UserError, match="2 prompts were given"):
    infer("a", vector=vectors, initial=run)


def test_an_empty_source_without_bos_and_prompt_is_refused(evaluator):
  # As a decoder-only vocabulary without BOS writes it.
  empty = batches.Tokenized(np.zeros((1, 4), np.int32), np.ones((1, 2), np.int32))
  with pytest.raises(UserError, match="nothing to answer to"):
    evaluator.score([(None, empty, None)])
  with pytest.raises(UserError, match="nothing to answer to"):
    evaluator.decode([(None, empty.inputs)])
