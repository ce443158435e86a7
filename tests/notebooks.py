"""Runs a notebook's cells in one namespace, without Jupyter, and keeps what they show.

`python tests/notebooks.py examples/walkthrough.ipynb` writes the outputs into the file.
"""

import ast
import contextlib
import io
import json
import pathlib
import sys


def cells(path: pathlib.Path) -> list[str]:
  """Returns the source of each code cell."""
  notebook = json.loads(path.read_text())
  return [
    "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"
  ]


def outputs(path: pathlib.Path) -> list[list[dict]]:
  """Returns what each code cell shows, as the notebook's format has it."""
  namespace: dict = {"__name__": "__main__"}
  return [
    _run(source, namespace, number) for number, source in enumerate(cells(path), 1)
  ]


def _run(source: str, namespace: dict, number: int) -> list[dict]:
  """Executes a cell; its last expression is shown, unless it is None."""
  body = ast.parse(source).body
  last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
  printed, value = io.StringIO(), None
  with contextlib.redirect_stdout(printed):
    exec(compile(ast.Module(body, []), f"cell {number}", "exec"), namespace)
    if last is not None:
      value = eval(
        compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace
      )
  found = []
  if printed.getvalue():
    text = printed.getvalue().splitlines(keepends=True)
    found.append({"name": "stdout", "output_type": "stream", "text": text})
  if value is not None:
    data = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_html_"):
      data["text/html"] = [value._repr_html_()]
    found.append(
      {
        "data": data,
        "execution_count": number,
        "metadata": {},
        "output_type": "execute_result",
      }
    )
  return found


def main(path: pathlib.Path) -> None:
  """Writes the outputs into the notebook."""
  notebook = json.loads(path.read_text())
  code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
  for number, (cell, found) in enumerate(zip(code, outputs(path), strict=True), 1):
    cell["execution_count"], cell["outputs"] = number, found
  path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
