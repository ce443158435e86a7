"""What an evaluation prints and writes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tpv_jax.core import files, screen
from tpv_jax.data.lines import LINE_ENDS
from tpv_jax.data.tasks import Task
from tpv_jax.evaluation.candidates import Candidate
from tpv_jax.evaluation.evaluator import Result
from tpv_jax.evaluation.searching import Searches

_COLUMNS = ("task", "split", "examples")


def candidates_of(chosen: Sequence[Candidate], searches: Searches) -> dict[str, Any]:
  """Returns the candidates as a report states them; a single one at its top as well."""
  known = [one.to_json() for one in chosen]
  top = () if len(known) > 1 else ("prompt", "prompt_digest")
  return {
    **{name: known[0][name] for name in top},
    "candidates": [
      one | ({"search": searches[number]} if number in searches else {})
      for number, one in enumerate(known)
    ],
  }


def scores_of(
  results: Sequence[Result], names: Sequence[str] | None
) -> list[dict[str, Any]]:
  """Returns the scores of a report, with the candidates' names where there are several."""
  return [
    {
      **({"candidate": names[index]} if names else {}),
      "task": result.task,
      "split": result.split,
      "examples": result.examples,
      "trimmed": result.trimmed,
      "unknown": result.unknown,
      **result.scores,
    }
    for index, result in enumerate(results)
  ]


def show(
  results: Sequence[Result], chosen: Sequence[Candidate], names: Sequence[str] | None
) -> None:
  """Prints the table of scores; several candidates are first listed with numbers."""
  if names is None:
    print_table(results, None)
    return
  for number, one in enumerate(chosen, 1):
    print(f"{number:>3}  {one.name}")
  places = {one.name: number for number, one in enumerate(chosen, 1)}
  print_table(results, [places[name] for name in names])


def write(
  content: dict[str, Any], output: files.Path, lines: str | None, overwrite: bool
) -> None:
  """Writes the report and, beside it, the predictions, whose digest the report states."""
  beside = {}
  if lines is not None:
    content["predictions_sha256"] = hashlib.sha256(lines.encode()).hexdigest()
    beside[files.to_path(f"{output}.predictions.jsonl")] = lines.encode()
  files.write_together({output: files.json_bytes(content)} | beside, overwrite)


def print_table(
  results: Sequence[Result], numbers: Sequence[int] | None = None
) -> None:
  """Prints the scores in percent as a table, one row for each result.

  Args:
    results: the rows.
    numbers: the number of each row's candidate, where there are several candidates.
  """
  names = list(dict.fromkeys(name for result in results for name in result.scores))
  rows = []
  for index, result in enumerate(results):
    scores = [
      f"{100 * result.scores[name]:.1f}" if name in result.scores else ""
      for name in names
    ]
    own = [str(numbers[index])] if numbers else []
    rows.append([*own, result.task, result.split, str(result.examples), *scores])
  screen.print_table([*([""] if numbers else []), *_COLUMNS, *names], rows)


def prediction_lines(
  results: Sequence[Result], tasks: Sequence[Task], names: Sequence[str] | None
) -> str:
  """Returns a line of JSON for each example."""
  by_name = {task.name: task for task in tasks}
  lines = [
    json_line(
      {
        **({"candidate": names[number]} if names else {}),
        "task": result.task,
        "split": result.split,
        "inputs": example.inputs,
        "target": example.targets,
        "generated": generated,
        "label": None if result.chosen is None else result.chosen[index],
      }
    )
    for number, result in enumerate(results)
    for index, (example, generated) in enumerate(
      zip(by_name[result.task].examples(result.split), result.generated, strict=True)
    )
  ]
  return "".join(lines)


def json_line(row: Mapping[str, Any]) -> str:
  """Returns the row as one line of JSON, with Unicode's other line ends escaped."""
  return json.dumps(row, ensure_ascii=False).translate(LINE_ENDS) + "\n"
