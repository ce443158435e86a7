"""Backbones in Hugging Face's folders: config.json and weights in safetensors.

A folder has `config.json` and `model.safetensors`, or several files that
`model.safetensors.index.json` names. Each family of `backbones` knows what its config means
and how its leaves are named. NumPy only.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tpv_jax.core import errors, files
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import Leaf, misfits
from tpv_jax.io import safetensors

CONFIG = "config.json"
GENERATION = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"

FILE_BYTES = 5 * 10**9
"""Most bytes of a file that `save` writes; `transformers` splits at the same size."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


_UNKNOWN = {
  "quantization_config": "weights that are quantised",
  "pruned_heads": "attention heads that are left out",
  "tie_encoder_decoder": "one stack for encoder and decoder",
  "per_layer_config": "layers of different forms",
  "transformers_weights": "weights in a file of another name",
  "auto_map": "a network in Python code of its own",
}
"""Fields that `transformers` obeys unless they are empty, and the network cannot."""

_TOKEN_RULES: dict[str, Any] = {
  "forced_bos_token_id": None,
  "forced_eos_token_id": None,
  "suppress_tokens": None,
  "begin_suppress_tokens": None,
  "bad_words_ids": None,
  "force_words_ids": None,
  "constraints": None,
  "sequence_bias": None,
  "stop_strings": None,
  "min_length": 0,
  "min_new_tokens": None,
  "no_repeat_ngram_size": 0,
  "encoder_no_repeat_ngram_size": 0,
  "repetition_penalty": 1.0,
  "encoder_repetition_penalty": 1.0,
  "exponential_decay_length_penalty": None,
  "guidance_scale": None,
  "num_beam_groups": 1,
  "penalty_alpha": None,
  "dola_layers": None,
  "watermarking_config": None,
}
"""Fields that forbid, force or reweight tokens in `transformers`, with their defaults.

Decoding here has no such rules. Length, number of beams and sampling are ignored, because
the user chooses them on either side.
"""


@dataclasses.dataclass(frozen=True)
class Place:
  """One leaf, as Hugging Face and as T5X store it.

  Attributes:
    name: Hugging Face's.
    path: T5X's.
    shape: Hugging Face's.
    turned: whether T5X has the axes in reverse order.
  """

  name: str
  path: str
  shape: tuple[int, ...]
  turned: bool


def is_folder(path: files.PathLike) -> bool:
  """Returns whether `path` looks like a model's folder of Hugging Face."""
  path = files.to_path(path)
  return any((path / name).exists() for name in (CONFIG, WEIGHTS, INDEX)) or bool(
    path.is_dir() and _pickles(path)
  )


@contextlib.contextmanager
def stored_leaves(folder: files.Path) -> Iterator[dict[str, Leaf]]:
  """Yields the leaves of a folder by their names there, to be read one by one.

  They can be read only within the block.

  Args:
    folder: local or on gs://.

  Raises:
    UserError: the folder has no safetensors, or an adapter beside them; a file is a
      symbolic link out of the folder, truncated or damaged.
  """
  if (folder / ADAPTER).exists():
    raise UserError(
      f"'{folder}' holds an {ADAPTER} beside its weights, and transformers applies that "
      "adapter to them. Merge it into the weights, or move it out of the folder to use "
      "the weights alone."
    )
  with contextlib.ExitStack() as stack:
    found: dict[str, Leaf] = {}
    for file in _weight_files(folder):
      _, leaves = stack.enter_context(safetensors.opened(file))
      if twice := sorted(found.keys() & leaves.keys()):
        raise UserError(
          f"'{folder}' holds the leaf '{twice[0]}' in two files, one of them '{file}'. "
          "Take another copy of the folder."
        )
      found |= leaves
    yield found


