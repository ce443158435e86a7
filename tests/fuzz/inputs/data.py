"""Data: the user's files, local copies of data sets, what was prepared of them."""

import json
import pathlib
import random

from fuzz.campaign import Kind
from fuzz.inputs import tpv

_ROWS = [
  {"sentence": f"the good movie {i}, or not", "label": i % 2, "score": i / 5}
  for i in range(6)
]


def _make_lines() -> None:
  lines = (json.dumps(row) + "\n" for row in _ROWS)
  pathlib.Path("a.jsonl").write_text("".join(lines))


def _make_table(separator: str, path: str) -> None:
  lines = [["sentence", "label", "score"]]
  lines += [[f'"{row["sentence"]}"', str(row["label"]), "0.2"] for row in _ROWS]
  if separator == "\t":
    lines = [[cell.strip('"') for cell in cells] for cells in lines]
  text = "".join(separator.join(cells) + "\n" for cells in lines)
  pathlib.Path(path).write_text(text)


def _reads(path: str):
  def run(rng: random.Random) -> int:
    from tpv_jax.core import errors
    from tpv_jax.data import text_files

    free = rng.random() < 0.3
    more = {"target": "score", "round_targets_to": 0.2} if free else {}
    labels = None if free else {0: "bad", 1: "good"}

    def body() -> None:
      settings = {"target": "label", "labels": labels, **more}
      if rng.random() < 0.3:
        settings["splits"] = {"validation": 0.4}
      task = text_files.text_file_task(
        name="t", paths=path, template="{sentence}", **settings
      )
      for split in ("train", *settings.get("splits", ())):
        for example in task.examples(split):
          (example.inputs + example.targets).encode()

    return errors.run_command(body)

  return run


TASK_FILE = """\
name = "mine"
paths = "a.csv"
template = "the {sentence}"
target = "label"
labels = { 0 = "negative", 1 = "positive" }
metric = "exact_match"
splits = { validation = 0.4 }
lengths = { inputs = 24, targets = 2 }
licence = "MIT"
"""


def _make_task_file() -> None:
  _make_table(",", "a.csv")
  pathlib.Path("mine.toml").write_text(TASK_FILE)


def _read_task_file(_: random.Random) -> int:
  from tpv_jax.core import errors
  from tpv_jax.data import task_files

  def body() -> None:
    described = task_files.read("mine.toml")
    assert task_files.lengths("mine.toml") == described.lengths
    for split in described.splits:
      for example in described.task.examples(split):
        (example.inputs + example.targets).encode()

  return errors.run_command(body)


def _rows(number: int) -> list[dict]:
  return [
    {"sentence1": f"a movie {i}", "sentence2": f"so {i}", "label": i % 2, "idx": i}
    for i in range(number)
  ]


def _write_lines(folder: pathlib.Path) -> None:
  folder.mkdir(parents=True)
  for split, number in (("train", 8), ("validation", 6)):
    text = "".join(json.dumps(row) + "\n" for row in _rows(number))
    (folder / f"{split}.jsonl").write_text(text)


def _make_local_lines() -> None:
  _write_lines(pathlib.Path("rte"))


def _make_local_parquet() -> None:
  import pyarrow
  from pyarrow import parquet

  folder = pathlib.Path("rte/data")
  folder.mkdir(parents=True)
  for split, number in (("train", 8), ("validation", 6)):
    table = pyarrow.Table.from_pylist(_rows(number))
    parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
  pathlib.Path("rte/README.md").write_text("""\
---
license: mit
dataset_info:
  features:
  - name: sentence1
    dtype: string
  - name: sentence2
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': entailment
          '1': not_entailment
  - name: idx
    dtype: int64
  splits:
  - name: train
    num_bytes: 300
    num_examples: 8
  - name: validation
    num_bytes: 200
    num_examples: 6
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: validation
    path: data/validation-*
---
# A data set
""")


def _make_saved() -> None:
  import datasets

  datasets.disable_progress_bars()
  datasets.DatasetDict(
    {
      split: datasets.Dataset.from_list(_rows(number))
      for split, number in (("train", 8), ("validation", 6))
    }
  ).save_to_disk("rte")


def _make_prepared() -> None:
  _make_local_lines()
  assert _PREPARE(random.Random(0)) == 0


def _read_exported(rng: random.Random) -> int:
  from tpv_jax.core import errors
  from tpv_jax.data import exported

  if rng.random() < 0.6:
    return tpv.one_of(
      "tasks export glue_rte --data-dir data",
      "tasks export glue_rte --data-dir data --overwrite",
      "tasks export glue_rte --data-dir data --seed 1 --overwrite",
      "tasks prepare glue_rte --from rte --data-dir data",
    )(rng)

  def body() -> None:
    task = exported.task("glue_rte", "data")
    for split in ("train", "validation", "test"):
      for example in task.examples(split):
        (example.inputs + example.targets).encode()

  return errors.run_command(body)


def _check_prepared() -> None:
  """Reads what was exported, if it was."""
  from tpv_jax.data import exported

  if pathlib.Path("data/tpv_jax/glue_rte/about.json").exists():
    about = json.loads(pathlib.Path("data/tpv_jax/glue_rte/about.json").read_text())
    task = exported.task("glue_rte", "data")
    for split, known in about["splits"].items():
      if known["examples"]:  # A file of one row leaves the test split none.
        assert len(task.examples(split)) == known["examples"]


_PREPARE = tpv.one_of("tasks prepare glue_rte --from rte --data-dir data")

KINDS = {
  "JSON lines": Kind(_make_lines, _reads("a.jsonl")),
  "CSV": Kind(lambda: _make_table(",", "a.csv"), _reads("a.csv")),
  "TSV": Kind(lambda: _make_table("\t", "a.tsv"), _reads("a.tsv")),
  "task file": Kind(_make_task_file, _read_task_file),
  "local JSON lines": Kind(
    _make_local_lines,
    _PREPARE,
    outputs=("data",),
    check=_check_prepared,
    fixed=("data",),
  ),
  "local parquet files": Kind(
    _make_local_parquet, _PREPARE, outputs=("data",), needs="datasets", fixed=("data",)
  ),
  "saved data set": Kind(
    _make_saved, _PREPARE, outputs=("data",), needs="datasets", fixed=("data",)
  ),
  "prepared data": Kind(
    _make_prepared,
    _read_exported,
    outputs=("data",),
    changes=("data",),
    fixed=("data",),
  ),
}
