"""GLUE and SuperGLUE with the T5 package's templates."""

from typing import Any

from tpv_jax.data.papers import changes

TEMPLATES = {
  "glue_mnli": "mnli hypothesis: {hypothesis} premise: {premise}",
  "glue_qqp": "qqp question1: {question1} question2: {question2}",
  "glue_qnli": "qnli question: {question} sentence: {sentence}",
  "glue_sst2": "sst2 sentence: {sentence}",
  "glue_stsb": "stsb sentence1: {sentence1} sentence2: {sentence2}",
  "glue_mrpc": "mrpc sentence1: {sentence1} sentence2: {sentence2}",
  "glue_rte": "rte sentence1: {sentence1} sentence2: {sentence2}",
  "glue_cola": "cola sentence: {sentence}",
  "super_glue_multirc": (
    "multirc question: {question} answer: {answer} paragraph: {paragraph}"
  ),
  "super_glue_boolq": "boolq passage: {passage} question: {question}",
  "super_glue_wic": "wic sentence1: {sentence1} sentence2: {sentence2} word: {word}",
  "super_glue_wsc": "wsc: {text}",
  "super_glue_cb": "cb hypothesis: {hypothesis} premise: {premise}",
}
"""The sources that the T5 package's preprocessors write; the label words are the same."""

DIFFERENCES: dict[str, dict[str, Any]] = {
  # The question comes last, and 256 tokens would cut it off in 9 % of the sources.
  "super_glue_boolq": {"most_tokens": 512},
  "super_glue_wsc": {
    "title": "WSC: the noun that a pronoun (*) means",
    "target": "span1_text",
    "labels": None,
    "metrics": ("wsc_match",),
    "change": changes.starred_pronoun,
    "answers": "answers",
    "trained_class": "True",
    "trained_rows": 259,
    "target_length": 16,
  },
}
"""Where the T5 package's tasks differ beyond the template. T5 reads 512 tokens. It trains
WSC only on rows with the right noun, 259 of them; in evaluation the answer is compared with
a noun. Validation on right nouns only is ours: otherwise its loss would reward wrong ones."""
