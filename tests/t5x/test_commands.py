"""T5X's own commands as a user gives them: killed, continued, compared with ours, refused.

Each is a process of its own, from a scratch folder, with relative paths: on the embedded
backbone, or on a tiny decoder-only model that stands in for SmolLM2. On several devices
each parameter is cut in two, and each batch in two micro-batches.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import stand_ins

from tpv_jax.core import identity
from tpv_jax.formats import sources

pytestmark = pytest.mark.slow

GIN = "--gin_file=tpv_jax/gin_configs"
EPT = (
  f"{GIN}/prompts/ept.gin",
  *("--gin.PROMPT_LENGTH=32", "--gin.SHORT_LENGTH=8", "--gin.SOURCE_LENGTH=24"),
)
FEW = "--gin.LENGTHS={'inputs': 24, 'targets': 3}"
PROMPTS = {
  "plain": (),
  "ept": EPT,
  "llm": (FEW, "--gin.LEARNING_RATE=0.3"),
  # At 0.3 a difference of 1e-7 between two runs grows to 0.1 in six steps.
  "llm_ept": (FEW, "--gin.LEARNING_RATE=0.01", *EPT),
}
CUT = {1: (), 8: ("--gin.MODEL_PARALLEL=2", "--gin.MICROBATCHES=2")}
TASK = "--gin.TASK_NAME='sentiment'"
STEPS = ("--gin.TRAIN_STEPS=40", "--gin.EVAL_PERIOD=20")
SUITES = "--gin.TASK_NAMES=['sentiment', 'topic']", "--gin.INITIAL_SEEDS=[0, 1]"


def files(room, verb, prompt="plain"):
  """Returns the gin files of a verb: on the embedded backbone, or on a decoder-only one."""
  if not prompt.startswith("llm"):
    return (f"{GIN}/{room}/{verb}_embedded.gin",)
  return f"{GIN}/{room}/{verb}_llm.gin", f"{GIN}/tasks/english.gin"


def train(prompt, devices):
  """Returns the command that trains one prompt."""
  made = files("t5x", "train", prompt)
  return "t5x.train", *made, TASK, *STEPS, *PROMPTS[prompt], *CUT[devices]


def bank(prompt, devices):
  """Returns the command that trains four at once."""
  made = files("t5x", "bank", prompt)
  return "t5x.train", *made, *STEPS, *SUITES, *PROMPTS[prompt], *CUT[devices]


NEAR = 1e-3
"""By so much a value of a prompt may differ that a bank and a run of its own trained: they
take sums in another order, and AdamW carries that on while values move by several units."""


@pytest.fixture(scope="module")
def shell(t5x, tmp_path_factory):
  """Gives commands from a scratch folder, which is the home folder, too."""
  return Shell(tmp_path_factory.mktemp("scratch"))


class Shell:
  def __init__(self, folder):
    self.folder, self.log = folder, folder / "log"
    stand_ins.fetched(folder / "cache")

  def start(self, module, *arguments, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    with self.log.open("w") as log:
      return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=self.folder,
        env={
          **os.environ,
          "XLA_FLAGS": flags,
          "HOME": str(self.folder),
          "XDG_CACHE_HOME": str(self.folder / "cache"),
        },
        stdout=log,
        stderr=subprocess.STDOUT,
      )

  def run(self, *call, code=0, devices=1):
    """Runs a command to its end; returns the last line that it told."""
    found = self.start(*call, devices=devices).wait()
    told = self.log.read_text()
    assert found == code, told[-6000:]
    assert code == 0 or "Traceback" not in told, told[-6000:]
    return told.splitlines()[-1]

  def kill(self, *call, run, devices=1):
    """Runs a command and kills it when it has saved step 20 and not evaluated that."""
    process = self.start(*call, devices=devices)
    saved = self.folder / run / "checkpoint_20" / "commit_success.txt"
    while process.poll() is None and not saved.exists():
      time.sleep(0.1)
    assert process.poll() is None, self.log.read_text()[-6000:]
    process.send_signal(signal.SIGKILL)
    process.wait()
    for written in (self.folder / run).rglob("best_prompt.safetensors"):
      written.unlink()  # It was faster than the signal.

  @functools.cache  # noqa: B019
  def trained(self, prompt, devices):
    """Returns the name of a run that was never stopped."""
    name = f"runs/{prompt}"
    self.run(*train(prompt, devices), f"--gin.MODEL_DIR='{name}'", devices=devices)
    assert "collection=training_eval" in self.log.read_text()  # T5X is heard.
    assert len(self.prompts(name)) == 3
    return name

  def evaluate(self, *subject, devices=1, prompt="plain"):
    """Returns the exact match under T5X, and under the standalone runner."""
    output = f"eval/{prompt}"
    lengths = PROMPTS[prompt][:1] if prompt.startswith("llm") else ()
    self.run(
      *("t5x.eval", *files("t5x", "eval", prompt), TASK, *subject, *lengths),
      *(f"--gin.OUTPUT_DIR='~/{output}'", *CUT[devices][:1]),
      devices=devices,
    )
    self.run(
      *("tpv_jax", "eval", *files("runs", "eval", prompt), *subject, *lengths),
      *("--gin.TASK_NAMES=['sentiment']", "--gin.OUTPUT='own.json'"),
      *("--gin.PREDICTIONS=True", "--gin.OVERWRITE=True"),
    )
    (metrics,) = self.folder.glob(f"{output}/inference_eval/*-metrics.jsonl")
    own = json.loads((self.folder / "own.json").read_text())
    return (
      json.loads(metrics.read_text().splitlines()[-1])["exact_match"],
      own["results"][0]["exact_match"],
    )

  def answers(self):
    """Returns the texts that the standalone runner decoded in the last `evaluate`."""
    lines = (self.folder / "own.json.predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["generated"] for line in lines]

  def prompts(self, run):
    """Returns the bytes of a run's prompts."""
    found = (self.folder / run).glob("*.safetensors")
    return {path.name: path.read_bytes() for path in found}

  def load(self, path, which="best"):
    return sources.load(self.folder / path, which)