def by_path(
  source: str,
  places: Sequence[Place],
  found: Mapping[str, Leaf],
  stated_in: str = f"its {CONFIG}",
) -> dict[str, Leaf]:
  """Returns the leaves by T5X path, after a check of their names and shapes.

  A leaf's `source` is the name that it is stored with.

  Args:
    source: where the leaves come from, for messages.
    places: of the network.
    found: the leaves by Hugging Face's names.
    stated_in: what states the numbers of the network, for messages.
  """
  faults = misfits({place.name: place.shape for place in places}, found)
  if faults:
    raise UserError(
      f"The weights of '{source}' do not fit {stated_in}: {faults}. Give config and "
      "weights of one model."
    )
  return {
    place.path: found[place.name].transposed() if place.turned else found[place.name]
    for place in places
  }


def check_leaves(
  source: str, places: Sequence[Place], flat: Mapping[str, Any], what: str
) -> None:
  """Raises `UserError` unless the leaves by T5X path are those of `places`.

  Args:
    source: where the leaves come from.
    places: of one network.
    flat: the leaves.
    what: the network, for messages: "one T5".
  """
  expected = {
    place.path: place.shape[::-1] if place.turned else place.shape for place in places
  }
  faults = misfits(expected, flat)
  if faults:
    raise UserError(
      f"The leaves of '{source}' are not those of {what}: {faults}. Give a backbone of a "
      "known family."
    )


def save(
  path: files.Path,
  config: Mapping[str, Any],
  places: Sequence[Place],
  flat: Mapping[str, Any],
  overwrite: bool = False,
) -> None:
  """Writes config.json and the weights into the folder `path`, which exists.

  Leaves are read one by one; more than `FILE_BYTES` are split, as `transformers` does.

  Args:
    path: folder; may be on gs://. config.json is written last.
    config: content of config.json.
    places: of the leaves.
    flat: arrays or `Leaf`s by T5X path.
    overwrite: whether existing files may be replaced.
  """
  ours = {
    place.name: _turned(flat[place.path]) if place.turned else flat[place.path]
    for place in places
  }
  groups: list[dict[str, Any]] = [{}]
  size = 0
  for name, leaf in ours.items():
    nbytes = int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    if groups[-1] and size + nbytes > FILE_BYTES:
      groups.append({})
      size = 0
    groups[-1][name] = leaf
    size += nbytes
  names = [WEIGHTS]
  if len(groups) > 1:
    names = [
      f"model-{number:05}-of-{len(groups):05}.safetensors"
      for number in range(1, len(groups) + 1)
    ]
  for name, group in zip(names, groups, strict=True):
    safetensors.write(path / name, group, {"format": "pt"}, overwrite)
  if len(groups) > 1:
    total = sum(
      int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in ours.values()
    )
    index = {
      "metadata": {"total_size": total},
      "weight_map": {
        leaf: name for name, group in zip(names, groups, strict=True) for leaf in group
      },
    }
    files.write_json(path / INDEX, index, overwrite)
  files.write_json(path / CONFIG, config, overwrite)


def _weight_files(folder: files.Path) -> list[files.Path]:
  """Returns the safetensors files of a folder; all lie inside it."""
  if (folder / WEIGHTS).exists():
    return [files.inside(folder, WEIGHTS)]
  if not (folder / INDEX).exists():
    if pickles := _pickles(folder):
      code = (
        "from transformers import AutoModelForSeq2SeqLM as M; "
        f'M.from_pretrained({json.dumps(str(folder))}).save_pretrained("OUT")'
      )
      raise UserError(
        f"'{folder}' holds its weights as a pickle ({errors.some(pickles)}), and "
        "loading one can run any code, so it is never opened. If you trust it, let "
        "transformers save it as safetensors in a folder OUT, and give that: "
        f"{errors.python_command(code)}"
      )
    raise UserError(
      f"'{folder}' holds neither {WEIGHTS} nor {INDEX}. Give the whole folder of a "
      "model."
    )
  stated = read_json(folder, INDEX).get("weight_map")
  if not isinstance(stated, dict) or not stated:
    raise UserError(
      f"'{folder / INDEX}' states no weight_map. Take another copy of the folder."
    )
  names = set(stated.values()) if _strings(stated.values()) else {""}
  for name in names:
    if not name.endswith(".safetensors") or name != os.path.basename(name):
      raise UserError(
        f"'{folder / INDEX}' names the file {short(name)}, and only .safetensors "
        "files beside it are read. Take another copy of the folder."
      )
  missing = sorted(name for name in names if not (folder / name).exists())
  if missing:
    raise UserError(
      f"'{folder}' lacks {len(missing)} of the {len(names)} files that its index names "
      f"({errors.some(missing)}). Download them as well."
    )
  return [files.inside(folder, name) for name in sorted(names)]


