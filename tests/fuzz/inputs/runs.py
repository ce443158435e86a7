"""Runs that are continued, studies, and what eval and infer read."""

import functools
import json
import pathlib
import random
import shutil
import signal

import numpy as np

from fuzz import mutations
from fuzz.campaign import ROOT, Kind
from fuzz.inputs import data, settings, tpv

_TRAIN = (
  "train",
  *("--gin_file=gin_configs/runs/embedded.gin", "--gin.TASK_NAME='sentiment'"),
  *("--gin.RUN_DIR='run'", "--gin.TRAIN_STEPS=4", "--gin.EVAL_PERIOD=2"),
  *("--gin.BATCH_SIZE=4", "--gin.PROMPT_LENGTH=3"),
)
_STUDY = (
  "study",
  *("--gin_file=gin_configs/runs/demo.gin", "--gin.OUTPUT_DIR='out'"),
  *("--gin.TASK_NAMES=['sentiment', 'topic']", "--gin.INITIAL_SEEDS=[0, 1]"),
  *("--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=2", "--gin.BATCH_SIZE=4"),
  *("--gin.PROMPT_LENGTH=3", "--gin.AS_BANK=False"),
)


def _without_compiling() -> None:
  """Has training in this process add 1 to the prompt instead of a compiled step."""
  from tpv_jax.training import signals, steps, training

  def loop(run, state, frozen, best, stop_requested):
    for step in range(int(state.step) + 1, run.total_steps + 1):
      trainable = {k: leaf + 1.0 for k, leaf in state.trainable.items()}
      state = state.replace(step=state.step + 1, trainable=trainable)
      report = {"loss": np.ones(1) / step, "gradient_norm": np.ones(1)}
      report["finite_parameters"] = np.ones(1, bool)
      run.record(step - 1, step, report, 1.0)
      if step % run.eval_period == 0:
        best = run.judge(state, best, {"loss": 1.0 / step, "exact_match": 0.5})
        run.save(state, best)
        if step < run.total_steps and pathlib.Path("stop").exists():
          run.finish("stopped", state, best)
          raise signals.Stopped(signal.SIGINT, "as asked")
    return state, best

  training.Run._loop = loop  # type: ignore[method-assign,assignment]
  training.Run._trace = lambda _: None  # type: ignore[method-assign,assignment]
  kept: dict = {}
  real = steps.build

  def build(model, learning_rate, microbatches, mesh):
    key = repr((model.prompt, model.network, model.trainable, microbatches))
    if key not in kept:
      kept[key] = real(model, learning_rate, microbatches, mesh)
    return kept[key]

  steps.build = build  # type: ignore[assignment]


def _keep_backbone() -> None:
  from tpv_jax.backbones import loading

  loading.load_backbone = settings.remembered(
    loading.load_backbone, lambda source, *_, **__: source
  )


def _make_run() -> None:
  from tpv_jax import cli

  _without_compiling()
  _keep_backbone()
  pathlib.Path("gin_configs").symlink_to(ROOT / "gin_configs")
  pathlib.Path("stop").touch()
  code = cli.main(_TRAIN)
  assert code == 130, code
  pathlib.Path("stop").unlink()


def _continue(_: random.Random) -> int:
  from tpv_jax import cli

  return cli.main(_TRAIN)


def _check_run() -> None:
  """Raises unless the run ended as an unbroken one ends."""
  from tpv_jax.formats import sources

  manifest = json.loads(pathlib.Path("run/manifest.json").read_text())
  assert manifest["status"] == "finished", manifest["status"]
  lines = pathlib.Path("run/metrics.jsonl").read_text().splitlines()
  steps = [(json.loads(line)["step"], json.loads(line)["kind"]) for line in lines]
  whole = [(1, "train"), (2, "train"), (2, "validation")]
  whole += [(3, "train"), (4, "train"), (4, "validation")]
  assert steps == whole, steps
  initial = sources.load("run", "initial").leaves["prompt"]
  for which in ("last", "best"):
    after = sources.load("run", which).leaves["prompt"]
    np.testing.assert_allclose(after, initial + 4.0, rtol=1e-6)


