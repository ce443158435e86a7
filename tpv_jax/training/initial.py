"""What a soft prompt starts from: functions (embedding table, seed) -> start, in NumPy.

Gin binds the other arguments. A run calls `initial(table, seed)` and passes the result to
the prompt's module, which makes its parameters from it (`initial_leaves`). The same table
and seed give the same bits, whatever the number of devices. Equations are those of
docs/methods.md, "Prompt tuning".
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from tpv_jax.core import files, identity
from tpv_jax.core.checks import Positive, Size, SizeOrNone, checked
from tpv_jax.core.errors import UserError
from tpv_jax.evaluation import candidates
from tpv_jax.formats import sources
from tpv_jax.formats.sources import Which
from tpv_jax.prompts.protocol import SoftPrompt
from tpv_jax.vectors import algebra, arithmetic
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import Provenance, describe_precision

if TYPE_CHECKING:
  from tpv_jax.backbones.protocol import Network

Table = Float[np.ndarray, "V D"]
Initial = Callable[[np.ndarray, int], np.ndarray | Loaded]
"""(embedding table [V, D], seed) -> start."""


@dataclasses.dataclass(frozen=True)
class Drawn(Loaded):
  """The parameters that a run starts from, and the start that they were made from."""

  start: np.ndarray | Loaded = dataclasses.field(kw_only=True)

  @property
  def refactored(self) -> Loaded | None:
    """The folded prompt with a delta that was refactored; None if there was none."""
    given = self.start
    if isinstance(given, np.ndarray) or "low_rank_a" not in self.leaves:
      return None
    return given if "delta" in given.leaves else None


def draw(
  module: SoftPrompt | None,
  initial: Initial,
  table: Table,
  seed: int,
  backbone_name: str | None,
  fingerprint: str | None,
  network: "Network | None" = None,
) -> Drawn:
  """Returns the parameters that a run starts from (fp32), with their provenance.

  Both runners make their initial prompt here. The seed is stated only if the parameters
  depend on it, which those from a file do not. It is noted if the start does not state its
  backbone.

  Args:
    module: the soft prompt that is trained.
    initial: a function of this module. If it takes a `fingerprint`, it gets the
      backbone's, and checks what it reads against it; if it takes a `first_id`, that of
      the table's first row (1 for a decoder-only model).
    table: the backbone's embeddings; a start gets them as they stand beside a prompt,
      times the network's `embedding_scale`.
    seed: of the initial prompt.
    backbone_name: for the provenance.
    fingerprint: of the backbone.
    network: the backbone's; an encoder-decoder if it is not given.

  Raises:
    UserError: the start does not fit the module or the backbone.
  """
  assert module is not None  # A run without a prompt has no initial one.
  architecture = "encoder_decoder" if network is None else network.ARCHITECTURE
  first_id = 0 if network is None else network.FIRST_ID
  if network is not None and network.embedding_scale != 1.0:
    table = table * np.float32(network.embedding_scale)
  start = _bound(initial, fingerprint=fingerprint, first_id=first_id)
  begin = start(table, seed)
  leaves = module.initial_leaves(begin, seed)
  others = module.initial_leaves(start(table, seed + 1), seed + 1)
  notes: tuple[str, ...] = ()
  if isinstance(begin, Loaded) and begin.provenance.backbone_fingerprint is None:
    notes = (
      "that the prompt or vector from which it starts is of its backbone is the user's "
      "word",
    )
  mode: str | None = getattr(network, "quantize", None)
  if isinstance(begin, Loaded) and begin.provenance.terms:
    trained = begin.provenance.quantize
    if trained != mode:
      notes += (
        "the prompt or vector from which it starts was trained on the backbone "
        f"{describe_precision(trained)}, and this run has it {describe_precision(mode)}",
      )
  from_seed = any(not np.array_equal(leaves[name], others[name]) for name in leaves)
  provenance = Provenance(
    kind="prompt",
    backbone_name=backbone_name,
    backbone_fingerprint=fingerprint,
    architecture=None if architecture == "encoder_decoder" else architecture,
    quantize=mode,
    initial_digest=identity.prompt_digest(leaves),
    initial_seed=seed if from_seed else None,
    steps=0,
    notes=notes,
    **module.provenance(leaves),
  )
  return Drawn(leaves, provenance, "the initial prompt", start=begin)


def _bound(initial: Initial, **known: Any) -> Initial:
  """Returns the function with those of the arguments that it takes."""
  taken = inspect.signature(initial).parameters
  found = {name: value for name, value in known.items() if name in taken}
  return functools.partial(initial, **found) if found else initial


@checked
def uniform(
  table: Table, seed: int, length: Size, scale: Positive = 0.5
) -> Float[np.ndarray, "P D"]:
  """Returns `length` rows uniform in [-scale, scale): (1.3), Lester et al. 2021 with 0.5."""
  rng = np.random.default_rng(seed)
  return rng.uniform(-scale, scale, (length, table.shape[1])).astype(np.float32)


@checked
def small_normal(
  table: Table, seed: int, length: Size, scale: Positive = 0.1
) -> Float[np.ndarray, "P D"]:
  """Returns `length` normal rows whose deviation is `scale` times the table's: (1.6), ours.

  The table's deviation is that of all its values, accumulated in fp64. The start for
  decoder-only models: vectors move to other starts if they are longer than their own.

  Raises:
    UserError: all values of the table are equal, so that the prompt would be zero.
  """
  deviation = _deviation(table)
  if not deviation > 0:
    raise UserError(
      f"The embeddings have a standard deviation of {deviation}, so a start of that "
      "scale would be zero. Set INITIAL_PROMPT to @initial.uniform."
    )
  rng = np.random.default_rng(seed)
  prompt = rng.standard_normal((length, table.shape[1])) * (scale * deviation)
  return prompt.astype(np.float32)


def _deviation(table: Table, rows: int = 4096) -> float:
  """Returns the standard deviation of a table's values, read `rows` at a time."""
  total = squares = 0.0
  for first in range(0, len(table), rows):
    block = table[first : first + rows].astype(np.float64)
    total += block.sum()
    squares += np.square(block).sum()
  mean = total / table.size
  return float(np.sqrt(max(squares / table.size - mean**2, 0.0)))


