"""Gin files and bindings of every command of the runner, read up to where work begins."""

import functools
import json
import pathlib
import random
import shutil
from collections.abc import Callable, Sequence

import numpy as np

from fuzz import mutations
from fuzz.campaign import ROOT, Kind, Reached

_FILES = {
  "train": """\
# One task on the embedded backbone.
from __gin__ import dynamic_registration
from tpv_jax import model
from tpv_jax.training import optimizers
from tpv_jax.training import training
include 'gin_configs/runs/embedded.gin'

TASK_NAME = 'sentiment'
RUN_DIR = 'run'
TRAIN_STEPS = 5
EVAL_PERIOD = 5
BATCH_SIZE = 8
LEARNING_RATE = 0.3
WARMUP_STEPS = 2
WEIGHT_DECAY = 1e-5
BEST_METRIC = 'loss'
RANDOM_SEED = 3
INITIAL_SEED = 1
MICROBATCHES = 1
MODEL_PARALLEL = 1
OVERWRITE = False
PROMPT_LENGTH = 4
LENGTHS = {'inputs': 24, 'targets': 2}
model.SoftPromptModel.z_loss = 1e-4
model.SoftPromptModel.label_smoothing = 0.1
training.train.log_period = 5
LEARNING_RATE_FN = @run/optimizers.linear()
run/optimizers.linear:
  learning_rate = 0.3
  total_steps = %TRAIN_STEPS
  warmup_steps = 1
""",
  "train own": """\
from __gin__ import dynamic_registration
from tpv_jax.data import text_files
include 'gin_configs/backbones/embedded.gin'
include 'gin_configs/prompts/plain.gin'
include 'gin_configs/runs/train.gin'
include 'gin_configs/tasks/text_files.gin'
TASK_NAME = 'mine'
PATHS = {'train': 'a.csv', 'validation': 'a.csv', 'test': 'a.csv'}
TEMPLATE = 'the {sentence}'
TARGET = 'label'
LABELS = {'0': 'negative', '1': 'positive'}
METRIC = 'exact_match'
SPLITS = None
text_files.text_file_task.skip_labels = ['-']
text_files.text_file_task.allow_empty = False
LENGTHS = {'inputs': 24, 'targets': 2}
RUN_DIR = 'run'
TRAIN_STEPS = 5
EVAL_PERIOD = 5
BATCH_SIZE = 4
WARMUP_STEPS = 0
""",
  "train ept": """\
include 'gin_configs/backbones/embedded.gin'
include 'gin_configs/prompts/ept.gin'
include 'gin_configs/runs/train.gin'
include 'gin_configs/tasks/embedded.gin'
TASK_NAME = 'topic'
RUN_DIR = 'run'
TRAIN_STEPS = 5
EVAL_PERIOD = 5
BATCH_SIZE = 8
WARMUP_STEPS = 0
PROMPT_LENGTH = 24
SHORT_LENGTH = 2
RANK = 2
SPACES = 2
""",
  "bank": """\
include 'gin_configs/runs/bank_embedded.gin'
TASK_NAMES = ['sentiment', 'topic']
INITIAL_SEEDS = [0, 1]
RATES = [1.0, 0.5]
OUTPUT_DIR = 'out'
TRAIN_STEPS = 5
EVAL_PERIOD = 5
BATCH_SIZE = 8
PATIENCE = None
BANK_SIZE = None
BANK_MEMORY_GB = None
SHARD_BANK = False
OVERWRITE = False
""",
  "eval": """\
include 'gin_configs/runs/eval_embedded.gin'
TASK_NAMES = ['sentiment']
EVAL_SPLITS = ['test']
PROMPT_PATH = None
VECTOR = None
INITIAL = None
COEFFICIENT = 1.0
SEARCH = False
BATCH_SIZE = 32
PROMPTS_AT_ONCE = 4
NUM_BEAMS = 1
OUTPUT = 'out.json'
PREDICTIONS = True
LENGTHS = {'inputs': 24, 'targets': 2}
""",
  "infer": """\
include 'gin_configs/runs/infer_embedded.gin'
INPUT_FILE = 'a.txt'
OUTPUT = 'out.jsonl'
PROMPT_PATH = None
LABELS = ['positive', 'negative']
BATCH_SIZE = 8
LENGTHS = {'inputs': 24, 'targets': 2}
OVERWRITE = False
""",
  "study": """\
include 'gin_configs/runs/demo.gin'
OUTPUT_DIR = 'out'
TASK_NAMES = ['sentiment', 'topic']
INITIAL_SEEDS = [0, 1]
PROMPT_LENGTH = 4
TRAIN_STEPS = 5
BATCH_SIZE = 8
EVAL_PERIOD = 5
AS_BANK = True
OVERWRITE = False
""",
  "few-shot": """\
include 'gin_configs/runs/few_shot_embedded.gin'
OUTPUT_DIR = 'out'
SHOTS = [0, 5]
INITIAL_SEEDS = [10, 11]
SOURCE_STEPS = 5
TRAIN_STEPS = 5
EVAL_PERIOD = 5
COEFFICIENT = 1.0
TEST_EXAMPLES = 10
BANK_SIZE = None
""",
  "ablation": """\
include 'gin_configs/runs/ablation.gin'
OUTPUT_DIR = 'out'
""",
}


