"""What every verb of `tpv` has in common; each verb has its own tests beside."""

import argparse
import re
import shlex
import signal
import subprocess
import sys

import pytest

from tpv_jax import __version__, cli
from tpv_jax.cli import verbs
from tpv_jax.core import errors

COMPUTE = (
  *("train", "bank", "eval", "infer", "prompts"),
  *("study", "few-shot", "merging", "moving", "ablation", "merge-by-data"),
)
"""Verbs that compute where JAX finds an accelerator."""


def helped(capsys, *arguments):
  """Returns what --help prints."""
  assert cli.main([*arguments, "--help"]) == 0
  return capsys.readouterr().out


def examples(text):
  """The calls of `tpv` among the examples of a help, those of one verb completed."""
  text = text.split("\nexamples:\n")[1]
  calls = []
  for line in re.sub(r" *\\\n *", " ", text).splitlines():
    line = re.sub(r"(?<=\S)   +\S.*", "", line.strip())
    if line.startswith("... "):
      calls.append(calls[-1] + shlex.split(line)[1:])
    elif line.startswith("tpv "):
      calls.append(shlex.split(line)[1:])
  assert calls
  return calls


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_a_verb_is_a_module_of_its_own_that_describes_itself(verb, capsys):
  module = verbs.load(verb)
  assert module.__name__ == verbs.VERBS[verb][0]
  assert isinstance(module, verbs.Verb)
  assert isinstance(module.ON_CPU, bool)
  printed = helped(capsys, verb)
  assert printed.startswith(f"usage: tpv {verb} [-h]")
  assert module.__doc__.split("\n")[0] in printed


@pytest.mark.parametrize("verb", ["", *verbs.VERBS])
def test_the_examples_of_the_help_are_calls_that_parse(verb, capsys):
  printed = helped(capsys, *filter(None, [verb]))
  assert max(map(len, printed.splitlines())) <= 96
  for call in examples(printed):
    assert not verb or call[0] == verb
    try:
      cli.parse(call)
    except SystemExit as done:  # As --help: --list of tpv merge prints and ends.
      if done.code:
        raise


def test_the_help_lists_every_verb_under_its_group(capsys):
  listed, group = {}, None
  for line in helped(capsys).split("\noptions:")[0].splitlines():
    if re.fullmatch(r"[a-z, ]+:", line):
      group = listed.setdefault(line.rstrip(":"), [])
    elif group is not None and line.startswith("  "):
      group.append(line.split()[0])
  assert list(listed) == [
    *("train and evaluate", "studies", "vectors"),
    *("models and files of other tools", "tasks", "planning"),
  ]
  assert listed == {name: list(group) for name, group in verbs.GROUPS.items()}


def test_descriptions_in_the_help_have_no_margin_whichever_python_shows_them():
  """Python keeps the margin of a docstring up to 3.12, and drops it from 3.13 on."""
  for verb in verbs.VERBS:
    lines = verbs.parser_of(verb).description.splitlines()
    assert not [line for line in lines if line.startswith(" ")], verb


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_only_verbs_that_compute_take_an_accelerator(verb, monkeypatch, capsys):
  """Or a prompt would be trained on the CPU of a machine with a GPU, in silence."""
  call = next(call for call in examples(helped(capsys, verb)) if call[0] == verb)
  seen = []

  def run(options):
    seen.append(cli.os.environ.get("JAX_PLATFORMS"))

  monkeypatch.setattr(verbs.load(verb), "run", run)
  monkeypatch.setenv("JAX_PLATFORMS", "")  # So that what the verb sets is undone.
  monkeypatch.delenv("JAX_PLATFORMS")
  assert cli.main(call) == 0
  assert seen == [None if verb in COMPUTE else "cpu"]
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  assert cli.main(call) == 0
  assert seen[1:] == ["cuda"]


