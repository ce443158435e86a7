"""The command for an accelerator, on stand-ins of rows: budget, failures, going on."""

import importlib
import json
import pathlib
import shlex
import sys
import tarfile

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"

# Notes when it starts, waits and ends; fails or lasts as its arguments say.
STAND_IN = """\
import argparse, json, pathlib, sys, time
sys.path.insert(0, {benchmarks!r})
import gate
parser = argparse.ArgumentParser()
parser.add_argument("--output", type=pathlib.Path)
parser.add_argument("--name")
parser.add_argument("--fail", action="store_true")
parser.add_argument("--start", type=float, default=0)
parser.add_argument("--last", type=float, default=0)
options = parser.parse_args()
def note(what):
  with open({notes!r}, "a") as file:
    file.write(what + " " + options.name + chr(10))
note("starts")
time.sleep(options.start)
if options.fail:
  sys.exit("no such kernel")
gate.wait()
note("begins")
time.sleep(options.last)
note("ends")
print("a table of", options.name)
options.output.write_text(json.dumps({{"measured": options.name}}))
"""


@pytest.fixture
def bench(monkeypatch, tmp_path):
  """Returns a function that runs the command on stand-ins; a row is a line of options."""
  monkeypatch.syspath_prepend(FOLDER)
  accelerator = importlib.import_module("accelerator")
  script, notes = tmp_path / "stand_in.py", tmp_path / "notes"
  script.write_text(STAND_IN.format(benchmarks=str(FOLDER), notes=str(notes)))
  device = {"platform": "gpu", "kind": "stand-in", "devices": 1, "memory_bytes": None}
  monkeypatch.setattr(
    accelerator, "PROBE", f"import json; print(json.dumps({device!r}))"
  )

  def run(rows, *arguments, code=0, output="out"):
    made = tuple(
      accelerator.Row(
        name,
        f"about {name}",
        str(script),
        (f"--name={name}", *shlex.split(words)),
        (f"--name={name}",),
        start=seconds[0],
        timed=seconds[1],
        needs=needs,
      )
      for name, (words, seconds, needs) in rows.items()
    )
    monkeypatch.setattr(accelerator.accelerator_rows, "ROWS", made)
    notes.write_text("")
    words = [f"--output={tmp_path / output}", "--budget=60", "--at-once=3", *arguments]
    assert accelerator.main(words) == code
    return notes.read_text().splitlines()

  return run


def row(words="", seconds=(10, 1), needs=()):
  return words, seconds, needs


def kept(folder):
  """Returns each row's status, by name."""
  return {
    path.stem: json.loads(path.read_text())["status"]
    for path in sorted((folder / "rows").iterdir())
  }


def test_rows_start_side_by_side_and_are_timed_one_after_the_other(bench, tmp_path):
  rows = {"one": row("--start=0.3 --last=0.2"), "two": row("--last=0.1")}
  notes = bench(rows)
  assert sorted(notes[:2]) == ["starts one", "starts two"]
  assert notes[2:] == ["begins one", "ends one", "begins two", "ends two"]
  found = json.loads((tmp_path / "out/rows/one.json").read_text())
  assert found["result"] == {"measured": "one"}
  assert found["device"]["kind"] == "stand-in"
  assert {"date", "commit", "versions", "command", "seconds"} <= found.keys()


def test_a_row_that_fails_says_why_and_the_others_go_on(bench, tmp_path, capsys):
  bench({"bad": row("--fail"), "good": row()})
  assert kept(tmp_path / "out") == {"bad": "failed", "good": "done"}
  shown = capsys.readouterr().out
  assert "a table of good" in shown
  assert "bad                 failed: no such kernel" in shown


def test_a_further_call_does_what_is_missing_and_then_what_failed(bench, tmp_path):
  rows = {"bad": row("--fail"), "good": row(), "new": row()}
  bench(rows, "--only", "bad", "good")
  notes = bench(rows, "--at-once=1")
  assert notes == ["starts new", "begins new", "ends new", "starts bad"]


def test_an_archive_is_enough_to_go_on_from(bench, tmp_path):
  rows = {"one": row(), "two": row()}
  bench(rows, "--only", "one")
  with tarfile.open(tmp_path / "out.tar.gz") as tar:
    assert {"rows/one.json", "logs/one.txt", "logs/one.log"} <= set(tar.getnames())
  notes = bench(rows, f"--after={tmp_path / 'out.tar.gz'}", output="again")
  assert "starts one" not in notes
  assert kept(tmp_path / "again") == {"one": "done", "two": "done"}
  bad = tmp_path / "bad.tar.gz"
  bad.write_bytes(b"no archive")
  bench(rows, f"--after={bad}", output="other", code=2)


