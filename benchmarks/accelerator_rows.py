"""The rows of `accelerator.py`, in order of worth: a command of this folder each.

Imports the standard library.
"""

import dataclasses
import shlex
from collections.abc import Mapping

PEFT = ("torch", "transformers", "peft")


@dataclasses.dataclass(frozen=True)
class Row:
  """A measurement: a command with the option --output.

  Attributes:
    name: also the name of its file.
    about: what it answers.
    script: in this folder.
    arguments: on an accelerator; {folder} is that of the results, {weights} that of random
      weights.
    tiny: in a dry run.
    start: seconds until it can be timed, with nothing compiled before (an estimate).
    timed: seconds from there on (an estimate).
    sizes: whose random weights it reads, as of `weights.py`.
    needs: packages.
    processes: whether it has several processes on the device.
    carried: whether it needs what `smollm2_study.py` says; {carried} is that folder.
    environment: variables of its own.
  """

  name: str
  about: str
  script: str
  arguments: tuple[str, ...]
  tiny: tuple[str, ...]
  start: int
  timed: int
  sizes: tuple[str, ...] = ()
  needs: tuple[str, ...] = ()
  processes: bool = False
  carried: bool = False
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _against(
  name: str,
  about: str,
  size: str,
  words: str,
  tiny: str,
  seconds: tuple[int, int],
  needs: tuple[str, ...] = PEFT,
) -> Row:
  """Returns a row of `against_peft.py`."""
  of_tiny = "tiny" if size == "base" else "llama_tiny"
  return Row(
    name,
    about,
    "against_peft.py",
    (
      f"--size={size}",
      f"--weights={{weights}}/{size}.safetensors",
      *shlex.split(words),
    ),
    (
      *(f"--size={of_tiny}", f"--weights={{weights}}/{of_tiny}.safetensors"),
      *("--dtype=float32", "--prompt-length=20", *shlex.split(tiny)),
    ),
    *seconds,
    sizes=(size,),
    needs=needs,
    processes=True,
  )


def _one(name: str, about: str, size: str, words: str, seconds: tuple[int, int]) -> Row:
  """Returns a row of one prompt, 32 examples a step, each side at its best in bf16."""
  return _against(
    name,
    about,
    size,
    f"--only c --dtypes bfloat16 --batch=32 --groups=14 --rounds=5 {words}",
    "--only c --dtypes float32 --batch=2 --groups=1 --rounds=2 --no-compile",
    seconds,
  )


ROWS: tuple[Row, ...] = (
  Row(
    "correct",
    "logits and 20 steps against the CPU, packed against unpacked, equal bits twice",
    "device_check.py",
    (),
    ("--steps=3",),
    start=60,
    timed=0,
  ),
  _one(
    "t5-one",
    "one prompt on T5-base, against PEFT with dynamic padding",
    "base",
    "--no-compile",
    (80, 25),
  ),
  _against(
    "t5-banks",
    "banks of 1, 4, 16, 64 on T5-base, against PEFT padded to 256 and dynamic",
    "base",
    "--only bank --banks 1 4 16 64 --bank-rounds=3 --bank-steps=1",
    "--only bank --banks 1 2 --bank-rounds=2 --bank-steps=1 --bank-batch=2",
    (90, 60),
    needs=(),
  ),
  Row(
    "t5-parts",
    "a large call: its kernels, forms of attention, compile times",
    "step_parts.py",
    (
      *("--size=base", "--batch=32", "--rounds=15", "--profile"),
      *("--only", "now", "xla", "cudnn", "attention", "remat"),
    ),
    (
      *("--size=tiny", "--batch=2", "--rounds=2", "--profile", "--dtype=float32"),
      *("--source-length=16", "--prompt-length=4", "--only", "now", "xla"),
    ),
    start=110,
    timed=15,
    # What is compiled here is compiled anew, so that its time is that of compiling.
    environment={"JAX_ENABLE_COMPILATION_CACHE": "false"},
  ),
  _against(
    "t5-blocks",
    "a bank of 16 in blocks of 4,096 to 131,072 positions: several calls a step, or one",
    "base",
    "--only bank --banks 16 --bank-batch=32 --bank-rounds=5 "
    "--wide-positions 4096 16384 65536 131072 --leave-out PEFT",
    "--only bank --banks 2 --bank-batch=2 --bank-rounds=2 --wide-positions 256 1024 "
    "--leave-out PEFT",
    (70, 15),
    needs=(),
  ),
  _against(
    "t5-evaluation",
    "the vectors of 8 tasks times 21 coefficients, against PEFT",
    "base",
    "--only evaluation --evaluation-examples=32 --evaluation-rounds=2 "
    "--leave-out 'PEFT, generating, padded'",
    "--only evaluation --tasks=2 --coefficients=2 --evaluation-examples=2 "
    "--evaluation-rounds=2",
    (60, 130),
    needs=(),
  ),
  Row(
    "t5-ept",
    "a step of EPT against one of plain tuning",
    "ept_cost.py",
    (
      *("--size=t5_v1_0_base", "--batch=32", "--dtype=bfloat16", "--repetitions=20"),
      *("--short-length", "20", "40", "60"),
    ),
    (
      *("--size=t5_v1_0_tiny", "--batch=2", "--dtype=float32", "--repetitions=2"),
      *("--prompt-length=60", "--source-length=64", "--short-length", "20"),
    ),
    start=90,
    timed=15,
  ),
  _one(
    "llama-135m",
    "one prompt on SmolLM2's sizes, against PEFT",
    "smollm2_135m",
    "--no-compile --prompt-length=20",
    (80, 30),
  ),
  _one(
    "llama-1b",
    "one prompt on the sizes of Llama 3.2 1B, against PEFT",
    "llama_3_2_1b",
    "--no-compile --prompt-length=20",
    (110, 45),
  ),
  _one(
    "t5-compiled",
    "one prompt on T5-base, against PEFT with torch.compile",
    "base",
    "",
    (200, 30),
  ),
  _against(
    "llama-1b-quantised",
    "the same in 8 and 4 bits",
    "llama_3_2_1b",
    "--only quantised --batch=32 --groups=14 --rounds=5 --prompt-length=20",
    "--only quantised --batch=2 --groups=1 --rounds=2",
    (80, 20),
    needs=("qwix",),
  ),
  Row(
    "smollm2-study",
    "real language: the smoke study of vectors on SmolLM2",
    "smollm2_study.py",
    ("--carried={carried}", "--work={folder}/smollm2"),
    (
      *("--carried={carried}", "--work={folder}/smollm2", "--gin", "TRAIN_STEPS=2"),
      "study.study.test_examples=4",
    ),
    start=60,
    timed=200,
    carried=True,
  ),
)
