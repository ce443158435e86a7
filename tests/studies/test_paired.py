"""Studies that were run apart are compared on the rows that they share."""

import itertools
import json
import pathlib
import re

import numpy as np
import pytest

from tpv_jax import cli
from tpv_jax.core.errors import UserError
from tpv_jax.studies import hits, paired
from tpv_jax.studies.base import METRICS

SMALL = pathlib.Path(__file__).parents[2] / "docs" / "results" / "small"
ROWS = 4


def right(*ones):
  """The hits of a prompt that answers these rows right, by both metrics."""
  found = np.isin(np.arange(ROWS), ones)
  return dict.fromkeys(METRICS, found)


def write(folder, answer, tasks=("a", "b"), seeds=(0, 1), **settings):
  """Writes what a finished study leaves, whose hits `answer(key)` gives."""
  singles = [
    *(
      (kind, task, seed, None)
      for kind in ("own", "untuned")
      for task, seed in itertools.product(tasks, seeds)
    ),
    *(
      ("other_initial", task, seed, other)
      for task, seed, other in itertools.product(tasks, seeds, seeds)
      if other != seed
    ),
    *(
      ("control", task, seed, other)
      for task, seed, other in itertools.product(tasks, seeds, tasks)
      if other != task
    ),
  ]
  sums = [
    ("sum", names, seed, task)
    for names in [
      *itertools.combinations(tasks, 2),
      *([tasks] if len(tasks) > 2 else []),
    ]
    for seed, task in itertools.product(seeds, names)
  ]
  digests = settings.get("digests", {})
  measured = {
    "subject": {
      "tasks": {
        task: [["no", "yes"], "exact_match", [], "0" * 64, digests.get(task, "f" * 64)]
        for task in tasks
      },
      "initial_prompts": {str(seed): "0" * 64 for seed in seeds},
      "coefficients": [0.5, 1.0],
    },
    "single": {"hits": hits.to_json({key: answer(key) for key in singles})},
    "sums": hits.to_json({key: answer(key) for key in sums}),
  }
  folder.mkdir()
  (folder / "measured.json").write_text(json.dumps(measured))
  results = {"backbone": {"name": "x", "fingerprint": "0" * 64}, "parameters": 1234}
  (folder / "results.json").write_text(json.dumps(results))
  return str(folder)


def plain(key):
  """Own prompts answer rows 0 and 1, all others none."""
  return right(0, 1) if key[0] == "own" else right()


def better(key):
  """Own prompts answer row 2 as well, from start 1 also row 3; sums answer row 0."""
  if key[0] == "own":
    return right(0, 1, 2, 3) if key[2] == 1 else right(0, 1, 2)
  return right(0) if key[0] == "sum" else right()


def line(results, kind, of, metric="exact_match"):
  (found,) = [one for one in results[metric] if one["kind"] == kind and one["of"] == of]
  return found


def test_scores_stand_side_by_side_with_their_paired_difference(tmp_path):
  folders = write(tmp_path / "one", plain), write(tmp_path / "two", better)
  results = paired.compare(folders, ["one", "two"])
  own = line(results, "own", "a")
  assert own["scores"] == {"one": [0.5, 0.5], "two": [0.75, 1.0]}
  gap = own["minus_first"]["two"]
  assert list(own["minus_first"]) == ["two"]
  assert gap["mean"] == pytest.approx(0.375)
  rows = np.array([[0, 0, 1, 0], [0, 0, 1, 1]], float)
  assert gap == hits.interval([rows])
  assert gap["low"] < gap["mean"] < gap["high"]
  assert line(results, "own", "all")["scores"]["two"] == [0.75, 1.0]
  assert line(results, "sum", "a + b")["minus_first"]["two"]["mean"] == 0.25
  assert line(results, "untuned", "all")["minus_first"]["two"]["high"] == 0.0


def test_only_what_all_studies_have_is_compared_whatever_its_order(tmp_path):
  """The sum of a and b is called b+a in the second study."""

  def second(key):
    if key[0] == "other_initial":
      return right(0, 1) if key[3] == 2 else right(3)
    return better(key)

  folders = (
    write(tmp_path / "one", plain, tasks=("a", "b", "c")),
    write(tmp_path / "two", second, tasks=("d", "b", "a"), seeds=(1, 0, 2)),
  )
  results = paired.compare(folders, ["one", "two"])
  assert (results["tasks"], results["initial_seeds"]) == (["a", "b"], [0, 1])
  assert line(results, "sum", "a + b")["scores"]["two"] == [0.25, 0.25]
  assert line(results, "own", "a")["scores"]["two"] == [0.75, 1.0]
  assert line(results, "other_initial", "a")["scores"]["two"] == [0.25, 0.25]
  assert {one["of"] for one in results["exact_match"]} == {"all", "a", "b", "a + b"}
  _, one, two = paired.heading(results)
  assert one == "one: x, 1,234 parameters a prompt; left out: c"
  assert two.endswith("left out: d, initial prompt 2")


