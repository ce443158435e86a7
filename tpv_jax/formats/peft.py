"""Prompts as adapters of Hugging Face PEFT: a folder with a JSON file and safetensors.

    adapter_config.json         what kind of adapter it is, and its sizes
    adapter_model.safetensors   "prompt_embeddings" [rows, D]
    tpv_provenance.json         ours, see `sidecar`; PEFT does not look at it

For an encoder-decoder model PEFT makes 2P rows for P prompt tokens and uses the first P
(`PeftModelForSeq2SeqLM.forward` in 0.21); the others get no gradient. For a decoder-only
one it makes P. NumPy only.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tpv_jax.core import errors, files
from tpv_jax.core.errors import UserError
from tpv_jax.formats import arrays, sidecar
from tpv_jax.io import safetensors
from tpv_jax.vectors import algebra
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import Provenance, of_leaves

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PROVENANCE = "tpv_provenance.json"
LEAF = "prompt_embeddings"

DEPT = "PROMPT_TUNING_LORA"
"""The kind of the adapters that DePT's own code, a copy of PEFT, writes."""

_LOW_RANK = {
  "prompt_encoder.lora_embedding_A": "low_rank_a",
  "prompt_encoder.lora_embedding_B": "low_rank_b",
}

CAUSAL, _SEQUENCE = "CAUSAL_LM", "SEQ_2_SEQ_LM"
"""PEFT's names of decoder-only models and of encoder-decoders."""

_PICKLE = "adapter_model.bin"

_MOST_TEXT = 300
"""Most characters of a config's text that a note repeats."""


def is_adapter(path: files.PathLike) -> bool:
  """Returns whether `path` is the folder or the weights of an adapter of any kind.

  A `.safetensors` file of another name is an adapter's weights if it holds only `LEAF`.
  """
  path = files.to_path(path)
  if path.name in (WEIGHTS, _PICKLE):
    return path.is_file()
  if path.suffix.lower() == ".safetensors" and path.is_file():
    try:
      return set(safetensors.read_header(path).entries) == {LEAF}
    except UserError:
      return False  # `arrays` or `store` says what is wrong with it.
  return any((path / name).is_file() for name in (CONFIG, WEIGHTS, _PICKLE))


def read(path: files.PathLike) -> Loaded:
  """Returns the prompt of an adapter of prompt tuning, its values as fp32.

  If the rows are doubled, it has the first half. An adapter of DePT's own code gives
  DePT's parameters with their alpha. The provenance is the one that `write` put beside the
  adapter. Without it, the config gives the backbone's name and PEFT's version, its task
  type and initialisation and the doubled rows become notes, and the rest stays unknown.

  Args:
    path: the folder, or the file of weights, of any name, with the config beside it;
      local or on gs://.

  Raises:
    UserError: it is an adapter of another kind or a pickle; the config does not fit the
      weights; a file is damaged or a link out of the folder.
  """
  folder, weights = files.to_path(path), None
  shown = str(folder)
  if folder.name in (WEIGHTS, _PICKLE):
    folder = folder.parent
    shown = str(folder)
  elif folder.is_file():
    folder, weights = folder.parent, folder
  config = _config(folder)
  _refuse_other_kind(config, folder)
  leaves = _values(weights or _weights(folder), config)
  rows = len(leaves["prompt"])
  tokens = _tokens(config, leaves["prompt"].shape, shown)
  leaves["prompt"] = leaves["prompt"][:tokens].copy()
  if config.get("peft_type") == DEPT:
    leaves["short_prompt"] = leaves.pop("prompt")
    _check_low_rank(config, leaves, shown)
  known = sidecar.read(files.inside(folder, PROVENANCE), leaves, shown)
  if known is None:
    known = _provenance(config, leaves, rows, tokens)
  return Loaded(leaves, known, shown)