_BANK = (
  "bank",
  *("--gin_file=gin_configs/runs/bank_embedded.gin", "--gin.OUTPUT_DIR='out'"),
  *("--gin.TASK_NAMES=['sentiment']", "--gin.INITIAL_SEEDS=[0, 1]"),
  *("--gin.TRAIN_STEPS=4", "--gin.EVAL_PERIOD=2", "--gin.BATCH_SIZE=4"),
  *("--gin.PROMPT_LENGTH=3", "--gin.SPLIT=True"),
)


def _make_bank() -> None:
  from tpv_jax import cli
  from tpv_jax.banks import bank
  from tpv_jax.banks import loop as loops
  from tpv_jax.devices import processes
  from tpv_jax.training import signals

  _without_compiling()
  _keep_backbone()

  def make_fit(plan, split, notes):
    for note in notes:
      plan.size = min(plan.size, note["size"])
      plan.positions = min(plan.positions, note["block_positions"])
    plan.cut = False
    plan.steps = plan.build(plan.cut)

  def loop(self, state, at, stop_requested):
    for step in range(min(at.values()) + 1, 5):
      trainable = {k: leaf + 1.0 for k, leaf in state.trainable.items()}
      state = state.replace(step=state.step + 1, trainable=trainable)
      if step % 2 == 0:
        self._save(processes.on_host(state), step, set(self.active))
    return state

  bank.Plan.make_fit = make_fit  # type: ignore[method-assign,assignment]
  bank.Plan.note = lambda plan: {  # type: ignore[method-assign]
    "members": [run.folder.path.name for run in plan.runs],
    "size": plan.size,
    "block_positions": plan.positions,
  }
  bank.Plan.__str__ = lambda _: "a bank"  # type: ignore[method-assign]
  loops.BankRun._loop = loop  # type: ignore[method-assign,assignment]
  loops.BankRun._measure_untuned = (  # type: ignore[method-assign]
    lambda self, state, at: None
  )
  pathlib.Path("gin_configs").symlink_to(ROOT / "gin_configs")
  save = loops.BankRun._save

  def save_and_stop(self, whole, step, indices):
    save(self, whole, step, indices)
    for index in self.active:
      self._finish("stopped", index, whole)
    raise signals.Stopped(signal.SIGINT, "as asked")

  loops.BankRun._save = save_and_stop  # type: ignore[method-assign]
  code = cli.main(_BANK)
  assert code == 130, code
  loops.BankRun._save = save  # type: ignore[method-assign]


def _continue_bank(_: random.Random) -> int:
  from tpv_jax import cli

  return cli.main(_BANK)


def _check_bank() -> None:
  """Raises unless both runs ended as unbroken ones end."""
  from tpv_jax.formats import sources

  for folder in ("out/sentiment-0", "out/sentiment-1"):
    manifest = json.loads(pathlib.Path(folder, "manifest.json").read_text())
    assert manifest["status"] == "finished", manifest["status"]
    initial = sources.load(folder, "initial").leaves["prompt"]
    after = sources.load(folder, "last").leaves["prompt"]
    np.testing.assert_allclose(after, initial + 4.0, rtol=1e-6)


def _make_study() -> None:
  from tpv_jax import cli
  from tpv_jax.studies.report import arithmetic as report

  _without_compiling()
  _keep_backbone()
  _answer_without_computing()
  pathlib.Path("gin_configs").symlink_to(ROOT / "gin_configs")
  report.pictures = lambda _: {}  # type: ignore[assignment]
  assert cli.main(_STUDY) == 0


def _answer_without_computing() -> None:
  """Has evaluation in this process score the first label highest and write nothing."""
  from tpv_jax.evaluation import evaluator

  def score(self, requests):
    counts = [(len(rows), 1 if c is None else len(c)) for _, rows, c in requests]
    return [
      (-np.tile(np.arange(n, dtype=np.float32), (rows, 1)), np.zeros((rows, n), bool))
      for rows, n in counts
    ]

  def decode(self, requests, numbers=None):
    return [
      np.zeros((len(one), self.lengths["targets"]), np.int32) for _, one in requests
    ]

  evaluator.Evaluator.score = score  # type: ignore[method-assign]
  evaluator.Evaluator.decode = decode  # type: ignore[method-assign]


def _study(_: random.Random) -> int:
  from tpv_jax import cli

  return cli.main(_STUDY)