@checked
def sampled_vocabulary(
  table: Table, seed: int, length: Size, most_common: Size = 5000, first: SizeOrNone = 3
) -> Float[np.ndarray, "P D"]:
  """Returns the embeddings of `length` different tokens, drawn from the most common.

  (1.4). Vocabularies list tokens by frequency, so the most common ones are the
  `most_common` rows from `first` on (after padding, end and unknown), or fewer where the
  table ends.

  Raises:
    UserError: there are fewer such tokens than rows to fill.
  """
  last = min(first + most_common, len(table))
  if last - first < length:
    raise UserError(
      f"Cannot draw {length} different tokens from ids {first} to {last - 1} of a "
      f"table with {len(table)} rows. Set PROMPT_LENGTH to at most "
      f"{max(last - first, 0)}, raise most_common, or set INITIAL_PROMPT to "
      "@initial.uniform."
    )
  rng = np.random.default_rng(seed)
  ids = first + rng.choice(last - first, size=length, replace=False)
  return table[ids].astype(np.float32)


@checked
def class_labels(
  table: Table,
  seed: int,
  length: Size,
  label_token_ids: Sequence[Sequence[int]],
  most_common: Size = 5000,
  first: SizeOrNone = 3,
  first_id: SizeOrNone = 0,
) -> Float[np.ndarray, "P D"]:
  """Returns the mean embedding of each label's tokens, then sampled vocabulary.

  (1.5): Lester et al. 2021, section 3.2. `label_token_ids` has one sequence of ids for each
  label, without end tokens: those of the backbone's vocabulary, whose ids begin with
  `first_id` (a decoder-only model's are its tokenizer's plus one).

  Raises:
    UserError: more labels than rows, a label without tokens, or an id out of range.
  """
  if len(label_token_ids) > length:
    raise UserError(
      f"{len(label_token_ids)} labels do not fit in a prompt of {length} rows. Set "
      f"length to at least {len(label_token_ids)}, or use sampled_vocabulary."
    )
  rows = []
  for number, ids in enumerate(label_token_ids):
    if not len(ids) or min(ids) < first_id or max(ids) - first_id >= len(table):
      raise UserError(
        f"Label {number} has the token ids {list(ids)}; each label needs at least one, "
        f"from {first_id} to {first_id + len(table) - 1}. Encode the labels with the "
        "backbone's vocabulary."
      )
    rows.append(table[np.asarray(ids) - first_id].astype(np.float32).mean(axis=0))
  left = length - len(rows)
  if left:
    rows.extend(sampled_vocabulary(table, seed, left, most_common, first))
  return np.asarray(rows, np.float32)


