"""Converts backbones between the formats of Hugging Face, T5X and this package.

The result appears complete or not at all, and only after it was read back and had the
fingerprint of its source. Two passes read the source and one the result; about one leaf is
in memory at a time.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from tpv_jax.backbones import loading
from tpv_jax.backbones.protocol import Config
from tpv_jax.core import files, identity
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import Leaf
from tpv_jax.data import decoder_files, gguf_tokenizers
from tpv_jax.formats import hugging_face, packaged
from tpv_jax.io import orbax, safetensors

TARGETS = ("hugging-face", "t5x", "safetensors")

TOKENIZER_FILES = (
  *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
  *("added_tokens.json", "chat_template.jinja", "spiece.model", "tokenizer.model"),
  *("vocab.json", "merges.txt", hugging_face.GENERATION),
)
"""Files of Hugging Face beside the weights: the tokenizer, and what ends an answer."""

_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

DTYPES = {
  "float32": np.dtype(np.float32),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

Report = Callable[[str, int], None]
"""Called for each leaf with the pass ('read', 'write', 'check') and the leaf's bytes."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """A conversion before it is done.

  Attributes:
    source: the backbone, its leaves in the dtype of the result.
    to: one of `TARGETS`.
    config: of its network, as Hugging Face's.
    names: by T5X path, the name of each leaf in the source and in the result.
  """

  source: loading.Opened
  to: str
  config: Config
  names: dict[str, tuple[str, str]]

  @property
  def nbytes(self) -> int:
    """The bytes of all values of the result."""
    return sum(leaf.nbytes for leaf in self.source.leaves.values())


def target_of(output: files.PathLike, to: str | None) -> str:
  """Returns the format to write: `to`, or the one that the output's name implies.

  Raises:
    UserError: neither says it, or they contradict each other.
  """
  name = files.to_path(output).name
  told = "safetensors" if name.endswith(".safetensors") else None
  if re.fullmatch(r"checkpoint_\d+", name):
    told = "t5x"
  if to is None and told is None:
    raise UserError(
      f"The name '{output}' does not say what to write. Give --to hugging-face for a "
      "folder, or an output that ends in checkpoint_<step> or .safetensors."
    )
  if to == "t5x" and told != "t5x":
    raise UserError(
      f"T5X finds a checkpoint by its name, checkpoint_<step>. Name the output "
      f"'{files.to_path(output) / 'checkpoint_0'}'."
    )
  if to == "safetensors":
    safetensors.check_suffix(output)
  if to == "hugging-face" and told is not None:
    raise UserError(
      f"The name '{output}' means another format ({told}) than --to {to}. Leave out --to, "
      "or choose another name for the folder."
    )
  return to or told or ""


@contextlib.contextmanager
def planned(path: files.PathLike, to: str, dtype: str | None = None) -> Iterator[Plan]:
  """Yields the plan for converting `path`; no value has been read.

  Args:
    path: as for `loading.load_backbone`.
    to: one of `TARGETS`.
    dtype: of `DTYPES`; None keeps that of each leaf (fp16 becomes fp32).

  Raises:
    UserError: as `load_backbone`; or the leaves are not those of a known family.
  """
  with loading.opened(path) as source:
    config = source.config
    if source.family.leaves_tell_numbers:
      # Of several configs for these leaves, the one that all versions read alike.
      config = source.family.config_of(source.leaves, str(path), config.model_type)
    theirs = {place.path: place.name for place in source.family.places(config)}
    leaves = {
      name: leaf.cast(DTYPES[dtype]) if dtype else leaf
      for name, leaf in sorted(source.leaves.items())
    }
    made = {
      "hugging-face": theirs,
      "t5x": {name: f"target/{name}" for name in leaves},
      "safetensors": {name: name for name in leaves},
    }[to]
    yield Plan(
      dataclasses.replace(source, leaves=leaves),
      to,
      config,
      {name: (leaf.source, made[name]) for name, leaf in leaves.items()},
    )


def convert(
  plan: Plan, path: files.PathLike, output: files.PathLike, report: Report
) -> str:
  """Writes a planned backbone to `output` and returns its fingerprint.

  Raises:
    UserError: `output` exists; a leaf holds NaN or infinity, perhaps only after rounding;
      the source states another fingerprint than it has; or the result, read back, has
      another one.
  """
  check_output(output, plan.to)
  source = plan.source
  digest = safetensors.ContentDigest()

  def look(name: str, values: np.ndarray) -> None:
    _refuse(str(path), name, values)
    digest.add(values)

  fingerprint = identity.backbone_fingerprint(
    _watched(source.leaves, "read", report, look)
  )
  loading.check_fingerprint(source.fingerprint, fingerprint, path)
  noted: dict[str, Any] = {
    "name": source.name,
    "fingerprint": fingerprint,
    "vocabulary": source.vocabulary,
    "model_type": plan.config.model_type,
  }
  if (network := loading.network_of(source.family, plan.config)) is not None:
    noted["network"] = network
  leaves = _watched(source.leaves, "write", report)
  with _appearing(output, plan.to) as there:
    if plan.to == "safetensors":
      metadata = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in noted.items()
        if value is not None
      }
      stated = digest.stated_in(leaves, {**metadata, "format": loading.FORMAT})
      safetensors.write(there, leaves, stated)
    elif plan.to == "hugging-face":
      files.write_json(there / loading.BESIDE, noted)
      dtype = str(source.leaves[source.family.table].dtype)
      places = source.family.places(plan.config)
      content = plan.config.to_json(dtype)
      content |= _copy_tokenizer(source.kind, path, there, content)
      hugging_face.save(there, content, places, leaves)
    else:
      step = orbax.checkpoint_step(output)
      orbax.save_checkpoint(there, leaves, step or 0)
      files.write_json(there / loading.BESIDE, noted)
    with loading.opened(there) as result:
      read_back = identity.backbone_fingerprint(
        _watched(result.leaves, "check", report)
      )
    if read_back != fingerprint:
      raise UserError(
        f"What was written to '{output}' has another fingerprint when it is read back "
        f"({read_back[:12]}…, not {fingerprint[:12]}…) and was removed. Check the disk."
      )
  return fingerprint


def tokenizer_files(folder: files.PathLike) -> list[str]:
  """Returns which of `TOKENIZER_FILES` lie in a folder that was written."""
  folder = files.to_path(folder)
  return [name for name in TOKENIZER_FILES if (folder / name).exists()]


def _copy_tokenizer(
  kind: str, path: files.PathLike, there: files.Path, content: Mapping[str, Any]
) -> dict[str, Any]:
  """Writes the source's tokenizer into a folder of Hugging Face, where it has one.

  Args:
    kind: of the source.
    path: of the source.
    there: the folder.
    content: of config.json.

  Returns: the ids of special tokens that the source states, and `content` does not.
  """
  if kind == "gguf":
    with contextlib.suppress(UserError):  # One that is not read; the command says so.
      decoder_files.write(gguf_tokenizers.read(path), there)
    return {}
  stated: Mapping[str, Any] = {}
  folder = loading.located(path)
  if kind == "hugging-face":
    stated = hugging_face.read_json(folder, hugging_face.CONFIG)
  elif str(path) in packaged.MODELS:
    folder = folder.parent
  else:
    return {}
  for name in tokenizer_files(folder):
    files.write_bytes(there / name, files.read_bytes(files.inside(folder, name)))
  return {
    name: stated[name]
    for name in _SPECIAL_IDS
    if stated.get(name) is not None and content.get(name) is None
  }


def check_output(output: files.PathLike, to: str) -> None:
  """Raises `UserError` if `output` exists or could not be written."""
  path = files.to_path(output)
  if os.path.lexists(path) or path.exists():
    files.remove_leftovers(path.parent, path.name)
    raise UserError(
      f"'{output}' exists and was left as it is. Choose another output, or remove it "
      "first."
    )
  above = path.parent.parent if to == "t5x" else path.parent
  if not files.is_remote(path) and not above.is_dir():
    raise UserError(
      f"Cannot write '{output}': the folder '{above}' does not exist. Make it first."
    )


def _refuse(source: str, name: str, values: np.ndarray) -> None:
  loading.refuse_not_finite(name, values, source)


def _watched(
  leaves: Mapping[str, Leaf],
  doing: str,
  report: Report,
  check: Callable[[str, np.ndarray], None] | None = None,
) -> dict[str, Leaf]:
  """Returns the leaves, each of which is checked and reported whenever it is read."""

  def look(name: str, leaf: Leaf) -> np.ndarray:
    values = leaf.read()
    if check is not None:
      check(name, values)
    report(doing, leaf.nbytes)
    return values

  return {
    name: dataclasses.replace(leaf, read=functools.partial(look, name, leaf))
    for name, leaf in leaves.items()
  }


@contextlib.contextmanager
def _appearing(output: files.PathLike, to: str) -> Iterator[Any]:
  """Yields a path to write to, which becomes `output` when the block ends without an error.

  In an object store, where nothing is renamed, it is `output` itself, which is removed
  after an error.
  """
  path: Any = files.to_path(output)
  if files.is_remote(output):
    try:
      yield path
    except BaseException:
      if path.exists():
        path.unlink() if to == "safetensors" else path.rmtree()
      raise
    return
  path = pathlib.Path(path).absolute()
  made = to == "t5x" and not path.parent.exists()
  if made:
    path.parent.mkdir()
  try:
    with files.scratch_folder(path) as scratch:
      there = scratch / path.name
      if to != "safetensors":
        there.mkdir()
      yield there
      check_output(path, to)
      there.rename(path)
  finally:
    if made:
      with contextlib.suppress(OSError):  # It is not empty: it holds the result.
        path.parent.rmdir()


def describe(plan: Plan) -> list[str]:
  """Returns the mapping of names, a line for each leaf, and a line of totals."""
  lines = []
  widest = max(len(before) for before, _ in plan.names.values())
  for name, (before, after) in plan.names.items():
    leaf = plan.source.leaves[name]
    shape = "x".join(map(str, leaf.shape)) or "one number"
    lines.append(f"{before:<{widest}}  {after}  {shape} {leaf.dtype}")
  count = sum(math.prod(leaf.shape) for leaf in plan.source.leaves.values())
  lines.append(
    f"{len(lines)} leaves, {count:,} parameters, {plan.nbytes / 1e6:,.1f} MB"
  )
  return lines
