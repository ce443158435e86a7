"""Runs made sick in each way are told apart, and healthy ones give no finding."""

import dataclasses
import functools
import io
import itertools
import json
import pathlib
import random
import shlex
import shutil

import jax
import numpy as np
import pytest

from tpv_jax import cli
from tpv_jax.backbones import loading, registry
from tpv_jax.banks import bank
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import tasks, vocabularies
from tpv_jax.embedded import suite
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import plain
from tpv_jax.runs import records, summary, tokens
from tpv_jax.runs.diagnosis import answers, evidence
from tpv_jax.runs.diagnosis import registry as checks
from tpv_jax.runs.diagnosis import training as of_training
from tpv_jax.training import initial, optimizers, training
from tpv_jax.training.task_data import TaskData

LENGTHS = {"inputs": 24, "targets": 2}
START = functools.partial(initial.sampled_vocabulary, length=8, first=89)


class Embedded:
  """Runs on the embedded backbone with the settings of gin_configs/runs/embedded.gin."""

  def __init__(self):
    self.vocabulary = vocabularies.embedded()
    self.backbone = loading.load_backbone("embedded")
    flat = identity.flatten(self.backbone.params)
    family = registry.of_leaves(flat, "embedded")
    network = family.network(**family.config_of(flat, "embedded").numbers)
    self.model = SoftPromptModel(
      network,
      plain.Prompt(8, network.emb_dim),
      self.vocabulary,
      self.vocabulary,
      optimizers.adamw(weight_decay=1e-5),
    )
    self.rate = optimizers.constant(0.3)

  def data(self, task, lengths=None, validation=100):
    if isinstance(task, str):
      task = suite.task(task)
    return TaskData(
      task, self.vocabulary, lengths or LENGTHS, 16, validation_examples=validation
    )

  def train(self, run, task="sentiment", steps=40, lengths=None, rate=None, **settings):
    return training.train(
      model=self.model,
      data=self.data(task, lengths),
      run_dir=run,
      total_steps=steps,
      learning_rate=rate or self.rate,
      backbone=self.backbone,
      initial_prompt=START,
      eval_period=10,
      log_period=5,
      progress=False,
      **settings,
    )

  def found(self, run, *arguments, **settings):
    """Trains a run; returns check -> finding."""
    self.train(run, *arguments, **settings)
    return diagnosed(run)


def diagnosed(run):
  return {one.check: one for one in checks.findings(evidence.read(run))}


@pytest.fixture(scope="module")
def embedded():
  return Embedded()


@pytest.fixture(scope="module")
def slow(embedded, tmp_path_factory):
  """A run with a learning rate of fine-tuning."""
  run = tmp_path_factory.mktemp("slow") / "a run"
  embedded.train(run, rate=optimizers.constant(3e-4))
  return run


def of(rows, labels=None, name="own"):
  """Returns a task whose splits all have these (source, target)s."""
  examples = [tasks.Example(source, target) for source, target in rows]
  return tasks.Task(name, labels, "exact_match", lambda _: examples)


def noise(shares, rows, seed=0):
  """Returns a task whose targets have nothing to do with the sources."""
  source = [one.inputs for one in suite.task("sentiment").examples("train")[:rows]]
  targets = [label for label, count in shares.items() for _ in range(count)]
  random.Random(seed).shuffle(targets)
  return of(list(zip(source, targets, strict=True)), tuple(shares), "noise")


@pytest.mark.slow
def test_the_demos_prompts_give_no_finding(embedded, tmp_path):
  names = ("sentiment", "topic", "acceptability", "answerability", "question_type")
  bank.train_bank(
    embedded.model,
    [
      bank.Entry(embedded.data(name), tmp_path / f"{name}-{seed}", initial_seed=seed)
      for name in names
      for seed in (0, 1)
    ],
    total_steps=300,
    learning_rate=embedded.rate,
    backbone=embedded.backbone,
    initial_prompt=START,
    eval_period=50,
    progress=False,
  )
  for run in tmp_path.iterdir():
    assert diagnosed(run) == {}


@pytest.mark.parametrize("task", ["sentiment", "topic"])
def test_a_healthy_run_gives_no_finding(embedded, tmp_path, task):
  assert embedded.found(tmp_path / "run", task, steps=60) == {}