@checked
def from_file(
  table: Table,
  seed: int,
  path: files.PathLike,
  which: Which = "best",
  fingerprint: str | None = None,
) -> Loaded:
  """Returns a saved prompt: from a run folder, an Orbax checkpoint or a `tpv` file.

  The table and seed are not used. A run gives the `fingerprint` of its backbone, which
  the prompt must not contradict; the prompt's module checks the shapes.

  Raises:
    UserError: there is no prompt, it is a vector, or it belongs to another backbone.
  """
  del table, seed
  return _load(path, "prompt", which, fingerprint)


@checked
def from_vector(
  table: Table,
  seed: int,
  path: files.PathLike | Mapping[str, Any],
  initial: Initial,
  coefficient: float = 1.0,
  fingerprint: str | None = None,
  first_id: SizeOrNone = 0,
) -> Loaded:
  """Returns the folded prompt `initial(table, seed) + coefficient * vector`, in fp32.

  docs/methods.md, (9.1): training of a target task starts from a source's vector, or from
  a sum or merge of several: its file, or a mapping (`evaluation.candidates.Vector`) such as
  {'rule': 'ties', 'of': ['a.safetensors', 'b.safetensors']}. `initial` is another function
  of this module, bound by gin; if it is not the one that the vector was made from, this is
  the cross-origin case. A vector
  with a delta is added to what a DePT or EPT prompt does at step 0: the first rows of the
  initial prompt, and no update.

  Raises:
    UserError: there is no vector of the effective space, it is a prompt, the initial
      prompt has another shape, or the vector belongs to another backbone than the one with
      this `fingerprint`.
  """
  start = _bound(initial, first_id=first_id)(table, seed)
  vector = _load(path, "vector", "best", fingerprint)
  if vector.provenance.space != "effective":
    raise UserError(
      f"'{path}' is a vector of the factor space, which can be applied only to its own "
      "initial parameters. Apply it to them (tpv apply) and start from the result "
      "with training.initial.from_file."
    )
  delta = vector.leaves.get("delta")
  if not isinstance(start, np.ndarray):
    leaves = dict(algebra.fold(start).leaves)
  elif delta is None:
    leaves = {"prompt": start}
  else:
    rows = len(vector.leaves["prompt"])
    leaves = {"prompt": start[:rows], "delta": np.zeros_like(delta)}
  arithmetic.refuse_unequal(vector.leaves, leaves, f"'{path}'", "the initial prompt")
  return Loaded(
    arithmetic.linear([leaves, vector.leaves], [1.0, coefficient]),
    dataclasses.replace(vector.provenance, kind="prompt"),
    f"{vector.name} on the initial prompt",
  )


def _load(
  path: files.PathLike | Mapping[str, Any],
  kind: str,
  which: str,
  fingerprint: str | None,
) -> Loaded:
  if isinstance(path, Mapping):
    loaded = candidates.load_vector(path)
  else:
    loaded = sources.load(path, which=which)
  if loaded.provenance.kind != kind:
    other = loaded.provenance.kind
    use = {"prompt": "from_file", "vector": "from_vector"}[other]
    raise UserError(
      f"'{path}' holds a {other}, but a {kind} is needed here. Use training.initial.{use}, "
      f"or give a {kind}."
    )
  stated = loaded.provenance.backbone_fingerprint
  if fingerprint and stated and stated != fingerprint:
    raise UserError(
      f"'{path}' belongs to the backbone '{loaded.provenance.backbone_name}' "
      f"({stated[:12]}…), and this run has another one ({fingerprint[:12]}…). Give one "
      "that was made on this run's backbone."
    )
  return loaded
