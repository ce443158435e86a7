"""Weights of a backbone: the embedded one, our `.safetensors` files, T5X checkpoints.

Our file holds the leaves under their T5X paths ("encoder/layers_0/mlp/wo/kernel"), in
fp32 or bf16, and as metadata `format`, `name`, `fingerprint` and, where known, the
digest of the vocabulary. Any reader of safetensors opens it.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors

from tpv_jax import errors, files, identity, orbax_io
from tpv_jax.backbone.network import Transformer
from tpv_jax.data import vocabularies
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.errors import UserError

EMBEDDED = "embedded"
"""The path that stands for the backbone inside the package."""

EMBEDDED_PATH = pathlib.Path(__file__).parent.parent / EMBEDDED / "backbone.safetensors"

FORMAT = "tpv_jax backbone 1"

CACHED_FROM_BYTES = 100 * 2**20
"""Fingerprints of larger local backbones are kept in `~/.cache/tpv_jax`."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of safetensors itself."""

_STORED = {np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16"}
_READ = {name: dtype for dtype, name in _STORED.items()}
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A backbone's weights and identity.

  Attributes:
    params: nested dict of NumPy arrays, the tree of `network.Transformer`.
    name: what it calls itself, for people.
    fingerprint: what it is, for programs; see `identity.backbone_fingerprint`.
    vocabulary: digest of the vocabulary it was trained with, or None if unknown.
  """

  params: dict[str, Any]
  name: str
  fingerprint: str
  vocabulary: str | None = None


def load_backbone(
  path: files.PathLike,
  network: Transformer | None = None,
  vocabulary: Vocabulary | None = None,
) -> Backbone:
  """Returns the weights that `path` names, on the host, in the dtype of their storage.

  Args:
    path: 'embedded', a `.safetensors` file of `save_backbone`, or a T5X Orbax
      checkpoint (`checkpoint_<step>`), here or on gs://; a soft prompt that lies in it
      is left out.
    network: if given, leaves and shapes are checked against it.
    vocabulary: if given, it must be the backbone's: by digest where the backbone states
      one, otherwise by its size.

  Raises:
    UserError: there is no such file; it is of another kind, truncated or altered; it
      does not fit `network` or `vocabulary`.
  """
  if str(path) == EMBEDDED:
    path = EMBEDDED_PATH
  path = files.to_path(path)
  backbone = _load_file(path) if path.is_file() else _load_orbax(path)
  if network is not None:
    check(identity.flatten(backbone.params), network, str(path))
  if vocabulary is not None:
    check_vocabulary(vocabulary, backbone)
  return backbone


def check_vocabulary(vocabulary: Vocabulary, backbone: Backbone) -> None:
  """Raises `UserError` unless the vocabulary can be the one of the backbone's training."""
  if backbone.vocabulary not in (None, vocabulary.digest):
    raise UserError(
      f"The backbone '{backbone.name}' was trained with another vocabulary (digest "
      f"{backbone.vocabulary[:12]}…, this one is {vocabulary.digest[:12]}…), so ids would "
      "mean other words. Choose the vocabulary that belongs to it."
    )
  rows = len(backbone.params["token_embedder"]["embedding"])
  vocabularies.check_fits(vocabulary, rows, f"'{backbone.name}'")


def save_backbone(
  path: files.PathLike,
  flat: Mapping[str, np.ndarray],
  name: str,
  vocabulary: str | None = None,
  metadata: Mapping[str, str] | None = None,
  overwrite: bool = False,
) -> str:
  """Writes leaves by path to our `.safetensors` form and returns their fingerprint.

  Args:
    path: ends in `.safetensors`; may be on gs://.
    flat: fp32 or bf16 leaves by T5X path.
    name: of the backbone, for people.
    vocabulary: digest of its vocabulary.
    metadata: further strings, such as the recipe, kept for people.
    overwrite: whether an existing file may be replaced.
  """
  if files.to_path(path).suffix != ".safetensors":
    raise UserError(
      f"'{path}' does not end in .safetensors, the one format that is written. Name "
      f"the output '{path}.safetensors'."
    )
  fingerprint = identity.backbone_fingerprint(flat)
  stated = {"format": FORMAT, "name": name, "fingerprint": fingerprint}
  if vocabulary is not None:
    stated["vocabulary"] = vocabulary
  files.write_bytes(path, _encode(flat, {**(metadata or {}), **stated}), overwrite)
  return fingerprint


def check(flat: Mapping[str, Any], network: Transformer, source: str) -> None:
  """Raises `UserError` unless the leaves are, by name and shape, those of `network`."""
  token = jax.ShapeDtypeStruct((1, 1), np.int32)
  variables = jax.eval_shape(network.init, jax.random.key(0), token, token, token)
  expected = {
    path: leaf.shape for path, leaf in identity.flatten(variables["params"]).items()
  }
  missing = sorted(expected.keys() - flat.keys())
  foreign = sorted(flat.keys() - expected.keys())
  shapes = [
    f"{path} is {tuple(flat[path].shape)} and must be {expected[path]}"
    for path in sorted(expected.keys() & flat.keys())
    if tuple(flat[path].shape) != expected[path]
  ]
  faults = [
    f"{len(names)} {what} ({_some(names)})"
    for what, names in (
      ("missing", missing),
      ("foreign", foreign),
      ("of another shape", shapes),
    )
    if names
  ]
  if faults:
    raise UserError(
      f"The backbone '{source}' does not fit the network: of {len(expected)} leaves "
      f"{', '.join(faults)}. Include the gin file of its size and version."
    )


def _encode(flat: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
  """Returns a safetensors file; unlike the library's, equal content has equal bytes."""
  header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
  content = bytearray()
  for path in sorted(flat):
    leaf = np.asarray(flat[path])
    if leaf.dtype not in _STORED:
      raise UserError(
        f"Leaf '{path}' is {leaf.dtype}; a backbone is stored in float32 or bfloat16. "
        "Convert it first."
      )
    start = len(content)
    content += leaf.tobytes()
    header[path] = {
      "dtype": _STORED[leaf.dtype],
      "shape": leaf.shape,
      "data_offsets": [start, len(content)],
    }
  text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  return len(text).to_bytes(8, "little") + text + content


def _load_file(path: files.Path) -> Backbone:
  try:
    metadata, flat = _read_remote(path) if files.is_remote(path) else _read_here(path)
  except (safetensors.SafetensorError, *_MALFORMED) as error:
    raise UserError(
      f"'{path}' is no safetensors file, or a truncated one: {error}. Take another "
      "copy."
    ) from error
  fingerprint = _fingerprint(flat, path)
  if fingerprint != metadata["fingerprint"]:
    raise UserError(
      f"The weights in '{path}' were altered or damaged: their fingerprint is "
      f"{fingerprint[:12]}… and the file states {metadata['fingerprint'][:12]}…. Take "
      "another copy."
    )
  return Backbone(
    params=identity.unflatten(flat),
    name=metadata["name"],
    fingerprint=fingerprint,
    vocabulary=metadata.get("vocabulary"),
  )


def _read_here(path: files.Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
  """Returns the metadata and the leaves by path, through a memory map."""
  with safetensors.safe_open(path, "numpy") as file:
    metadata = file.metadata() or {}
    _refuse_other_format(path, metadata)
    return metadata, {leaf: file.get_tensor(leaf) for leaf in sorted(file.keys())}


def _read_remote(path: files.Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
  """Returns the metadata and the leaves by path, one after the other from a stream.

  safetensors itself opens local files only, or needs all bytes at once. What is damaged
  the fingerprint tells.
  """
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
      raise ValueError(f"its header would have {length} bytes")
    header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    _refuse_other_format(path, metadata)
    flat = {}
    for leaf, spec in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
      start, end = spec["data_offsets"]
      values = np.frombuffer(file.read(end - start), _READ[spec["dtype"]])
      flat[leaf] = values.reshape(spec["shape"])
  return metadata, flat


def _refuse_other_format(path: files.Path, metadata: Mapping[str, str]) -> None:
  if metadata.get("format") != FORMAT:
    raise UserError(
      f"'{path}' is not a backbone of tpv_jax (its format is "
      f"{metadata.get('format', 'not stated')!r}). Give a file of save_backbone, a "
      "T5X Orbax checkpoint, or 'embedded'."
    )


def _load_orbax(path: files.Path) -> Backbone:
  if not path.exists():
    raise UserError(
      f"There is no backbone '{path}'. Give 'embedded', a .safetensors file or a T5X "
      "Orbax checkpoint folder." + errors.near_misses(str(path), [EMBEDDED])
    )
  flat = {
    leaf: values
    for leaf, values in orbax_io.read_leaves(path, prefix="target").items()
    if not leaf.startswith("prompt/")
  }
  return Backbone(
    params=identity.unflatten(flat),
    name=files.absolute(path).name,
    fingerprint=_fingerprint(flat, path),
  )


def _fingerprint(flat: Mapping[str, np.ndarray], path: files.Path) -> str:
  """Returns the leaves' fingerprint, from the cache if they are many bytes.

  Not of a remote backbone: its bytes came over the network just now, which takes longer
  than hashing them, and a store's times in whole seconds do not tell each change.
  """
  size = sum(leaf.nbytes for leaf in flat.values())
  if files.is_remote(path) or size < CACHED_FROM_BYTES:
    return identity.backbone_fingerprint(flat)
  cached = _cache_folder() / f"{_state_of(pathlib.Path(path))}.fingerprint"
  try:
    return cached.read_text()
  except OSError:
    pass
  fingerprint = identity.backbone_fingerprint(flat)
  try:
    cached.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(cached, fingerprint)
  except OSError:
    pass  # A cache that cannot be written only costs time.
  return fingerprint


def _cache_folder() -> pathlib.Path:
  root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(root) / "tpv_jax"


def _state_of(path: pathlib.Path) -> str:
  """Returns a name for the files at `path` as they are: names, sizes and times."""
  found = (
    [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
  )
  stats = [(str(file.absolute()), os.stat(file)) for file in found]
  stated = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
  return hashlib.sha256(json.dumps(stated).encode()).hexdigest()


def _some(names: list[str], most: int = 4) -> str:
  return ", ".join(names[:most]) + (", …" if len(names) > most else "")
