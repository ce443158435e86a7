"""What a message advises is done as printed, and helps.

A case is a call that is refused, a pattern of the message whose groups are the advice,
and the calls that follow it. What else a message may say is left open.
"""

import contextlib
import re
import shlex
import shutil

import pytest
import stand_ins

from tpv_jax import cli
from tpv_jax.core.errors import UserError
from tpv_jax.formats import sources
from tpv_jax.vectors import algebra, store

ALLOW = r"pass (--[\w-]+)"
LEAVE_OUT = r"[Ll]eave out (--[\w-]+)"

CASES = {
  "an initial prompt for a checkpoint": (
    "diff t5x/checkpoint_9000 -o new.safetensors",
    r"tpv (diff \S+) INITIAL (-o \S+)\.$",
    "{0} t5x/checkpoint_0 {1}",
  ),
  "vectors of two initial prompts": (
    "sum sst2.safetensors far.safetensors -o s.safetensors",
    ALLOW,
    "{call} {0}",
  ),
  "a difference to another initial prompt": (
    "diff runs/sst2 other_init.safetensors -o new.safetensors",
    ALLOW,
    "{call} {0}",
  ),
  "a difference of two tasks": (
    "diff runs/sst2 runs/rte/best_prompt.safetensors -o new.safetensors",
    r"use 'tpv (sum) V1 V2 (.*?)'",
    "{0} sst2.safetensors rte.safetensors {1} -o w.safetensors",
  ),
  "an unknown backbone, allowed": (
    "sum unknown.safetensors unknown2.safetensors -o s.safetensors",
    ALLOW,
    "{call} {0}",
  ),
  "an unknown backbone, stated": (
    "apply unknown.safetensors t5x/checkpoint_0 -o p.safetensors",
    r"\(tpv diff (--backbone)\)",
    "diff t5x/checkpoint_9000 t5x/checkpoint_0 {0} t5_base.safetensors"
    " -o unknown.safetensors --overwrite\n"
    "import t5x/checkpoint_0 {0} t5_base.safetensors -o start.safetensors\n"
    "apply unknown.safetensors start.safetensors -o p.safetensors",
  ),
  "a task that is known": (
    "diff runs/sst2 -o new.safetensors --task rte",
    LEAVE_OUT,
    "{without}",
  ),
  "an alpha that is known": (
    "fold runs/ept_sst2 -o new.safetensors --alpha 9",
    LEAVE_OUT,
    "{without}",
  ),
  "an alpha of a plain prompt": (
    "import runs/sst2 -o new.safetensors --alpha 8",
    LEAVE_OUT,
    "{without}",
  ),
  "an alpha of plain prompts": (
    "diff runs/sst2 -o new.safetensors --alpha 8",
    LEAVE_OUT,
    "{without}",
  ),
  "an ending of another format": (
    "export runs/sst2 --to npz -o new.npy",
    r"Name the output '(\S+)'",
    "export runs/sst2 --to npz -o {0}",
  ),
  "a backbone that is known": (
    "import runs/sst2 -o new.safetensors --backbone t5_base.safetensors",
    LEAVE_OUT,
    "{without}",
  ),
  "an origin that is known": (
    "import runs/sst2 -o new.safetensors --initial other_init.safetensors",
    LEAVE_OUT,
    "{without}",
  ),
  "a run without its best prompt": (
    "diff runs/last_only -o new.safetensors",
    r"pass (--which \w+)",
    "{call} {0}",
  ),
  "parameters without their alpha": (
    "fold t5x/ept/checkpoint_9000 -o new.safetensors",
    r"\((--alpha) of tpv fold",
    "{call} {0} 8",
  ),
  "vectors of two spaces": (
    "sum ept.safetensors factors.safetensors -o s.safetensors",
    r"tpv (diff), with or without (--space factor)",
    "{0} runs/ept_sst2 {1} -o ept.safetensors --overwrite\n{call}",
  ),
  "factors of two initial prompts": (
    "apply factors.safetensors runs/ept_far -o p.safetensors",
    r"(effective) space, which can be applied to any",
    "diff runs/ept_rte --space {0} -o factors.safetensors --overwrite\n{call}",
  ),
  "a prompt where a vector is needed": (
    "negate runs/sst2 -o n.safetensors",
    r"tpv (diff \S+) \[INITIAL\] -o V.safetensors",
    "{0} -o V.safetensors\nnegate V.safetensors -o n.safetensors",
  ),
  "a form that no name tells": (
    "convert tiny_t5 -o folder",
    r"Give (--to hugging-face)",
    "{call} {0}",
  ),
  "a checkpoint's name": (
    "convert tiny_t5 -o folder --to t5x",
    r"Name the output '(\S+)'",
    "convert tiny_t5 -o {0} --to t5x",
  ),
  "a form that the name contradicts": (
    "convert tiny_t5 -o x.safetensors --to hugging-face",
    LEAVE_OUT,
    "{without}",
  ),
  "a file that exists": (
    "negate sst2.safetensors -o rte.safetensors",
    r"replaced: (--\w+)\.",
    "{call} {0}",
  ),
  "pictures that exist": (
    "inspect runs/ept_sst2 -o pictures",
    r"replaced: (--\w+)\.",
    "{call} {0}",
  ),
  "a delta in a .npy file": (
    "export runs/ept_sst2 --to npy -o p.npy",
    r"tpv (fold), tpv (export --to npz)\)",
    "{0} runs/ept_sst2 -o folded.safetensors\n{1} folded.safetensors -o p.npz",
  ),
  "a delta in an adapter": (
    "export runs/ept_sst2 --to peft -o adapter",
    r"tpv (fold), tpv (export --to npz)\)",
    "{0} runs/ept_sst2 -o folded.safetensors\n{1} folded.safetensors -o p.npz",
  ),
  "a rank over the budget": (
    "budget --short-length 40 --rank 60",
    r"no (--rank)\)",
    "{without}",
  ),
  "a misspelt task": (
    "tasks show glue_sst",
    r"Did you mean '(\w+)'",
    "tasks show {0}",
  ),
  "a misspelt path": (
    "show runs/rt",
    r"Did you mean '(\S+?)'",
    "show runs/{0}",
  ),
  "a call without its output": (
    "negate sst2.safetensors",
    r"'tpv (negate --help)'",
    "{0}",
  ),
}