def write(
  path: files.PathLike,
  prompt: Loaded,
  base_model: str | None = None,
  overwrite: bool = False,
) -> None:
  """Writes a prompt as an adapter that `PeftModel.from_pretrained` loads.

  DePT and EPT prompts are folded. For an encoder-decoder the rows are doubled, as PEFT
  doubles its own; the second half is zeros. The provenance, for which PEFT has no place,
  lies beside them; it says what the model is, and an unknown one is an encoder-decoder.

  Args:
    path: a new folder; with `overwrite`, one whose files of these names are replaced.
    prompt: any prompt that adds nothing to the source's embeddings.
    base_model: the backbone's name in the config: a name on the hub or a relative path,
      from which PEFT's auto classes load it. `PeftModel` needs none.
    overwrite: whether existing files may be replaced.

  Raises:
    UserError: `prompt` is a vector, has a delta other than 0 or an unknown alpha; `path`
      exists; `base_model` is an absolute path.
    OSError: nothing was written.
  """
  folder = files.to_path(path)
  check_output(folder, overwrite)
  if base_model is not None and files.without_folders(base_model) != base_model:
    raise UserError(
      f"'{base_model}' is a path of this machine, and others would find it in the {CONFIG}. "
      "Give the backbone's name on the hub, or a path relative to where the adapter will "
      f"be loaded, such as '{files.without_folders(base_model)}'."
    )
  folded = algebra.fold(prompt)
  refuse_delta(folded, "A PEFT adapter of prompt tuning")
  values = np.asarray(folded.leaves["prompt"], np.float32)
  tokens, features = values.shape
  causal = folded.provenance.architecture == "decoder_only"
  config = {
    "auto_mapping": None,
    "base_model_name_or_path": base_model,
    "inference_mode": True,
    "num_attention_heads": None,
    "num_layers": None,
    "num_transformer_submodules": 1 if causal else 2,
    "num_virtual_tokens": tokens,
    "peft_type": "PROMPT_TUNING",
    "prompt_tuning_init": "RANDOM",
    "prompt_tuning_init_text": None,
    "revision": None,
    "task_type": CAUSAL if causal else _SEQUENCE,
    "token_dim": features,
    "tokenizer_name_or_path": None,
  }
  rows = values if causal else np.concatenate([values, np.zeros_like(values)])
  contents = {
    CONFIG: files.json_bytes(config),
    WEIGHTS: safetensors.encode({LEAF: rows}, {"format": "pt"}),
    PROVENANCE: sidecar.encode({"prompt": values}, folded.provenance),
  }
  filled = (
    contextlib.nullcontext(folder) if folder.exists() else files.new_folder(folder)
  )
  with filled as into:
    # The config appears last: without it the folder is not an adapter.
    files.write_together(
      {into / name: content for name, content in contents.items()}, overwrite
    )


def check_output(path: files.PathLike, overwrite: bool = False) -> None:
  """Raises `UserError` if `write` could not write to `path`, whatever the prompt."""
  folder = files.to_path(path)
  if folder.is_file():
    raise UserError(f"Cannot write '{folder}': it is a file. Name a folder.")
  if not files.is_remote(folder) and not folder.parent.is_dir():
    raise UserError(
      f"Cannot write '{folder}': the folder '{folder.parent}' does not exist. Make it "
      "first."
    )
  files.refuse_existing(folder, overwrite)


def refuse_delta(folded: Loaded, what: str) -> None:
  """Raises `UserError` if a folded prompt adds anything to the source's embeddings."""
  delta = folded.leaves.get("delta")
  if delta is not None and delta.any():
    raise UserError(
      f"{what} puts rows before a source and adds nothing to its embeddings; "
      f"'{folded.name}' adds a delta {list(delta.shape)} to them, without which its "
      "answers would differ. To keep both, fold it and write an .npz file (tpv fold, tpv "
      "export --to npz) or answer with 'tpv infer'; or train a plain prompt. To lose the "
      "delta, give --without-delta."
    )


def without_delta(prompt: Loaded) -> Loaded:
  """Returns the rows of a prompt alone; a note says what was left out, if anything was."""
  folded = algebra.fold(prompt)
  delta = folded.leaves.get("delta")
  if delta is None:
    return folded
  known = folded.provenance
  if delta.any():
    left_out = (
      f"the delta {list(delta.shape)} on source tokens was left out, of norm "
      f"{np.linalg.norm(delta):.4g} beside the rows' "
      f"{np.linalg.norm(folded.leaves['prompt']):.4g}, so answers are not the whole "
      "prompt's"
    )
    known = dataclasses.replace(known, notes=(*known.notes, left_out))
  return Loaded({"prompt": folded.leaves["prompt"]}, known, folded.name)


def _config(folder: files.Path) -> Mapping[str, Any]:
  path = files.inside(folder, CONFIG)
  if not path.is_file():
    raise UserError(
      f"'{folder}' has no {CONFIG}, which says how many of the rows of {LEAF!r} are the "
      "prompt. Copy it there from the adapter's folder. If the rows are not from PEFT, "
      "give them another name, such as 'prompt'."
    )
  return files.read_json(path)


def _refuse_other_kind(config: Mapping[str, Any], folder: files.Path) -> None:
  kind = config.get("peft_type")
  if kind == DEPT and config.get("task_type") == CAUSAL:
    raise UserError(
      f"'{folder}' is an adapter of DePT's own code for a decoder-only model. That code "
      "adds its update to every position of a row, targets and padding too, and ours adds "
      "it to the source, so the answers would differ. Train it again here (tpv train with "
      "a file of gin_configs/prompts/, such as dept.gin)."
    )
  if kind in ("PROMPT_TUNING", DEPT):
    return
  if kind == "MULTITASK_PROMPT_TUNING":
    path, tokens = _weights(folder), config.get("num_virtual_tokens")
    tokens = tokens if type(tokens) is int else 0  # It becomes part of a command.
    code = (
      "import numpy as np; from tpv_jax.io import safetensors; task = 0; "
      f"w = safetensors.read({json.dumps(str(path))})[1]; "
      'np.save("OUT.npy", (w["prompt_embeddings"] * (w["prefix_task_cols"][task] @ '
      f'w["prefix_task_rows"][task]))[:{tokens}])'
    )
    raise UserError(
      f"'{folder}' is an adapter of multitask prompt tuning (MPT): the prompt of a task is "
      "the shared prompt times a low-rank matrix of that task, and it holds the matrices "
      f"of {str(config.get('num_tasks'))[:20]} tasks. Compute the prompt of one task, by "
      f"its number, and import that: {errors.python_command(code)}"
    )
  raise UserError(
    f"'{folder}' is an adapter of {str(kind)[:60]}; only adapters of PROMPT_TUNING and of "
    "DePT's own code are read: rows before a source, and what is added to it. Give one of "
    "those."
  )


