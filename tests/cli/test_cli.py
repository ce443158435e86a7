"""What every command of `tpv` has in common; each room tests its own commands."""

import argparse
import re

import pytest

from tpv_jax import __version__, cli


def parsers():
  """The parser of `tpv` under '', and that of each command under its name."""
  parser = cli.build_parser()
  (commands,) = (
    action
    for action in parser._actions
    if isinstance(action, argparse._SubParsersAction)
  )
  return {"": parser, **commands.choices}


@pytest.mark.parametrize("command", parsers())
def test_help_of_every_command_has_an_example(command, capsys):
  assert cli.main([*filter(None, [command]), "--help"]) == 0
  printed = capsys.readouterr().out
  assert "examples:\n  tpv " in printed
  assert max(map(len, printed.splitlines())) <= 96
  if not command:
    assert all(f"\n    {name} " in printed for name in parsers() if name)


def test_descriptions_in_the_help_have_no_margin_whichever_python_shows_them():
  """Python keeps the margin of a docstring up to 3.12, and drops it from 3.13 on."""
  for parser in parsers().values():
    lines = parser.description.split("\n\nexamples:")[0].splitlines()
    assert not [line for line in lines if line.startswith(" ")], parser.prog


def test_the_examples_of_the_help_are_calls_that_parse():
  calls = [
    line.strip().split("   ")[0].split()[1:]
    for parser in parsers().values()
    for line in re.sub(r" *\\\n *", " ", parser.epilog).splitlines()
    if line.strip().startswith("tpv ")
  ]
  assert {call[0] for call in calls} == {name for name in parsers() if name}
  for call in calls:
    cli.build_parser().parse_args(call)


def test_the_version_is_that_of_the_package(capsys):
  assert cli.main(["--version"]) == 0
  assert capsys.readouterr().out == f"tpv_jax {__version__}\n"


def test_a_second_double_dash_is_refused(capsys):
  """Up to Python 3.12 argparse makes an empty list of it, where a path is expected."""
  assert cli.main(["apply", "-o", "x", "--", "v", "--"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: '--' is given twice") and error.count("\n") == 1
