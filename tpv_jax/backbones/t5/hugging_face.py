"""T5 in Hugging Face's format: T5, T5 1.1, Flan-T5 and mT5 of `transformers`.

Hugging Face stores a linear map as [out, in] and T5X as [in, out], so every matrix except
the token table is transposed. No value changes: both scale the tied logits of v1.0 by
D^-0.5 when they compute them. NumPy only.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import Leaf
from tpv_jax.formats import hugging_face
from tpv_jax.formats.hugging_face import CONFIG, GENERATION, Place, read_json, short

TABLE = "token_embedder/embedding"
"""Path of the token embeddings."""

_DEFAULTS: dict[str, Any] = {
  "vocab_size": 32_128,
  "d_model": 512,
  "d_kv": 64,
  "d_ff": 2_048,
  "num_layers": 6,
  "num_heads": 8,
  "feed_forward_proj": "relu",
  "tie_word_embeddings": True,
}
"""The values that `transformers` uses for T5 if config.json does not state them."""

_MT5_DEFAULTS = {
  **_DEFAULTS,
  "vocab_size": 250_112,
  "d_ff": 1_024,
  "num_layers": 8,
  "num_heads": 6,
  "feed_forward_proj": "gated-gelu",
  "tie_word_embeddings": False,
}

_FIXED: dict[str, tuple[Any, str]] = {
  "relative_attention_num_buckets": (32, "T5's relative bias"),
  "relative_attention_max_distance": (128, "T5's relative bias"),
  "layer_norm_epsilon": (1e-6, "T5's layer norm"),
  "pad_token_id": (0, "padding"),
  "eos_token_id": (1, "the end of a text"),
  "decoder_start_token_id": (0, "the start of decoding"),
  "is_encoder_decoder": (True, "an encoder and a decoder"),
}
"""Fields of which the network supports one value only: that value, and what it means."""

_ALIASES = {
  "hidden_size": "d_model",
  "num_hidden_layers": "num_layers",
  "num_attention_heads": "num_heads",
  "head_dim": "d_kv",
}
"""Aliases of fields, which override the fields in `transformers`."""

_GELU = ("gelu_new", "gelu_pytorch_tanh")
"""Names of the tanh approximation of GELU, which 'gated-gelu' means, too."""

_SHARED = "shared.weight"
_TABLES = (_SHARED, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""Names under which the one token table may be stored, perhaps several times."""

_HEAD = "lm_head.weight"

_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
"""A leaf in the files of T5 1.0 that nothing uses; `transformers` ignores it, too."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What config.json says about the network; the names are Hugging Face's.

  Attributes:
    model_type: 't5' or 'mt5'.
    vocab_size: rows of the token table.
    d_model: D.
    d_kv: width of a head.
    d_ff: hidden width of the feed-forward block.
    num_layers: of the encoder.
    num_decoder_layers: of the decoder.
    num_heads: attention heads.
    gated: whether the feed-forward block is 'gated-gelu' rather than 'relu'.
    tied: whether logits come from the scaled token table.
    head_is_table: whether a head that is not stored is the unscaled token table:
      `transformers` 5 makes and saves such models of the untied families.
  """

  model_type: str
  vocab_size: int
  d_model: int
  d_kv: int
  d_ff: int
  num_layers: int
  num_decoder_layers: int
  num_heads: int
  gated: bool
  tied: bool
  head_is_table: bool = False

  @property
  def numbers(self) -> dict[str, Any]:
    """The arguments of `network.Transformer`."""
    return {
      "vocab_size": self.vocab_size,
      "emb_dim": self.d_model,
      "num_heads": self.num_heads,
      "head_dim": self.d_kv,
      "num_encoder_layers": self.num_layers,
      "num_decoder_layers": self.num_decoder_layers,
      "mlp_dim": self.d_ff,
      "mlp_activations": ("gelu", "linear") if self.gated else ("relu",),
      "logits_via_embedding": self.tied,
    }

  def to_json(self, dtype: str) -> dict[str, Any]:
    """Returns the content of config.json, for weights stored in `dtype`."""
    name = "MT5" if self.model_type == "mt5" else "T5"
    fixed = {key: value for key, (value, _) in _FIXED.items()}
    return {
      "architectures": [f"{name}ForConditionalGeneration"],
      "d_ff": self.d_ff,
      "d_kv": self.d_kv,
      "d_model": self.d_model,
      "dtype": dtype,
      "feed_forward_proj": "gated-gelu" if self.gated else "relu",
      "model_type": self.model_type,
      "num_decoder_layers": self.num_decoder_layers,
      "num_heads": self.num_heads,
      "num_layers": self.num_layers,
      "tie_word_embeddings": self.tied,
      "vocab_size": self.vocab_size,
      **fixed,
    }


