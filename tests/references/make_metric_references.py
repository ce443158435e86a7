"""Makes the metric references: what the T5 package and MATH's authors say of predictions.

Writes `metrics.json` beside this file: predictions, targets, and the scores of the T5
package 0.9.4 (`t5.evaluation.metrics` after `t5.data.postprocessors`) and of
`math_equivalence.py` (Hendrycks et al. 2021, github.com/hendrycks/math). It imports
nothing of tpv_jax, so that an error there cannot hide here. Needs both outside the
project:

  pip install --target T5 t5==0.9.4       (and what it imports)
  python tests/references/make_metric_references.py --t5 T5 --math math_equivalence.py
  python tests/references/make_metric_references.py --t5 T5 --math ... --check
"""

import argparse
import importlib.util
import json
import pathlib
import random
import sys

HERE = pathlib.Path(__file__).parent
PATH = HERE / "metrics.json"
COUNT = 60


def drawn(labels: list[str], right: float, seed: int) -> tuple[list[str], list[str]]:
  """Returns targets, and predictions of which some are right and some no label."""
  chance = random.Random(seed)
  targets = [chance.choice(labels) for _ in range(COUNT)]
  others = [*labels, "neither", ""]
  predictions = [
    target if chance.random() < right else chance.choice(others) for target in targets
  ]
  return targets, predictions


def classification(t5, posts) -> dict:
  """Returns the scores of two and of three labels, some predictions being none."""
  made = {}
  for name, labels, right in (
    ("two labels", ["not_equivalent", "equivalent"], 0.6),
    ("three labels", ["entailment", "neutral", "contradiction"], 0.5),
  ):
    targets, predictions = drawn(labels, right, seed=len(labels))
    ids = [
      [posts.string_label_to_class_id(text, label_classes=labels) for text in texts]
      for texts in (targets, predictions)
    ]
    scores = {
      "exact_match": t5.accuracy(*ids)["accuracy"],
      "macro_f1": t5.mean_multiclass_f1(len(labels))(*ids)[
        f"mean_{len(labels)}class_f1"
      ],
      "matthews": t5.sklearn_metrics_wrapper(
        "matthews_corrcoef", metric_post_process_fn=lambda x: 100 * x
      )(*ids)["matthews_corrcoef"],
    }
    if len(labels) == 2:
      scores["f1"] = t5.f1_score_with_invalid(*ids)["f1"]
    made[name] = case(targets, predictions, scores, labels=labels)
  return made


def correlations(t5, posts) -> dict:
  """Returns the scores of rounded numbers, some predictions being none (STS-B)."""
  chance = random.Random(0)
  targets = [f"{chance.randrange(26) / 5:.1f}" for _ in range(COUNT)]
  predictions = [
    chance.choice(("", "high", "3.8.1"))
    if chance.random() < 0.15
    else f"{min(5.0, max(0.0, float(target) + chance.choice((-1, -0.2, 0, 0, 0.4)))):.1f}"
    for target in targets
  ]
  numbers = [
    [posts.string_to_float(text) for text in texts] for texts in (targets, predictions)
  ]
  scores = {
    "pearson": t5.pearson_corrcoef(*numbers)["pearson_corrcoef"],
    "spearman": t5.spearman_corrcoef(*numbers)["spearman_corrcoef"],
  }
  return {"numbers": case(targets, predictions, scores)}


def multirc(t5, posts) -> dict:
  """Returns MultiRC's F1a and exact match: questions of one to six answers."""
  labels = ["False", "True"]
  targets, predictions = drawn(labels, 0.8, seed=7)
  chance = random.Random(1)
  groups = sorted(f"question {chance.randrange(COUNT // 4)}" for _ in range(COUNT))
  chance.shuffle(groups)
  right = [
    posts.multirc(text, {"idx/question": group}, is_target=True)
    for text, group in zip(targets, groups, strict=True)
  ]
  said = [posts.multirc(text) for text in predictions]
  scores = {
    "f1": t5.multirc_f1_over_all_answers(right, said)["f1"],
    "group_exact_match": t5.mean_group_metric(t5.all_match)(right, said)["exact_match"],
  }
  return {"multirc": case(targets, predictions, scores, labels=labels, groups=groups)}


def squad(t5, posts) -> dict:
  """Returns SQuAD's scores over several right answers."""
  rows = [
    (["Denver Broncos", "The Denver Broncos"], "the denver broncos!"),
    (["the 1990s"], "1990s"),
    (["in the late 1990s", "1990s"], "late  1990s,"),
    (["a cat-like, an ape"], "catlike ape"),
    (["U.S."], "us"),
    (["Saint Bernadette Soubirous"], "Bernadette of Lourdes"),
    (["one one two"], "one two two"),
    (["unanswerable"], "unanswerable"),
    (["unanswerable"], "in Paris"),
    (["Théodore"], "theodore"),
    (["seven-day"], "seven day"),
    (["x"], ""),
    (["theatre and another"], "atre nd nother"),
  ]
  answers = [row[0] for row in rows]
  predictions = [row[1] for row in rows]
  found = t5.squad(answers, predictions)
  scores = {"squad_exact_match": found["em"], "squad_f1": found["f1"]}
  targets = [several[0] for several in answers]
  return {"squad": case(targets, predictions, scores, answers=answers)}