def stop_where_work_begins() -> None:
  """Has this process raise `Reached` where it would train or decode."""
  import flax.linen  # noqa: F401 (so that no mutation pays for it)

  from tpv_jax.backbones import loading
  from tpv_jax.banks import bank
  from tpv_jax.devices import partitioning
  from tpv_jax.evaluation import evaluator
  from tpv_jax.training import training

  def reached(*_: object, **__: object) -> None:
    raise Reached

  training.Run.execute = reached  # type: ignore[method-assign]
  bank.Plan.__init__ = reached  # type: ignore[method-assign,assignment]
  evaluator.Evaluator.evaluate_all = reached  # type: ignore[method-assign]
  evaluator.Evaluator.exact_matches = reached  # type: ignore[method-assign]
  evaluator.Evaluator.label_accuracies = reached  # type: ignore[method-assign]
  evaluator.Evaluator.answer = reached  # type: ignore[method-assign]

  # What takes long and says the same of the same settings is asked once.
  loading.load_backbone = remembered(
    loading.load_backbone,
    lambda source, network=None, vocabulary=None: (
      source if source == "embedded" else object(),
      network,
      getattr(vocabulary, "digest", vocabulary),
    ),
  )
  partitioning.layout = remembered(
    partitioning.layout,
    lambda model, mesh: (model.network, model.prompt, mesh),
  )
  training.Run._trace = remembered(  # type: ignore[method-assign]
    training.Run._trace,
    lambda run: (
      *(run.model.network, run.model.prompt, run.model.z_loss, run.model.trainable),
      *(run.model.label_smoothing, run.backbone is None, run.initial is None),
      {name: np.shape(value) for name, value in run._sample().items()},
    ),
  )


def remembered(function: Callable, key: Callable) -> Callable:
  """Returns a function that calls another once for all arguments of one key.

  Args:
    function: what it gives, or raises, depends on the key alone.
    key: gives it of the arguments; its text counts.
  """
  found: dict[str, tuple[object, Exception | None]] = {}

  def ask(*arguments, **named):
    text = repr(key(*arguments, **named))
    if text not in found:
      try:
        found[text] = function(*arguments, **named), None
      except Exception as error:
        found[text] = None, error
    value, error = found[text]
    if error is not None:
      raise error.with_traceback(None)
    return value

  return ask


def _make(*names: str):
  def make() -> None:
    stop_where_work_begins()
    pathlib.Path("gin_configs").symlink_to(ROOT / "gin_configs")
    pathlib.Path("calls").mkdir()
    for name in names:
      pathlib.Path(f"calls/{name}.gin").write_text(_FILES[name])
    rows = "".join(f"a good movie {i},{i % 2}\n" for i in range(6))
    pathlib.Path("a.csv").write_text("sentence,label\n" + rows)
    pathlib.Path("a.txt").write_text("the movie is good\nthe plot is bad\n")
    _choose(names[0])

  return make


def _choose(name: str) -> None:
  pathlib.Path("mine.gin").write_text(_FILES[name])
  pathlib.Path("call.json").write_text(json.dumps([name, []]))


def _damage_file(folder: pathlib.Path, rng: random.Random) -> mutations.Done:
  path = rng.choice(sorted((folder / "calls").iterdir()))
  content = path.read_bytes()
  after = content
  for _ in range(rng.choice((1, 1, 1, 2))):
    after = mutations.gin_file(after, rng) if after.strip() else after
  shutil.rmtree(folder / "calls")
  (folder / "mine.gin").write_bytes(after)
  (folder / "call.json").write_text(json.dumps([path.stem, []]))
  return mutations.Done(f"{path.stem}: {_difference(content, after)}")


def _difference(before: bytes, after: bytes) -> str:
  old = before.decode().splitlines()
  new = after.decode(errors="replace").splitlines()
  lines = [line for line in new if line not in old] or [f"{len(old)}, {len(new)} lines"]
  return " / ".join(repr(line[:150]) for line in lines[:3])


def _damage_bindings(folder: pathlib.Path, rng: random.Random) -> mutations.Done:
  path = rng.choice(sorted((folder / "calls").iterdir()))
  text = path.read_text()
  names = [line.split(" = ")[0] for line in text.splitlines() if " = " in line]
  bindings = []
  for _ in range(rng.choice((1, 1, 2, 3))):
    name = rng.choice(names)
    if rng.random() < 0.15:
      name = mutations.misspelt(name, rng)
    value = rng.choice(mutations.VALUES)
    between = rng.choice(("=", "=", "=", "=", " = ", "", "=="))
    bindings.append(f"{name}{between}{value}".replace("\0", ""))  # None has it.
  shutil.rmtree(folder / "calls")
  (folder / "mine.gin").write_text(text)
  (folder / "call.json").write_text(json.dumps([path.stem, bindings]))
  return mutations.Done(f"{path.stem}: {bindings}"[:400])


def _run(_: random.Random) -> int:
  from tpv_jax import cli

  name, bindings = json.loads(pathlib.Path("call.json").read_text())
  return cli.main(
    [
      name.split()[0],
      "--gin_file=mine.gin",
      *(f"--gin.{binding}" for binding in bindings),
    ]
  )


_TRAIN = ("train", "train own", "train ept")
_OTHERS = ("bank", "eval", "infer", "study", "few-shot", "ablation")


def _kind(names: Sequence[str], damage: Callable) -> Kind:
  whole = tuple(functools.partial(_choose, name) for name in names)
  return Kind(_make(*names), _run, damage, outputs=("*",), whole=whole)


KINDS = {
  "gin files of training": _kind(_TRAIN, _damage_file),
  "gin bindings of training": _kind(_TRAIN, _damage_bindings),
  "gin files of other commands": _kind(_OTHERS, _damage_file),
  "gin bindings of other commands": _kind(_OTHERS, _damage_bindings),
}