def world(folder, calls):
  """Makes what calls name: runs, vectors, models, and what is made of those."""
  stand_ins.make(
    folder, f"{calls} sst2.safetensors rte.safetensors runs/rte", {"adapter"}
  )
  (folder / "t5x").mkdir(exist_ok=True)
  made = {
    "unknown": "diff t5x/checkpoint_9000 t5x/checkpoint_0 -o {}",
    "unknown2": "diff t5x/checkpoint_9000 t5x/checkpoint_0 -o {}",
    "ept": "diff runs/ept_sst2 -o {}",
    "factors": "diff runs/ept_rte --space factor -o {}",
  }
  for name, call in made.items():
    if f" {name}.safetensors" in calls:
      stand_ins.make(folder, call, set())
      assert tpv(call.format(f"{name}.safetensors")) == 0
  if "runs/last_only" in calls:
    stand_ins.run(folder / "runs" / "last_only")
    (folder / "runs" / "last_only" / "best_prompt.safetensors").unlink()
  if "-o pictures" in calls:
    assert tpv("inspect runs/ept_sst2 -o pictures") == 0


def tpv(call):
  return cli.main(shlex.split(call))


@pytest.mark.parametrize("case", CASES)
def test_the_advice_of_tpv_helps(case, tmp_path, monkeypatch, capsys):
  call, pattern, then = CASES[case]
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs").mkdir()
  world(tmp_path, f"{call} {then}")
  capsys.readouterr()
  assert tpv(call) == 2
  said = capsys.readouterr().err
  advice = re.search(pattern, said.strip())
  assert advice, said
  flag = advice.groups()[0]
  without = re.sub(rf" {flag} \S+", "", call)
  for following in then.format(*advice.groups(), call=call, without=without).split(
    "\n"
  ):
    code = tpv(following)
    assert code == 0, f"{said}{following}\n{capsys.readouterr().err}"