LEAST = {"plain": 0.9, "ept": 0.9, "llm": 0.0, "llm_ept": 0.0}
"""The score at least; random weights learn nothing, and only their answers count."""


@pytest.mark.parametrize(
  ("prompt", "devices"), [("plain", 1), ("ept", 8), ("llm", 1), ("llm_ept", 8)]
)
def test_a_killed_run_ends_with_the_same_bits_and_both_runners_score_it_alike(
  prompt, devices, shell
):
  whole, killed = shell.trained(prompt, devices), f"runs/killed_{prompt}"
  call = (*train(prompt, devices), f"--gin.MODEL_DIR='~/{killed}'")
  shell.kill(*call, run=killed, devices=devices)
  shell.run(*call, "--gin.TRAIN_STEPS=20", devices=devices)  # Nothing is left to train.
  best, saved = (
    shell.load(f"{killed}/{name}.safetensors").leaves
    for name in ("best_prompt", "prompts/prompt_20")
  )
  assert identity.prompt_digest(best) == identity.prompt_digest(saved)
  shell.run(*call, devices=devices)
  assert shell.prompts(killed) == shell.prompts(whole)

  subject = f"--gin.PROMPT_PATH='runs/../{whole}'"
  score, by_own = shell.evaluate(subject, devices=devices, prompt=prompt)
  assert score == by_own
  assert score >= LEAST[prompt]
  lengths = PROMPTS[prompt][:1] if prompt.startswith("llm") else ()
  shell.run(
    *("t5x.infer", *files("t5x", "infer", prompt), TASK, subject, *lengths),
    *(f"--gin.OUTPUT_DIR='infer/{prompt}'", *CUT[devices][:1]),
    devices=devices,
  )
  (written,) = shell.folder.glob(f"infer/{prompt}/*-predict.jsonl-00000-of-00001")
  rows = [json.loads(line) for line in written.read_text().splitlines()]
  right = [row["prediction"] == row["inputs"]["targets_pretokenized"] for row in rows]
  assert np.mean(right) == score
  assert [row["prediction"] for row in rows] == shell.answers()

  shell.run("tpv_jax", "fold", whole, "-o", f"{prompt}.safetensors")
  used, folded = (
    shell.load(path).leaves
    for path in (f"eval/{prompt}/prompt.safetensors", f"{prompt}.safetensors")
  )
  assert identity.prompt_digest(used) == identity.prompt_digest(folded)
  assert not (shell.folder / "~").exists()