def places(config: Config) -> list[Place]:
  """Returns every leaf of the network, with its names on either side and its shape."""
  found = [Place(_SHARED, TABLE, (config.vocab_size, config.d_model), False)]
  width, joined = config.d_model, config.num_heads * config.d_kv

  def matrix(name: str, path: str, outputs: int, inputs: int) -> None:
    found.append(Place(f"{name}.weight", f"{path}/kernel", (outputs, inputs), True))

  def norm(name: str, path: str) -> None:
    found.append(Place(f"{name}.weight", f"{path}/scale", (width,), False))

  def attention(name: str, path: str) -> None:
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
      matrix(f"{name}.{theirs}", f"{path}/{ours}", joined, width)
    matrix(f"{name}.o", f"{path}/out", width, joined)

  for stack, depth, parts in (
    ("encoder", config.num_layers, (("attention", "attention"),)),
    (
      "decoder",
      config.num_decoder_layers,
      (
        ("self_attention", "self_attention"),
        ("cross_attention", "encoder_decoder_attention"),
      ),
    ),
  ):
    found.append(
      Place(
        f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        f"{stack}/relpos_bias/rel_embedding",
        (_FIXED["relative_attention_num_buckets"][0], config.num_heads),
        True,
      )
    )
    for number in range(depth):
      theirs, ours = f"{stack}.block.{number}.layer", f"{stack}/layers_{number}"
      for index, (normed, part) in enumerate(parts):
        norm(f"{theirs}.{index}.layer_norm", f"{ours}/pre_{normed}_layer_norm")
        kind = "EncDecAttention" if index else "SelfAttention"
        attention(f"{theirs}.{index}.{kind}", f"{ours}/{part}")
      last = f"{theirs}.{len(parts)}"
      norm(f"{last}.layer_norm", f"{ours}/pre_mlp_layer_norm")
      for wi in ("wi_0", "wi_1") if config.gated else ("wi",):
        matrix(f"{last}.DenseReluDense.{wi}", f"{ours}/mlp/{wi}", config.d_ff, width)
      matrix(f"{last}.DenseReluDense.wo", f"{ours}/mlp/wo", width, config.d_ff)
    norm(f"{stack}.final_layer_norm", f"{stack}/{stack}_norm")
  if not config.tied:
    found.append(
      Place(_HEAD, "decoder/logits_dense/kernel", (config.vocab_size, width), True)
    )
  return found


