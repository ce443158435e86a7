"""Makes the pairs of the tasks in the T5 package's style by running its preprocessors.

  python tests/references/make_golden_pairs.py    writes tests/conformance/golden_pairs.json
  python tests/references/make_golden_pairs.py --check    compares with what is there

The rows are those of tpv_jax/data/example_rows.json. Needs the package t5 (0.9.4 was used)
on the path, with TensorFlow. The pairs of the other tasks stay as they are.
"""

import functools
import json
import pathlib
import sys

import tensorflow as tf
from t5.data import preprocessors
from t5.data.glue_utils import get_glue_text_preprocessor
from tensorflow_datasets.text.glue import Glue
from tensorflow_datasets.text.super_glue import SuperGlue

TESTS = pathlib.Path(__file__).parent.parent
PATH = TESTS / "conformance" / "golden_pairs.json"
ROWS = TESTS.parent / "tpv_jax" / "data" / "example_rows.json"


def preprocessor(data):
  """Returns what the T5 package's task of a data set makes its texts with."""
  if data == "super_glue_wsc":  # The one that T5 trained with.
    return functools.partial(preprocessors.wsc_simple, correct_referent_only=False)
  family, _, name = data.partition("glue_")
  configs = (SuperGlue if family else Glue).builder_configs
  return get_glue_text_preprocessor(configs[name])


def tensors(row):
  """Returns a row as TFDS gives it: nested, with T5's 'idx'."""
  nested = {"idx": {}}
  for name, value in row.items():
    if name.startswith("idx/"):
      nested["idx"][name.removeprefix("idx/")] = tf.constant(value, tf.int32)
    elif isinstance(value, int):
      nested[name] = tf.constant(value, tf.int64 if name == "label" else tf.int32)
    else:
      nested[name] = tf.constant(value)
  nested["idx"] = nested["idx"] or tf.constant(0)
  return nested


def pairs(data, rows):
  """Returns the pairs of a data set's rows."""
  found = []
  for row in rows:
    dataset = tf.data.Dataset.from_tensors(tensors(row))
    (example,) = preprocessor(data)(dataset).as_numpy_iterator()
    pair = {name: example[name].decode() for name in ("inputs", "targets")}
    if data == "super_glue_wsc":  # Its postprocessor reads the label beside the noun.
      pair["answers"] = [pair["targets"] if example["label"] else ""]
    if "idx/question" in example:
      pair["group"] = str(example["idx/question"])
    found.append(pair)
  return found


def main():
  """Writes or checks the file."""
  stored = json.loads(PATH.read_text())
  made = {
    f"{data}_t5": pairs(data, rows)
    for data, rows in json.loads(ROWS.read_text()).items()
    if "glue_" in data
  }
  if "--check" in sys.argv:
    kept = {name: stored["pairs"].get(name) for name in made}
    sys.exit("The pairs differ from those of the T5 package." if kept != made else 0)
  stored["pairs"] |= made
  PATH.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
  main()