def test_one_task_from_one_start_has_neither_control_nor_other_initial(tmp_path):
  folders = (
    write(tmp_path / "one", plain, tasks=("a", "b"), seeds=(0, 1)),
    write(tmp_path / "two", better, tasks=("a", "c"), seeds=(1, 2)),
  )
  results = paired.compare(folders, ["one", "two"])
  assert [(one["kind"], one["of"]) for one in results["exact_match"]] == [
    ("own", "a"),
    ("untuned", "a"),
  ]
  assert paired.draw(results).png()


def test_a_comparison_agrees_with_the_report_of_a_real_study(tmp_path):
  copied = tmp_path / "copy"
  copied.mkdir()
  for name in ("measured.json", "results.json"):
    (copied / name).write_bytes((SMALL / name).read_bytes())
  found = paired.compare([SMALL, copied], ["one", "two"])
  known = json.loads((SMALL / "results.json").read_text())
  for task in known["tasks"]:
    own = [one["exact_match"] for one in known["single"][task]["own"]]
    assert line(found, "own", task)["scores"]["two"] == pytest.approx(own)
  labels = line(found, "sum", "all pairs", "label_accuracy")["scores"]["one"]
  assert np.mean(labels) == pytest.approx(known["summary"]["labels"]["pair_sums"])
  assert line(found, "sum", "all 5", "label_accuracy")


def test_studies_that_answer_other_rows_are_refused(tmp_path):
  one = write(tmp_path / "one", plain)
  other = write(tmp_path / "two", plain, digests={"b": "e" * 64})
  with pytest.raises(UserError, match="other test rows of 'b'"):
    paired.compare([one, other], ["one", "two"])
  path = tmp_path / "two" / "measured.json"
  path.write_text(path.read_text().replace('"yes"', '"maybe"'))
  with pytest.raises(UserError, match="other labels of 'a'"):
    paired.compare([one, other], ["one", "two"])


@pytest.mark.parametrize(
  "change",
  [
    lambda content: content["single"]["hits"].pop("own/a/0/None"),
    lambda content: content.pop("sums"),
    lambda content: content["subject"].pop("coefficients"),
    lambda content: content["sums"]["sum/a+b/0/b"].update(exact_match="010"),
    lambda content: content["sums"]["sum/a+b/0/b"].update(exact_match="0120"),
    lambda content: content["sums"]["sum/a+b/0/b"].update(exact_match=5),
    lambda content: content["sums"].update({"sum": content["sums"]["sum/a+b/0/b"]}),
    lambda content: content.update(single=[]),
  ],
)
def test_a_damaged_file_is_refused_by_its_name(tmp_path, change):
  one = write(tmp_path / "one", plain)
  other = write(tmp_path / "two", plain)
  path = tmp_path / "two" / "measured.json"
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match=r"two/measured.json' is not of 'tpv study', or "):
    paired.compare([one, other], ["one", "two"])


def test_the_command_prints_tables_gives_json_and_keeps_an_existing_picture(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "one", plain)
  write(tmp_path / "two", better)
  assert cli.main(["compare", "one", "two", "--png", "p.png"]) == 0
  text = capsys.readouterr().out
  assert re.search(r"\nown prompt +all +50\.0 ± 0\.0 +87\.5 ± 17\.7 +\+37\.5 \(", text)
  assert len(re.findall(r"\nown prompt +a ", text)) == 2  # Among labels too.
  assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
  assert cli.main(["compare", "one", "two", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["tasks"] == ["a", "b"]
  assert cli.main(["compare", "one", "two", "--png", "p.png"]) == 2
  assert "p.png" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (["one"], "at least two studies"),
    (["one", "./one"], "given twice"),
    (["one", "missing"], "'missing' has no measured.json"),
    (["one", "unfinished"], "'unfinished' has no results.json"),
    (["one", "apart"], "have no task in common: 'one' has a, b; 'apart' has c, d"),
    (["one", "later"], "have no initial prompt in common: 'one' has 0, 1; 'later'"),
  ],
)
def test_what_cannot_be_compared_is_one_line(
  tmp_path, monkeypatch, capsys, given, message
):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "one", plain)
  write(tmp_path / "apart", plain, tasks=("c", "d"))
  write(tmp_path / "later", plain, seeds=(2, 3))
  write(tmp_path / "unfinished", plain)
  (tmp_path / "unfinished" / "results.json").unlink()
  assert cli.main(["compare", *given]) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1
