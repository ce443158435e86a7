"""What damaged files do: see `fuzzing`, whose command runs thousands of cases."""

import json
import random

import fuzzing
import pytest

CASES = 200


@pytest.fixture(scope="module")
def reports():
  """What came of the cases of every format, all in one process."""
  pytest.importorskip("tokenizers", reason="needs the extra 'tokenizers'")
  return fuzzing.campaign(list(fuzzing.FORMATS), CASES)


@pytest.mark.parametrize("name", fuzzing.FORMATS)
def test_a_damaged_file_is_refused_in_one_line_or_passes_all_checks(reports, name):
  report = reports[name]
  assert report["faults"] == [], json.dumps(report["faults"][:3], indent=1)
  assert report["refused"] + report["loaded"] == CASES


@pytest.mark.parametrize(
  "name", [name for name, one in fuzzing.FORMATS.items() if one.own]
)
def test_our_own_files_with_any_byte_changed_are_refused(reports, name):
  assert reports[name]["refused"] == CASES


def test_the_campaign_refuses_and_loads(reports):
  # A damage that nothing notices, or a reader that takes nothing, would be no test.
  for name in ("PEFT adapter", "Hugging Face folder", "npz file", "tokenizer.json"):
    assert reports[name]["refused"] > CASES / 4, name
    assert reports[name]["loaded"] > CASES / 50, name


def test_every_case_is_another_file_than_the_whole_one(tmp_path):
  path = fuzzing.FORMATS["npy file"].make(tmp_path)
  pristine = {path: path.read_bytes()}
  for case in range(100):
    fuzzing.damage(pristine, (), random.Random(case), own=False)
    assert path.read_bytes() != pristine[path]


@pytest.mark.parametrize("kind", ("slow", "hungry", "trace", "dies", "lets it pass"))
def test_what_must_not_happen_is_noticed(kind):
  # Proves that the campaign would see it: a format whose reader misbehaves.
  code = f"""
import os, pathlib, signal, sys, time
import numpy as np
sys.path[:0] = {[str(fuzzing.ROOT), str(fuzzing.ROOT / "tests")]}
import fuzzing
def make(folder):
  (folder / "a").write_bytes(b"whole")
  return folder / "a"
def misbehave(path):
  if path.read_bytes() != b"whole":
    if {kind!r} == "slow": time.sleep(5)
    if {kind!r} == "hungry": np.ones(fuzzing.MOST_BYTES * 2, np.uint8)
    if {kind!r} == "trace": raise KeyError("a")
    if {kind!r} == "dies": os._exit(7)
fuzzing.MOST_SECONDS = 0.2
fuzzing.FORMATS["bad"] = fuzzing.Format(make, misbehave, own={kind == "lets it pass"})
sys.argv = ["fuzzing", "--here", "--cases", "2", "bad"]
sys.exit(fuzzing.main())
"""
  report = fuzzing.reports_of(["-c", code])["bad"]
  expected = {
    "slow": "took more than",
    "hungry": "MemoryError",
    "trace": "KeyError",
    "dies": "exit code 7",
    "lets it pass": "loaded, although",
  }
  assert expected[kind] in report["faults"][0]["fault"]
