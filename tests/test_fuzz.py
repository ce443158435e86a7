"""What damaged inputs do: see `fuzz`, whose command runs 20,000 mutations of each kind."""

import importlib.util
import random
import shutil

import pytest
from fuzz import campaign, inputs, mutations

LIGHT = [
  *inputs.prompts.KINDS,
  *inputs.backbones.KINDS,
  *inputs.vocabularies.KINDS,
  *("JSON lines", "CSV", "TSV", "task file", "local JSON lines", "prepared data"),
]
"""The kinds that need no JAX."""

FEW, FEW_SETTINGS = 20, 10


def _can_run(name):
  needs = inputs.KINDS[name].needs
  return needs is None or importlib.util.find_spec(needs) is not None


@pytest.fixture(scope="module")
def light():
  """What came of some mutations of each light kind, all in one process."""
  return campaign.campaign(list(filter(_can_run, LIGHT)), range(FEW))


@pytest.mark.parametrize("name", LIGHT)
def test_a_damaged_input_is_refused_in_one_line_or_taken_for_what_it_is(light, name):
  if not _can_run(name):
    pytest.skip(f"needs {inputs.KINDS[name].needs}")
  assert light[name].faults == [], _text(name, light[name])
  assert light[name].cases == FEW


def test_the_campaign_refuses_and_takes(light):
  # A damage that nothing notices, or a reader that takes nothing, would be no test.
  for name in ("PEFT adapter", "npz file", "JSON lines", "prepared data"):
    assert light[name].refused > FEW / 6, name
    assert light[name].passed > 0, name


def test_damaged_settings_are_refused_in_one_line_or_taken():
  names = ["gin files of training", "gin bindings of training"]
  for name, report in campaign.campaign(names, range(FEW_SETTINGS)).items():
    assert report.faults == [], _text(name, report)
    assert report.refused > FEW_SETTINGS / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", inputs.KINDS)
def test_a_hundred_mutations_of_each_kind_are_refused_in_one_line_or_taken(name):
  if not _can_run(name):
    pytest.skip(f"needs {inputs.KINDS[name].needs}")
  report = campaign.campaign([name], range(100, 200))[name]
  assert report.faults == [], _text(name, report)


def _text(name, report):
  return "\n".join(
    f"{fault['done']}\n{fault['fault']}\n{campaign.command(name, fault['case'], 0)}"
    for fault in report.faults[:3]
  )


def test_every_mutation_is_another_file_than_the_whole_one(tmp_path, monkeypatch):
  whole = tmp_path / "whole"
  whole.mkdir()
  monkeypatch.chdir(whole)
  inputs.KINDS["npy file"].make()
  content = (whole / "p.npy").read_bytes()
  for number in range(100):
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    mutations.damage(folder, random.Random(number))
    path = folder / "p.npy"
    assert not path.is_file() or path.read_bytes() != content
    shutil.rmtree(folder)


_WRONG = {
  "trace": ("raise KeyError('a')", "KeyError"),
  "code": ("return 1", "exit code 1"),
  "two lines": ("print('error: a\\nb', file=sys.stderr); return 2", "not one line"),
  "no line": ("return 2", "not one line"),
  "terminal": ("print('error: \\x1b[1m', file=sys.stderr); return 2", "control char"),
  "panic": ("os.write(2, b\"thread 'x' panicked at y\"); return 0", "panicked"),
  "memory": ("b'x' * (200 << 20); return 0", "memory grew"),
  "slow": ("time.sleep(30)", "took more than"),
  "hangs": (
    "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM]); time.sleep(60)",
    "hangs where no signal is heard",
  ),
  "dies": ("os._exit(7)", "ends with 7"),
  "left": ("open('x', 'w').close(); return 0", "leaves 'x' behind"),
  "input": ("open('a', 'w').write('w'); return 0", "changes 'a'"),
  "digest": ("return 0", "its digest does not hold"),
}


_RIGHT = {
  "refused": "print('error: a', file=sys.stderr); return 2",
  "taken": "print('b', file=sys.stderr); return 0",
}

_BAD = """
import os, pathlib, signal, sys, time
from fuzz import __main__, campaign, inputs, mutations
campaign.MOST_SECONDS = 1.0
def make():
  pathlib.Path("a").write_text("whole")
def kind(code, signed):
  def damage(folder, rng):
    (folder / "a").write_text("damaged")
    return mutations.Done("a: damaged", signed)
  def run(rng):
    return 0 if pathlib.Path("a").read_text() == "whole" else code()
  return campaign.Kind(make, run, damage)
inputs.KINDS.clear()
"""


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
  """What came of kinds whose commands misbehave, each once."""
  folder = tmp_path_factory.mktemp("wrong")
  parts, codes = [_BAD], {name: code for name, (code, _) in _WRONG.items()} | _RIGHT
  for name, code in codes.items():
    parts.append(f"def code():\n  {code}\n")
    parts.append(f"inputs.KINDS[{name!r}] = kind(code, {name == 'digest'})\n")
  parts.append("sys.exit(__main__.main())\n")
  (folder / "wrong.py").write_text("".join(parts))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(campaign, "MOST_SECONDS", 1.0)
    patch.setattr(campaign, "STARTED", 4.0)
    patch.setattr(campaign, "COMMAND", [str(folder / "wrong.py")])
    patch.setenv("FUZZ_OUT", str(folder / "kept"))
    return campaign.campaign(list(codes), range(2))


@pytest.mark.parametrize("which", _WRONG)
def test_what_must_not_happen_is_noticed(which, wrong):
  # And where the process dies of it, what comes after is run all the same.
  assert len(wrong[which].faults) == 2
  for fault in wrong[which].faults:
    assert _WRONG[which][1] in fault["fault"]


def test_what_may_happen_is_no_fault(wrong):
  assert wrong["refused"].refused == wrong["taken"].passed == 2
