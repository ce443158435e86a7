"""Loads the weights of a backbone from our files, Hugging Face's folders, GGUF or T5X.

Our file holds the leaves under their T5X paths ("encoder/layers_0/mlp/wo/kernel"), in fp32
or bf16. Its metadata are `format`, `name`, `fingerprint`, the `content_digest` (see
`safetensors.ContentDigest`; it detects a change of any byte) and, where known, the digest
of the vocabulary and the `network`: JSON of its family and numbers. Any reader of
safetensors opens it. From every format leaves are read one by one, so that the host needs
little more memory than for what it keeps.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from tpv_jax.backbones import quantization, registry
from tpv_jax.backbones.protocol import Config, Family, Network
from tpv_jax.core import errors, files, identity
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import Leaf, misfits, not_finite
from tpv_jax.data import vocabularies
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.formats import gguf, hub, hugging_face, packaged
from tpv_jax.io import orbax, safetensors

EMBEDDED = "embedded"
"""The path that names the backbone inside the package."""

EMBEDDED_PATH = pathlib.Path(__file__).parent.parent / EMBEDDED / "backbone.safetensors"

NAMES = (EMBEDDED, *packaged.MODELS)
"""What names a backbone without being a path."""

BACKBONES = (
  f"{' or '.join(map(repr, NAMES))}, a model of Hugging Face ('hf:ORG/NAME'), a "
  ".safetensors file of ours, a folder of Hugging Face, a GGUF file or a T5X checkpoint "
  "folder"
)
"""What may be given as a backbone, for messages."""

FORMAT = "tpv_jax backbone 1"

BESIDE = "tpv_jax.json"
"""The file, in a folder that `conversion` wrote, for what the format has no place for."""

CACHED_FROM_BYTES = 100 * 2**20
"""Fingerprints of larger local backbones are kept in `~/.cache/tpv_jax`."""

_SAMPLED, _BLOCK_BYTES = 64, 4096
"""How many blocks of a large backbone's files are hashed to recognise it, and their size."""

_STORED = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))

Place = Callable[[str, Any], Any]
"""Called with the path of a leaf and its values, which may be quantised; returns what is
kept, as on a device."""


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A backbone's weights and identity.

  Attributes:
    params: nested dict of NumPy arrays, the tree of its network.
    name: the name that it states, for people.
    fingerprint: its identity, for programs; see `identity.backbone_fingerprint`. That of
      the weights before they were quantised.
    vocabulary: digest of the vocabulary it was trained with, or None if unknown.
    given: what `load_backbone` was given; None if it was made in memory.
  """

  params: dict[str, Any]
  name: str
  fingerprint: str
  vocabulary: str | None = None
  given: str | None = None

  def stated(self, network: Network) -> dict[str, str]:
    """Returns what manifests and results state of it as it is in a network, as JSON."""
    known = {"name": self.name, "fingerprint": self.fingerprint}
    revision = None if self.given is None else hub.revision_of(self.given)
    if revision is not None:
      known["revision"] = revision
    mode = quantization.mode_of(network)
    return known if mode is None else {**known, "quantize": mode}

  @property
  def parameters(self) -> int:
    """How many it has."""
    return sum(int(leaf.size) for leaf in identity.flatten(self.params).values())

  @property
  def table(self) -> Any:
    """The token embeddings [V, D], as they are kept."""
    flat = identity.flatten(self.params)
    return flat[registry.of_leaves(flat, self.name).table]


@dataclasses.dataclass(frozen=True)
class Opened:
  """A backbone whose values are not read yet.

  Attributes:
    leaves: by T5X path, in fp32 or bf16; the `source` of each is its stored name.
    name: of the backbone, for people.
    kind: 'hugging-face', 'gguf', 't5x' or 'safetensors'.
    family: that it belongs to.
    read_config: see `config`.
    vocabulary: digest of its vocabulary, or None if unknown.
    fingerprint: the one that the source states, or None.
  """

  leaves: dict[str, Leaf]
  name: str
  kind: str
  family: Family
  read_config: Callable[[], Config]
  vocabulary: str | None = None
  fingerprint: str | None = None

  @property
  def config(self) -> Config:
    """What the source, or what it states of its leaves, says about its network.

    Raises:
      UserError: the leaves are not those of a network of the family.
    """
    return self.read_config()

  @property
  def numbers(self) -> Mapping[str, Any]:
    """The arguments of the family's network."""
    return self.config.numbers


