"""Merging vectors by a rule that reads data."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tpv_jax.backbones import loading
from tpv_jax.core import files, identity
from tpv_jax.core.checks import Lengths, Size, checked
from tpv_jax.core.errors import UserError
from tpv_jax.core.registry import entry
from tpv_jax.data.labels import check_task
from tpv_jax.data.tasks import Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import partitioning, processes
from tpv_jax.evaluation import candidates, evaluation, searching
from tpv_jax.evaluation.evaluator import AT_ONCE, Evaluator
from tpv_jax.evaluation.merging.subject import Outcome, Subject, digest_of
from tpv_jax.model import SoftPromptModel
from tpv_jax.runs.run_folder import alone_at_output, versions
from tpv_jax.vectors import algebra, arithmetic, description, store
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging import merge, registry
from tpv_jax.vectors.merging.by_data import CoefficientSearch, DataRule


@checked
@processes.one_clear_line_if_memory_is_short(
  "Lower BATCH_SIZE, PROMPTS_AT_ONCE or the rule's batch_size, shorten LENGTHS, set DTYPE "
  "= 'bfloat16', or cut the backbone over devices (MODEL_PARALLEL)."
)
@alone_at_output
def merge_by_data(
  model: SoftPromptModel,
  backbone: str | loading.Backbone,
  tasks: Sequence[Any],
  vocabulary: Vocabulary,
  lengths: Lengths,
  vectors: Sequence[candidates.Vector],
  initial: candidates.Source,
  rule: str,
  weights: Sequence[float] | None = None,
  options: Mapping[str, Any] | None = None,
  batch_size: Size = 64,
  at_once: Size = AT_ONCE,
  output: files.PathLike | None = None,
  report: files.PathLike | None = None,
  overwrite: bool = False,
  model_parallel: Size = 1,
  progress: bool = True,
  printed: bool = True,
) -> Loaded:
  """Returns vectors merged by a rule that tries them on their backbone; writes the result.

  docs/methods.md, (4.27) to (4.31). Where the rule is linear the result's terms are those
  of the vectors times its coefficients, and a note states the rule. Otherwise it has one
  term, the `Merge`. Both state the settings, the initial prompt and the digest of the
  examples of each task that was read.

  Args:
    model: owns scoring.
    backbone: what `load_backbone` takes, or its result.
    tasks: whose examples are read. All of them count for the coefficients of a sum; the
      rule fisher takes for each vector the task that it states.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    vectors: files or vectors in memory; an entry may itself be a sum or a merge, as in an
      evaluation (`candidates.Vector`).
    initial: the initial prompt on which they are tried.
    rule: a name of `registry.BY_DATA`.
    weights: one for each vector, for rules that take weights; None for 1.
    options: of the rule, by name.
    batch_size: rows per call.
    at_once: prompts on the devices at once.
    output: the file of the merged vector; None writes none.
    report: a JSON file for what the rule tried or learned; None writes none.
    overwrite: replace outputs that exist.
    model_parallel: devices over which each parameter is split.
    progress: show a progress bar.
    printed: print what was made.

  Raises:
    UserError: an unknown rule or option, inputs that do not belong together, or an output
      that exists.
  """
  merging = registry.data_rule_with_options(rule, options or {})
  files.refuse_same({"OUTPUT": output, "REPORT": report})
  if output is not None:
    store.check_output(output, overwrite)
  if report is not None:
    files.check_output(report, overwrite)
  given, start = _loaded(vectors, initial)
  merge.check_numbers(merging, rule, weights, len(given))
  own = np.ones(len(given)) if weights is None else np.asarray(weights, np.float64)
  algebra.sum_provenance(given, own.tolist())  # Refuses what cannot be added.
  kept, left_out = merge.without_zeros(given, merging, rule)
  some = [given[place] for place in kept]
  _check_vectors(merging, rule, some)
  evaluation.check_tasks(tasks)
  check_labels(merging, rule, tasks)
  for task in tasks:
    check_task(task, vocabulary, lengths, [merging.split])
  processes.wait_for_all("the outputs are checked")
  loaded = loading.loaded(backbone, model.network, vocabulary)
  for one in some:
    tuned = algebra.fold(algebra.apply(one, start))
    candidates.check_fits(tuned.leaves, tuned.provenance, loaded)
  known = [one.provenance for one in some]
  candidates.say_other_template(known, vocabulary.chat)
  candidates.say_other_quantization(known, model.network)
  mesh = partitioning.make_mesh(model_parallel)
  evaluator = Evaluator(
    model, loaded.params, vocabulary, lengths, batch_size, mesh, at_once, progress
  )
  subject = Subject(some, own[kept], start, tasks, evaluator, mesh)
  merged, found, read = computed(rule, merging, subject, left_out)
  content = {
    "rule": rule,
    "settings": merge.settings_of(merging),
    "vectors": [one.name for one in some],
    **found.report,
    "provenance": merged.provenance.to_json(),
    "data": read,
    "backbone": loaded.stated(model.network),
    "work": evaluator.work.to_json(),
    "versions": versions(),
  }
  if processes.is_writer():
    if output is not None:
      store.write(output, merged.leaves, merged.provenance, overwrite)
    if report is not None:
      files.write_json(report, content, overwrite)
    if printed:
      print("\n".join(description.written(merged, str(output))))
      print(f"  {evaluator.work}.")
  return merged


def computed(
  rule: str, merging: DataRule, subject: Subject, notes: Sequence[str] = ()
) -> tuple[Loaded, Outcome, dict[str, str]]:
  """Returns the merged vector with its provenance, and what the rule made of the vectors.

  The third result has the digest of the examples that were read, by task.

  Args:
    rule: the name.
    merging: the rule with its options.
    subject: the vectors, and where they are tried.
    notes: what is known of vectors that were left out, for the provenance.
  """
  found: Outcome = entry(merging.computed_by)(merging, subject)
  tasks = found.tasks or subject.tasks
  read = {task.name: digest_of(merging, task) for task in tasks}
  return _stated(rule, merging, subject, found, read, notes), found, read


def _loaded(
  vectors: Sequence[candidates.Vector], initial: candidates.Source
) -> tuple[list[Loaded], Loaded]:
  """Returns the vectors, named as they were given, and the initial prompt."""
  if not vectors:
    raise UserError("VECTORS is empty. Give a list of at least one vector.")
  names = [candidates.name_of(one) for one in vectors]
  candidates.refuse_repeated("VECTORS", names)
  loaded = [
    dataclasses.replace(candidates.load_vector(one), name=name)
    for one, name in zip(vectors, names, strict=True)
  ]
  first: dict[str, str] = {}
  for one in loaded:
    other = first.setdefault(identity.prompt_digest(one.leaves), one.name)
    if other != one.name and not arithmetic.is_zero(one.leaves):
      raise UserError(
        f"VECTORS has the values of '{other}' twice, again as '{one.name}'. Give each once."
      )
  return loaded, candidates.load(initial, "initial")


def _check_vectors(merging: DataRule, rule: str, vectors: Sequence[Loaded]) -> None:
  """Raises `UserError` for vectors of parameters, where the rule cannot take them.

  A search only scores prompts, and so takes such vectors, too.
  """
  if vectors[0].provenance.space == "factor" and not isinstance(
    merging, CoefficientSearch
  ):
    raise UserError(
      f"The merge rule '{rule}' reads gradients of what prompts do, and these are vectors "
      "of parameters. Give vectors of the effective space (tpv diff without --space "
      "factor), or use the rule coefficient_search."
    )


def check_labels(merging: DataRule, rule: str, tasks: Sequence[Task]) -> None:
  """Raises `UserError` if a task has fewer labels than the rule needs."""
  if isinstance(merging, CoefficientSearch):
    searching.check_metric(tasks, merging.metric, "OPTIONS = {'metric': 'own'}")
  for task in tasks if merging.needs_labels else ():
    if len(task.labels or ()) < 2:
      raise UserError(
        f"The merge rule '{rule}' reads the probabilities of a task's label words, and the "
        f"task '{task.name}' has {len(task.labels or ()) or 'none'}. Leave it out, give it "
        "labels, or use a rule or objective that needs none."
      )


def _stated(
  rule: str,
  merging: DataRule,
  subject: Subject,
  found: Outcome,
  read: Mapping[str, str],
  notes: Sequence[str],
) -> Loaded:
  """Returns the merged vector with its provenance; `read` has the digests of the data."""
  settings = {
    name: value
    for name, value in merge.settings_of(merging).items()
    if value is not None
  }
  start = identity.prompt_digest(algebra.fold(subject.initial).leaves)
  if found.coefficients is not None:
    digests = {"initial": start, **{f"data {name}": one for name, one in read.items()}}
    short = {name: f"{digest[:12]}…" for name, digest in digests.items()}
    merged = algebra.sum_vectors(subject.vectors, found.coefficients.tolist())
    leaves, known = merged.leaves, merged.provenance
    notes = [*notes, merge.note(rule, settings | short)]
  else:
    assert found.leaves is not None  # An outcome has one of the two.
    settings |= {
      "initial": start,
      **{f"data {name}": one for name, one in read.items()},
    }
    weights = subject.weights.tolist() if merging.weighted else []
    made = merge.term(rule, settings, weights, subject.vectors)
    leaves = arithmetic.finite(
      {name: leaf.astype(np.float32) for name, leaf in found.leaves.items()}
    )
    known = algebra.sum_provenance(subject.vectors, [1.0] * len(subject.vectors))
    known = dataclasses.replace(known, terms=(made,))
    notes = [*notes, *merge.rank_notes(leaves, subject.vectors)]
  if arithmetic.is_zero(leaves):
    notes = [*notes, merge.ALL_ZERO]
  notes = (*known.notes, *notes, *found.notes)
  return Loaded(leaves, dataclasses.replace(known, notes=notes), f"merge by {rule}")
