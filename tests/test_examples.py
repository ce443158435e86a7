"""The scripts and the notebook under examples/ run, the former on small stand-ins."""

import json
import pathlib
import re
import subprocess
import sys

import notebooks
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def run(script, *arguments):
  return subprocess.run(
    [sys.executable, EXAMPLES / script, *map(str, arguments)],
    capture_output=True,
    text=True,
  )


def test_the_cosine_table_is_that_of_numpy(tmp_path):
  names = ("SST2", "IMDB", "QNLI", "other")
  rows = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
  np.savez(tmp_path / "thunlp_t5_base.npz", **dict(zip(names, rows, strict=True)))
  missing = run("cosine_table.py", tmp_path)
  assert missing.returncode == 2
  assert "has no prompt 'laptop'" in missing.stderr
  kinds = (
    "SST2 IMDB laptop restaurant movierationales tweetevalsentiment MNLI QNLI snli"
  )
  kinds += " MRPC QQP ethicsdeontology ethicsjustice nq_open squad multi_news samsum"
  rows = np.random.default_rng(0).standard_normal((17, 3, 5)).astype(np.float32)
  prompts = dict(zip(kinds.split(), rows, strict=True))
  np.savez(tmp_path / "thunlp_t5_base.npz", **prompts)
  done = run("cosine_table.py", tmp_path, "--png", tmp_path / "cosine.png")
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  header, imdb = lines[0].split(), lines[1].split()
  assert header[0] == imdb[0] == "IMDB"
  assert len(header) == 17
  for name, shown in zip(header, imdb[1:], strict=True):
    (full,) = [one for one in prompts if one.startswith(name)]
    one, other = (prompts[which].ravel().astype(np.float64) for which in ("IMDB", full))
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert shown == f"{cosine:.4f}"
  assert (tmp_path / "cosine.png").read_bytes().startswith(b"\x89PNG")
  again = run("cosine_table.py", tmp_path, "--png", tmp_path / "cosine.png")
  assert again.returncode == 2
  assert again.stderr.rstrip().endswith("--overwrite.")
  done = run(
    "cosine_table.py", tmp_path, "--png", tmp_path / "cosine.png", "--overwrite"
  )
  assert done.returncode == 0, done.stderr


WALKTHROUGH = EXAMPLES / "walkthrough.ipynb"


def words(output):
  """Returns what an output shows, without numbers and blanks."""
  shown = output.get("text") or output["data"]["text/plain"]
  return re.sub(r"[\d.,-]+(e-\d+)?|\s+", "", "".join(shown))


def test_the_notebook_runs_and_shows_what_is_committed(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  content = json.loads(WALKTHROUGH.read_text())
  code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
  found = notebooks.outputs(WALKTHROUGH)
  for cell, outputs in zip(code, found, strict=True):
    assert [*map(words, outputs)] == [*map(words, cell["outputs"])], cell["source"]
    assert all(
      set(one.get("data", ())) == set(other.get("data", ()))
      for one, other in zip(outputs, cell["outputs"], strict=True)
    )
  table = "".join(found[7][-1]["data"]["text/plain"]).splitlines()
  scores = {tuple(line.rsplit(None, 7)[:2]): line.split()[-4] for line in table[1:]}
  assert float(scores["sentiment", "sentiment"]) > 95
  assert float(scores["sentiment - topic", "topic"]) < 5


def test_a_cell_that_fails_fails_the_notebook(tmp_path):
  broken = {"cells": [{"cell_type": "code", "source": ["1 / 0"]}]}
  (tmp_path / "broken.ipynb").write_text(json.dumps(broken))
  with pytest.raises(ZeroDivisionError):
    notebooks.outputs(tmp_path / "broken.ipynb")
