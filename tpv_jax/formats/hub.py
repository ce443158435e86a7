"""Models of Hugging Face's hub by their names: 'google/flan-t5-small', 'hf:ORG/NAME@REVISION'.

They lie in the cache as the hub's own package lays it, and are fetched into it if they do
not:

    models--ORG--NAME/refs/REVISION       the commit of a branch or tag
    models--ORG--NAME/snapshots/COMMIT/   the files of a commit, as links into blobs/

A model that lies there whole is read without the package and without the network. Only
weights in safetensors, configs and the tokenizer's files are fetched.
"""

import fnmatch
import functools
import os
import pathlib
import re
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from tpv_jax.core import files
from tpv_jax.core.errors import UserError, some
from tpv_jax.formats import hugging_face

PREFIX = "hf:"
"""Says that a name is the hub's, even if a local folder has it."""

TOKENIZERS = ("tokenizer.json", "spiece.model")

PATTERNS = (
  hugging_face.CONFIG,
  hugging_face.GENERATION,
  hugging_face.WEIGHTS,
  hugging_face.INDEX,
  "model-*-of-*.safetensors",
  *TOKENIZERS,
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
)
"""The files of a model that are fetched."""

MAIN = "main"

_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(
  rf"(?P<prefix>{PREFIX})?(?P<name>(?:{_PART}/)?{_PART})"
  rf"(?:@(?P<revision>{_PART}(?:/{_PART})*))?",
  re.ASCII,
)
_FILE = re.compile(
  r"checkpoint_\d+|.*\.(safetensors|gguf|json|txt|model|gin|toml|npz|npy)"
)
"""The last part of a path that no model is called."""


class Model(NamedTuple):
  """A model of the hub; without a revision, the newest that the cache or the hub has."""

  name: str
  revision: str | None = None

  def __str__(self) -> str:
    return self.name if self.revision is None else f"{self.name}@{self.revision}"


def named(given: files.PathLike) -> Model | None:
  """Returns the model of the hub that a backbone's name means, or None for a path.

  Without `PREFIX`, 'ORG/NAME' is a path if it exists or if there is a folder ORG.
  """
  found = _NAME.fullmatch(os.fspath(given))
  if found is None or ".." in found[0]:
    return None
  model = Model(found["name"], found["revision"])
  if found["prefix"] is not None:
    return model
  org, _, rest = model.name.partition("/")
  is_path = _FILE.fullmatch(rest) or os.path.exists(org) or os.path.exists(given)
  return model if rest and not is_path else None


def advice(path: files.PathLike) -> str:
  """Returns how a path that does not exist would name a model of the hub, or ''."""
  text = f"{PREFIX}{os.fspath(path)}"
  model = named(text)
  if model is None or "/" not in model.name:
    return ""
  return f" If it is a model of Hugging Face, write '{text}'."


def cache_folder() -> pathlib.Path:
  """Returns the folder of the hub's cache, as its own package finds it."""
  for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
    if os.environ.get(name):
      return pathlib.Path(os.path.expandvars(os.environ[name])).expanduser()
  home = os.environ.get("HF_HOME")
  if not home:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.path.join(root, "huggingface")
  return pathlib.Path(os.path.expandvars(home)).expanduser() / "hub"


def cached(model: Model) -> pathlib.Path | None:
  """Returns the folder of a model in the cache, or None; it may lack files."""
  folder = cache_folder() / f"models--{model.name.replace('/', '--')}"
  revision = model.revision or MAIN
  try:
    commit = (folder / "refs" / revision).read_text().strip()
  except (OSError, ValueError):
    commit = revision
  if not re.fullmatch(r"[0-9a-f]{4,64}", commit):
    return None
  snapshot = folder / "snapshots" / commit
  return snapshot if snapshot.is_dir() else None


def located(given: files.PathLike) -> pathlib.Path:
  """Returns the folder of the model that a name means, after fetching it if need be.

  Raises:
    UserError: it is not in the cache, and cannot be fetched.
  """
  return _located(os.fspath(given), str(cache_folder()))


@functools.cache
def _located(given: str, cache: str) -> pathlib.Path:
  model = named(given)
  assert model is not None
  folder = cached(model)
  if folder is not None and has_weights(folder) and _has_tokenizer(folder):
    return folder
  try:
    return _fetched(model, pathlib.Path(cache))
  except UserError:
    # A tokenizer can lie elsewhere.
    if folder is not None and has_weights(folder):
      return folder
    raise


