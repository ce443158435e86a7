"""Scoring and decoding for many prompts on many tasks at once, on one backbone.

Imports only what the model imports: neither gin nor anything that writes files.
"""

import collections
import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from tpv_jax.backbones import quantization
from tpv_jax.core import identity, screen
from tpv_jax.core.errors import UserError, at_least
from tpv_jax.core.screen import Bar
from tpv_jax.data import batches, packing
from tpv_jax.data.labels import spelling
from tpv_jax.data.metrics import registry as metrics
from tpv_jax.data.tasks import Example, Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import partitioning, processes
from tpv_jax.evaluation.rows import Choices, RowSizes, in_blocks, layers, pack
from tpv_jax.evaluation.work import Work
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import equations
from tpv_jax.prompts.equations import Folded

Prompt = Mapping[str, np.ndarray] | None
"""The leaves of a folded prompt: 'prompt' [P, D] and perhaps 'delta' [M, D].

None is the backbone alone."""

AT_ONCE = 32
"""The default number of prompts on the devices at once."""

_AHEAD = 8
"""The number of calls in flight before the oldest answer is fetched."""

Answer = tuple[Float[np.ndarray, "_ _"], Bool[np.ndarray, "_ _"]]
"""For each example's choices, [N, C]: log-probabilities, and whether greedy decoding
writes the choice."""


@dataclasses.dataclass(frozen=True)
class Result:
  """Scores and predictions on one split of one task.

  Attributes:
    scores: metric name -> value, fractions in [0, 1] or coefficients.
    generated: the decoded text of each example.
    chosen: the label that scores highest for each example; None without labels.
    trimmed: how many sources and targets were too long and lost tokens.
    unknown: how many sources and targets have unknown tokens.
  """

  task: str
  split: str
  examples: int
  scores: dict[str, float]
  generated: list[str]
  chosen: list[str] | None
  trimmed: int
  unknown: int = 0


