"""What the documents print is run as printed (see documents.py)."""

import dataclasses
import itertools
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile

import documents
import pytest
import stand_ins
import t5x_check
import warm_python

from tpv_jax.cli import verbs

REPOSITORY = pathlib.Path(__file__).parents[1]

WRITTEN_BY_COMMANDS = (
  "docs/ablation.md",
  "docs/few_shot.md",
  "docs/results/merging_embedded/report.md",
  "docs/results/merging_embedded_more/report.md",
  "docs/results/merging_small/report.md",
  "docs/results/moving-embedded.md",
  "docs/results/moving_small/report.md",
  "docs/results/small/report.md",
  "docs/results/small_dept/report.md",
  "docs/results/small_ept/report.md",
  "docs/results/small_few_shot/report.md",
  "docs/results/small_short/report.md",
)
"""Without marks, but for those of SmolLM2; docs/t5x-check.md is what `make t5x-check` wrote
(see t5x_check.py)."""

ROADS = (
  (
    "docs/quickstart.md",
    "docs/vectors.md",
    "docs/merging.md",
  ),  # which goes on with its files
  *(("README.md",), ("CONTRIBUTING.md",), ("tpv_jax/embedded/MODEL_CARD.md",)),
  *(
    (f"docs/{name}.md",)
    for name in ("installing", "accelerator", "ept", "banks", "own_data")
  ),
  *(
    (f"docs/{name}.md",)
    for name in ("predictions", "python", "diagnosis", "settings", "two_tasks")
  ),
  *(("docs/decoder_only.md",), ("docs/results.md",)),
  *((f"docs/{name}.md",) for name in ("formats", "methods", "tasks", "t5x")),
  *((name,) for name in WRITTEN_BY_COMMANDS),
)
"""The documents; those of one road run in order, in one folder."""

MARKDOWN = tuple(itertools.chain(*ROADS))


def test_no_document_is_forgotten():
  found = {
    str(path.relative_to(REPOSITORY))
    for folder in ("docs", "tpv_jax", "gin_configs", "launch", "examples")
    for path in (REPOSITORY / folder).rglob("*.md")
  }
  tried = {name for name in found if name.startswith("docs/extending/")}
  assert tried  # by tests/extending
  found |= {path.name for path in REPOSITORY.glob("*.md")} - {"CHANGELOG.md"}
  assert found - tried == {*MARKDOWN, "docs/t5x-check.md"}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
  """The folder of commands that documents call."""
  folder = tmp_path_factory.mktemp("commands")
  (folder / "parse").mkdir()
  for name in ("pip", "gcloud", "srun"):
    (folder / "parse" / name).write_text("#!/bin/sh\n")
    (folder / "parse" / name).chmod(0o755)
  make = shutil.which("make")
  (folder / "parse" / "make").write_text(
    f'#!/bin/sh\nexec {make} -n "$@" > /dev/null\n'
  )
  (folder / "parse" / "make").chmod(0o755)
  with warm_python.commands(folder):
    yield folder


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
  return stand_ins.clone(tmp_path_factory.mktemp("clone") / "tpv_jax")


@pytest.fixture
def check(commands, cloned, tmp_path):
  """The function (steps, brief) that runs them in a clone and reports all failures."""

  def run(steps, brief=True):
    steps = list(steps)
    folder = pathlib.Path(tempfile.mkdtemp(dir=tmp_path))
    for path in cloned.iterdir():
      (folder / path.name).symlink_to(path)
    text = "\n".join(step.text for step in steps)
    written = {name for step in steps if not step.anew for name in step.outputs}
    stand_ins.make(folder, text, left_out=written)
    runner = documents.Runner(folder, commands, brief)
    failures = list(filter(None, map(runner.failure, steps)))
    assert not failures, "\n\n".join(failures)

  return run


@pytest.mark.parametrize("road", ROADS, ids=" ".join)
def test_a_document_runs_as_printed(road, check):
  check(
    dataclasses.replace(step, mark="outside") if slow(document, step) else step
    for document in road
    for step in documents.markdown(REPOSITORY / document)
  )


def slow(document, step):
  return document in WRITTEN_BY_COMMANDS or step.mark == "slow"


@pytest.mark.slow
@pytest.mark.parametrize("road", ROADS, ids=" ".join)
def test_a_document_prints_what_it_shows(road, check):
  steps = (documents.markdown(REPOSITORY / document) for document in road)
  check(itertools.chain(*steps), brief=False)


@pytest.mark.parametrize(
  "room", ["backbones", "prompts", "runs", "studies", "t5x", "tasks"]
)
def test_the_commands_in_the_headers_of_gin_files_are_calls(room, check):
  steps = [step for path in headers(room) for step in documents.header(path)]
  check([dataclasses.replace(step, mark="outside") for step in steps])


