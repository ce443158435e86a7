"""What an evaluation prints and writes."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tpv_jax.core import files, screen, tables
from tpv_jax.core.errors import UserError
from tpv_jax.data.lines import LINE_ENDS
from tpv_jax.data.tasks import Task
from tpv_jax.evaluation.candidates import Candidate
from tpv_jax.evaluation.evaluator import Result
from tpv_jax.evaluation.searching import Searches

TABLES = (".md", ".csv")
"""Endings of the files that tables of scores are written to."""

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


@dataclasses.dataclass(frozen=True)
class Outputs:
  """The files of an evaluation.

  Attributes:
    output: for the report, in JSON; None for no file.
    predictions: whether a line for each example is written beside it.
    table: for the table of scores, in Markdown or CSV; None for no file.
    overwrite: whether files that exist are replaced.
  """

  output: files.PathLike | None
  predictions: bool
  table: files.PathLike | None
  overwrite: bool

  def check(self) -> None:
    """Raises `UserError` if they could not be written."""
    files.refuse_same({"OUTPUT": self.output, "TABLE": self.table})
    if self.output is not None:
      outputs = [self.output, f"{self.output}.predictions.jsonl"]
      files.check_together(outputs[: 1 + self.predictions], self.overwrite)
    elif self.predictions:
      raise UserError("Predictions need a place: give --gin.OUTPUT as well.")
    if self.table is None:
      return
    if files.to_path(self.table).suffix.lower() not in TABLES:
      raise UserError(
        f"TABLE is '{self.table}'; its ending says how it is written: "
        f"{' or '.join(TABLES)}."
      )
    files.check_output(self.table, self.overwrite)

  def write(
    self,
    content: dict[str, Any],
    results: Sequence[Result],
    tasks: Sequence[Task],
    names: Sequence[str] | None,
  ) -> None:
    """Writes them; the report states the digest of the predictions."""
    if self.output is not None:
      lines = prediction_lines(results, tasks, names) if self.predictions else None
      write(content, files.to_path(self.output), lines, self.overwrite)
    if self.table is not None:
      write_table(content, self.table, self.overwrite)


def means_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns a row for each group of runs that differ in their seeds only."""
  return [
    {
      "candidate": group["group"],
      "task": group["task"],
      "split": group["split"],
      "runs": len(group["candidates"]),
      **{name: one["mean"] for name, one in group["scores"].items()},
      **{
        f"{name}_deviation": one["deviation"] for name, one in group["scores"].items()
      },
    }
    for group in content.get("groups", ())
  ]


def write_table(
  content: Mapping[str, Any], path: files.PathLike, overwrite: bool
) -> None:
  """Writes the scores of a report as a table in Markdown (in percent) or CSV (whole).

  Below the results stand the means of runs that differ in their seeds only.
  """
  results = [
    {name: row[name] for name in row if name not in ("trimmed", "unknown")}
    for row in content["results"]
  ]
  rows = results + means_of(content)
  if files.to_path(path).suffix.lower() == ".csv":
    text = tables.csv_text(rows)
  else:
    text = _markdown(rows)
  files.write_text(path, text, overwrite)


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns rows in Markdown, deviations behind their means."""
  columns = [
    name
    for name in dict.fromkeys(name for row in rows for name in row)
    if not name.endswith("_deviation")
  ]

  def cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name, "")
    if not isinstance(value, float):
      return str(value).replace("|", "\\|")
    deviation = row.get(f"{name}_deviation")
    if deviation is None:
      return f"{100 * value:.1f}"
    return tables.spread(value, deviation)

  cells = [[cell(row, name) for name in columns] for row in rows]
  return tables.markdown_table(columns, cells) + "\n"


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