def load_backbone(
  path: files.PathLike,
  network: Network | None = None,
  vocabulary: Vocabulary | None = None,
  place: Place | None = None,
) -> Backbone:
  """Returns the weights that `path` names, in the dtype of their storage.

  fp16 becomes fp32, which is exact. Leaves are read one by one, and quantised at once if
  `network` says so; besides what is kept, the host holds about one leaf.

  Args:
    path: one of `NAMES`; a model of the hub (`formats.hub`); a `.safetensors` file of
      `save_backbone`; a folder of Hugging Face with a model of a known family in
      safetensors; a GGUF file; a T5X checkpoint of either layout (`checkpoint_<step>`),
      without its soft prompt. Local or on gs://.
    network: if given, the names and shapes of the leaves must be its own; this is checked
      before values are read.
    vocabulary: if given, it must be the backbone's: by its digest if the backbone states
      one, otherwise by its size.
    place: called with each leaf as soon as it is read; its result is kept instead of the
      leaf, for example a sharded array on the devices. None keeps leaves on the host.

  Raises:
    UserError: there is no such file; it is of another kind, truncated or altered, or
      holds NaN or infinity; it does not fit `network` or `vocabulary`; or it is to be
      quantised and qwix is missing.
  """
  quantization.check(network)
  with opened(path) as source:
    if network is not None:
      check(source.leaves, network, str(path))
    if vocabulary is not None:
      check_vocabulary(
        vocabulary, source.name, source.vocabulary, _rows(source.leaves, str(path))
      )
    params, fingerprint = _read(source, path, network, place)
  return Backbone(
    identity.unflatten(params),
    source.name,
    fingerprint,
    source.vocabulary,
    os.fspath(path),
  )


def loaded(
  backbone: files.PathLike | Backbone, network: Network, vocabulary: Vocabulary
) -> Backbone:
  """Returns the backbone: as it is if it is loaded already, else as `load_backbone`.

  Raises:
    UserError: as `load_backbone`, or it was loaded for another vocabulary or network.
  """
  if not isinstance(backbone, Backbone):
    return load_backbone(backbone, network, vocabulary)
  flat = identity.flatten(backbone.params)
  check(flat, network, backbone.name)
  kept = next(
    (one.mode for one in flat.values() if isinstance(one, quantization.Quantized)), None
  )
  if kept not in (None, quantization.mode_of(network)):
    raise UserError(
      f"The backbone '{backbone.name}' in memory is quantised as {kept}, and QUANTIZE is "
      f"{quantization.mode_of(network)!r}. Load it as it is to be used."
    )
  check_vocabulary(
    vocabulary, backbone.name, backbone.vocabulary, _rows(flat, backbone.name)
  )
  return backbone


def located(path: files.PathLike) -> files.Path:
  """Returns where the backbone lies that `path` names.

  It is one of `NAMES`, a path, or a model of the hub, which is fetched if need be.

  Raises:
    UserError: it is the name of a model that was not or cannot be fetched.
  """
  name = str(path)
  if name == EMBEDDED:
    return EMBEDDED_PATH
  if name in packaged.MODELS:
    return packaged.found(name) / packaged.BACKBONE
  if hub.named(name) is not None:
    return hub.located(name)
  return files.to_path(path)


def is_name(given: str) -> bool:
  """Returns whether a backbone was given by its name, which is no path."""
  return given in NAMES or hub.named(given) is not None


def pinned(given: str) -> str:
  """Returns the name or path of a backbone, a name of the hub with its commit."""
  return given if hub.named(given) is None else hub.pinned(given)


def brings(given: str, vocabulary: files.PathLike) -> bool:
  """Returns whether `vocabularies.of_backbone` finds a vocabulary's file by the backbone."""
  place = located(given)
  home = place if place.is_dir() or not is_name(given) else place.parent
  path = files.absolute(vocabulary)
  return files.absolute(home) in (path, path.parent)


def name_of(path: files.PathLike) -> str:
  """Returns the name for a folder that states none, such as 't5_base/checkpoint_1000000'.

  A step alone does not identify a model, so the name includes the folder above. A model in
  Hugging Face's cache keeps its name there: 'google/t5-v1_1-base'.
  """
  path = files.absolute(path)
  if path.name in ("state", "checkpoint"):  # In a checkpoint of T5X.
    path = path.parent
  above = path.parent.name
  if above and re.fullmatch(r"checkpoint_\d+", path.name):
    return f"{above}/{path.name}"
  cached = path.parent.parent.name
  if above == "snapshots" and cached.startswith("models--"):
    return cached.removeprefix("models--").replace("--", "/")
  return path.name


