"""Argument lines of the verbs of `tpv` that take no gin files."""

import argparse
import json
import pathlib
import random

from fuzz import mutations
from fuzz.campaign import Kind
from fuzz.inputs import backbones, prompts

_WHOLE = (
  *("a.safetensors", "v.safetensors", "initial.safetensors", "p.npy", "p.npz:a", "run"),
  *("v.safetensors", "v.safetensors", "w.safetensors", "adapter", "glue_rte"),
)
_INPUTS = (
  *("a.safetensors", "v.safetensors", "initial.safetensors", "p.npy", "p.npz", "run"),
  *(
    "b.safetensors",
    "adapter",
    ".",
    "no",
    "",
    "a b",
    "\0",
    "x" * 5000,
    "p.npz:no",
    "-",
  ),
  *(
    "~",
    "~nobody",
    "~/x",
    "é\udcff",
    "\x1b[31m",
    "run/",
    "./a.safetensors",
    "/dev/null",
  ),
  *("s3://x/y", "file://a.safetensors", "hf://x", "checkpoint_5", "run/checkpoints"),
  *(
    "glue_rte",
    "glue_rt",
    "embedded",
    "sst2",
    "*",
    "a\nb",
    "/proc/self/mem",
    "p.npz:a",
  ),
)
_OUTPUTS = (
  *("out.safetensors", "out.npz", "out.npy", "out", "out/x/y.safetensors", ""),
  *("a.safetensors", "x" * 300 + ".safetensors", "out.bin", "checkpoint_7", ".", "run"),
  *("out\n.safetensors", "\x1b[1m.safetensors", "é\udcff.safetensors", "run/x.npy"),
)
_VALUES = (
  *("0", "1", "-1", "0.5", "nan", "inf", "-inf", "1e999", "1e-320", "x", "", "-", "--"),
  *("9" * 400, "1_0", "0x1", "٣", "1,2", "True", "None", "2**3", "99999999999"),
)


def _make() -> None:
  prompts._make_prompt()
  prompts._make_run()
  prompts._make_npy()
  prompts._make_npz()
  prompts._make_our_adapter()
  backbones._make_ours()
  pathlib.Path("arguments.json").write_text('["show", "a.safetensors"]')


def _drawn(parser: argparse.ArgumentParser, rng: random.Random) -> list[str]:
  """Returns arguments that a parser may take, or nearly so."""
  words: list[str] = []
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      name = rng.choice([*action.choices, rng.choice(_VALUES)])
      words.append(name)
      if name in action.choices:
        words += _drawn(action.choices[name], rng)
      continue
    if action.dest == "debug":  # It asks for the trace.
      continue
    if action.dest in ("help", "version") and rng.random() < 0.98:
      continue
    if action.option_strings:
      if not action.required and rng.random() < 0.75:
        continue
      if action.required and rng.random() < 0.05:
        continue
      words.append(rng.choice(action.option_strings))
      if action.nargs == 0:
        continue
    number = 1
    if action.nargs in ("+", "*"):
      number = rng.randrange(4)
    elif action.nargs == "?":
      number = rng.randrange(2)
    words += [_word(action, rng) for _ in range(number)]
  return words


def takes_gin_files(parser: argparse.ArgumentParser) -> bool:
  """Returns whether a verb's settings are those of gin files: see settings.py."""
  return parser.get_default("gin_file") is not None


def _word(action: argparse.Action, rng: random.Random) -> str:
  if action.choices and rng.random() < 0.9:
    return str(rng.choice(list(action.choices)))
  if action.dest in ("output", "data_dir"):
    return rng.choice(_OUTPUTS)
  if action.type is not None and rng.random() < 0.9:
    return rng.choice(_VALUES)
  return rng.choice(rng.choice((_WHOLE, _WHOLE, _WHOLE, _INPUTS, _VALUES)))


def _damage(folder: pathlib.Path, rng: random.Random) -> mutations.Done:
  from tpv_jax.cli import verbs

  parsers = {name: verbs.parser_of(name) for name in verbs.VERBS}
  name = rng.choice([name for name in parsers if not takes_gin_files(parsers[name])])
  words = [name, *_drawn(parsers[name], rng)]
  kind = rng.randrange(8)
  if kind == 0 and words:
    del words[rng.randrange(len(words))]
  elif kind == 1:
    words.insert(rng.randrange(len(words) + 1), rng.choice(_VALUES))
  elif kind == 2 and words:
    words.append(rng.choice([one for one in words if one not in _INPUTS] or ["x"]))
  (folder / "arguments.json").write_text(json.dumps(words))
  return mutations.Done(f"tpv {' '.join(map(repr, words))}"[:500])


def _run(_: random.Random) -> int:
  from tpv_jax import cli

  return cli.main(json.loads(pathlib.Path("arguments.json").read_text()))


_MAY = (
  "out*",
  "*.safetensors",
  "*.npy*",
  "*.npz*",
  "checkpoint_7",
  "run/x*",
  "?[[]1m*",
)

KINDS = {
  "tpv's arguments": Kind(
    _make, _run, _damage, outputs=_MAY, changes=("*.safetensors", "run")
  ),
}