def test_in_python_a_message_names_arguments(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  stand_ins.make(tmp_path, "sst2.safetensors far.safetensors", set())
  two = [sources.load("sst2.safetensors"), sources.load("far.safetensors")]
  with pytest.raises(UserError) as refused:
    algebra.sum_vectors(two)
  name = re.search(r"pass (\w+)=True", str(refused.value))[1]
  total = algebra.sum_vectors(two, **{name: True})
  with pytest.raises(UserError) as refused:
    store.write("sst2.safetensors", total.leaves, total.provenance)
  name = re.search(r"replaced: (\w+)=True", str(refused.value))[1]
  store.write("sst2.safetensors", total.leaves, total.provenance, **{name: True})


RUNS = "--gin_file=gin_configs/runs"
EVAL = f"tpv eval {RUNS}/eval_embedded.gin"
TRAIN = (
  f"tpv train {RUNS}/embedded.gin --gin.TASK_NAME='\"topic\"' --gin.RUN_DIR='\"new\"'"
)
EPT = TRAIN.replace("embedded.gin", "embedded_ept.gin")

GIN_CASES = {
  "predictions without a place": (
    f"{EVAL} --gin.PREDICTIONS=True",
    r"give (--gin\.\w+) as well",
    "{call} {0}='\"results.json\"'",
  ),
  "a search without a vector": (
    f"{EVAL} --gin.SEARCH=True",
    r"give (--gin\.\w+) and (--gin\.\w+) as well",
    "{call} {0}='\"sst2.safetensors\"' {1}='\"runs/rte\"'",
  ),
  "a coefficient without a vector": (
    f"{EVAL} --gin.INITIAL='\"runs/rte\"'",
    r"give (--gin\.\w+) as well",
    "{call} {0}='\"sst2.safetensors\"'",
  ),
  "an initial prompt alone": (
    f"{EVAL} --gin.INITIAL='\"runs/rte\"'",
    r"(PROMPT_PATH) with (--gin\.\S+)\.\)",
    EVAL + " --gin.{0}='\"runs/rte\"' {1}",
  ),
  "a vector without an initial prompt": (
    f"{EVAL} --gin.VECTOR='\"sst2.safetensors\"'",
    r"give (--gin\.\w+) as well",
    "{call} {0}='\"runs/rte\"'",
  ),
  "a vector where a prompt is needed": (
    f"{EVAL} --gin.PROMPT_PATH='\"sst2.safetensors\"'",
    r"as (--gin\.\w+) with (--gin\.\w+)",
    EVAL + " {0}='\"sst2.safetensors\"' {1}='\"runs/rte\"'",
  ),
  "a run without its best prompt": (
    f"{EVAL} --gin.PROMPT_PATH='\"runs/last_only\"'",
    r"pass (--gin\.\S+?)\.$",
    "{call} {0}",
  ),
  "results that exist": (
    f"{EVAL} --gin.OUTPUT='\"sst2.safetensors\"'",
    r"replaced: (--gin\.\S+)\.$",
    "{call} {0}",
  ),
  "a task that is not evaluated": (
    f"{EVAL} --gin.PROMPT_PATH='\"runs/topic\"' --gin.OWN_TASKS=True"
    " --gin.TASK_NAMES='[\"sentiment\"]'",
    r"(OWN_TASKS) = (False)",
    "{call} --gin.{0}={1}",
  ),
  "a sum of two initial prompts": (
    f'{EVAL} --gin.VECTOR=\'[["sst2.safetensors", "far.safetensors"]]\''
    " --gin.INITIAL='\"runs/rte\"'",
    r"pass (--\S+) to '(tpv sum)'",
    "{1} sst2.safetensors far.safetensors {0} -o sum.safetensors\n"
    f"{EVAL} --gin.VECTOR='\"sum.safetensors\"' --gin.INITIAL='\"runs/rte\"'",
  ),
  "a batch that does not divide": (
    f"{TRAIN} --gin.BATCH_SIZE=15 --gin.MICROBATCHES=2",
    r"a multiple of (\d+)",
    "{call} --gin.BATCH_SIZE={0}",
  ),
  "devices that do not divide": (
    f"{TRAIN} --gin.MODEL_PARALLEL=3",
    r"Choose one of (\d+)",
    "{call} --gin.MODEL_PARALLEL={0}",
  ),
  "more rows than tokens": (
    f"{TRAIN} --gin.PROMPT_LENGTH=1000",
    r"Set (PROMPT_LENGTH) to at most (\d+)",
    "{call} --gin.{0}={1}",
  ),
  "more rows than tokens, drawn": (
    f"{TRAIN} --gin.PROMPT_LENGTH=1000",
    r"set (INITIAL_PROMPT) to (@\S+?)\.$",
    "{call} --gin.{0}={1}",
  ),
  "a rank over the budget": (
    f"{EPT} --gin.RANK=20",
    r"largest rank found \((RANK) = (@budget\.rank\(\))\)",
    "{call} --gin.{0}={1}",
  ),
  "a budget without a rank": (
    f"{EPT} --gin.PROMPT_LENGTH=23",
    r"set (RANK) and (FUSION_WIDTH) to 0",
    "{call} --gin.{0}=0 --gin.{1}=0",
  ),
  "sources longer than the update": (
    f"{EPT} --gin.SOURCE_LENGTH=16",
    r"\((LENGTHS)\) to at most (\d+)",
    '{call} --gin.{0}=\'{{"inputs": {1}, "targets": 2}}\'',
  ),
  "rates chosen on a prompt that is compared": (
    f"tpv ablation {RUNS}/ablation.gin --gin.OUTPUT_DIR='\"new\"' --gin.TUNING_SEED=1",
    r"Set (TUNING_SEED) to",
    "{call} --gin.{0}=99",
  ),
  "a folder that holds something else": (
    TRAIN.replace("new", "runs"),
    "Choose another folder",
    "{call} --gin.RUN_DIR='\"new\"'",
  ),
  "a group without a rate": (
    f'{EPT} --gin.GROUP_RATES=\'{{"prompt": 1.0, "low_rank": 1.0, "spaces": 1.0}}\'',
    r"Add '(\w+)' to (GROUP_RATES)",
    EPT + " --gin.{1}='"
    '{{"prompt": 1.0, "low_rank": 1.0, "spaces": 1.0, "{0}": 1.0}}'
    "'",
  ),
}


def run(call):
  """Runs a call of `tpv`, of a verb with gin files up to where its work begins."""
  tpv, *arguments = shlex.split(call)
  assert tpv == "tpv"
  return stand_ins.begin(arguments)


@pytest.mark.parametrize("case", GIN_CASES)
def test_the_advice_of_commands_with_gin_files_helps(case, tmp_path, capsys):
  call, pattern, then = GIN_CASES[case]
  with contextlib.chdir(tmp_path):
    (tmp_path / "runs").mkdir()
    world(tmp_path, f"{call} {then}".replace('"', " "))
    capsys.readouterr()
    assert run(call) == 2
    said = capsys.readouterr().err
    advice = re.search(pattern, said.strip())
    assert advice, said
    for following in then.format(*advice.groups(), call=call).split("\n"):
      code = run(following)
      assert code == 0, f"{said}{following}\n{capsys.readouterr().err}"
      shutil.rmtree("new", ignore_errors=True)
