"""Makes the parity references of LLaMA and its relatives, with tiny random weights.

Writes `hf_<family>.npz` beside this file for each of `FAMILIES`, of what `transformers`
says:

  config            config.json, with the fields of the family's public models
  weights/<name>    fp32 weights by Hugging Face's names
  <case>/source, target   the tokenizer's ids, -1 at padding; prompt where there is one
  <case>/logits     [B, W, V] in fp32, of rows of prompt, source, target and padding; zero
                    at padding
  <case>/loss       the mean over target tokens
  <case>/bf16_distance    of `transformers`' own bf16 logits from these, over the largest
  <case>/greedy     [B, LONGEST], what `generate` writes behind each source by itself, -1
                    after the end
  seed              of everything random here: the first that makes a good test

The cases are `long` (one row of many positions; logits and loss only), `padded` (sources
and targets of different lengths in one batch) and `prompted` (as `padded`, with embeddings
before the source's). Id 0 is a token as any other. Rows are
padded on the right; `generate` would need padding on the left, between prompt and source,
so it gets one row at a time. It imports nothing of tpv_jax, so that an error there cannot
hide here. Needs the extra 'parity' (torch, transformers).

  python tests/references/make_llama_references.py           # writes the files
  python tests/references/make_llama_references.py --check   # regenerates and compares
"""

import copy
import json
import sys
from collections.abc import Callable

import make_hf_references as hf
import numpy as np
import torch
import transformers

# Numbers that differ wherever two could be confused: heads * head_dim is not hidden_size.
COMMON = {
  "attention_dropout": 0.0,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "head_dim": 6,
  "hidden_act": "silu",
  "hidden_size": 16,
  "intermediate_size": 24,
  "max_position_embeddings": 512,
  "num_attention_heads": 4,
  "num_hidden_layers": 2,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-05,
  "rope_theta": 500000.0,
  "tie_word_embeddings": False,
  "use_cache": True,
  "vocab_size": 48,
}
LLAMA = {
  **COMMON,
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": False,
  "mlp_bias": False,
  "model_type": "llama",
  "pretraining_tp": 1,
  "rope_scaling": None,
}
FAMILIES = {
  "llama": LLAMA,
  # As SmolLM2: tied, an odd number of heads that share one head of keys.
  "llama_tied": {
    **LLAMA,
    "head_dim": 8,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
  },
  # Of four frequencies one is kept, one goes over, two are divided whole.
  "llama_3_1": {
    **LLAMA,
    "eos_token_id": [2, 5],
    "head_dim": 8,
    "num_key_value_heads": 4,
    "rope_theta": 10000.0,
    "rope_scaling": {
      "factor": 8.0,
      "high_freq_factor": 4.0,
      "low_freq_factor": 1.0,
      "original_max_position_embeddings": 128,
      "rope_type": "llama3",
    },
  },
  "qwen2": {
    **{name: value for name, value in COMMON.items() if name != "head_dim"},
    "architectures": ["Qwen2ForCausalLM"],
    "max_window_layers": 28,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 16,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
  },
  "qwen3": {
    **COMMON,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 8,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
  },
  # Every row is within its window.
  "mistral": {
    **COMMON,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "rope_theta": 10000.0,
    "sliding_window": 160,
  },
}
PROMPT_LENGTH = 5
NONE = -1
"""Stands at padding."""


NORMS = ("input_layernorm", "post_attention_layernorm")


