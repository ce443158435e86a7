"""Every data set as an instruction, for decoder-only models.

The task-vector paper's runs of LLaMA 3.1 and DeepSeek-LLM use instructions. Those of
`AUTHORS` are the sentences of its public code (kinit-sk/task-prompt-vectors,
tasks/tasks.py), with its label words and its order of them; the source is the sentence, a
line for each field, and 'label: ', or an empty line where the target is free. The others
are ours, in the same form.
"""

from typing import Any

AUTHORS_LENGTH = 512
"""The longest source of the code's runs of LLaMA 3.1, in tokens."""


def _classify(what: str, labels: str, *fields: str, into: str = "into labels") -> str:
  """Returns the code's form of an instruction to classify."""
  lines = "\n".join(fields)
  return (
    f"Classify the {what} {into}: {labels}. Reply only the corresponding label.\n"
    f"{lines}\nlabel: "
  )


_SENTENCES = ("sentence1: {sentence1}", "sentence2: {sentence2}")
_PREMISE = ("premise: {premise}", "hypothesis: {hypothesis}")

AUTHORS = {
  "glue_mnli": _classify(
    "premise and hypothesis pair", "entailment, neutral, contradiction", *_PREMISE
  ),
  "glue_qqp": _classify(
    "question1 and question2 pair",
    "not duplicate, duplicate",
    "question1: {question1}",
    "question2: {question2}",
    into="into following labels",
  ),
  "glue_qnli": _classify(
    "question and sentence pair",
    "entailment, not entailment",
    "question: {question}",
    "sentence: {sentence}",
  ),
  "glue_sst2": _classify("sentence", "negative, positive", "sentence: {sentence}"),
  "glue_stsb": _classify(
    "sentence1 and sentence2 pair",
    ", ".join(f"{number / 5:.1f}" for number in range(26)),
    *_SENTENCES,
  ),
  "glue_mrpc": _classify(
    "sentence1 and sentence2 pair", "not equivalent, equivalent", *_SENTENCES
  ),
  "glue_rte": _classify(
    "sentence1 and sentence2 pair", "entailment, not entailment", *_SENTENCES
  ),
  "glue_cola": _classify(
    "sentence", "unacceptable, acceptable", "sentence: {sentence}"
  ),
  "dbpedia": _classify(
    "title and content pair",
    "Company, Educational Institution, Artist, Athlete, Office Holder, Mean Of "
    "Transportation, Building, Natural Place, Village, Animal, Plant, Album, Film, "
    "Written Work",
    "title: {title}",
    "content: {content}",
  ),
  "trec": _classify(
    "question",
    "Abbreviation, Entity, Description, Person, Location, Quantity",
    "question: {text}",
  ),
  "yelp_polarity": _classify("sentence", "negative, positive", "sentence: {text}"),
  "math": (
    "Solve the {level} math problem from subject {type}. Provide reasoning followed by "
    "the answer to the question.\nProblem: {problem}\n"
  ),
  # The code goes on to ask for the place of the answer and a dictionary of both, which it
  # trains and scores; the target here is the answer, so the second sentence is ours.
  "squad_v2": (
    "Answer the question based on the context. Reply only the answer, or unanswerable.\n"
    "question: {question}\ncontext: {context}\n"
  ),
}

OURS = {
  "super_glue_multirc": _classify(
    "answer to the question by the paragraph",
    "False, True",
    "paragraph: {paragraph}",
    "question: {question}",
    "answer: {answer}",
  ),
  "super_glue_boolq": _classify(
    "answer to the question by the passage",
    "False, True",
    "passage: {passage}",
    "question: {question}",
  ),
  "super_glue_wic": _classify(
    "sentence1 and sentence2 pair by whether the word means the same in both",
    "False, True",
    *_SENTENCES,
    "word: {word}",
  ),
  "super_glue_wsc": _classify(
    "text by whether the pronoun between # means the noun between *",
    "False, True",
    "text: {text}",
  ),
  "super_glue_cb": _classify(
    "premise and hypothesis pair", "entailment, contradiction, neutral", *_PREMISE
  ),
  "scitail": _classify("premise and hypothesis pair", "entailment, neutral", *_PREMISE),
  "snli": _classify(
    "premise and hypothesis pair", "entailment, neutral, contradiction", *_PREMISE
  ),
  "ag_news": _classify(
    "text", "World, Sports, Business, Sci/Tech", "text: {title} {description}"
  ),
  "yahoo_answers": _classify(
    "question and answer pair",
    "Society, Science, Health, Education, Computers, Sports, Business, Entertainment, "
    "Family, Politics",
    "title: {question_title}",
    "content: {question_content}",
    "answer: {best_answer}",
  ),
  "sst5": _classify(
    "sentence",
    "very negative, negative, neutral, positive, very positive",
    "sentence: {text}",
  ),
  "imdb": _classify("sentence", "negative, positive", "sentence: {text}"),
}

TEMPLATES = {**AUTHORS, **OURS}

_NOT_ENTAILMENT = {"entailment": "entailment", "not_entailment": "not entailment"}

LABELS: dict[str, dict[str, Any]] = {
  "glue_qqp": {"not_duplicate": "not duplicate", "duplicate": "duplicate"},
  "glue_qnli": _NOT_ENTAILMENT,
  "glue_mrpc": {"not_equivalent": "not equivalent", "equivalent": "equivalent"},
  "glue_rte": _NOT_ENTAILMENT,
}
"""Label words, by the source's class, where the code has others in its instructions."""