def config_of(
  flat: Mapping[str, Any],
  source: str,
  model_type: str | None = None,
  numbers: Mapping[str, Any] | None = None,
) -> Config:
  """Returns the config of leaves by T5X path, inferred from their names and shapes.

  T5 1.1 and mT5 are one network: without `model_type`, the size of the table decides. A
  network with scaled logits is called T5, because mT5 in `transformers` 5 has none.

  Raises:
    UserError: they are not the leaves of a T5 that Hugging Face supports, or not of one
      with the stated `numbers`.
  """
  try:
    heads = flat["encoder/relpos_bias/rel_embedding"].shape[0]
    rows, width = flat[TABLE].shape
    joined = flat["encoder/layers_0/attention/query/kernel"].shape[1]
    gated = "encoder/layers_0/mlp/wi_0/kernel" in flat
    first = flat[f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel"]
    tied = "decoder/logits_dense/kernel" not in flat
    config = Config(
      model_type=_model_type(model_type, rows, tied),
      vocab_size=rows,
      d_model=width,
      d_kv=joined // heads,
      d_ff=first.shape[1],
      num_layers=_depth(flat, "encoder"),
      num_decoder_layers=_depth(flat, "decoder"),
      num_heads=heads,
      gated=gated,
      tied=tied,
    )
  except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
    raise UserError(
      f"'{source}' does not hold the leaves of a T5 (failed at {error}). Give a "
      "backbone of the family T5, T5 1.1, Flan-T5 or mT5."
    ) from error
  hugging_face.check_leaves(source, places(config), flat, "one T5")
  stated, found = (json.dumps(one, sort_keys=True) for one in (numbers, config.numbers))
  if numbers is not None and stated != found:
    raise UserError(
      f"'{source}' states {short(stated, 400)} of its network, and its leaves have "
      f"{short(found, 400)}. Take another copy."
    )
  return config


def read_config(folder: files.Path) -> Config:
  """Returns the content of config.json in the folder of a T5 or mT5.

  Every field of it and of generation_config.json means what it means to `transformers` 4
  and 5, or is refused if the network does not support it. Fields that T5's code there does
  not read are ignored.
  """
  content = read_json(folder, CONFIG)
  path = folder / CONFIG
  kind = content["model_type"]
  _refuse_unknown(content, path)
  hugging_face.refuse_token_rules(content, path)
  if (folder / GENERATION).exists():
    generation = read_json(folder, GENERATION)
    hugging_face.refuse_token_rules(generation, folder / GENERATION)
    ids = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
    _refuse_other_values(
      {key: generation[key] for key in ids if generation.get(key) is not None},
      folder / GENERATION,
    )
  stated = {**(_MT5_DEFAULTS if kind == "mt5" else _DEFAULTS), **content}
  sizes = _sizes(stated, path)
  tied = _is_tied(content, kind, path)
  return Config(
    model_type=kind,
    gated=_is_gated(stated, path),
    tied=tied,
    head_is_table=not tied and content.get("tie_word_embeddings") is True,
    **sizes,
  )


def _refuse_unknown(content: Mapping[str, Any], path: files.Path) -> None:
  """Raises `UserError` about a field that the network cannot obey."""
  hugging_face.refuse_unknown(content, path, "a T5, T5 1.1, Flan-T5 or mT5")
  _refuse_other_values(content, path)
  if content.get("decoder_start_token_id") is None and content.get("bos_token_id"):
    raise UserError(
      f"'{path}' states bos_token_id {short(content['bos_token_id'])} and no "
      "decoder_start_token_id, so transformers starts decoding from it; the network "
      "supports only 0. State decoder_start_token_id 0 there if it was trained with 0."
    )


def _refuse_other_values(content: Mapping[str, Any], path: files.Path) -> None:
  for key, (value, what) in _FIXED.items():
    stated = content.get(key, value)
    if key == "eos_token_id" and stated == [value]:
      stated = value
    if key == "decoder_start_token_id" and stated is None:
      continue
    if isinstance(stated, bool) is not isinstance(value, bool) or stated != value:
      raise UserError(
        f"'{path}' states {key} {short(stated)}; the network supports only {value} "
        f"({what}). Choose a T5, T5 1.1, Flan-T5 or mT5."
      )


def _sizes(stated: dict[str, Any], path: files.Path) -> dict[str, int]:
  """Returns the numbers of a `Config`, checked."""
  sizes: dict[str, int] = {}
  if stated.get("num_decoder_layers") is None:
    stated["num_decoder_layers"] = stated["num_layers"]
  for alias, key in _ALIASES.items():
    if alias in stated and stated[alias] != stated[key]:
      raise UserError(
        f"'{path}' states {alias} {short(stated[alias])}, another name of {key}, which "
        f"is {short(stated[key])} there. Remove the wrong one."
      )
  for key in (
    *("vocab_size", "d_model", "d_kv", "d_ff"),
    *("num_layers", "num_decoder_layers", "num_heads"),
  ):
    sizes[key] = hugging_face.whole(stated[key], key, path)
  if max(sizes["num_layers"], sizes["num_decoder_layers"]) > 1_000:
    raise UserError(
      f"'{path}' states {sizes['num_layers']} layers; no T5 has over 1000. Take another "
      "copy."
    )
  return sizes


def _is_gated(stated: Mapping[str, Any], path: files.Path) -> bool:
  """Returns whether the feed-forward block is 'gated-gelu' rather than 'relu'.

  In `transformers` `feed_forward_proj` says it, unless `dense_act_fn` or `is_gated_act`
  overrides it.
  """
  said = stated["feed_forward_proj"]
  gate, _, activation = said.rpartition("-") if isinstance(said, str) else ("", "", "")
  if said == "gated-gelu":
    activation = "gelu_new"
  gated = stated.get("is_gated_act", gate == "gated")
  activation = stated.get("dense_act_fn", activation)
  if gate in ("", "gated"):
    if gated is True and activation in _GELU:
      return True
    if gated is False and activation == "relu":
      return False
  overriding = "".join(
    f" with {key} {short(stated[key])}, which overrides it"
    for key in ("dense_act_fn", "is_gated_act")
    if key in stated
  )
  raise UserError(
    f"'{path}' states feed_forward_proj {short(said)}{overriding}; the network supports "
    "'relu' (T5 1.0) and 'gated-gelu' with 'gelu_new' (T5 1.1, Flan-T5, mT5). Choose "
    "such a model."
  )


def _is_tied(content: Mapping[str, Any], kind: str, path: files.Path) -> bool:
  """Returns whether logits come from the scaled token table.

  `transformers` 4 decides by `tie_word_embeddings`. Version 5 writes that as true for every
  model, never scales mT5's logits, and decides for T5 by `scale_decoder_outputs`.
  """
  keys = ("tie_word_embeddings", "scale_decoder_outputs")
  for key in keys:
    if not isinstance(content.get(key, True), bool):
      raise UserError(
        f"'{path}' states {key} {short(content[key])}; it must be true or false. Take "
        "another copy."
      )
  tied, scaled = (content.get(key) for key in keys)
  if kind == "mt5":
    written_by = str(content.get("transformers_version", ""))
    return tied is True and written_by.startswith(("3.", "4."))
  if tied is False and scaled:
    raise UserError(
      f"'{path}' states tie_word_embeddings false and scale_decoder_outputs true, as "
      "transformers 5.0 wrote by mistake: version 4 obeys the first, and version 5 the "
      f"second. Set {_AS_TRAINED}."
    )
  return tied is not False if scaled is None else scaled


_AS_TRAINED = (
  "both to true for T5 1.0, or both to false for T5 1.1, LM-adapted and Flan-T5"
)


def by_path(source: str, config: Config, found: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """Returns the leaves by T5X path, after a check of their names and shapes."""
  stored = dict(found)
  stored.pop(_UNUSED, None)
  copies = [name for name in _TABLES if name in stored]
  if config.tied and _HEAD in stored:
    copies.append(_HEAD)
  if copies:
    table = stored[copies[0]]
    for name in copies[1:]:
      other = stored.pop(name)
      if other.shape != table.shape or not np.array_equal(other, table):
        raise UserError(
          f"'{source}' holds '{name}' with other values than '{copies[0]}', and "
          + (
            f"its {CONFIG} makes one table of them (tie_word_embeddings, and "
            "scale_decoder_outputs where it is stated). Set "
            + (
              f"{_AS_TRAINED}."
              if config.model_type == "t5"
              else "tie_word_embeddings to false."
            )
            if name == _HEAD
            else "the network has one table for both. Choose a T5, T5 1.1, Flan-T5 or "
            "mT5 as it was published."
          )
        )
    stored[_SHARED] = stored.pop(copies[0])
    if config.head_is_table:
      stored.setdefault(_HEAD, stored[_SHARED])
  return hugging_face.by_path(source, places(config), stored)


def _model_type(stated: str | None, rows: int, tied: bool) -> str:
  if tied:
    return "t5"
  return stated or ("mt5" if rows == _MT5_DEFAULTS["vocab_size"] else "t5")


def _depth(flat: Mapping[str, Any], stack: str) -> int:
  return len(
    {path.split("/")[1] for path in flat if path.startswith(f"{stack}/layers_")}
  )