def wsc(t5, posts) -> dict:
  """Returns WSC's accuracy of candidates that are right or wrong."""
  rows = [
    ("the fuzzy bunny", "bunny", 1),
    ("bunny", "The Fuzzy Bunny", 0),
    ("Bob's hat", "Bob", 1),
    ("Bob's hat", "Bob", 0),
    ("Bob's hat", "hat", 1),
    ("Bob's hat", "hat", 0),
    ("hat", "the bob's hat", 1),
    ("Mark", "mark", 1),
    ("Mark", "Lily", 1),
    ("Mark", "Lily", 0),
    ("Mark", "the", 1),
    ("Mark", "the", 0),
    ("Mark", "", 0),
    ("a man and his dog", "man dog", 1),
    ("a man and his dog", "man horse", 1),
  ]
  targets = [row[0] for row in rows]
  predictions = [row[1] for row in rows]
  read = [
    posts.wsc_simple(said, {"targets_pretokenized": candidate})
    for candidate, said, _ in rows
  ]
  scores = {"wsc_match": t5.accuracy([row[2] for row in rows], read)["accuracy"]}
  answers = [[row[0]] if row[2] else [""] for row in rows]
  return {"wsc": case(targets, predictions, scores, answers=answers)}


def mathematics(equivalence) -> dict:
  """Returns for each pair of answers whether MATH's authors call them equal."""
  pairs = [
    ("\\frac{1}{2}", "0.5"),
    ("\\frac{1}{2}", ".5"),
    ("\\frac{1}{2}", "1/2"),
    ("\\frac{1}{2}", "\\dfrac12"),
    ("\\frac{1}{4}", "0.25"),
    ("\\frac{1}{2}", "2/4"),
    ("\\frac{-3}{4}", "-3/4"),
    ("-\\frac{3}{4}", "-3/4"),
    ("\\frac{a}{b}", "a/b"),
    ("\\frac{1}{72}", "\\frac1{72}"),
    ("\\frac{x}{y}+\\frac{1}{2}", "\\tfrac xy+\\frac12"),
    ("\\sqrt{3}", "\\sqrt3"),
    ("2\\sqrt{3}", "2 \\sqrt 3"),
    ("x=5", "5"),
    ("5", "k = 5"),
    ("y = x = 5", "5"),
    ("1,000", "1000"),
    ("(1, 2)", "(1,2)"),
    ("\\left(1, 2\\right)", "(1,2)"),
    ("(2,1)", "(1,2)"),
    ("30^\\circ", "30"),
    ("30^{\\circ}", "30"),
    ("50\\%", "50"),
    ("\\$5.50", "5.50"),
    ("5.5", "5.50"),
    ("5 \\text{ cm}", "5"),
    ("5\\text{ cm}^2", "5"),
    ("\\text{Monday}", "Monday"),
    ("10\\,000", "10000"),
    ("10\\!000", "10000"),
    ("x+1", "1+x"),
    ("\\\\frac{1}{2}", "\\frac{1}{2}"),
    ("[0, .5)", "[0, 0.5)"),
    ("{.5}", "{0.5}"),
    ("\\pi", "\\Pi"),
    ("0/5", "\\frac{0}{5}"),
    ("1/2/3", "\\frac{1}{2}/3"),
    ("5\\text{ cm}\\text{ or so}", "5"),
    ("", "5"),
    ("", ""),
  ]
  right = [equivalence.is_equiv(target, said) for target, said in pairs]
  return {"math": {"pairs": pairs, "equal": right}}


def case(targets, predictions, scores, **more) -> dict:
  scores = {name: float(value) / 100 for name, value in scores.items()}
  return {"targets": targets, "predictions": predictions, "scores": scores, **more}


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--t5", required=True, help="the folder with the T5 package")
  parser.add_argument("--math", required=True, help="math_equivalence.py")
  parser.add_argument("--check", action="store_true", help="compare, write nothing")
  arguments = parser.parse_args()
  sys.path.append(arguments.t5)
  from t5.data import postprocessors
  from t5.evaluation import metrics

  spec = importlib.util.spec_from_file_location("equivalence", arguments.math)
  equivalence = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(equivalence)
  made = mathematics(equivalence)
  for make in (classification, correlations, multirc, squad, wsc):
    made |= make(metrics, postprocessors)
  text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
  if arguments.check:
    equal = PATH.read_text() == text
    print(f"{PATH.name}: {'equal' if equal else 'differs'}")
    return int(not equal)
  PATH.write_text(text)
  print(f"{PATH.name}: {len(text)} characters")
  return 0


if __name__ == "__main__":
  sys.exit(main())