def _weights(folder: files.Path) -> files.Path:
  path = files.inside(folder, WEIGHTS)
  if not path.is_file():
    if (folder / _PICKLE).is_file():
      arrays.refuse_pickle(folder / _PICKLE)
    raise UserError(f"'{folder}' has no {WEIGHTS}. Take a whole copy of its folder.")
  return path


def _values(path: files.Path, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns the leaves of an adapter under our names, the rows as 'prompt'."""
  due = {LEAF: "prompt"}
  if config.get("peft_type") == DEPT:
    due |= _LOW_RANK
  with safetensors.opened(path) as (_, leaves):
    if set(leaves) != set(due):
      held = errors.some(sorted(leaves), 5) or "nothing"
      kind = "DePT" if len(due) > 1 else "prompt tuning"
      raise UserError(
        f"'{path}' holds {held}, but an adapter of {kind} holds exactly "
        f"{' and '.join(map(repr, due))}. If more than the prompt was trained, the prompt "
        "alone is useless."
      )
    for name, leaf in leaves.items():
      if len(leaf.shape) != 2:
        raise UserError(f"'{path}' holds {name!r} of shape {leaf.shape}, no matrix.")
    values = sum(math.prod(leaf.shape) for leaf in leaves.values())
    arrays.refuse_large(values, str(path))
    return {
      due[name]: arrays.to_fp32(np.asarray(leaf), name, str(path))
      for name, leaf in leaves.items()
    }


def _check_low_rank(
  config: Mapping[str, Any], leaves: Mapping[str, np.ndarray], shown: str
) -> None:
  """Raises `UserError` unless DePT's config fits its low-rank matrices."""
  (source, rank), width = leaves["low_rank_a"].shape, leaves["short_prompt"].shape[1]
  stated = [config.get(name) for name in ("max_length", "r")]
  if leaves["low_rank_b"].shape != (rank, width) or any(
    number not in (None, found)
    for number, found in zip(stated, (source, rank), strict=True)
  ):
    raise UserError(
      f"The {CONFIG} of '{shown}' does not fit its weights: it states a longest source "
      f"of {stated[0]} and the rank {stated[1]}, and A is {[source, rank]}, B "
      f"{list(leaves['low_rank_b'].shape)}, the prompt {[*leaves['short_prompt'].shape]}. "
      "Take another copy of both."
    )


def _tokens(config: Mapping[str, Any], shape: tuple[int, ...], shown: str) -> int:
  """Returns the prompt's tokens, after checking the config against the weights' shape."""
  tokens = config.get("num_virtual_tokens")
  stacks = config.get("num_transformer_submodules")
  width = config.get("token_dim")
  if stacks is None:
    stacks = 2 if config.get("task_type") == _SEQUENCE else 1
  if type(tokens) is int and tokens >= 1 and stacks in (1, 2):
    rows, columns = shape
    if rows == tokens * stacks and width in (None, columns):
      return tokens
  raise UserError(
    f"The {CONFIG} of '{shown}' does not fit its weights: it states {tokens} virtual "
    f"tokens in {stacks} submodules of width {width}, and {LEAF} is {list(shape)}. Take "
    "another copy of both."
  )


def _provenance(
  config: Mapping[str, Any], leaves: Mapping[str, np.ndarray], rows: int, tokens: int
) -> Provenance:
  """Returns what PEFT's own files say about a prompt."""

  def text(name: str) -> str | None:
    value = config.get(name)
    return value[:_MOST_TEXT] if isinstance(value, str) and value else None

  stated = [
    f"{name} {value!r}"
    for name in ("task_type", "prompt_tuning_init", "prompt_tuning_init_text")
    if (value := text(name)) is not None
  ]
  notes = [f"its PEFT config says: {', '.join(stated)}"] if stated else []
  if rows > tokens:
    notes.append(
      f"rows {tokens} to {rows - 1} of the PEFT adapter were left out, because PEFT makes "
      "them for the decoder and never uses them"
    )
  version = text("peft_version")
  alpha: Any = config.get("lora_alpha")
  known = of_leaves(leaves)
  stated_alpha = isinstance(alpha, int | float) and not isinstance(alpha, bool)
  if known.space == "factor" and stated_alpha and abs(alpha) < 1e30:
    known = dataclasses.replace(known, alpha=float(alpha))
  base = text("base_model_name_or_path")
  return dataclasses.replace(
    known,
    backbone_name=base and files.without_folders(base),
    architecture="decoder_only" if config.get("task_type") == CAUSAL else None,
    versions={} if version is None else {"peft": version},
    notes=tuple(notes),
  )
