"""Prints the cosine similarity of every pair of 17 real prompts of T5-base.

The prompts were trained by the authors of "On Transferability of Prompt Tuning" (Su et
al., NAACL 2022; github.com/thunlp/Prompt-Transferability, MIT) and are not part of this
repository: FOLDER holds them as `thunlp_t5_base.npz`, one array [100, 768] for each task.

  python examples/cosine_table.py FOLDER
  python examples/cosine_table.py FOLDER --png cosine.png
"""

import argparse
import pathlib
import sys

import numpy as np

from tpv_jax.cli import cosine
from tpv_jax.core import errors, files
from tpv_jax.formats import arrays, sources
from tpv_jax.vectors import algebra

FILE = "thunlp_t5_base.npz"

KINDS = {
  "sentiment": "IMDB SST2 laptop restaurant movierationales tweetevalsentiment",
  "inference": "MNLI QNLI snli",
  "paraphrase": "MRPC QQP",
  "ethics": "ethicsdeontology ethicsjustice",
  "answers": "nq_open squad",
  "summaries": "multi_news samsum",
}
"""The tasks by kind, in the order of the table."""


def main() -> None:
  parser = errors.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", metavar="FOLDER", type=pathlib.Path)
  parser.add_argument("--png", metavar="FILE", help="also draw a heat map")
  parser.add_argument("--overwrite", action="store_true", help="replace FILE")
  options = parser.parse_args()
  if options.png is not None:
    files.check_output(options.png, options.overwrite)

  path = next(iter(sorted(options.folder.rglob(FILE))), options.folder / FILE)
  tasks = [task for some in KINDS.values() for task in some.split()]
  tasks += [task for task in arrays.prompts(path) if task not in tasks]
  matrix = algebra.cosine([sources.load(f"{path}:{task}") for task in tasks])

  print(cosine.cosine_table([task[:9] for task in tasks], matrix))
  of_kind = {task: kind for kind, some in KINDS.items() for task in some.split()}
  kinds = np.array([of_kind.get(task, task) for task in tasks])
  same = kinds[:, None] == kinds[None, :]
  pairs = np.triu(np.ones_like(same), 1)
  print(
    f"\nmean over pairs of one kind {matrix[same & pairs].mean():.4f}, of different "
    f"kinds {matrix[~same & pairs].mean():.4f}"
  )
  if options.png is not None:
    files.write_bytes(options.png, picture(tasks, matrix), options.overwrite)


def picture(tasks: list[str], matrix: np.ndarray) -> bytes:
  """Returns a heat map of the cosines as PNG, with no colour on the diagonal."""
  import io

  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 8), layout="constrained", dpi=120)
  panel = figure.subplots()
  shown = np.where(np.eye(len(tasks), dtype=bool), np.nan, matrix)
  image = panel.imshow(shown, cmap="cividis")
  middle = (np.nanmin(shown) + np.nanmax(shown)) / 2
  for row, column in zip(*np.nonzero(np.isfinite(shown)), strict=True):
    value = shown[row, column]
    panel.text(
      *(column, row, f"{value:.2f}"),
      ha="center",
      va="center",
      fontsize=7,
      color="black" if value > middle else "white",
    )
  panel.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right")
  panel.set_yticks(range(len(tasks)), tasks)
  panel.set_title("Cosine similarity of 17 prompts of T5-base")
  figure.colorbar(image, ax=panel, label="cosine", shrink=0.8)
  content = io.BytesIO()
  figure.savefig(content, format="png")
  return content.getvalue()


if __name__ == "__main__":
  sys.exit(errors.run_command(main))
