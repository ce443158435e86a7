import collections

import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import registry, sources
from tpv_jax.data.papers import definition
from tpv_jax.data.papers.definition import EPT, TPV
from tpv_jax.data.registry import DEFINITIONS

CLASSES = {  # As the sources number them (TFDS 4.9.10; the hub's cards).
  "glue_mnli": ["entailment", "neutral", "contradiction"],
  "glue_qqp": ["not_duplicate", "duplicate"],
  "glue_qnli": ["entailment", "not_entailment"],
  "glue_sst2": ["negative", "positive"],
  "glue_mrpc": ["not_equivalent", "equivalent"],
  "glue_rte": ["entailment", "not_entailment"],
  "glue_cola": ["unacceptable", "acceptable"],
  "super_glue_cb": ["entailment", "contradiction", "neutral"],
  "scitail": ["entails", "neutral"],
  "snli": ["entailment", "neutral", "contradiction"],
  "trec": ["DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC"],
  "ag_news": ["World", "Sports", "Business", "Sci/Tech"],
  "yelp_polarity": ["1", "2"],
  "imdb": ["neg", "pos"],
}


def raw_rows(name):
  """The golden rows of a task, with classes by name."""
  which = DEFINITIONS[name]
  return [sources.named(row, which.classes) for row in definition.example_rows(which)]


def test_every_data_set_of_both_papers_is_there():
  papers = collections.Counter(
    paper
    for name, which in DEFINITIONS.items()
    if name == which.data
    for paper in which.papers
  )
  assert papers == {TPV: 19, EPT: 13}
  assert len(DEFINITIONS) == 24 + 13 + 24


def test_every_data_set_has_an_instruction_and_says_whose_words_it_has():
  words = {
    which.data: which.instruction
    for name, which in DEFINITIONS.items()
    if name.endswith("_instruct")
  }
  assert set(words) == {
    name for name, which in DEFINITIONS.items() if name == which.data
  }
  assert collections.Counter(words.values()) == {TPV: 13, "ours": 11}
  assert {which.instruction for which in DEFINITIONS.values()} == {None, TPV, "ours"}


def test_an_instruction_names_every_label_of_its_task():
  for name, which in DEFINITIONS.items():
    if which.instruction is not None and which.words is not None:
      sentence = which.template.partition("\n")[0]
      named = sentence.partition(": ")[2].partition(". Reply")[0].split(", ")
      assert sorted(named) == sorted(which.words), name


