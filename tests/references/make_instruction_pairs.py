"""Makes the pairs of the authors' instructions by running the task-vector paper's code.

  python tests/references/make_instruction_pairs.py CODE    writes golden_pairs.json
  python tests/references/make_instruction_pairs.py CODE --check    compares

CODE is a checkout of kinit-sk/task-prompt-vectors, of which tasks/tasks.py is run; packages
that it imports and that the texts don't need are replaced by empty ones. The rows are those
of tpv_jax/data/example_rows.json. The pairs of the other tasks stay as they are: the rest
of the instructions are ours, SQuAD's is shortened.
"""

import importlib
import json
import pathlib
import sys
import types
from unittest import mock

TESTS = pathlib.Path(__file__).parent.parent
PATH = TESTS / "conformance" / "golden_pairs.json"
ROWS = TESTS.parent / "tpv_jax" / "data" / "example_rows.json"

CLASSES = {
  "glue_mnli": "MNLITextInstruct",
  "glue_qqp": "QQPTextInstruct",
  "glue_qnli": "QNLITextInstruct",
  "glue_sst2": "SST2TextInstruct",
  "glue_stsb": "STSBTextInstruct",
  "glue_mrpc": "MRPCTextInstruct",
  "glue_rte": "RTETextInstruct",
  "glue_cola": "COLATextInstruct",
  "dbpedia": "DBPEDIATextInstruct",
  "trec": "TRECCoarseTextInstruct",
  "yelp_polarity": "YelpPolarityTextInstruct",
  "math": "MATHInstruct",
}

TREC = ("Description", "Entity", "Abbreviation", "Person", "Quantity", "Location")
"""TFDS numbers the classes in this order, and the code in that of Hugging Face."""


def authors_tasks(code):
  """Returns the module tasks/tasks.py of a checkout."""
  sys.path.insert(0, code)
  package = types.ModuleType("tasks")
  package.__path__ = [f"{code}/tasks"]
  empty = ("datasets", "torch", "evaluate", "metrics", "transformers")
  metrics = mock.MagicMock()
  metrics.round_stsb_target = lambda label: f"{round(label * 5) / 5:.1f}"
  stand_ins = {name: mock.MagicMock() for name in empty}
  with mock.patch.dict(
    sys.modules, {**stand_ins, "metrics": metrics, "tasks": package}
  ):
    return importlib.import_module("tasks.tasks")


def pairs(tasks, data, rows):
  """Returns the pairs of a data set's rows."""
  task = getattr(tasks, CLASSES[data])()
  task.formater = tasks.AutoType.get("CAUSAL_LM").formater
  found = []
  for row in rows:
    if data == "trec":
      words = {word: number for number, word in task.id2label.items()}
      row = {**row, "coarse_label": words[TREC[row["label-coarse"]]]}
    made = task.preprocessor(row)
    found.append({"inputs": made["content"], "targets": made["target"]})
  return found


def main():
  """Writes or checks the file."""
  stored = json.loads(PATH.read_text())
  tasks, rows = authors_tasks(sys.argv[1]), json.loads(ROWS.read_text())
  made = {f"{data}_instruct": pairs(tasks, data, rows[data]) for data in CLASSES}
  if "--check" in sys.argv:
    kept = {name: stored["pairs"].get(name) for name in made}
    sys.exit("The pairs differ from those of the code." if kept != made else 0)
  stored["pairs"] |= made
  PATH.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
  main()