@contextlib.contextmanager
def opened(path: files.PathLike, whole: bool = True) -> Iterator[Opened]:
  """Yields the backbone at `path` (see `load_backbone`), with leaves to read in the block.

  Args:
    path: as for `load_backbone`.
    whole: False if no value will be read: damage to the values of a file of ours then goes
      unnoticed, and no more than its header is read.
  """
  path = located(path)
  with contextlib.ExitStack() as stack:
    if path.is_file() and gguf.is_gguf(path):
      yield _of_gguf(path, stack.enter_context(gguf.opened(path)))
      return
    if path.is_file() and path.name != "checkpoint":
      yield _of_file(path, *stack.enter_context(safetensors.opened(path)), whole)
      return
    if not path.exists():
      raise UserError(
        f"There is no backbone '{path}'. Give {BACKBONES}."
        + hub.advice(path)
        + errors.near_misses(str(path), NAMES)
      )
    stated = beside(path)
    if hugging_face.is_folder(path):
      family = registry.of_folder(path)
      config = family.read_config(path)
      found = stack.enter_context(hugging_face.stored_leaves(path))
      leaves = _kept(family.by_path(str(path), config, found), path)
      kind, read_config = "hugging-face", lambda: config
    else:
      kind, leaves = "t5x", _kept(orbax.lazy_leaves(path, prefix="target"), path)
      family, read_config = _stated_network(stated, leaves, path)
    yield Opened(
      leaves,
      stated.get("name") or name_of(path),
      kind,
      family,
      read_config,
      stated.get("vocabulary"),
      stated.get("fingerprint"),
    )


def check_vocabulary(
  vocabulary: Vocabulary, name: str, digest: str | None, rows: int
) -> None:
  """Raises `UserError` unless the backbone can have been trained with the vocabulary.

  Args:
    vocabulary: the one that the ids come from.
    name: of the backbone, for people.
    digest: of the vocabulary that the backbone states, or None if it states none.
    rows: of the backbone's token table.
  """
  if digest not in (None, vocabulary.digest):
    raise UserError(
      f"The backbone '{name}' was trained with another vocabulary (digest "
      f"{digest[:12]}…, this one is {vocabulary.digest[:12]}…), so ids would "
      "mean other words. Choose the vocabulary that belongs to the backbone."
    )
  vocabularies.check_fits(vocabulary, rows, f"'{name}'")


def save_backbone(
  path: files.PathLike,
  flat: Mapping[str, Any],
  name: str,
  vocabulary: str | None = None,
  metadata: Mapping[str, str] | None = None,
  overwrite: bool = False,
  network: Mapping[str, Any] | None = None,
) -> str:
  """Writes leaves by path to our `.safetensors` form and returns their fingerprint.

  Args:
    path: ends in `.safetensors`; may be on gs://.
    flat: fp32 or bf16 leaves by T5X path, arrays or `Leaf`s, which are read twice.
    name: of the backbone, for people.
    vocabulary: digest of its vocabulary.
    metadata: further strings, such as the recipe, kept for people.
    overwrite: whether an existing file may be replaced.
    network: see `network_of`; None if the leaves tell it.
  """
  safetensors.check_suffix(path)
  for leaf in flat:
    if flat[leaf].dtype not in _STORED:
      raise UserError(
        f"Leaf '{leaf}' is {flat[leaf].dtype}; a backbone is stored in float32 or "
        "bfloat16. Convert it first."
      )
  digest = safetensors.ContentDigest()

  def look(leaf: str) -> np.ndarray:
    values = np.asarray(flat[leaf])
    digest.add(values)
    return values

  fingerprint = identity.backbone_fingerprint(
    {
      leaf: Leaf(
        flat[leaf].shape, np.dtype(flat[leaf].dtype), functools.partial(look, leaf)
      )
      for leaf in flat
    }
  )
  stated = {"format": FORMAT, "name": name, "fingerprint": fingerprint}
  if vocabulary is not None:
    stated["vocabulary"] = vocabulary
  if network is not None:
    stated["network"] = json.dumps(network)
  stated = digest.stated_in(flat, {**(metadata or {}), **stated})
  safetensors.write(path, flat, stated, overwrite)
  return fingerprint


def network_of(family: Family, config: Config) -> dict[str, Any] | None:
  """Returns what files state about a network: its family's name and its numbers.

  None if the leaves tell them.
  """
  if family.leaves_tell_numbers:
    return None
  return {"family": registry.key_of(family), **config.numbers}