def test_a_rate_of_fine_tuning_is_too_small_for_a_prompt(embedded, slow):
  found = diagnosed(slow)
  assert list(found) == ["rate_too_small", "flat"]
  finding = found["rate_too_small"]
  deviation = np.asarray(embedded.backbone.table, np.float64).std()
  assert "LEARNING_RATE = 0.0003" in finding.evidence
  assert f"deviation ({deviation:.4g})" in finding.evidence
  assert f"{3e-4 / deviation:.2g} of the" in finding.evidence
  assert f"LEARNING_RATE = {0.05 * deviation:.1g}" in finding.change


def test_a_small_rate_that_was_enough_is_no_finding(slow):
  """As of a very long run: the prompt went a long way."""
  seen = evidence.read(slow)
  far = dataclasses.replace(seen, tuned=seen.initial + 2.0)
  assert of_training.rate_too_small(seen) is not None
  assert of_training.rate_too_small(far) is None


def test_a_rate_beyond_the_embeddings_is_too_large(embedded, tmp_path):
  found = embedded.found(tmp_path / "run", rate=optimizers.constant(100.0))
  assert "rate_too_large" in found
  assert "LEARNING_RATE = 100" in found["rate_too_large"].evidence
  assert "rate_too_small" not in found


def test_rows_far_longer_than_embeddings_are_found_unless_the_prompt_has_learned(slow):
  seen = evidence.read(slow)
  far = dataclasses.replace(seen, tuned=20 * seen.tuned)
  assert of_training.long_rows(seen) is None
  assert "20." in of_training.long_rows(far).evidence
  learned = {"kind": "validation", "step": 40, "loss": 0.1, "exact_match": 0.9}
  assert of_training.long_rows(dataclasses.replace(far, lines=[learned])) is None


def test_the_rate_of_a_group_counts(embedded, tmp_path):
  """GROUP_RATES makes a step 1,000 times smaller, which LEARNING_RATE alone hides."""
  model = SoftPromptModel(
    embedded.model.network,
    embedded.model.prompt,
    embedded.vocabulary,
    embedded.vocabulary,
    optimizers.by_group(optimizers.adamw(), {"prompt": 1e-3}),
  )
  training.train(
    model=model,
    data=embedded.data("sentiment"),
    run_dir=tmp_path / "run",
    total_steps=20,
    learning_rate=embedded.rate,
    backbone=embedded.backbone,
    initial_prompt=START,
    eval_period=10,
    progress=False,
  )
  assert "rate_too_small" in diagnosed(tmp_path / "run")


@pytest.mark.parametrize(
  ("warm_up", "length"), [(30, "about 30"), (4000, "at least 40")]
)
def test_a_warm_up_that_takes_most_of_the_run_is_found(
  embedded, tmp_path, warm_up, length
):
  found = embedded.found(
    tmp_path / "run", rate=optimizers.constant(0.3, warmup_steps=warm_up)
  )
  finding = found["warm_up_too_long"]
  assert f"it rises over {length} of 40 steps" in finding.evidence
  assert "WARMUP_STEPS = 2" in finding.change


def test_a_warm_up_of_half_the_run_and_a_falling_rate_are_no_finding(
  embedded, tmp_path
):
  for name, rate in (
    ("warm-up", optimizers.constant(0.3, warmup_steps=20)),
    ("falling", optimizers.linear(0.3, total_steps=40, warmup_steps=5)),
  ):
    assert "warm_up_too_long" not in embedded.found(tmp_path / name, rate=rate)


def test_a_run_that_diverged_says_at_which_step(embedded, tmp_path, capsys):
  run = tmp_path / "run"
  with pytest.raises(UserError, match=f"tpv diagnose {run}"):
    embedded.train(run, rate=lambda step: jax.numpy.where(step < 7, 0.3, jax.numpy.inf))
  found = diagnosed(run)
  assert "infinite at step 8" in found["diverged"].evidence
  assert "clip_norm" in found["diverged"].change
  assert cli.main(["diagnose", str(run)]) == 0
  assert "1. the run diverged" in capsys.readouterr().out


def test_targets_that_are_cut_or_unknown_are_counted(embedded, tmp_path):
  rows = [("review: the book was clever", "positive")] * 5 + [
    ("review: the book was dull", "negative negative"),
    ("review: the play was dull", "xylophone"),
  ]
  finding = embedded.found(tmp_path / "run", of(rows), steps=10)["targets_lost"]
  assert "train: 1 of 7 targets are cut, 1 have unknown tokens" in finding.evidence
  assert "LENGTHS['targets'] (it is 2)" in finding.change
  assert "LABELS" in finding.change


