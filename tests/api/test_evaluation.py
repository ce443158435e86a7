"""Tables of scores from prompts in memory are those of `tpv eval`."""

import json

import jaxtyping
import numpy as np
import pytest

import tpv_jax as tpv
from tpv_jax import cli

BRIEF = {"train_steps": 6, "eval_period": 3, "prompt_length": 3, "progress": False}


@pytest.fixture(scope="module")
def backbone():
  return tpv.load_backbone("embedded")


@pytest.fixture(scope="module")
def tasks():
  return [tpv.task(name, of="embedded") for name in ("sentiment", "topic")]


@pytest.fixture(scope="module")
def runs(backbone, tasks, tmp_path_factory):
  return tpv.train(backbone, tasks, tmp_path_factory.mktemp("runs"), **BRIEF)


def test_scores_are_those_of_the_command(backbone, tasks, runs, tmp_path):
  vector, start = sum(runs.vectors()), runs[0].initial
  table = tpv.evaluate(
    backbone,
    tasks,
    {"none": None, "own": runs[0], "sum": vector.on(start, 0.5), "file": runs[1].path},
    splits=["validation", "test"],
  )
  tpv.save(tmp_path / "sum.safetensors", vector)
  prompts = [None, *(str(run.path) for run in runs)]
  given = {
    "BACKBONE": "embedded",
    "TASK_NAMES": ["sentiment", "topic"],
    "PROMPT_PATH": prompts,
    "VECTOR": str(tmp_path / "sum.safetensors"),
    "INITIAL": prompts[1],
    "COEFFICIENT": 0.5,
    "EVAL_SPLITS": ["validation", "test"],
    "OUTPUT": str(tmp_path / "out.json"),
  }
  flags = [f"--gin.{name}={value!r}" for name, value in given.items()]
  assert cli.main(["eval", *flags]) == 0
  rows = json.loads((tmp_path / "out.json").read_text())["results"]
  names = dict(zip(dict.fromkeys(r["candidate"] for r in rows), range(4), strict=True))
  mine = {"none": 0, "own": 1, "file": 2, "sum": 3}
  theirs = {
    (names[row.pop("candidate")], row["task"], row["split"]): row for row in rows
  }
  for row in map(dict, table):
    name = row.pop("prompt")
    assert row == theirs[mine[name], row["task"], row["split"]]
  assert len(table) == len(rows) == 16


def test_nothing_is_printed_and_nothing_is_written(backbone, tasks, runs, capfd):
  tpv.evaluate(backbone, tasks[0], runs)
  assert capfd.readouterr().out == ""


def test_a_search_takes_vectors_in_memory(backbone, tasks, runs):
  table = tpv.evaluate(
    backbone,
    tasks[0],
    vector=[runs[0].vector(), [runs[0].vector(), runs[1].vector()]],
    initial=runs[0],
    search=[0.5, 1.0],
    search_examples=8,
  )
  assert len(table) == 2
  assert [set(one["search"]) for one in table.report["candidates"]]


def test_runs_that_differ_in_their_seeds_have_a_mean(backbone, tasks, runs):
  again = tpv.train(
    *(backbone, tasks, runs[0].path.parent), initial_seeds=[0, 1], **BRIEF
  )
  table = tpv.evaluate(backbone, tasks[0], [again["sentiment-0"], again["sentiment-1"]])
  (mean,) = table.means
  scores = table.column("exact_match")
  assert mean["exact_match"] == pytest.approx(np.mean(scores))
  assert mean["exact_match_deviation"] == pytest.approx(np.std(scores, ddof=1))
  assert mean["prompt"].endswith("sentiment-*")


def test_prompts_of_one_name_are_told_apart(backbone, tasks, runs):
  vector, start = runs[0].vector(), runs[0].initial
  table = tpv.evaluate(backbone, tasks[0], [vector.on(start), vector.on(start, 0)])
  first, second = (row["prompt"] for row in table)
  assert second == f"{first} (2)"


def test_what_is_no_prompt_is_refused(backbone, tasks, runs, tmp_path):
  for prompts, options, message in (
    (runs[0].vector(), {}, r"is a vector.*vector\.on\(run\.initial\)"),
    ("nowhere", {}, "nowhere"),
    (None, {"splits": "tset"}, r"eval_splits\[0\] is 'tset'.*mean 'test'"),
    (None, {"num_beam": 2}, r"^num_beam is read by nothing.*'num_beams'"),
    (None, {"prompt_path": "x"}, "give prompts"),
    (None, {"vector": runs[0].vector()}, "give initial as well"),
  ):
    with pytest.raises(tpv.UserError, match=message) as caught:
      tpv.evaluate(backbone, tasks[0], prompts, **options)
    assert "--gin." not in str(caught.value)


def test_what_is_no_list_and_no_path_is_refused(backbone, tasks, runs, monkeypatch):
  monkeypatch.setattr(
    jaxtyping.config, "jaxtyping_disable", True
  )  # As outside of tests.
  for prompts, options, message in (
    (None, {"splits": 3}, r"eval_splits is 3"),
    (3, {}, r"A prompt is 3\. Give a run"),
    ([runs[0], 3], {}, r"A prompt is 3\. Give a run"),
  ):
    with pytest.raises(tpv.UserError, match=message):
      tpv.evaluate(backbone, tasks[0], prompts, **options)


def test_a_table_is_rows_that_pandas_takes():
  table = tpv.Table(
    [{"prompt": "a|b", "exact_match": 0.25, "lost": 0}, {"prompt": "c", "f1": 1.0}],
    percent=True,
  )
  pandas = pytest.importorskip("pandas")
  frame = table.to_pandas()
  assert list(frame.columns) == ["prompt", "exact_match", "lost", "f1"]
  assert frame.equals(pandas.DataFrame(table))
  assert frame["exact_match"][0] == 0.25
  assert np.isnan(frame["f1"][0])


def test_a_table_is_shown_in_percent_without_columns_of_zeros(tmp_path):
  table = tpv.Table([{"prompt": "a|b", "exact_match": 0.25, "lost": 0}], percent=True)
  assert repr(table).split() == ["prompt", "exact_match", "a|b", "25.0"]
  assert table.to_markdown().splitlines()[2] == r"| a\|b | 25.0 |"
  assert "<th>exact_match</th>" in table._repr_html_()
  assert table.to_csv() == "prompt,exact_match,lost\na|b,0.25,0\n"
  assert table.to_csv(tmp_path / "table.csv") == (tmp_path / "table.csv").read_text()
  with pytest.raises(tpv.UserError, match="exists"):
    table.to_csv(tmp_path / "table.csv")
  assert table.column("lost") == [0]
  with pytest.raises(tpv.UserError, match=r"no column 'f1'; the columns are prompt"):
    table.column("f1")
  assert repr(tpv.Table()) == "<an empty table>"