def test_the_runners_prompts_are_of_one_start_and_their_vectors_add_up(shell):
  whole = shell.trained("ept", 8)
  shell.run(
    *("tpv_jax", "train", f"{GIN}/runs/embedded.gin", *EPT, TASK),
    *("--gin.RUN_DIR='own'", "--gin.TRAIN_STEPS=40"),
  )
  starts = [shell.load(run, "initial").provenance for run in (whole, "own")]
  assert len({start.initial_digest for start in starts}) == 1
  assert len({start.backbone_fingerprint for start in starts}) == 1
  shell.run("tpv_jax", "diff", whole, "-o", "a.safetensors")
  shell.run("tpv_jax", "diff", "own", "-o", "b.safetensors")
  both = ("a.safetensors", "b.safetensors", "-o", "sum.safetensors")
  shell.run("tpv_jax", "sum", *both)
  score, by_own = shell.evaluate(
    *("--gin.VECTOR='sum.safetensors'", f"--gin.INITIAL='{whole}'"),
    "--gin.COEFFICIENT=0.5",
  )
  assert score == by_own
  assert score > 0.9
  score, by_own = shell.evaluate("--gin.PROMPT_PATH='own'")
  assert score == by_own


def test_a_killed_bank_ends_with_the_same_bits_and_near_the_run_of_one_prompt(shell):
  call = bank("ept", 8)
  shell.run(*call, "--gin.MODEL_DIR='bank'", devices=8)
  killed = (*call, "--gin.MODEL_DIR='killed'")
  shell.kill(*killed, run="killed", devices=8)
  shell.run(*killed, devices=8)
  for name in ("sentiment-0", "sentiment-1", "topic-0", "topic-1"):
    assert shell.prompts(f"killed/{name}") == shell.prompts(f"bank/{name}")
    assert len(shell.prompts(f"bank/{name}")) == 3

  alone = shell.load(shell.trained("ept", 8), "last").leaves
  its = shell.load("bank/sentiment-0", "last").leaves
  for leaf, value in alone.items():
    np.testing.assert_allclose(its[leaf], value, rtol=0, atol=NEAR, err_msg=leaf)
  score, by_own = shell.evaluate("--gin.PROMPT_PATH='bank/sentiment-1'")
  assert score == by_own
  assert score > 0.9
  other = ("--gin.MODEL_DIR='bank'", "--gin.TASK_NAMES=['topic', 'sentiment']")
  line = shell.run(*call, *other, code=2, devices=8)
  assert line.startswith("error: The run in ")
  assert "name: sentiment-0 there, topic-0 now" in line


def test_a_bank_of_a_decoder_only_model_is_near_the_run_of_one_prompt(shell):
  shell.run(*bank("llm_ept", 8), "--gin.MODEL_DIR='bank_llm'", devices=8)
  alone = shell.load(shell.trained("llm_ept", 8), "last").leaves
  its = shell.load("bank_llm/sentiment-0", "last").leaves
  for leaf, value in alone.items():
    np.testing.assert_allclose(its[leaf], value, rtol=0, atol=NEAR, err_msg=leaf)
  score, by_own = shell.evaluate(
    "--gin.PROMPT_PATH='bank_llm/sentiment-1'", prompt="llm_ept"
  )
  assert score == by_own


def test_bad_input_is_one_line_before_the_first_step(shell):
  whole = shell.trained("plain", 1)
  shell.run("tpv_jax", "diff", whole, "-o", "v.safetensors")
  evaluate = ("t5x.eval", *files("t5x", "eval"), TASK)
  new = "--gin.MODEL_DIR='new'"
  for call, told in (
    (
      (*train("plain", 1), f"--gin.MODEL_DIR='{whole}'", "--gin.PROMPT_LENGTH=9"),
      "another prompt",
    ),
    ((*train("ept", 1), new, "--gin.SOURCE_LENGTH=16"), "up to 24 tokens"),
    (
      (*train("plain", 1), new, "--gin.MODEL_PARALLEL=3"),
      "MODEL_PARALLEL=3 does not divide",
    ),
    ((*train("plain", 1), new, "--gin.BACKBONE='nothing'"), "There is no backbone"),
    (
      (*train("plain", 1), new, "--gin.TASK_NAME='sentimen'"),
      "Did you mean 'sentiment'?",
    ),
    (
      (*evaluate, "--gin.OUTPUT_DIR='new'", "--gin.PROMPT_PATH='v.safetensors'"),
      "holds a vector",
    ),
  ):
    line = shell.run(*call, code=2)
    assert line.startswith("error: ")
    assert told in line
    assert not list((shell.folder / "new").rglob("*.safetensors"))
