"""Checks on the rows and their targets, and on which answers are right."""

from tpv_jax.core.errors import printable
from tpv_jax.runs.diagnosis.evidence import Evidence, Finding, another_rate, values
from tpv_jax.runs.diagnosis.training import FLAT

CUT, UNKNOWN = 0.05, 0.05
"""Parts of the sources that are cut, and of the tokens that are unknown."""


def targets_lost(evidence: Evidence) -> Finding | None:
  """Some targets can never be answered: they are cut or have unknown tokens."""
  told = []
  cut = unknown = 0
  for split in ("train", "validation"):
    counts = evidence.counts(split)
    lost = counts.get("targets", {})
    if lost.get("trimmed") or lost.get("unknown"):
      cut, unknown = cut + lost["trimmed"], unknown + lost["unknown"]
      told.append(
        f"{split}: {lost['trimmed']} of {counts['examples']} targets are cut, "
        f"{lost['unknown']} have unknown tokens"
      )
  if not told:
    return None
  longest = evidence.settings.get("data", {}).get("lengths", {}).get("targets")
  changes = []
  if cut:
    changes.append(f"a larger LENGTHS['targets'] (it is {longest})")
  if unknown:
    changes.append("other words for the LABELS, which the vocabulary knows")
  return Finding(
    "targets_lost",
    "some answers can never be right",
    "; ".join(told) + ".",
    f"Give {' and '.join(changes)}.",
  )


def sources_cut(evidence: Evidence) -> Finding | None:
  """Many sources are cut."""
  told, more = [], 0
  for split in ("train", "validation"):
    counts = evidence.counts(split)
    lost = counts.get("sources", {})
    if lost.get("trimmed", 0) > CUT * counts.get("examples", 0):
      each = -(-lost["lost_tokens"] // lost["trimmed"])
      more = max(more, each)
      told.append(
        f"{split}: {lost['trimmed']} of {counts['examples']} sources are cut, by {each} "
        "tokens on average"
      )
  if not told:
    return None
  longest = evidence.settings.get("data", {}).get("lengths", {}).get("inputs")
  return Finding(
    "sources_cut",
    "many sources are cut",
    "; ".join(told) + ".",
    f"Set LENGTHS['inputs'] to {int(longest or 0) + more} or more (it is {longest}), or "
    "shorten the template's own words.",
  )


def sources_unknown(evidence: Evidence) -> Finding | None:
  """Many tokens of the sources are unknown to the vocabulary."""
  for split in ("train", "validation"):
    counts = evidence.counts(split)
    unknown = counts.get("sources", {}).get("unknown_tokens", 0)
    if unknown > UNKNOWN * counts.get("tokens", 0):
      return Finding(
        "sources_unknown",
        "the vocabulary does not know the sources' words",
        f"{split}: {unknown} of {counts['tokens']} tokens are unknown, in "
        f"{counts['sources']['unknown']} of {counts['examples']} sources.",
        "Use a backbone whose vocabulary covers these texts (BACKBONE; the embedded one "
        "knows its own small grammar only).",
      )
  return None


def never_exact(evidence: Evidence) -> Finding | None:
  """No answer is right as a whole although the loss falls."""
  exact = values(evidence.validation, "exact_match")
  if not exact or max(exact) > 0 or evidence.losses is None:
    return None
  start, lowest = evidence.losses
  before = evidence.untuned.get("accuracy")
  accuracy = max(values(evidence.validation, "accuracy"), default=0.0)
  rose = before is not None and accuracy > before + 0.05
  if lowest >= (1 - FLAT) * start and not rose:
    return None
  tokens = f"{100 * accuracy:.1f} % of the target tokens are right" + (
    "" if before is None else f", {100 * before:.1f} % untuned"
  )
  return Finding(
    "never_exact",
    "no answer is right as a whole, though the loss falls",
    f"Exact match is 0 in all {len(exact)} validations; the loss fell from {start:.4g} to "
    f"{lowest:.4g}, and {tokens}.",
    "Give more TRAIN_STEPS. If that does not help, look which token is wrong: labels of "
    "several tokens, or that share their first one, are harder (LABELS), and a template "
    "that ends like a question asks for longer answers (TEMPLATE).",
  )


def one_answer(evidence: Evidence) -> Finding | None:
  """The share of right answers is that of one label: the prompt gives it to every row."""
  exact = values(evidence.validation, "exact_match")
  counts = evidence.counts("validation")
  rows = counts.get("examples", 0)
  shares = {
    target: count / rows for target, count in counts.get("most_common", {}).items()
  }
  if not exact or not rows:
    return None
  if counts.get("different_targets") == 1:
    return Finding(
      "one_answer",
      "all validation rows have one and the same target",
      f"The target of all {rows} rows is '{printable(next(iter(shares)))}'.",
      "Take validation rows of every class: shuffle the file, or name another split.",
    )
  half = 0.5 / rows
  best, last = max(exact), exact[-1]
  label = next((t for t, share in shares.items() if abs(share - last) < half), None)
  if label is None or best > last + 2 * half or last >= 0.999:
    return None
  return Finding(
    "one_answer",
    "the prompt may give one answer to every row",
    f"The last exact match, {100 * last:.1f} %, is the share of '{printable(label)}' in "
    f"the {rows} validation rows, and no validation was better.",
    f"Give more TRAIN_STEPS, or {another_rate(evidence)}; "
    "balance the classes of the training rows. 'tpv eval' shows macro_f1, which such "
    "answers do not raise.",
  )


def near_majority(evidence: Evidence) -> Finding | None:
  """The loss fell, and the answers are hardly better than always giving the same one."""
  exact, share = values(evidence.validation, "exact_match"), evidence.majority_share
  if not exact or share is None or not evidence.fell or evidence.learned:
    return None
  if max(exact) == 0 or one_answer(evidence) is not None:
    return None
  label = printable(evidence.manifest["majority"]["label"])
  return Finding(
    "near_majority",
    "it is hardly better than always giving one answer",
    f"The best exact match is {100 * max(exact):.1f} %; '{label}' is right in "
    f"{100 * share:.1f} % of the rows.",
    "Give more TRAIN_STEPS or a longer prompt (PROMPT_LENGTH), and check labels and "
    "template on some rows: does a person see the label in the source?",
  )