def test_no_document_with_a_command_of_t5x_is_forgotten():
  steps = {name: documents.markdown(REPOSITORY / name) for name in MARKDOWN}
  for path in REPOSITORY.glob("gin_configs/*/*.gin"):
    steps[str(path.relative_to(REPOSITORY))] = documents.header(path)
  runner = documents.Runner(REPOSITORY, REPOSITORY, brief=True, t5x=True)
  found = {
    name
    for name, its in steps.items()
    for step in its
    if documents.T5X.search(step.text) and not runner.only_parsed(step)
  }
  assert found
  assert found <= set(t5x_check.DOCUMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("room", ["backbones", "prompts", "runs", "tasks"])
def test_the_commands_in_the_headers_of_gin_files_run(room, check):
  for path in headers(room):
    check(documents.header(path))


def headers(room):
  """The gin files of a folder; of those that `tpv tasks show` writes, one."""
  paths = sorted((REPOSITORY / "gin_configs" / room).glob("*.gin"))
  written = [path for path in paths if "Written by 'tpv tasks" in path.read_text()]
  return [path for path in paths if path not in written[1:]]


LONG = {*verbs.GROUPS["train and evaluate"], *verbs.GROUPS["studies"]} - {"compare"}
"""Verbs whose examples take minutes."""

OUTSIDE = ("fetch", "prompts")
"""Verbs whose examples need the internet, or data that do not come with the package."""


def examples(commands, *call):
  """Returns the examples that a command's --help prints."""
  done = subprocess.run(
    [commands / call[0], *call[1:], "--help"],
    capture_output=True,
    text=True,
    check=True,
  )
  return documents.indented(
    " ".join(call), done.stdout.split("\nexamples:\n")[1].splitlines()
  )


@pytest.mark.parametrize("verb", sorted({*verbs.VERBS, ""} - {*LONG}))
def test_the_examples_in_the_help_of_tpv_run(verb, commands, check):
  check(
    dataclasses.replace(step, mark="outside")
    if step.text.split()[1] in (*LONG, *OUTSIDE)
    else step
    for step in examples(commands, "tpv", *filter(None, [verb]))
  )


@pytest.mark.slow
@pytest.mark.parametrize("verb", sorted(LONG))
def test_the_examples_in_the_help_of_long_verbs_run(verb, commands, check):
  check(examples(commands, "tpv", verb))


def test_the_commands_in_the_headers_of_scripts_run(check):
  scripts = [*REPOSITORY.glob("launch/*.*"), *REPOSITORY.glob("examples/*.py")]
  check([step for path in sorted(scripts) for step in documents.header(path)])


TRAIN = "train --gin_file=gin_configs/runs/{}.gin --gin.TASK_NAME='topic'"
SETTINGS = {
  "prompts/plain.gin": (TRAIN.format("embedded"), [[0], [1], [2, 3], [4, 5, 6]]),
  "runs/tuning.gin": (
    TRAIN.format("embedded_ept") + " --gin.FUSION_WIDTH=0 --gin.SPACES=0",
    [[0], [1], [2], [3, 4, 5, 6, 7, 8]],
  ),
  "runs/bank.gin": (
    "bank --gin_file=gin_configs/runs/bank_embedded.gin",
    [[*range(2, 15)]],
  ),
}
"""The command that the settings in a header are for, and which belong together."""

ELSEWHERE = {
  "runs/bank.gin": 2,  # of my_tasks.gin, which stands in for the user's (stand_ins.py)
  "runs/paper_dept.gin": 1,  # steps of a real T5
}


def in_headers():
  """The settings in the headers of all gin files but those for T5X."""
  room = REPOSITORY / "gin_configs"
  paths = [path for path in room.rglob("*.gin") if path.parent.name != "t5x"]
  found = {str(path.relative_to(room)): documents.settings(path) for path in paths}
  return {name: settings for name, settings in found.items() if settings}


def test_no_setting_in_a_header_is_forgotten():
  tried = {name: sum(map(len, groups)) for name, (_, groups) in SETTINGS.items()}
  for name, number in ELSEWHERE.items():
    tried[name] = tried.get(name, 0) + number
  assert {name: len(settings) for name, settings in in_headers().items()} == tried


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_the_settings_in_the_headers_of_gin_files_are_read(
  name, tmp_path, monkeypatch, capsys
):
  command, groups = SETTINGS[name]
  (tmp_path / "runs").mkdir()
  monkeypatch.chdir(tmp_path)
  stand_ins.make(tmp_path, "runs/topic sst2.safetensors", set())
  own = re.sub(r"'<a run folder[^>]*>'", "'runs/topic'", "\0".join(in_headers()[name]))
  own = re.sub(r"'<a file that[^>]*>'", "'sst2.safetensors'", own).split("\0")
  for number, group in enumerate(groups):
    call = f"{command} --gin.RUN_DIR='{number}'" if command[:6] == "train " else command
    arguments = call.split(" ")
    chosen = [own[index] for index in group]
    arguments += [shlex.split(one)[0] for one in chosen if one.startswith("--gin.")]
    lines = [one for one in chosen if not one.startswith("--gin.")]
    pathlib.Path("own.gin").write_text("\n".join([IMPORTS, *lines, ""]))
    code = stand_ins.begin([*arguments, "--gin_file=own.gin"])
    assert code == 0, f"{chosen}\n{capsys.readouterr().err}"


IMPORTS = """\
from __gin__ import dynamic_registration
from tpv_jax.training import optimizers
from tpv_jax.embedded import suite
from tpv_jax.training import initial
from tpv_jax.banks import bank
from tpv_jax.training import task_data"""