def check(flat: Mapping[str, Any], network: Network, source: str) -> None:
  """Raises `UserError` unless the leaves have the names and shapes of `network`'s."""
  variables = jax.eval_shape(network.init, jax.random.key(0), *network.init_inputs())
  expected = {
    path: leaf.shape for path, leaf in identity.flatten(variables["params"]).items()
  }
  faults = misfits(expected, flat)
  if faults:
    raise UserError(
      f"The backbone '{source}' does not fit the network: {faults}. "
      "Include the gin file of its size and version, or "
      "gin_configs/backbones/pretrained.gin, which takes them from the backbone."
    )


def _kept(leaves: Mapping[str, Leaf], path: files.Path) -> dict[str, Leaf]:
  """Returns the leaves of a backbone among those of another format, none in fp16."""
  kept = {
    name: leaf.cast(_STORED[0]) if leaf.dtype == np.float16 else leaf
    for name, leaf in leaves.items()
    if not name.startswith("prompt/")
  }
  _check_dtypes(kept, path)
  return kept


def _stated_network(
  stated: Mapping[str, str], leaves: dict[str, Leaf], path: files.Path
) -> tuple[Family, Callable[[], Config]]:
  """Returns the family of a backbone in T5X's form, and what reads its config."""
  network: dict[str, Any] = {}
  if "network" in stated:
    try:
      network = files.parse_json(stated["network"])
      if not isinstance(network, dict) or "family" not in network:
        raise ValueError("it is no object with a family")
    except ValueError as error:
      raise UserError(
        f"'{path}' states no network that can be read: {error}. Take another copy."
      ) from error
  family = registry.of_leaves(leaves, str(path), network.pop("family", None))
  return family, lambda: family.config_of(
    leaves, str(path), stated.get("model_type"), network or None
  )


def _of_gguf(path: files.Path, file: gguf.File) -> Opened:
  family, config, leaves = registry.of_gguf(file)
  name = file.metadata.get("general.name")
  if not isinstance(name, str) or not name.strip():
    name = path.stem
  return Opened(_kept(leaves, path), name, "gguf", family, lambda: config)


def _check_dtypes(leaves: Mapping[str, Leaf], path: files.Path) -> None:
  for name, leaf in leaves.items():
    if leaf.dtype not in _STORED:
      raise UserError(
        f"'{path}' holds the leaf '{name}' in {leaf.dtype}; a backbone is stored in "
        "float32 or bfloat16. Take another copy."
      )


def _of_file(
  path: files.Path, metadata: Mapping[str, str], leaves: dict[str, Leaf], whole: bool
) -> Opened:
  if metadata.get("format") != FORMAT:
    raise UserError(
      f"'{path}' is not a backbone of tpv_jax (its format is "
      f"{metadata.get('format', 'not stated')!r}). Give a file of save_backbone, a GGUF "
      "file, a T5X checkpoint, 'embedded', or the whole folder of a model of Hugging Face."
    )
  _check_dtypes(leaves, path)
  for name in ("name", "fingerprint", safetensors.DIGEST):
    if name not in metadata:
      raise UserError(f"'{path}' does not state its {name}. Take another copy.")
  if whole and not _is_known(leaves, path):
    digest = safetensors.ContentDigest()
    for name in sorted(leaves):
      digest.add(np.asarray(leaves[name]))
    found, stated = (
      m[safetensors.DIGEST] for m in (digest.stated_in(leaves, metadata), metadata)
    )
    if found != stated or not safetensors.is_as_written(path):
      raise UserError(
        f"'{path}' was truncated, damaged or changed after it was written: its content "
        f"has the digest {found[:12]}… and it states {stated[:12]!r}…. Make "
        "it again or take another copy."
      )
  return Opened(
    leaves,
    metadata["name"],
    "safetensors",
    *_stated_network(metadata, leaves, path),
    metadata.get("vocabulary"),
    metadata["fingerprint"],
  )


def beside(folder: files.Path) -> dict[str, str]:
  """Returns what `conversion` noted in a folder of another format, or {}."""
  path = folder / BESIDE
  if not path.is_file():
    return {}
  content = files.read_json(files.inside(folder, BESIDE))
  return {
    name: json.dumps(value) if isinstance(value, dict) else str(value)
    for name, value in content.items()
    if value is not None
  }