def test_classes_stand_in_the_order_of_the_sources():
  for name, classes in CLASSES.items():
    assert list(DEFINITIONS[name].labels) == classes


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("count", [5, 3000])
@pytest.mark.parametrize("name", ["glue_sst2", "glue_rte", "trec", "imdb"])
def test_splits_are_disjoint_and_follow_the_papers_rule(name, count, seed):
  which = DEFINITIONS[name]
  counts = {"train": count, which.held_out: count // 2, "else": 9}
  places = {s: which.places(s, counts, seed) for s in ("train", "validation", "test")}
  sources_of = {split: source for split, (source, _) in places.items()}
  size = {split: len(rows) for split, (_, rows) in places.items()}
  if which.large:
    assert sources_of == {
      "train": "train",
      "validation": "train",
      "test": which.held_out,
    }
    both, whole = ("train", "validation"), "test"
    assert size["validation"] == min(1000, count // 2)
  else:
    assert sources_of["train"] == "train"
    assert sources_of["validation"] == sources_of["test"] == which.held_out
    both, whole = ("validation", "test"), "train"
    assert size["validation"] == count // 2 // 2
  first, second = (places[split][1] for split in both)
  joined = np.concatenate([first, second])
  assert sorted(joined) == list(range(counts[sources_of[both[0]]]))
  assert all(np.array_equal(rows, np.sort(rows)) for _, rows in places.values())
  assert len(places[whole][1]) == counts[sources_of[whole]]
  again = which.places("validation", counts, seed)[1]
  assert np.array_equal(again, places["validation"][1])


def test_another_seed_gives_another_validation_split():
  which = DEFINITIONS["glue_sst2"]
  one, two = (
    which.places("validation", {"train": 5000, "validation": 9}, seed)[1]
    for seed in (0, 1)
  )
  assert len(set(one.tolist()) & set(two.tolist())) < 400


def test_steps_are_the_papers_epochs_at_batches_of_32():
  # 66,349 rows, 10 epochs; 5,452 rows, 50 epochs.
  assert DEFINITIONS["glue_sst2"].steps == 20735
  assert DEFINITIONS["trec"].steps == 8519
  # 259 right nouns of 554 rows (t5.data.glue_utils), 10 epochs.
  assert DEFINITIONS["super_glue_wsc_t5"].steps == 81


def test_questions_of_multirc_lie_in_one_split_as_a_whole():
  which = DEFINITIONS["super_glue_multirc"]
  row = raw_rows("super_glue_multirc")[0]
  rows = [
    {**row, "idx/question": number, "answer": f"{number} {answer}"}
    for number in range(2000)
    for answer in range(5)
  ]
  counts = {"train": len(rows), "validation": 7}
  found = {}
  for split in ("train", "validation"):
    source, places = which.places(split, counts)
    assert source == "train"
    examples = [which.example(rows[place], "here", split) for place in places]
    found[split] = [example for example in examples if example is not None]
  groups = {split: {e.group for e in examples} for split, examples in found.items()}
  assert not groups["train"] & groups["validation"]
  assert len(found["train"]) + len(found["validation"]) == len(rows)
  # 1,000 of 27,243 rows are 367 of these.
  assert 250 < len(found["validation"]) < 500
  source, places = which.places("test", counts)
  assert (source, len(places)) == ("validation", 7)
  assert which.example(rows[0], "here", "test") is not None


def test_t5s_wsc_trains_and_validates_on_right_nouns_only():
  which = DEFINITIONS["super_glue_wsc_t5"]
  right, wrong = raw_rows("super_glue_wsc_t5")
  for split in ("train", "validation"):
    assert which.example(right, "here", split).answers == ("Pete",)
    assert which.example(wrong, "here", split) is None
  assert which.example(wrong, "here", "test").answers == ("",)


def test_t5s_wsc_reads_the_two_rows_whose_index_is_no_word_as_t5_does():
  which = DEFINITIONS["super_glue_wsc_t5"]
  row = {"span1_text": "he", "span2_text": "him", "span2_index": 2, "label": "True"}
  found = which.example({**row, "text": '"Good for him," he said.'}, "", "test")
  assert found.inputs == 'wsc: "Good for *him* ," he said.'
  found = which.example({**row, "text": "We can see him , but"}, "", "test")
  assert found.inputs == "wsc: We can see *him* , but"


def test_snli_leaves_out_rows_without_a_label_and_others_refuse_them():
  row = {"premise": "a", "hypothesis": "b", "label": None}
  assert DEFINITIONS["snli"].example(row, "here", "train") is None
  with pytest.raises(UserError, match=r"a\.jsonl:7: no label in column 'label'"):
    DEFINITIONS["glue_mnli"].example(row, "a.jsonl:7", "train")


@pytest.mark.parametrize(
  ("name", "row", "message"),
  [
    (
      "glue_sst2",
      {"sentence": "a", "label": "positve"},
      r"a:1: 'positve' in column 'label' is outside the labels of 'glue_sst2': "
      r"negative, positive\. Did you mean 'positive'",
    ),
    (
      "glue_sst2",
      {"sentense": "a", "label": "positive"},
      r"a:1: there is no column 'sentence', only sentense, label\. Did you mean 'sent",
    ),
    (
      "glue_stsb",
      {"sentence1": "a", "sentence2": "b", "label": "many"},
      r"a:1: 'many' in column 'label' is no number",
    ),
    (
      "super_glue_wsc_t5",
      {
        **dict(text="a b", span1_text="a", span2_text="he", span2_index=1),
        "label": "True",
      },
      r"a:1: word 1 is not the pronoun 'he'",
    ),
    (
      "super_glue_wsc_t5",
      {
        **dict(text="a he", span1_text="a", span2_text="he", span2_index=1),
        "label": "yes",
      },
      r"a:1: 'yes' in column 'label' is neither False nor True",
    ),
  ],
)
def test_a_bad_row_is_named_with_what_is_wrong(name, row, message):
  with pytest.raises(UserError, match=message):
    DEFINITIONS[name].example(row, "a:1", "test")


@pytest.mark.parametrize(
  ("name", "cell", "message"),
  [
    ("super_glue_wsc_t5", {"label": "yes"}, r"a:1: 'yes' in column 'label' is neither"),
    ("super_glue_wsc", {"span1_index": None}, r"a:1: column 'span1_index' is empty\."),
    (
      "super_glue_wsc",
      {"span2_index": "x"},
      r"a:1: 'x' in column 'span2_index' is not",
    ),
    ("super_glue_wsc_t5", {"span2_index": -1}, r"a:1: '-1' in column 'span2_index' is"),
    ("squad_v2", {"answers/text": "Rhine"}, r"a:1: 'answers/text' must be a list of"),
    (
      "squad_v2",
      {"answers/text": None},
      r"a:1: 'answers/text' must be a list of strings",
    ),
    ("squad_v2", {"answers/text": ["a", 3]}, r"a:1: 'answers/text' must be a list of"),
    (
      "glue_stsb",
      {"label": 5.2},
      r"a:1: 5\.2 in column 'label' is outside.*, 0 to 5\.",
    ),
    ("glue_stsb", {"label": -1.0}, r"a:1: -1\.0 in column 'label' is outside"),
    ("glue_sst2", {"sentence": None}, r"a:1: column 'sentence' is empty\. Fill it"),
    (
      "glue_sst2",
      {"sentence": ["a"]},
      r"a:1: 'sentence' holds several values; it must be a string",
    ),
    (
      "super_glue_multirc",
      {"idx/question": None},
      r"a:1: column 'idx/question' is emp",
    ),
  ],
)
def test_a_bad_cell_is_named_in_training_rows_too(name, cell, message):
  for split in ("train", "test"):
    with pytest.raises(UserError, match=message):
      DEFINITIONS[name].example({**raw_rows(name)[0], **cell}, "a:1", split)


def test_an_unknown_task_is_refused_with_near_misses():
  with pytest.raises(
    UserError, match=r"no task 'glue_sst'\. Did you mean 'glue_sst2'.*tpv tasks list"
  ):
    registry.definition("glue_sst")


def test_a_changed_label_set_is_refused():
  which = DEFINITIONS["glue_sst2"]
  definition.check_classes(which, {"label": ["negative", "positive"], "other": ["a"]})
  with pytest.raises(
    UserError,
    match="label set of TFDS glue/sst2 has changed: it is positive, negative, and task "
    "'glue_sst2' knows negative, positive",
  ):
    definition.check_classes(which, {"label": ["positive", "negative"]})


def test_lengths_are_the_measured_ones_or_the_papers_limit():
  lengths = {name: which.lengths["inputs"] for name, which in DEFINITIONS.items()}
  assert lengths["glue_cola"] == 64  # the longest has 49 tokens
  assert lengths["glue_rte"] == 256  # 313
  assert lengths["glue_mnli"] == 256  # not measured
  assert lengths["super_glue_boolq_t5"] == 512