def _make_checked() -> None:
  """A bundle of a run of one's own task, and what its scores are measured with."""
  from tpv_jax import cli

  _without_compiling()
  _keep_backbone()
  _answer_without_computing()
  rows = "".join(f"a good movie {i},{i % 2}\n" for i in range(12))
  pathlib.Path("a.csv").write_text("sentence,label\n" + rows)
  text = data.TASK_FILE.replace("validation = 0.4", "validation = 0.3, test = 0.3")
  pathlib.Path("mine.toml").write_text(text)
  call = ("--gin.BACKBONE=embedded", "--gin.TASK_FILES=mine.toml")
  steps = ("--gin.TRAIN_STEPS=4", "--gin.EVAL_PERIOD=2", "--gin.BATCH_SIZE=2")
  where = ("--gin.PROMPT_LENGTH=3", "--gin.RUN_DIR=runs/mine-0")
  assert cli.main(["train", *call, *steps, *where]) == 0
  assert cli.main(["prompts", "pack", "runs", "-o", "b.safetensors"]) == 0
  shutil.rmtree("runs")


_CHECK = tpv.one_of("prompts check --file b.safetensors --task-files mine.toml")


def _make_texts() -> None:
  _keep_backbone()
  _answer_without_computing()
  pathlib.Path("gin_configs").symlink_to(ROOT / "gin_configs")
  lines = [f"the good movie {i}, or not" for i in range(6)]
  pathlib.Path("a.txt").write_text("\n".join(lines) + "\n")
  rows = [f'"{line}",{i % 2}' for i, line in enumerate(lines)]
  pathlib.Path("a.csv").write_text("sentence,label\n" + "\n".join(rows) + "\n")
  objects = [{"sentence": line, "label": i % 2} for i, line in enumerate(lines)]
  pathlib.Path("a.jsonl").write_text("".join(json.dumps(o) + "\n" for o in objects))


def _texts(rng: random.Random) -> int:
  from tpv_jax import cli

  if rng.random() < 0.5:
    labels = rng.choice(("None", "['positive', 'negative']"))
    return cli.main(
      [
        "infer",
        "--gin_file=gin_configs/runs/infer_embedded.gin",
        "--gin.INPUT_FILE='a.txt'",
        "--gin.OUTPUT='out.jsonl'",
        f"--gin.LABELS={labels}",
      ]
    )
  path = rng.choice(("a.csv", "a.jsonl"))
  return cli.main(
    [
      "eval",
      "--gin_file=gin_configs/runs/eval.gin",
      "--gin_file=gin_configs/backbones/embedded.gin",
      "--gin_file=gin_configs/tasks/text_files.gin",
      "--gin.TASK_NAME='mine'",
      f"--gin.PATHS={{'test': '{path}'}}",
      "--gin.TEMPLATE='{sentence}'",
      "--gin.TARGET='label'",
      "--gin.LABELS={'0': 'negative', '1': 'positive'}",
      "--gin.LENGTHS={'inputs': 24, 'targets': 2}",
      "--gin.OUTPUT='out.json'",
      "--gin.PREDICTIONS=True",
    ]
  )


def _check_texts() -> None:
  """Raises unless each line of what was written is JSON that says what was read."""
  path = pathlib.Path("out.jsonl")
  if path.exists():
    text = path.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    assert rows
    source = pathlib.Path("a.txt").read_bytes().decode("utf-8-sig")
    for row in rows:
      assert isinstance(row["inputs"], str), row
      assert row["inputs"] in source, row


_FIXED = ("run/events.*", "*/events.*")

KINDS = {
  "run that is continued": Kind(
    _make_run,
    _continue,
    outputs=("run",),
    changes=("run",),
    check=_check_run,
    fixed=_FIXED,
  ),
  "bank that is continued": Kind(
    _make_bank,
    _continue_bank,
    outputs=("out",),
    changes=("out",),
    check=_check_bank,
    fixed=_FIXED,
  ),
  "study that is continued": Kind(
    _make_study, _study, outputs=("out",), changes=("out",), fixed=_FIXED
  ),
  "bundle that is checked": Kind(
    _make_checked, _CHECK, functools.partial(mutations.damage, own=(".safetensors",))
  ),
  "texts of eval and infer": Kind(
    _make_texts, _texts, outputs=("out*",), check=_check_texts
  ),
}