def _strings(values: Any) -> bool:
  return all(isinstance(value, str) for value in values)


def read_json(folder: files.Path, name: str) -> dict[str, Any]:
  """Returns the content of a JSON file in a model's folder of Hugging Face."""
  path = folder / name
  if not path.exists():
    raise UserError(
      f"'{folder}' has no {name}. Give the whole folder of a model of Hugging Face."
      if folder.is_dir()
      else files.missing(folder)
    )
  files.inside(folder, name)
  return files.read_json(path)


def refuse_unknown(content: Mapping[str, Any], path: files.Path, models: str) -> None:
  """Raises `UserError` about a field of config.json that no network here obeys.

  Args:
    content: of config.json.
    path: of config.json.
    models: those that are read, for the advice.
  """
  for key, what in _UNKNOWN.items():
    if content.get(key):
      raise UserError(
        f"'{path}' states {key} {short(content[key])}: {what}, which the network does "
        f"not support. Choose {models} in float32, float16 or bfloat16 without it."
      )


def refuse_token_rules(
  content: Mapping[str, Any], path: files.Path, unused: Collection[str] = ()
) -> None:
  """Raises `UserError` about a rule that forbids, forces or reweights tokens.

  Args:
    content: of config.json or generation_config.json.
    path: of that file.
    unused: rules that are left to the user, as lengths, beams and sampling are.
  """
  for key, default in _TOKEN_RULES.items():
    stated = content.get(key)
    if key in unused or stated is None or stated == default or stated in ([], {}):
      continue
    raise UserError(
      f"'{path}' states {key} {short(stated)}, with which transformers generates "
      "other tokens; decoding here has no such rule. Remove it there if you want "
      "answers without it."
    )


def whole(number: Any, name: str, path: files.Path | str) -> int:
  """Returns a number of a config that is whole and at least 1.

  Args:
    number: as the file states it.
    name: of the number.
    path: of the file, for messages.

  Raises:
    UserError: it is anything else.
  """
  if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 2**31:
    raise UserError(
      f"'{path}' states {name} {short(number)}; it must be a whole number of at least "
      "1. Take another copy."
    )
  return number


def positive(number: Any, name: str, path: files.Path | str) -> float:
  """Returns a number of a config that is positive and finite.

  Args: see `whole`.

  Raises:
    UserError: it is anything else.
  """
  if (
    not isinstance(number, int | float)
    or isinstance(number, bool)
    or not 0 < number < 1e30
  ):
    raise UserError(
      f"'{path}' states {name} {short(number)}; it must be a positive number. Take "
      "another copy."
    )
  return float(number)


def _pickles(folder: files.Path) -> list[str]:
  names = sorted(entry.name for entry in folder.iterdir())
  return [name for name in names if os.path.splitext(name)[1] in _PICKLES]


def _turned(leaf: Any) -> Any:
  return leaf.transposed() if isinstance(leaf, Leaf) else np.ascontiguousarray(leaf.T)


def short(value: Any, most: int = 60) -> str:
  """Returns a value shortened for a message."""
  text = str(value) if isinstance(value, Exception) else repr(value)
  return text if len(text) <= most else text[: most - 1] + "…"