def _rows(leaves: Mapping[str, Any], source: str) -> int:
  return leaves[registry.of_leaves(leaves, source).table].shape[0]


def _read(
  source: Opened, path: files.PathLike, network: Network | None, place: Place | None
) -> tuple[dict[str, Any], str]:
  """Returns what is kept of each leaf, by path, and the fingerprint, in one pass."""
  kept: dict[str, Any] = {}

  def look(name: str) -> np.ndarray:
    values = np.asarray(source.leaves[name])
    refuse_not_finite(name, values, str(path))
    leaf: Any = values
    if network is not None:
      leaf = quantization.quantized_on_host(network, name, values)
    kept[name] = leaf if place is None else place(name, leaf)
    return values

  watched = {
    name: dataclasses.replace(leaf, read=functools.partial(look, name))
    for name, leaf in source.leaves.items()
  }
  fingerprint = _fingerprint(watched, located(path))
  for name in watched:
    if name not in kept:  # The fingerprint was cached, so the leaf was not read.
      look(name)
  check_fingerprint(source.fingerprint, fingerprint, path)
  return {name: kept[name] for name in source.leaves}, fingerprint


def check_fingerprint(stated: str | None, found: str, path: files.PathLike) -> None:
  """Raises `UserError` if the fingerprint of the weights at `path` is not the stated one."""
  if stated not in (None, found):
    raise UserError(
      f"The weights in '{path}' were altered or damaged: their fingerprint is "
      f"{found[:12]}… and the file states {stated[:12]}…. Take another copy."
    )


def refuse_not_finite(name: str, values: np.ndarray, source: str) -> None:
  """Raises `UserError` if the leaf `name` of a backbone holds NaN or infinity."""
  if wrong := not_finite(values):
    raise UserError(
      f"The leaf '{name}' of '{source}' holds {wrong}. Take another copy of the model."
    )


def _cached(flat: Mapping[str, Leaf], path: files.Path) -> pathlib.Path | None:
  """Returns the cache file for the fingerprint of a large local backbone, or None."""
  size = sum(leaf.nbytes for leaf in flat.values())
  if files.is_remote(path) or size < CACHED_FROM_BYTES:
    return None
  return files.cache_folder() / f"{_state_of(pathlib.Path(path))}.fingerprint"


def _is_known(flat: Mapping[str, Leaf], path: files.Path) -> bool:
  """Returns whether the files at `path`, as they are now, were read and checked before."""
  cached = _cached(flat, path)
  return cached is not None and _noted(cached) is not None


def _noted(cached: pathlib.Path) -> str | None:
  """Returns the fingerprint in a file of the cache, or None if it holds none."""
  try:
    text = cached.read_text()
  except (OSError, ValueError):
    return None
  return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _fingerprint(flat: Mapping[str, Leaf], path: files.Path) -> str:
  """Returns the leaves' fingerprint, from the cache for a large local backbone.

  A remote one is always hashed: its bytes came over the network, which takes longer than
  hashing, and the store's times, in whole seconds, would miss some changes.
  """
  cached = _cached(flat, path)
  if cached is None:
    return identity.backbone_fingerprint(flat)
  known = _noted(cached)
  if known is not None:
    return known
  fingerprint = identity.backbone_fingerprint(flat)
  try:
    cached.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(cached, fingerprint)
  except OSError:
    pass  # A cache that cannot be written only costs time.
  return fingerprint


def _state_of(path: pathlib.Path) -> str:
  """Returns a digest that identifies the files at `path` in their present state.

  It covers each file's inode, change time and size, and `_SAMPLED` blocks spread over all
  their bytes. A file's date can be set back, but not its change time; where the clock of
  the file system is coarse, the blocks show a change.
  """
  found = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
  stats = {str(file.relative_to(path)): os.stat(file) for file in sorted(found)}
  stated = [
    (name, stat.st_ino, stat.st_ctime_ns, stat.st_size) for name, stat in stats.items()
  ]
  digest = hashlib.sha256(json.dumps(stated).encode())
  last = max(sum(stat.st_size for stat in stats.values()) - _BLOCK_BYTES, 0)
  places = [last * number // (_SAMPLED - 1) for number in range(_SAMPLED)]
  begin = 0
  for name, stat in stats.items():
    end = begin + stat.st_size
    inside = [place - begin for place in places if begin <= place < end]
    if inside:
      with open(path / name, "rb") as file:
        for place in inside:
          file.seek(place)
          digest.update(file.read(_BLOCK_BYTES))
    begin = end
  return digest.hexdigest()