@pytest.mark.parametrize(
  ("arguments", "line"),
  [
    ([], "No verb was given."),
    (["trian"], "There is no verb 'trian'. Did you mean 'train', 'merging'?"),
    (["train_bank"], "There is no verb 'train_bank'. Did you mean 'train', 'bank'?"),
    (["few_shot", "--help"], "There is no verb 'few_shot'. Did you mean 'few-shot', "),
    (["xyzzy"], "There is no verb 'xyzzy'. 'tpv --help' lists them."),
    (["--debug", "train"], "unrecognized arguments: --debug train"),
    ([""], "There is no verb ''."),
    (["a\nb\x1b[2J"], r"There is no verb 'a b\x1b[2J'."),
  ],
)
def test_what_is_no_verb_is_one_line_with_near_misses(capsys, arguments, line):
  assert cli.main(arguments) == 2
  printed = capsys.readouterr()
  assert printed.err.startswith(f"error: {line}")
  assert printed.err.count("\n") == 1
  assert "'tpv --help'" in printed.err
  assert not printed.out


def test_the_version_is_that_of_the_package(capsys):
  assert cli.main(["--version"]) == 0
  assert capsys.readouterr().out == f"tpv_jax {__version__}\n"


def test_a_second_double_dash_is_refused(capsys):
  """Up to Python 3.12 argparse makes an empty list of it, where a path is expected."""
  assert cli.main(["apply", "-o", "x", "--", "v", "--"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: '--' is given twice")
  assert error.count("\n") == 1


def test_a_call_is_kept_as_it_can_be_given_again():
  call = ["few-shot", "--gin_file=a.gin", "--gin.OUTPUT_DIR='a b'"]
  _, options = cli.parse(call)
  assert isinstance(options, argparse.Namespace)
  assert shlex.split(options.call) == ["tpv", *call]


@pytest.mark.parametrize(
  ("call", "expected"),
  [
    (["train", "--gin_file=x"], errors._end_at_once),
    (["show", "x"], signal.default_int_handler),
  ],
)
def test_ctrl_c_ends_a_verb_with_gin_files_at_once_until_its_work_begins(
  call, expected, monkeypatch
):
  """What such a verb imports first would raise anything if it were interrupted."""
  seen = []
  monkeypatch.setattr(
    verbs.load(call[0]), "run", lambda _: seen.append(signal.getsignal(signal.SIGINT))
  )
  monkeypatch.setattr(sys, "argv", ["tpv", *call])
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    assert cli.main() == 0
  finally:
    signal.signal(signal.SIGINT, before)
  assert seen == [expected]


def test_a_verb_that_fails_among_several_processes_ends_without_jaxs_own_way_out(
  monkeypatch, capsys
):
  """Which waits for processes that are lost."""
  codes = []
  monkeypatch.setattr(cli.os, "_exit", codes.append)
  flags = ["--multiprocess_gpu", "--gin_file=x"]
  for error, code in ((errors.UserError("Lost."), 2), (KeyboardInterrupt(), 130)):

    def run(_, error=error):
      raise error

    monkeypatch.setattr(verbs.load("eval"), "run", run)
    assert cli.main(["eval", *flags]) == code == codes[-1]
    assert cli.main(["eval", "--gin_file=x"]) == code
  assert codes == [2, 130]


@pytest.mark.parametrize("call", ["--help", "trian", "negate --help", "train --help"])
def test_no_module_of_a_verb_is_imported_but_that_of_the_one_that_is_called(call):
  code = (
    "import sys\n"
    "from tpv_jax import cli\n"
    "cli.main(sys.argv[1:])\n"
    "print(*sys.modules, file=sys.stderr)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, *call.split()],
    capture_output=True,
    text=True,
    check=True,
  )
  loaded = set(done.stderr.split())
  of_verbs = {name for name, (module, _) in verbs.VERBS.items() if module in loaded}
  assert of_verbs == {call.split()[0]} & set(verbs.VERBS)
  assert "numpy" not in loaded or call.startswith("negate")