def random_weights(
  config: dict,
  rng: np.random.Generator,
  norms: tuple[str, ...] = NORMS,
  norm_mean: float = 1.0,
  qk_norm: bool | None = None,
) -> hf.Arrays:
  """Returns fp32 weights by Hugging Face's names, sized so that every one matters.

  Args:
    config: of the model.
    rng: of all values.
    norms: those of a layer.
    norm_mean: of their weights.
    qk_norm: whether queries and keys have norms; by default those of Qwen 3 do.
  """
  if qk_norm is None:
    qk_norm = config["model_type"] == "qwen3"
  width, hidden = config["hidden_size"], config["intermediate_size"]
  heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
  head = config.get("head_dim", width // heads)
  weights = {}

  def normal(name: str, *shape: int, std: float, mean: float = 0.0) -> None:
    weights[name] = (mean + std * rng.standard_normal(shape)).astype(np.float32)

  def norm(name: str, size: int) -> None:
    normal(f"{name}.weight", size, std=0.2, mean=norm_mean)

  def linear(name: str, outputs: int, inputs: int) -> None:
    normal(f"{name}.weight", outputs, inputs, std=1.5 * inputs**-0.5)

  # With tied logits of full size a token would mostly be followed by itself.
  tied = config["tie_word_embeddings"]
  normal(
    "model.embed_tokens.weight", config["vocab_size"], width, std=0.3 if tied else 1.0
  )
  for number in range(config["num_hidden_layers"]):
    layer = f"model.layers.{number}"
    norm(f"{layer}.{norms[0]}", width)
    for letter, size in (("q", heads), ("k", shared), ("v", shared)):
      name = f"{layer}.self_attn.{letter}"
      linear(f"{name}_proj", size * head, width)
      if config["model_type"] == "qwen2":
        normal(f"{name}_proj.bias", size * head, std=0.5)
      if qk_norm and letter != "v":
        norm(f"{name}_norm", head)
    linear(f"{layer}.self_attn.o_proj", width, heads * head)
    for name in norms[1:]:
      norm(f"{layer}.{name}", width)
    linear(f"{layer}.mlp.gate_proj", hidden, width)
    linear(f"{layer}.mlp.up_proj", hidden, width)
    linear(f"{layer}.mlp.down_proj", width, hidden)
  norm("model.norm", width)
  if not tied:
    linear("lm_head", config["vocab_size"], width)
  return weights


def random_tokens(
  lengths: list[int], vocab_size: int, rng: np.random.Generator
) -> np.ndarray:
  """Returns rows of any tokens, padded with -1."""
  tokens = np.full((len(lengths), max(lengths)), NONE, np.int32)
  for row, length in zip(tokens, lengths, strict=True):
    row[:length] = rng.integers(0, vocab_size, length)
  return tokens


def joined(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns rows of source, target and padding; and labels, -100 outside the targets."""
  width = max((source >= 0).sum(axis=1) + (target >= 0).sum(axis=1))
  tokens = np.full((len(source), width), NONE, np.int64)
  labels = np.full((len(source), width), -100, np.int64)
  for row, (before, after) in enumerate(zip(source, target, strict=True)):
    before, after = before[before >= 0], after[after >= 0]
    end = len(before) + len(after)
    tokens[row, :end] = [*before, *after]
    labels[row, len(before) : end] = after
  return tokens, labels


def references(family: str, seed: int) -> hf.Arrays:
  """Returns the arrays of one file."""
  return of_model(FAMILIES[family], seed)


def of_model(
  config: dict, seed: int, weights_of: Callable[..., hf.Arrays] = random_weights
) -> hf.Arrays:
  """Returns the arrays of a model with this config."""
  rng = np.random.default_rng(seed)
  weights = weights_of(config, rng)
  model = hf.loaded(config, weights, transformers.AutoModelForCausalLM)
  arrays = {f"weights/{name}": leaf for name, leaf in weights.items()}
  arrays["config"] = np.array(json.dumps(config, indent=2, sort_keys=True))
  arrays["seed"] = np.array(seed)
  rows = rng.standard_normal((PROMPT_LENGTH, config["hidden_size"])) / 2
  cases = {
    "padded": ([20, 7, 1, 13], [9, 2, 5, 1], None),
    "long": ([100], [50], None),
    "prompted": ([20, 7, 1, 13], [9, 2, 5, 1], rows.astype(np.float32)),
  }
  for case, (sources, targets, prompt) in cases.items():
    source = random_tokens(sources, config["vocab_size"], rng)
    target = random_tokens(targets, config["vocab_size"], rng)
    found = {
      "source": source,
      "target": target,
      **({} if prompt is None else {"prompt": prompt}),
      **scores(model, source, target, prompt),
    }
    if case != "long":
      found["greedy"] = greedy(model, source, prompt, strict=case == "padded")
    arrays |= {f"{case}/{name}": value for name, value in found.items()}
  return arrays


def embedded(
  model: transformers.PreTrainedModel, tokens: np.ndarray, prompt: np.ndarray | None
) -> torch.Tensor:
  """Returns the embeddings of the tokens, behind the prompt; those of 0 at padding."""
  x = model.get_input_embeddings()(torch.from_numpy(np.maximum(tokens, 0)).long())
  if prompt is None:
    return x
  rows = torch.from_numpy(prompt).to(x.dtype)
  return torch.cat([rows.expand(len(x), -1, -1), x], dim=1)


def scores(
  model: transformers.PreTrainedModel,
  source: np.ndarray,
  target: np.ndarray,
  prompt: np.ndarray | None,
) -> hf.Arrays:
  """Returns logits, loss and how far the model's own bf16 logits are from these."""
  tokens, labels = joined(source, target)
  before = ((0, 0), (0 if prompt is None else len(prompt), 0))
  real = np.pad(tokens >= 0, before, constant_values=True)
  labels = np.pad(labels, before, constant_values=-100)

  def output(model: transformers.PreTrainedModel) -> transformers.utils.ModelOutput:
    with torch.no_grad():
      return model(
        inputs_embeds=embedded(model, tokens, prompt),
        attention_mask=torch.from_numpy(real.astype(np.int64)),
        labels=torch.from_numpy(labels),
      )

  exact = output(model)
  logits = exact.logits.numpy() * real[..., None]
  rounded = output(copy.deepcopy(model).to(torch.bfloat16)).logits.float().numpy()
  distance = np.abs(rounded * real[..., None] - logits).max() / np.abs(logits).max()
  return {
    "logits": logits,
    "loss": exact.loss.numpy(),
    "bf16_distance": np.float32(distance),
  }


def greedy(
  model: transformers.PreTrainedModel,
  source: np.ndarray,
  prompt: np.ndarray | None,
  strict: bool,
) -> np.ndarray:
  """Returns what `generate` writes behind each source, padded with -1.

  Raises:
    ValueError: a step is too close to call, or (strict) the rows are a poor test: not
      one ends after three tokens or more, not one goes on, not one has four different
      tokens.
  """
  ends = np.atleast_1d(model.config.eos_token_id)
  written = np.full((len(source), hf.LONGEST), NONE, np.int32)
  for row, tokens in zip(written, source, strict=True):
    x = embedded(model, tokens[None, tokens >= 0], prompt)
    output = model.generate(
      inputs_embeds=x,
      attention_mask=torch.ones(x.shape[:2], dtype=torch.int64),
      do_sample=False,
      num_beams=1,
      max_new_tokens=hf.LONGEST,
      output_logits=True,
      pad_token_id=0,
      return_dict_in_generate=True,
    )
    for logits in output.logits:
      second, best = np.sort(logits[0].numpy())[-2:]
      if best - second < hf.LEAST_MARGIN:
        raise ValueError("a step is too close to call")
    made = output.sequences[0].numpy()
    row[: len(made)] = made
  counts = (written != NONE).sum(axis=1)
  ended = np.isin(written, ends).any(axis=1)
  variety = max(len(set(row)) for row in written.tolist())
  if strict and (not (ended & (counts >= 3)).any() or ended.all() or variety < 4):
    raise ValueError("the rows are a poor test")
  return written


if __name__ == "__main__":
  sys.exit(hf.write_or_check(__doc__, FAMILIES, references))
