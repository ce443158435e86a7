"""The reports: those in docs are made of the results that are kept in benchmarks."""

import json
import pathlib
import re

import pictures
import pytest

from tpv_jax.studies import registry

ROOT = pathlib.Path(__file__).parents[2]
KEPT = {
  "few-shot": ("docs/few_shot.md", "few-shot-2026-11-21.json"),
  "ablation": ("docs/ablation.md", "ablation-2026-11-21.json"),
}


def made(name):
  """Returns the report, its results and the page in docs, links of that aside."""
  page, file = KEPT[name]
  results = json.loads((ROOT / "benchmarks/results" / file).read_text())
  text = (ROOT / page).read_text()
  text = re.sub(r"\[results\]\(.+?\)", "`results.json`", text)
  text = re.sub(r"(!\[.+?\])\(\w+/(.+?)\)", r"\1(\2)", text)
  # The command has had another name since.
  command = re.search(r"```\n(.+?)\n```", text)[1]
  return registry.study(name).report, results | {"command": command}, text


@pytest.mark.parametrize("name", KEPT)
def test_the_page_in_docs_is_the_report_of_the_kept_results(name):
  report, results, text = made(name)
  assert report.markdown(results) == text


@pytest.mark.parametrize("name", KEPT)
def test_the_pictures_of_the_kept_results_can_be_read(name):
  report, results, _ = made(name)
  for sheet in report.pictures(results).values():
    pictures.check(sheet)


@pytest.mark.parametrize("name", KEPT)
def test_nothing_is_said_of_the_embedded_suite_where_the_tasks_are_the_users(name):
  report, results, _ = made(name)
  said = report.markdown(results)
  assert "backbone and tasks are synthetic" in said
  for field in ("tasks", "sources"):
    if field in results:
      mine = {f"mine {task}": results[field] for task in results[field]}
      results = results | {field: list(mine) if field == "tasks" else mine}
  if name == "few-shot":
    results["sources"] = {source: [0.5, 0.5] for source in results["sources"]}
  else:
    for by_method in results["scores"].values():
      for by_task in by_method.values():
        by_task |= {f"mine {task}": by_task[task] for task in [*by_task]}
  said = report.markdown(results)
  assert "synthetic" not in said
  assert "the suite's own" not in said


def test_a_comparison_of_merge_rules_says_what_the_suite_is_of_the_suite_only():
  report = registry.study("merging").report
  folder = ROOT / "docs/results/merging_embedded"
  results = json.loads((folder / "results.json").read_text())
  said = report.markdown(results)
  assert said == (folder / "report.md").read_text()
  assert "unrelated by construction" in said
  mine = {**results, "tasks": ["mine", *results["tasks"][1:]]}
  assert "unrelated by construction" not in report.markdown(mine)
