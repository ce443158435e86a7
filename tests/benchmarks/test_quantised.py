"""The table of quantised kernels in the documents is that of the newest results."""

import importlib
import json
import pathlib

ROOT = pathlib.Path(__file__).parents[2]


def test_the_document_has_the_lines_of_the_results(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / "benchmarks")
  quantised = importlib.import_module("quantised")
  *_, newest = sorted((ROOT / "benchmarks/results").glob("quantised-cpu-*.json"))
  results = json.loads(newest.read_text())["results"]
  assert [one["kernels"] for one in results] == list(quantised.FORMS)
  lines = [quantised.line(one) for one in results[:-1]]
  text = (ROOT / "docs/decoder_only.md").read_text()
  assert "\n".join([quantised.HEADER, *lines]) in text
  assert newest.name in text