def test_sources_that_are_cut_are_counted(embedded, tmp_path):
  lengths = {"inputs": 8, "targets": 2}
  finding = embedded.found(tmp_path / "run", steps=10, lengths=lengths)["sources_cut"]
  data = embedded.data("sentiment", lengths).describe()["counts"]["train"]
  cut, lost = (data["sources"][name] for name in ("trimmed", "lost_tokens"))
  each = -(-lost // cut)
  assert f"train: {cut} of 2000 sources are cut, by {each} tokens" in finding.evidence
  assert "LENGTHS['inputs'] to" in finding.change


def test_sources_of_unknown_words_are_counted(embedded, tmp_path):
  words = "the quick brown fox jumps over a lazy dog"
  rows = [(words, "positive"), (words, "negative")] * 4
  labels = ("positive", "negative")
  found = embedded.found(tmp_path / "run", of(rows, labels), steps=10)
  assert "in 8 of 8 sources" in found["sources_unknown"].evidence
  assert "BACKBONE" in found["sources_unknown"].change


def test_one_answer_for_every_row_is_found_by_its_share(embedded, tmp_path):
  found = embedded.found(tmp_path / "run", noise({"positive": 90, "negative": 10}, 100))
  assert "90.0 %, is the share of 'positive' in the 100" in found["one_answer"].evidence


def test_validation_rows_of_one_class_are_found(embedded, tmp_path):
  rows = [("review: the book was clever", "positive")] * 5
  found = embedded.found(tmp_path / "run", of(rows, ("positive", "negative")), steps=10)
  assert "of all 5 rows is 'positive'" in found["one_answer"].evidence


def test_overfitting_is_found_where_validation_rises(embedded, tmp_path):
  train = noise({"positive": 16, "negative": 16}, 32)
  other = noise({"positive": 50, "negative": 50}, 100, seed=1)
  load = {"train": train.load, "validation": other.load}
  task = tasks.Task(
    "noise", train.labels, "exact_match", lambda split: load[split](split)
  )
  finding = embedded.found(tmp_path / "run", task, steps=200)["overfitted"]
  assert "The 32 training rows were seen 100 times" in finding.evidence


def test_a_run_that_ended_too_early_was_still_improving(embedded, tmp_path):
  found = embedded.found(
    tmp_path / "run", "question_type", steps=20, rate=optimizers.constant(0.05)
  )
  assert "TRAIN_STEPS, such as 40" in found["still_improving"].change


def test_prompts_of_a_bank_are_not_advised_to_go_on_where_they_are(tiny):
  losses = [{"loss": 2.0}, {"loss": 1.0}]
  alone, of_bank = (
    of_training.still_improving(made(losses, **manifest)).change
    for manifest in ({}, {"bank": {"prompts": 2}})
  )
  assert "TRAIN_STEPS, such as 200: the same command continues" in alone
  assert "TRAIN_STEPS, such as 200: " in of_bank
  assert "in another OUTPUT_DIR" in of_bank
  assert "same command" not in of_bank


def made(validation=(), train=(), **manifest):
  """Returns the evidence of a run with these losses, every 10 steps."""
  lines = [
    {"kind": kind, "step": 10 * number, **line}
    for kind, given in (("train", train), ("validation", validation))
    for number, line in enumerate(given, start=1)
  ]
  manifest = {"status": "finished", "settings": {"total_steps": 100}} | manifest
  return evidence.Evidence(manifest, lines, None, None, None)


def losses(*values, **others):
  return [{"loss": value, **others} for value in values]


def test_a_loss_that_rises_far_above_its_start_has_exploded():
  seen = made(losses(2.0, 30.0), untuned={"loss": 3.0})
  assert "3 before the first step, 30 after step 20" in (
    of_training.exploded(seen).evidence
  )
  assert of_training.exploded(made(losses(2.0, 3.5), untuned={"loss": 3.0})) is None


def test_answers_that_are_never_right_are_found_while_the_loss_falls():
  lines = losses(2.0, 1.0, exact_match=0.0, accuracy=0.5)
  untuned = {"loss": 3.0, "accuracy": 0.2, "exact_match": 0.0}
  finding = answers.never_exact(made(lines, untuned=untuned))
  assert "the loss fell from 3 to 1" in finding.evidence
  assert "50.0 % of the target tokens are right, 20.0 % untuned" in finding.evidence
  right = losses(2.0, 1.0, exact_match=0.1, accuracy=0.5)
  assert answers.never_exact(made(right, untuned=untuned)) is None


def test_answers_that_hardly_beat_the_majority_are_found():
  counts = {"validation": {"examples": 100, "most_common": {"yes": 60, "no": 40}}}
  known = {
    "untuned": {"loss": 3.0},
    "majority": {"label": "yes", "share": 0.6},
    "data": {"counts": counts},
  }
  for exact in (0.55, 0.63):
    seen = made(losses(1.0, 0.9, exact_match=exact), **known)
    assert "'yes' is right in 60.0 %" in answers.near_majority(seen).evidence
  assert answers.near_majority(made(losses(0.9, exact_match=0.65), **known)) is None


def test_a_gradient_that_vanishes_is_found_unless_the_loss_is_gone_too():
  gone = made(train=losses(2.0, 2.0, gradient_norm=1e-12))
  assert of_training.no_gradient(gone) is not None
  assert of_training.no_gradient(made(train=losses(1e-4, gradient_norm=1e-12))) is None


def test_a_first_validation_that_was_the_best_is_found():
  seen = made(losses(1.0, 1.4, 1.3), losses(1.0, 1.2, 1.3), untuned={"loss": 1.2})
  assert "is 1 after step 10, and at least 1.3 later" in (
    of_training.worse_again(seen).evidence
  )


def test_every_check_takes_a_run_that_states_almost_nothing():
  for check in checks.CHECKS.values():
    assert check(made()) is None
    assert check(evidence.Evidence({}, [], None, None, None)) is None


def test_prompts_of_a_bank_with_the_same_findings_share_a_line():
  flat, early = (
    evidence.Finding("", what, "", "") for what in ("it is flat", "it ended early")
  )
  runs = [pathlib.Path(f"runs/{name}") for name in ("a", "b", "my c")]
  found = dict(zip(runs, ([flat], [flat, early], [flat]), strict=True))
  assert checks.hints(found) == [
    "Something may be wrong with a, my c: it is flat. 'tpv diagnose runs/a' explains.",
    "Something may be wrong with b: it is flat; it ended early. 'tpv diagnose runs/b' "
    "explains.",
  ]
  assert checks.hints({run: [flat] for run in runs}) == [
    "Something may be wrong with all 3 prompts: it is flat. 'tpv diagnose runs/a' explains."
  ]
  (alone,) = checks.hints({runs[2]: [flat]})
  assert alone.endswith("wrong: it is flat. 'tpv diagnose 'runs/my c'' explains.")
  assert checks.hints({run: [] for run in runs}) == []


def test_the_command_shows_evidence_change_and_the_nearest_tokens(
  embedded, slow, capsys
):
  assert cli.main(["diagnose", str(slow)]) == 0
  printed = capsys.readouterr().out
  assert "1. the learning rate is too small for these embeddings" in printed
  assert "   evidence: LEARNING_RATE = 0.0003" in printed
  assert "   change:   Set LEARNING_RATE = 0.09" in printed
  # The prompt has hardly moved, so each row is nearest to the token that it began as.
  drawn = START(np.asarray(embedded.backbone.table, np.float32), 0)
  table = np.asarray(embedded.backbone.table)
  for number, row in enumerate(drawn):
    (token,) = np.flatnonzero((table == row).all(axis=1))
    word = embedded.vocabulary.decode([int(token)])
    (line,) = [x for x in printed.splitlines() if x.split()[:1] == [str(number)]]
    assert f"'{word}' (1.00)" in line


def test_the_nearest_tokens_are_looked_for_in_the_whole_table(embedded, monkeypatch):
  table = np.asarray(embedded.backbone.table, np.float32)
  known = tokens.Embeddings(table, 1.0, embedded.vocabulary)
  chosen = table[[0, len(table) // 2, len(table) - 1]]
  whole = tokens.nearest(known, chosen, chosen)
  monkeypatch.setattr(tokens, "_BLOCK", len(table) // 3)
  parts = tokens.nearest(known, chosen, chosen)
  for one, other in zip(parts, whole, strict=True):
    assert [word for word, _ in one.nearest] == [word for word, _ in other.nearest]
    assert one.nearest[0][1] == pytest.approx(1.0, abs=1e-5)


def test_the_findings_are_json_as_well(slow, capsys):
  assert cli.main(["diagnose", str(slow), "--json"]) == 0
  content = json.loads(capsys.readouterr().out)
  assert [one["check"] for one in content["findings"]] == ["rate_too_small", "flat"]
  assert set(content["findings"][0]) == {"check", "what", "evidence", "change"}
  assert content["checks"] == list(checks.CHECKS)
  assert len(content["rows"]) == 8
  assert content["rows"][0]["nearest"][0][1] == pytest.approx(1.0, abs=1e-2)


def test_a_run_with_findings_ends_with_a_command_that_explains(
  embedded, tmp_path, capsys
):
  run = tmp_path / "a run"
  training.train(
    model=embedded.model,
    data=embedded.data("sentiment"),
    run_dir=run,
    total_steps=10,
    learning_rate=optimizers.constant(3e-4),
    backbone=embedded.backbone,
    initial_prompt=START,
    eval_period=5,
  )
  (line,) = [
    x for x in capsys.readouterr().out.splitlines() if x.startswith("Something may be")
  ]
  command = line.split(". ")[1].removesuffix(" explains.")
  program, *arguments = shlex.split(command[1:-1])
  assert program == "tpv"
  assert cli.main(arguments) == 0
  assert "1. the learning rate is too small" in capsys.readouterr().out


def test_the_command_to_answer_with_that_a_run_shows_works(
  embedded, slow, monkeypatch, capsys
):
  commands = summary.next_commands(slow, records.manifest(slow))
  (line,) = [line for line in commands if line.startswith("tpv infer")]
  monkeypatch.setattr(
    "sys.stdin", io.TextIOWrapper(io.BytesIO(b"text\nreview: the book was clever\n"))
  )
  assert cli.main(shlex.split(line, comments=True)[1:]) == 0
  assert "the book was clever" in capsys.readouterr().out


def test_a_run_without_a_subject_takes_the_backbone_that_is_given(
  slow, tmp_path, capsys
):
  run = tmp_path / "old"
  run.mkdir()
  for path in slow.iterdir():
    if path.is_file():
      (run / path.name).write_bytes(path.read_bytes())
  manifest = records.manifest(run)
  for name in ("subject", "embeddings", "untuned", "majority"):
    manifest.pop(name, None)
  (run / "manifest.json").write_text(json.dumps(manifest))
  assert cli.main(["diagnose", str(run)]) == 0
  printed = capsys.readouterr().out
  assert "\nNo table of the nearest tokens: The manifest of" in printed
  assert "rate is too small" not in printed
  assert cli.main(["diagnose", str(run), "--backbone", "embedded"]) == 0
  printed = capsys.readouterr().out
  assert "the learning rate is too small for these embeddings" in printed
  assert "nearest tokens" in printed


def places(content, path=()):
  """Yields the path of every value in nested JSON."""
  for key, value in content.items():
    yield (*path, key)
    if isinstance(value, dict):
      yield from places(value, (*path, key))


def test_a_damaged_manifest_is_read_or_refused_in_one_line(
  slow, tmp_path, monkeypatch, capsys
):
  run = tmp_path / "run"
  shutil.copytree(slow, run)
  whole = (run / "manifest.json").read_text()
  # Reading the backbone, each time, is not what is tried.
  monkeypatch.setattr(tokens, "of_run", raises(UserError("left out")))
  wrong = (None, "x", -1, [3], {"a": 1}, 1e300)
  tried = list(itertools.product(places(json.loads(whole)), wrong))
  for path, value in tried[::7]:  # All kinds of values, at most places one of them.
    manifest = inner = json.loads(whole)
    for key in path[:-1]:
      inner = inner[key]
    inner[path[-1]] = value
    (run / "manifest.json").write_text(json.dumps(manifest))
    for verb in ("show", "diagnose"):
      code = cli.main([verb, str(run)])
      printed = capsys.readouterr()
      assert code in (0, 2), (path, value, verb)
      assert printed.err.count("\n") == (1 if code else 0), (path, value, printed.err)


def raises(error):
  def fail(*_):
    raise error

  return fail


def test_what_is_no_run_is_refused(tmp_path, capsys):
  assert cli.main(["diagnose", str(tmp_path)]) == 2
  assert "is not the folder of a run" in capsys.readouterr().err
  assert cli.main(["diagnose", str(tmp_path / "nowhere")]) == 2


def test_a_prompt_of_another_width_is_refused(embedded):
  known = tokens.Embeddings(np.ones((5, 4), np.float32), 1.0, embedded.vocabulary)
  with pytest.raises(
    UserError, match="rows have 3 features, and the backbone's tokens 4"
  ):
    tokens.nearest(known, np.ones((2, 3)), np.ones((2, 3)))