def test_what_does_not_fit_into_the_budget_is_left_out_and_smaller_rows_run(
  bench, tmp_path, capsys
):
  bench({"large": row(seconds=(50, 30)), "small": row()})
  assert kept(tmp_path / "out") == {"small": "done"}
  assert "large: left out: takes some 80 s" in capsys.readouterr().out


def test_a_row_that_outlasts_the_budget_is_ended_and_tried_again(bench, tmp_path):
  rows = {"long": row("--last=60"), "next": row()}
  notes = bench(rows, "--budget=15", "--at-once=1")
  assert notes == ["starts long", "begins long"]
  found = json.loads((tmp_path / "out/rows/long.json").read_text())
  assert (found["status"], found["why"]) == ("failed", "no time was left")
  assert "starts next" in bench({"long": row(), "next": row()})
  assert kept(tmp_path / "out") == {"long": "done", "next": "done"}


def test_a_row_that_starts_slowly_is_timed_last(bench):
  notes = bench(
    {"slow": row("--start=30", (0, 1)), "fast": row(seconds=(2, 1))}, "--budget=20"
  )
  assert "ends fast" in notes
  assert "begins slow" not in notes


def test_a_row_without_its_packages_is_left_out_by_name(bench, tmp_path, capsys):
  bench({"other": row(needs=("no_such_package",)), "good": row()})
  assert kept(tmp_path / "out") == {"good": "done"}
  assert "other: left out: no_such_package not installed" in capsys.readouterr().out


def test_a_machine_without_an_accelerator_and_an_unknown_row_are_refused(
  bench, monkeypatch, capsys
):
  rows = {"one": row()}
  bench(rows, "--only", "ome", code=2)
  assert "no row 'ome'. Did you mean 'one'?" in capsys.readouterr().err
  accelerator = sys.modules["accelerator"]
  probe = accelerator.PROBE.replace("'gpu'", "'cpu'")
  monkeypatch.setattr(accelerator, "PROBE", probe)
  bench(rows, code=2)
  assert "--dry-run" in capsys.readouterr().err


def test_rows_of_a_dry_run_or_of_another_device_do_not_pass_for_measured_ones(
  bench, monkeypatch, capsys
):
  rows = {"one": row()}
  bench(rows, "--dry-run", output="dry")
  bench(rows, output="dry", code=2)
  assert "holds rows of a dry run, such as 'one'" in capsys.readouterr().err
  bench(rows)
  accelerator = sys.modules["accelerator"]
  probe = accelerator.PROBE.replace("stand-in", "newer")
  monkeypatch.setattr(accelerator, "PROBE", probe)
  assert not bench(rows, code=2)
  assert "rows of 'stand-in', such as 'one', and this is 'newer'" in (
    capsys.readouterr().err
  )


def test_a_row_named_twice_is_measured_once_and_a_number_below_1_is_refused(
  bench, capsys
):
  rows = {"one": row()}
  assert bench(rows, "--only", "one", "one") == ["starts one", "begins one", "ends one"]
  bench(rows, "--at-once=0", code=2)
  assert "--at-once is 0" in capsys.readouterr().err


@pytest.mark.slow
def test_every_row_runs_with_tiny_sizes(monkeypatch, tmp_path, capsys):
  monkeypatch.syspath_prepend(FOLDER)
  accelerator = importlib.import_module("accelerator")
  assert (
    accelerator.main(["--dry-run", "--budget=900", f"--output={tmp_path / 'dry'}"]) == 0
  )
  found = kept(tmp_path / "dry")
  assert {"correct", "t5-banks", "t5-parts", "t5-blocks", "t5-ept"} <= found.keys()
  assert set(found.values()) == {"done"}, capsys.readouterr().out


def test_a_row_of_the_real_ones_runs_with_tiny_sizes_and_without_gin(
  monkeypatch, tmp_path
):
  monkeypatch.syspath_prepend(FOLDER)
  accelerator = importlib.import_module("accelerator")
  missing = tmp_path / "missing"
  for name in ("gin", "seqio", "tensorflow", "clu"):
    (missing / name).mkdir(parents=True)
    (missing / name / "__init__.py").write_text("raise ModuleNotFoundError(__name__)")
  monkeypatch.setenv("PYTHONPATH", str(missing))
  words = [
    "--dry-run",
    "--budget=300",
    "--only",
    "correct",
    f"--output={tmp_path / 'dry'}",
  ]
  assert accelerator.main(words) == 0
  found = json.loads((tmp_path / "dry/rows/correct.json").read_text())
  assert found["status"] == "done", found
  assert found["result"]["results"]["float32"]["agrees"]