def has_weights(folder: pathlib.Path) -> bool:
  """Returns whether a folder has a config and all of its weights in safetensors."""
  if not (folder / hugging_face.CONFIG).is_file():
    return False
  if (folder / hugging_face.WEIGHTS).is_file():
    return True
  try:
    index = files.parse_json((folder / hugging_face.INDEX).read_bytes())
    names = {str(name) for name in index["weight_map"].values()}
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return False
  return bool(names) and all((folder / name).is_file() for name in names)


def _has_tokenizer(folder: pathlib.Path) -> bool:
  return any((folder / name).is_file() for name in TOKENIZERS)


def of_path(path: files.PathLike) -> str | None:
  """Returns the name, with its commit, of a model whose folder in a cache this is, or None."""
  found = re.search(
    r"(?:^|/)models--([^/]+)/snapshots/([0-9a-f]+)/?$", os.fspath(files.absolute(path))
  )
  return found and f"{PREFIX}{found[1].replace('--', '/')}@{found[2]}"


def pinned(given: files.PathLike) -> str:
  """Returns a name with the commit that it stands for now: 'hf:ORG/NAME@COMMIT'."""
  model = named(given)
  assert model is not None
  return of_path(located(given)) or f"{PREFIX}{model}"


def revision_of(given: files.PathLike) -> str | None:
  """Returns the commit of a model's name, or of its folder in a cache; None for others."""
  stated = of_path(given) if named(given) is None else pinned(given)
  return stated.partition("@")[2] or None if stated else None


def _fetched(model: Model, cache: pathlib.Path) -> pathlib.Path:
  """Fetches a model into the cache and returns its folder there."""
  try:
    import huggingface_hub
  except ImportError:
    raise UserError(
      f"'{model}' is no local path and not in Hugging Face's cache ({cache}), and the "
      "package that fetches models is not installed: pip install 'tpv_jax[hf]', or pip "
      "install huggingface_hub."
    ) from None
  try:
    there = huggingface_hub.model_info(
      model.name, revision=model.revision, files_metadata=True, timeout=30
    )
    size = _check_files(model, there.siblings or ())
    print(
      f"Fetching {model.name} ({(there.sha or '')[:12]}, {size / 1e6:,.0f} MB) into {cache}",
      file=sys.stderr,
      flush=True,
    )
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        model.name,
        revision=model.revision,
        cache_dir=cache,
        allow_patterns=list(PATTERNS),
      )
    )
  except UserError:
    raise
  except Exception as error:  # Of the library, or of the one that it calls.
    raise UserError(_refusal(model, error, cache)) from error


def _check_files(model: Model, there: Iterable[Any]) -> int:
  """Returns how many bytes will be fetched.

  Raises:
    UserError: the model has no weights in safetensors.
  """
  sizes = {one.rfilename: one.size or 0 for one in there}
  if hugging_face.CONFIG not in sizes or not {
    hugging_face.WEIGHTS,
    hugging_face.INDEX,
  } & {*sizes}:
    weights = [name for name in sizes if name.endswith((".bin", ".msgpack", ".h5"))]
    held = f" It has {some(weights)}." if weights else ""
    raise UserError(
      f"'{model}' has no {hugging_face.CONFIG} with weights in {hugging_face.WEIGHTS}, "
      f"which alone are read.{held} Look for a revision that has them (hf:{model.name}@"
      "REVISION; the hub's bot offers one at refs/pr/NUMBER), or save the model in that "
      "form with transformers."
    )
  wanted = (
    size
    for name, size in sizes.items()
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in PATTERNS)
  )
  return sum(wanted)


def _refusal(model: Model, error: Exception, cache: pathlib.Path) -> str:
  """Returns the line about a model that could not be fetched."""
  from huggingface_hub import errors

  if isinstance(error, errors.GatedRepoError):
    return (
      f"'{model.name}' is gated. Accept its terms at https://huggingface.co/{model.name}, "
      "then log in (hf auth login) or set HF_TOKEN."
    )
  if isinstance(error, errors.RevisionNotFoundError):
    return f"'{model.name}' has no revision '{model.revision}'. Give one that it has."
  if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
    return (
      f"'{model.name}' is no local path, and Hugging Face has no such model, or it is "
      "private. Check the name; for a private one log in (hf auth login) or set HF_TOKEN."
    )
  why = str(error).strip().splitlines() or [type(error).__name__]
  return (
    f"'{model}' is no local path and not in Hugging Face's cache ({cache}), and could not "
    f"be fetched ({why[0]:.200}). With internet, run the same command again; without, run "
    f"'tpv fetch {model.name}' on another machine, and copy models--"
    f"{model.name.replace('/', '--')} from its cache into this one."
  )
