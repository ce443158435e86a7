"""Evaluation of prompts on tasks: what is generated, and which label scores highest."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from tqdm import tqdm

from tpv_jax import files, identity, partitioning
from tpv_jax.backbone import loading
from tpv_jax.data import batches, metrics, packing
from tpv_jax.data.tasks import Example, Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.errors import UserError, at_least
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts.equations import Folded
from tpv_jax.runner import processes
from tpv_jax.runner.run_folder import versions
from tpv_jax.vectors import algebra, sources
from tpv_jax.vectors.provenance import Provenance

Prompt = Mapping[str, np.ndarray] | None
"""The leaves of a folded prompt: 'prompt' [P, D] and perhaps 'delta' [M, D]."""


BANK = 32
"""Prompts that are evaluated at once in a search."""


@dataclasses.dataclass(frozen=True)
class Result:
  """Scores and predictions on one split of one task.

  Attributes:
    scores: metric name -> value, fractions in [0, 1] or coefficients.
    generated: the greedily decoded text of each example.
    chosen: the label that scores highest, of each example; None without labels.
    trimmed: how many sources and targets were too long and lost tokens.
  """

  task: str
  split: str
  examples: int
  scores: dict[str, float]
  generated: list[str]
  chosen: list[str] | None
  trimmed: int


class Evaluator:
  """A backbone on the devices that any number of prompts are evaluated with.

  Compiled once per shape of prompt and batch. A prompt is given folded, or as None for
  the backbone alone.
  """

  def __init__(
    self,
    model: SoftPromptModel,
    params: Mapping[str, Any],
    vocabulary: Vocabulary,
    lengths: Mapping[str, int],
    batch_size: int = 64,
    mesh: Mesh | None = None,
  ):
    """Puts the backbone's `params` (nested, without a prompt) on the devices of `mesh`."""
    # Without a prompt module the model reads a folded prompt of any length.
    model = SoftPromptModel(
      model.network, None, model.input_vocabulary, model.output_vocabulary
    )
    self.vocabulary = vocabulary
    self.lengths = dict(lengths)
    at_least("The batch size", batch_size, 1)
    mesh = mesh or partitioning.make_mesh()
    # A last batch is filled up anyway, so any size is rounded up to suit the devices.
    rows = mesh.shape[partitioning.DATA]
    self.batch_size = -(-batch_size // rows) * rows
    parameters = partitioning.abstract_parameters(model, mesh)
    self._backbone = identity.unflatten(
      {
        path: processes.put(leaf, parameters[path].sharding)
        for path, leaf in identity.flatten(params).items()
        if not path.startswith("prompt/")
      }
    )
    self._rows = partitioning.batch_sharding(mesh)
    whole = partitioning.replicated(mesh)  # So that every process can read the answers.
    self._predict = jax.jit(model.predict_batch, out_shardings=whole)
    self._score_labels = jax.jit(model.score_labels, out_shardings=whole)
    self._measure = jax.jit(
      lambda params, batch: model.eval_fn(params, batch)[1], out_shardings=whole
    )
    self._count = jax.jit(
      lambda *arguments: model.bank_loss_sums(*arguments)[1], out_shardings=whole
    )
    self._row_shapes: dict[int, packing.Shape] = {}

  def evaluate(self, prompt: Prompt, task: Task, split: str) -> Result:
    """Returns all scores of a prompt on a split: generation and rank classification."""
    examples = task.examples(split)
    tokenized = self.tokenize(examples)
    generated, scored = self.answer(prompt, tokenized, task.labels)
    scores = task.scores(examples, generated)
    chosen = None
    if task.labels is not None and scored is not None:
      chosen = [task.labels[index] for index in scored.argmax(axis=1)]
      scores |= metrics.of_labels(task.scores(examples, chosen))
    trimmed = tokenized.truncated_inputs + tokenized.truncated_targets
    if trimmed and processes.is_writer():
      tqdm.write(f"{task.name}, {split}: {tokenized.report()}")
    return Result(task.name, split, len(examples), scores, generated, chosen, trimmed)

  def answer(
    self, prompt: Prompt, sources: batches.Tokenized, labels: Sequence[str] | None
  ) -> tuple[list[str], Float[np.ndarray, "N C"] | None]:
    """Returns the decoded text of each source, and each label's log-probability."""
    params = self._params(prompt)
    candidates = None
    if labels is not None:
      candidates = batches.label_tokens(
        labels, self.vocabulary, self.lengths["targets"]
      )
    tokens, scored = [], []
    for batch in self._batches(sources):
      tokens.append(np.asarray(self._predict(params, batch)))
      if candidates is not None:
        scored.append(np.asarray(self._score_labels(params, batch, candidates)))
    rows = np.concatenate(tokens)[: len(sources)].tolist()
    texts = [self.vocabulary.decode(ids) for ids in rows]
    return texts, np.concatenate(scored)[: len(sources)] if scored else None

  def exact_match(self, prompt: Prompt, tokenized: batches.Tokenized) -> float:
    """Returns the exact match of greedy decoding without decoding, in one forward pass.

    Greedy decoding gives the target if and only if each target token is the arg max
    after the ones before it; so this equals `evaluate`'s exact match where no target
    was trimmed. For searches over many prompts.
    """
    params = self._params(prompt)
    hits = rows = 0.0
    for batch in self._batches(tokenized):
      measured = self._measure(params, batch)["exact_match"]
      hits, rows = hits + float(measured.total), rows + float(measured.count)
    return hits / rows

  def exact_matches(
    self, pairs: Sequence[tuple[Mapping[str, np.ndarray], batches.Tokenized]]
  ) -> list[float]:
    """Returns `exact_match` of each prompt on its examples, many in one call.

    For searches over many sums and coefficients: the prompts, of one form, are the bank
    of `SoftPromptModel.bank_loss_sums`. Examples that several prompts share are packed
    into rows once.
    """
    packed: dict[int, batches.Features] = {}
    hits, examples = np.zeros(len(pairs)), np.zeros(len(pairs))
    for first in range(0, len(pairs), BANK):
      part = list(pairs[first : first + BANK])
      # A last bank is filled up, so that it compiles no other size.
      filled = part + part[-1:] * (BANK - len(part))
      folded = Folded(
        **{
          name: np.stack([leaves[name] for leaves, _ in filled]) for name in part[0][0]
        }
      )
      rows = []
      for index, (_, tokenized) in enumerate(part):
        if id(tokenized) not in packed:
          packed[id(tokenized)] = self._packed(tokenized, folded.prompt.shape[1])
        rows.append(packing.with_prompt(packed[id(tokenized)], index))
      for features in packing.blocks(rows, self.batch_size):
        counts = self._count(
          folded, self._backbone, processes.put_all(features, self._rows)
        )
        hits[first : first + len(part)] += counts["exact_match"][: len(part)]
        examples[first : first + len(part)] += counts["examples"][: len(part)]
    return (hits / examples).tolist()

  def _packed(
    self, tokenized: batches.Tokenized, prompt_length: int
  ) -> batches.Features:
    """Returns the examples as packed rows, of the width chosen for the first that came."""
    items = packing.items(batches.features(tokenized.inputs, tokenized.targets), 0)
    if prompt_length not in self._row_shapes:
      sizes = [(len(item.source), len(item.target)) for item in items]
      self._row_shapes[prompt_length] = packing.choose_row(
        sizes, prompt_length, self.lengths
      )
    return packing.pack_rows(items, self._row_shapes[prompt_length], prompt_length)

  def tokenize(self, examples: Sequence[Example]) -> batches.Tokenized:
    """Returns the examples as token ids, at this evaluator's lengths."""
    return batches.tokenize(examples, self.vocabulary, self.lengths)

  def _params(self, prompt: Prompt) -> dict[str, Any]:
    return self._backbone if prompt is None else {**self._backbone, "prompt": prompt}

  def _batches(self, tokenized: batches.Tokenized) -> list[dict[str, jax.Array]]:
    return [
      processes.put_all(batch, self._rows)
      for batch in batches.eval_batches(tokenized, self.batch_size)
    ]


def evaluate(
  model: SoftPromptModel,
  backbone: str,
  tasks: Sequence[Task],
  vocabulary: Vocabulary,
  lengths: Mapping[str, int],
  splits: Sequence[str] = ("test",),
  prompt: str | None = None,
  vector: str | None = None,
  initial: str | None = None,
  coefficient: float = 1.0,
  which: str = "best",
  batch_size: int = 64,
  output: str | None = None,
  predictions: bool = False,
  overwrite: bool = False,
  model_parallel: int = 1,
  progress: bool = True,
) -> dict[str, Any]:
  """Evaluates a prompt, a vector applied to an initial prompt, or no prompt; prints a table.

  Args:
    model: owns prediction and scoring.
    backbone: what `load_backbone` takes.
    tasks: the tasks to evaluate on.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    splits: of each task.
    prompt: a run folder, an Orbax checkpoint or a file that tpv wrote.
    vector: a vector's file, applied to `initial` times `coefficient`.
    initial: an initial prompt (with a run folder, its initial prompt is meant).
    coefficient: of the vector.
    which: the 'best', 'last' or 'initial' prompt of a run folder given as `prompt`.
    batch_size: examples a call.
    output: a JSON file for the results; nothing is written by default.
    predictions: write a line for each example beside `output`, as `<output>.predictions.jsonl`.
    overwrite: replace outputs that exist.
    model_parallel: devices over which each parameter is split.
    progress: show a progress bar.

  Raises:
    UserError: inputs that do not belong together, or an output that exists.
  """
  lines_path = f"{output}.predictions.jsonl"
  if output is not None:
    files.check_output(output, overwrite)
    if predictions:
      files.check_output(lines_path, overwrite)
  elif predictions:
    raise UserError("Predictions need a place: give --gin.OUTPUT as well.")
  if isinstance(splits, str):
    raise UserError(f"The splits are the text '{splits}'. Give a list: ['{splits}'].")
  processes.wait_for_all("the outputs are checked")
  loaded = loading.load_backbone(backbone, model.network, vocabulary)
  leaves, provenance = subject(prompt, vector, initial, coefficient, which)
  if provenance is not None:
    check_fits(leaves, provenance, loaded)
  folded = None if provenance is None else leaves
  mesh = partitioning.make_mesh(model_parallel)
  evaluator = Evaluator(model, loaded.params, vocabulary, lengths, batch_size, mesh)
  results = [
    evaluator.evaluate(folded, task, split)
    for task in tqdm(
      tasks, desc="tasks", disable=not (progress and processes.is_writer())
    )
    for split in splits
  ]
  report = {
    "prompt": None if provenance is None else provenance.to_json(),
    "prompt_digest": None if folded is None else identity.prompt_digest(leaves),
    "backbone": {"name": loaded.name, "fingerprint": loaded.fingerprint},
    "results": [
      {
        "task": r.task,
        "split": r.split,
        "examples": r.examples,
        "trimmed": r.trimmed,
        **r.scores,
      }
      for r in results
    ],
    "versions": versions(),
  }
  if processes.is_writer():
    print_table(results)
    if output is not None:
      files.write_json(output, report, overwrite)
      if predictions:
        _write_predictions(lines_path, results, tasks, overwrite)
  return report


def subject(
  prompt: str | None,
  vector: str | None,
  initial: str | None,
  coefficient: float,
  which: str,
) -> tuple[dict[str, np.ndarray], Provenance | None]:
  """Returns the folded prompt to be evaluated with its provenance, None without one."""
  if prompt is not None and vector is not None:
    raise UserError("Both a prompt and a vector were given; evaluate one at a time.")
  if vector is None and (initial is not None or coefficient != 1.0):
    raise UserError(
      "INITIAL and COEFFICIENT say where a vector is applied, and no vector was given: "
      "give --gin.VECTOR as well. (An initial prompt alone: PROMPT_PATH with "
      "--gin.WHICH='\"initial\"'.)"
    )
  if vector is not None and initial is None:
    raise UserError(
      f"The vector '{vector}' must be applied to an initial prompt: give "
      "--gin.INITIAL as well (a run folder means its initial prompt)."
    )
  if prompt is not None:
    loaded = sources.load(prompt, which)
    if loaded.provenance.kind == "prompt":
      loaded = algebra.fold(loaded)
    return dict(loaded.leaves), loaded.provenance
  if vector is None or initial is None:
    return {}, None
  applied = algebra.apply(
    sources.load(vector), sources.load(initial, "initial"), coefficient
  )
  applied = algebra.fold(applied)
  return dict(applied.leaves), applied.provenance


def check_fits(
  leaves: Mapping[str, np.ndarray], provenance: Provenance, backbone: loading.Backbone
) -> None:
  """Raises `UserError` unless the leaves are a prompt for this backbone."""
  if provenance.kind != "prompt":
    raise UserError(
      "A vector is a difference and cannot stand before a source. Apply it: give it as "
      "--gin.VECTOR with --gin.INITIAL."
    )
  known = provenance.backbone_fingerprint
  if known is not None and known != backbone.fingerprint:
    raise UserError(
      f"The prompt was trained on the backbone '{provenance.backbone_name}' ({known[:12]}"
      f"…), not on '{backbone.name}' ({backbone.fingerprint[:12]}…). Choose that backbone."
    )
  width = backbone.params["token_embedder"]["embedding"].shape[1]
  if leaves["prompt"].shape[1] != width:
    raise UserError(
      f"The prompt has width {leaves['prompt'].shape[1]}, the backbone {width}. "
      "Choose the backbone that it was trained on."
    )


def print_table(results: Sequence[Result]) -> None:
  """Prints the scores as a table, one row a task and split, in percent."""
  from rich.console import Console
  from rich.table import Table

  names = list(dict.fromkeys(name for result in results for name in result.scores))
  table = Table("task", "split", "examples", *names)
  for result in results:
    scores = [
      f"{100 * result.scores[name]:.1f}" if name in result.scores else ""
      for name in names
    ]
    table.add_row(result.task, result.split, str(result.examples), *scores)
  Console().print(table)


def _write_predictions(
  path: str, results: Sequence[Result], tasks: Sequence[Task], overwrite: bool
) -> None:
  by_name = {task.name: task for task in tasks}
  lines = [
    json.dumps(
      {
        "task": result.task,
        "split": result.split,
        "inputs": example.inputs,
        "target": example.targets,
        "generated": generated,
        "label": None if result.chosen is None else result.chosen[index],
      },
      ensure_ascii=False,
    )
    for result in results
    for index, (example, generated) in enumerate(
      zip(by_name[result.task].examples(result.split), result.generated, strict=True)
    )
  ]
  files.write_text(path, "\n".join(lines) + "\n", overwrite)


def infer(
  model: SoftPromptModel,
  backbone: str,
  vocabulary: Vocabulary,
  lengths: Mapping[str, int],
  input_file: str,
  output: str,
  prompt: str | None = None,
  which: str = "best",
  labels: Sequence[str] | None = None,
  batch_size: int = 64,
  overwrite: bool = False,
  model_parallel: int = 1,
) -> int:
  """Writes one JSON line for each line of a text file: what the prompt makes of it.

  Args:
    input_file: UTF-8 text, one source a line.
    output: JSON lines `{"inputs", "generated"}`, with labels also `"label"` (the one
      that scores highest) and `"scores"` (log-probabilities by label).
    labels: score these instead of leaving the choice to generation.
    See `evaluate` for the others.

  Returns: 0, the exit code.

  Raises:
    UserError: an empty input, an output that exists, or a prompt of another backbone.
  """
  files.check_output(output, overwrite)
  processes.wait_for_all("the output is checked")
  try:
    text = files.to_path(input_file).read_text(encoding="utf-8")
  except FileNotFoundError:
    raise UserError(files.missing(input_file)) from None
  except UnicodeDecodeError as error:
    raise UserError(
      f"'{input_file}' is no UTF-8 text ({error}). Convert it: iconv -f LATIN1 -t UTF-8."
    ) from error
  lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
  if not lines:
    raise UserError(
      f"'{input_file}' is empty. Give a text file with one source a line."
    )
  loaded = loading.load_backbone(backbone, model.network, vocabulary)
  leaves, provenance = subject(prompt, None, None, 1.0, which)
  if provenance is not None:
    check_fits(leaves, provenance, loaded)
  evaluator = Evaluator(
    model,
    loaded.params,
    vocabulary,
    lengths,
    batch_size,
    partitioning.make_mesh(model_parallel),
  )
  tokenized = evaluator.tokenize([Example(line, "") for line in lines])
  generated, scored = evaluator.answer(leaves or None, tokenized, labels)
  rows: list[dict[str, Any]] = [
    {"inputs": line, "generated": text}
    for line, text in zip(lines, generated, strict=True)
  ]
  if labels is not None and scored is not None:
    for row, row_scores in zip(rows, scored, strict=True):
      row["label"] = labels[int(row_scores.argmax())]
      row["scores"] = dict(zip(labels, map(float, row_scores), strict=True))
  if processes.is_writer():
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    files.write_text(output, text, overwrite)
    print(f"Wrote {len(rows)} lines to {output}: {tokenized.report()}")
  return 0