class Evaluator:
  """A backbone on the devices, with which many prompts are evaluated in one pass.

  Prompts are given folded, or as None for the backbone alone. Prompts of one form (equal
  shapes) share calls, whatever their tasks; each form is compiled separately. Choices
  are scored in packed rows: each example is encoded once, behind its prompt, and all of
  its choices are scored against it. Text is decoded by the model's `choice`; greedy
  decoding skips the examples for which scoring has shown that it writes a label.
  """

  def __init__(
    self,
    model: SoftPromptModel,
    params: Mapping[str, Any],
    vocabulary: Vocabulary,
    lengths: Mapping[str, int],
    batch_size: int = 64,
    mesh: Mesh | None = None,
    at_once: int = AT_ONCE,
    progress: bool = False,
  ):
    """Puts the backbone's `params` (nested, without a prompt) on the devices of `mesh`.

    Args:
      model: provides the network and the decoding; its prompt module is not used.
      params: the backbone's parameters.
      vocabulary: the backbone's.
      lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
      batch_size: examples decoded per call; a call of packed rows has about as many
        positions.
      mesh: the devices; by default each of them holds the whole backbone.
      at_once: prompts on the devices at once; the others follow.
      progress: show a progress bar.
    """
    # Without a prompt module the model reads a folded prompt of any length.
    model = model.with_prompt(None)
    self.model = model
    self.vocabulary = vocabulary
    self.lengths = dict(lengths)
    at_least("The batch size", batch_size, 1)
    at_least("PROMPTS_AT_ONCE", at_once, 1)
    self.at_once = at_once
    self.progress = progress and processes.is_writer()
    self.title = ""  # Stands in front of each progress bar.
    self.work = Work()
    mesh = mesh or partitioning.make_mesh()
    # The last call is padded anyway, so any size is rounded up to suit the devices.
    self._grain = mesh.shape[partitioning.DATA]
    self.batch_size = self.to_grain(batch_size)
    parameters = partitioning.layout(model, mesh).parameters
    self.backbone = identity.unflatten(
      {
        path: processes.put_leaf(
          quantization.stored(model.network, path, leaf), parameters[path].sharding
        )
        for path, leaf in identity.flatten(params).items()
        if not path.startswith("prompt/")
      }
    )
    self._features = model.network.emb_dim
    self._architecture = model.architecture
    self._rows = partitioning.batch_sharding(mesh)
    # Replicated, so that every process can read the answers and every row its prompt.
    self._whole = partitioning.replicated(mesh)

    def score(folded: Folded, backbone: Any, batch: Any) -> Any:
      self.work.compiled += 1  # Runs only while JAX traces the function.
      return model.score_choices(folded, backbone, batch)

    def predict(folded: Folded, backbone: Any, batch: Any) -> Any:
      self.work.compiled += 1
      return model.predict_rows(folded, backbone, batch, self.lengths["targets"])

    self._score = jax.jit(score, out_shardings=self._whole)
    self._predict = jax.jit(predict, out_shardings=self._whole)
    self._sizes = RowSizes(self.lengths)

  def evaluate(self, prompt: Prompt, task: Task, split: str) -> Result:
    """Returns all scores of a prompt on a split: generation and rank classification."""
    return self.evaluate_all([(prompt, task, split)])[0]

  def evaluate_all(self, cells: Sequence[tuple[Prompt, Task, str]]) -> list[Result]:
    """Returns `evaluate`'s result for each prompt, task and split, in one pass."""
    examples, tokenized, written = {}, {}, {}
    for _, task, split in cells:
      key = (id(task), split)
      if key not in examples:
        examples[key] = task.examples(split)
        tokenized[key] = self.tokenize(examples[key], f"{task.name}, {split}")
        written[key] = [self._spelling(one.targets) for one in examples[key]]
    answers = self.answer_all(
      [
        (prompt, tokenized[id(task), split], task.labels)
        for prompt, task, split in cells
      ]
    )
    results = []
    for (_, task, split), (generated, scored) in zip(cells, answers, strict=True):
      key = (id(task), split)
      scores = task.scores(examples[key], generated, written[key])
      chosen = None
      if task.labels is not None and scored is not None:
        chosen = [task.labels[index] for index in scored.argmax(axis=1)]
        scores |= metrics.of_labels(task.scores(examples[key], chosen))
      lost = (tokenized[key].sources, tokenized[key].answers)
      results.append(
        Result(
          task.name,
          split,
          len(examples[key]),
          scores,
          generated,
          chosen,
          sum(one.trimmed for one in lost),
          sum(one.unknown for one in lost),
        )
      )
    return results

  def answer(
    self, prompt: Prompt, sources: batches.Tokenized, labels: Sequence[str] | None
  ) -> tuple[list[str], Float[np.ndarray, "N C"] | None]:
    """Returns the decoded text of each source, and each label's log-probability."""
    return self.answer_all([(prompt, sources, labels)])[0]

  def answer_all(
    self,
    requests: Sequence[tuple[Prompt, batches.Tokenized, Sequence[str] | None]],
  ) -> list[tuple[list[str], Float[np.ndarray, "_ _"] | None]]:
    """Returns `answer`'s result for each prompt, sources and labels, in one pass."""
    tokens = {
      labels: batches.label_tokens(labels, self.vocabulary, self.lengths["targets"])
      for labels in {tuple(labels) for _, _, labels in requests if labels is not None}
    }
    with_labels = [i for i, one in enumerate(requests) if one[2] is not None]
    scored: dict[int, Answer] = dict(
      zip(
        with_labels,
        self.score(
          [
            (prompt, sources, tokens[tuple(labels or ())])
            for prompt, sources, labels in (requests[i] for i in with_labels)
          ]
        ),
        strict=True,
      )
    )
    # Where greedy decoding writes a label, scoring has told which one.
    texts: list[list[str | None]] = []
    for index, (_, given, labels) in enumerate(requests):
      texts.append([None] * len(given))
      if index in scored and self.model.choice.is_greedy:
        words = [self._text(row) for row in tokens[tuple(labels or ())]]
        for row, label in np.argwhere(scored[index][1]):
          texts[index][row] = words[label]
    open_rows = [[row for row, text in enumerate(one) if text is None] for one in texts]
    decoded = self.decode(
      [
        (prompt, sources.inputs[rows])
        for (prompt, sources, _), rows in zip(requests, open_rows, strict=True)
      ],
      open_rows,
    )
    for one, rows, written in zip(texts, open_rows, decoded, strict=True):
      for row, ids in zip(rows, written, strict=True):
        one[row] = self._text(ids)
    return [
      ([text or "" for text in one], scored[i][0] if i in scored else None)
      for i, one in enumerate(texts)
    ]

  def exact_match(self, prompt: Prompt, tokenized: batches.Tokenized) -> float:
    """Returns the exact match of greedy decoding without decoding, in one forward pass.

    Equal to that of `evaluate` (`data.metrics.classes.exact_match`); for searches over
    many prompts.
    """
    return self.exact_matches([(prompt, tokenized)])[0]

  def exact_matches(
    self, pairs: Sequence[tuple[Prompt, batches.Tokenized]]
  ) -> list[float]:
    """Returns `exact_match` of each prompt on its examples, in one pass."""
    answers = self.score([(prompt, tokenized, None) for prompt, tokenized in pairs])
    return [float(hits.mean()) for _, hits in answers]

  def label_accuracies(
    self,
    requests: Sequence[
      tuple[Prompt, batches.Tokenized, Sequence[str], Int[np.ndarray, " _"]]
    ],
  ) -> list[float]:
    """Returns for each request how often the right label scores highest, in one pass.

    Args:
      requests: a prompt, its examples, the labels, and the index of the right label of
        each example.
    """
    return [float(highest.mean()) for _, highest in self.hits(requests)]

  def hits(
    self,
    requests: Sequence[
      tuple[Prompt, batches.Tokenized, Sequence[str], Int[np.ndarray, " _"]]
    ],
  ) -> list[tuple[Bool[np.ndarray, " _"], Bool[np.ndarray, " _"]]]:
    """Returns for each request which examples it answers right, in one pass.

    The first are those whose label greedy decoding writes (exact match), the second those
    whose label scores highest among the labels.

    Args:
      requests: as `label_accuracies` takes them.
    """
    tokens = {
      labels: batches.label_tokens(labels, self.vocabulary, self.lengths["targets"])
      for labels in {tuple(labels) for _, _, labels, _ in requests}
    }
    answers = self.score(
      [
        (prompt, sources, tokens[tuple(labels)])
        for prompt, sources, labels, _ in requests
      ]
    )
    return [
      (written[np.arange(len(right)), right], scores.argmax(axis=1) == right)
      for (scores, written), (*_, right) in zip(answers, requests, strict=True)
    ]

  def score(
    self,
    requests: Sequence[tuple[Prompt, batches.Tokenized, Choices]],
  ) -> list[Answer]:
    """Returns the scores of each example's choices for all requests, in one pass.

    Args:
      requests: a prompt, its examples, and their choices. The examples of several
        tasks share rows, which are packed once for all prompts with the same tasks.
    """
    for prompt, tokenized, _ in requests:
      self.refuse_nothing(prompt, tokenized.inputs)
    answers: list[Answer] = [
      (np.zeros((0, 0), np.float32), np.zeros((0, 0), bool)) for _ in requests
    ]
    # Numbered in the order of the requests, which is the same in every process.
    numbers: dict[Hashable, int] = {}
    sets = [
      numbers.setdefault((id(tokenized), id(choices)), len(numbers))
      for _, tokenized, choices in requests
    ]
    packed: dict[tuple[Any, ...], tuple[batches.Features, list[np.ndarray]]] = {}
    with self._bar("scoring", [tokenized for _, tokenized, _ in requests]) as bar:
      for length, folded, members in self.banks([one[0] for one in requests], sets):
        shape = self._sizes.packed(length, [requests[i][1:] for i, _ in members])
        before, packed = packed, {}  # Keeps no rows but those of the bank before.
        parts, found_at, start = [], [], 0
        for layer in layers(members, sets):
          key = (length, shape, *(sets[index] for index, _ in layer))
          if key not in packed:
            packed[key] = before.get(key) or pack(
              [requests[i][1:] for i, _ in layer], shape, length
            )
          rows, firsts = packed[key]
          parts.append((rows, [place for _, place in layer]))
          found_at += [
            (index, start, first)
            for (index, _), first in zip(layer, firsts, strict=True)
          ]
          start += packing.row_count(rows)
        self.work.used += sum(packing.used_positions(rows) for rows, _ in parts)
        size = self.to_grain(
          self.batch_size * (length + self.lengths["inputs"]) // shape.width
        )
        blocks = packing.blocks(
          (packing.with_prompts(rows, places) for rows, places in parts), size
        )
        found = self._call(self._score, folded, blocks, bar)
        self.work.note("scoring", (size, shape.width, shape.targets), len(found))
        scores, hits = (np.concatenate(values) for values in zip(*found, strict=True))
        for index, start, first in found_at:
          choices = requests[index][2]
          columns = first[:, 1:] + np.arange(1 if choices is None else len(choices))
          at = (start + first[:, :1], columns)
          answers[index] = scores[at], hits[at]
    return answers

  def decode(
    self,
    requests: Sequence[tuple[Prompt, Int[np.ndarray, "_ _"]]],
    numbers: Sequence[Sequence[int]] | None = None,
  ) -> list[Int[np.ndarray, "_ _"]]:
    """Returns the decoded tokens of each prompt's sources, in one pass.

    Each row of a call is one example behind its own prompt; rows have at most two
    different lengths.

    Args:
      requests: a prompt and its sources.
      numbers: for each request the numbers of its examples, by which tokens are drawn; by
        default they count from 0.
    """
    if numbers is None:
      numbers = [range(len(sources)) for _, sources in requests]
    for prompt, sources in requests:
      self.refuse_nothing(prompt, sources)
    most = self.lengths["targets"]
    decoded = [np.zeros((len(sources), most), np.int32) for _, sources in requests]
    todo = [i for i, (_, sources) in enumerate(requests) if len(sources)]
    with self._bar("decoding", [requests[i][1] for i in todo]) as bar:
      for length, folded, members in self.banks([requests[i][0] for i in todo]):
        owners = [todo[i] for i, _ in members]
        sources = np.concatenate([requests[i][1] for i in owners])
        examples = np.concatenate([np.asarray(numbers[i], np.int32) for i in owners])
        counts = [len(requests[i][1]) for i in owners]
        places = np.repeat([place for _, place in members], counts).astype(np.int32)
        tokens = batches.token_counts(sources)
        written = np.zeros((len(sources), most), np.int32)
        left = np.ones(len(sources), bool)
        for width in self._sizes.decoded(length, tokens):
          rows = np.flatnonzero(left & (tokens <= width))
          left[rows] = False
          if not len(rows):
            continue
          blocks = in_blocks(
            sources[rows, :width], places[rows], examples[rows], self.batch_size
          )
          found = self._call(self._predict, folded, blocks, bar)
          written[rows] = np.concatenate(found)[: len(rows)]
          self.work.used += int(tokens[rows].sum()) + length * len(rows)
          self.work.note(
            "decoding", (self.batch_size, length + width, most), len(found)
          )
        for index, part in zip(
          owners, np.split(written, np.cumsum(counts)), strict=False
        ):
          decoded[index] = part
    return decoded

  def tokenize(
    self, examples: Sequence[Example], what: str | None = None
  ) -> batches.Tokenized:
    """Returns the examples as token ids, at this evaluator's lengths.

    Args:
      examples: texts.
      what: names the examples in a line that is printed if any of them lost tokens.
    """
    tokenized = batches.tokenize(examples, self.vocabulary, self.lengths)
    lost = tokenized.sources or tokenized.answers
    if what and lost and processes.is_writer():
      screen.say(f"{what}: {tokenized.report()}")
    return tokenized

  def _spelling(self, target: str) -> str | None:
    return spelling(target, self.vocabulary, self.lengths["targets"])

  def _text(self, ids: Int[np.ndarray, " L"]) -> str:
    return self.vocabulary.decode(ids.tolist())

  def to_grain(self, rows: int) -> int:
    """Returns a number of rows that the devices can share, at least as large."""
    return -(-max(1, rows) // self._grain) * self._grain

  def banks(
    self, prompts: Sequence[Prompt], sets: Sequence[int] | None = None
  ) -> Iterator[tuple[int, Folded, list[tuple[int, int]]]]:
    """Yields banks of prompts of one form: (prompt length, the bank, its members).

    A bank is on the devices. Its members are pairs: an index into `prompts`, and the
    prompt's place in the bank. A bank that is not full is filled up with copies, so that
    no other size is compiled. Prompts are taken in turn from the `sets` of examples that
    they are for, so that every bank has some of each.
    """
    turn, turns = collections.Counter[int](), []
    for index in range(len(prompts)):
      one = sets[index] if sets else 0
      turns.append(turn[one])
      turn[one] += 1
    nothing = {"prompt": np.zeros((0, self._features), np.float32)}
    forms: dict[tuple[Any, ...], dict[int, list[int]]] = {}
    for index, prompt in enumerate(prompts):
      leaves = prompt or nothing
      self.refuse_long_rows(leaves)
      form = tuple(sorted((name, leaf.shape) for name, leaf in leaves.items()))
      forms.setdefault(form, {}).setdefault(id(leaves), []).append(index)
    for owners in forms.values():
      groups = sorted(owners.values(), key=lambda indices: turns[indices[0]])
      for first in range(0, len(groups), self.at_once):
        part = groups[first : first + self.at_once]
        bank = [prompts[indices[0]] or nothing for indices in part]
        bank += bank[-1:] * (self.at_once - len(bank))
        stacked = Folded.of(
          {name: np.stack([leaves[name] for leaves in bank]) for name in bank[0]}
        )
        folded = jax.tree.map(lambda leaf: processes.put(leaf, self._whole), stacked)
        members = [(i, place) for place, group in enumerate(part) for i in group]
        yield stacked.prompt.shape[1], folded, members

  def refuse_nothing(self, prompt: Prompt, sources: Int[np.ndarray, "_ _"]) -> None:
    """Raises `UserError` if an answer would follow from nothing at all."""
    if prompt is None and not batches.token_counts(sources).all():
      raise UserError(
        "A source is empty, the tokenizer puts no BOS in front, and there is no prompt, so "
        "the model has nothing to answer to. Give a prompt, fill the source, or set CHAT."
      )

  def refuse_long_rows(self, leaves: Mapping[str, np.ndarray]) -> None:
    """Raises `UserError` if rows may be longer than the delta or the network allows."""
    source, target = self.lengths["inputs"], self.lengths["targets"]
    if "delta" in leaves and len(leaves["delta"]) < source:
      equations.refuse_short_delta(source, len(leaves["delta"]))
    self._architecture.check_lengths(len(leaves["prompt"]), source, target)

  def _bar(self, what: str, examples: Sequence[Sized]) -> Bar:
    """Returns a progress bar over the examples of all prompts."""
    total = sum(map(len, examples))
    return Bar(
      total=total,
      desc=f"{self.title}: {what}" if self.title else what,
      unit="example",
      leave=False,
      disable=not (self.progress and total),
    )

  def _call(
    self,
    function: Any,
    folded: Folded,
    calls: Iterable[batches.Features],
    bar: Bar,
  ) -> list[Any]:
    """Returns the answers of the calls, with some of them always in flight."""
    answers: list[Any] = []
    for features in calls:
      placed = processes.put_all(features, self._rows)
      answers.append(function(folded, self.backbone, placed))
      if len(answers) > _AHEAD:
        answers[-_AHEAD - 1] = jax.device_get(answers[-_AHEAD - 1])
      bar.update(packing.example_count(features))
    return jax.device_get(answers)
