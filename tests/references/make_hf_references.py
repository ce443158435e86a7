"""Makes the parity references: what Hugging Face's T5s say, with tiny random weights.

Writes `hf_<family>.npz` beside this file for each of `FAMILIES` (under 1 MB together):

  config                   config.json, with the fields of the family's public models
  weights/<name>           fp32 weights by Hugging Face's names
  <case>/encoder_input_tokens, decoder_input_tokens, decoder_target_tokens, prompt
  <case>/logits, loss      of `transformers`, in fp32; the loss is the mean over tokens
  <case>/bf16_distance     of `transformers`' own bf16 logits from these, over the largest
  <case>/greedy            [B, LONGEST], what `generate` writes, 0 after the end
  <case>/beam_tokens       [penalties, B, BEAMS, LONGEST], best beam first
  <case>/beam_scores       [penalties, B, BEAMS], `sequences_scores`
  beam_length_penalties    [penalties]
  seed                     of everything random here: the first that makes a good test

The cases are `long` (no padding; long enough for every bucket of the relative bias; logits
and loss only), `even` (no padding), `padded` (sources and targets of different lengths) and
`prompted` (as `padded`, with embeddings before the source's). `transformers` loads the
weights from a folder as it loads any model. It imports nothing of tpv_jax, so that an error
there cannot hide here. Needs the extra 'parity' (torch, transformers).

  python tests/references/make_hf_references.py           # writes the files
  python tests/references/make_hf_references.py --check   # regenerates and compares
"""

import argparse
import copy
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterable

import numpy as np
import safetensors.numpy
import torch
import transformers

HERE = pathlib.Path(__file__).parent

# Numbers that differ wherever two could be confused: heads * d_kv is not d_model, the
# encoder is deeper (transformers 5 cannot generate otherwise). T5 1.0 has no number of
# decoder layers: it is that of the encoder.
COMMON = {
  "d_ff": 24,
  "d_kv": 6,
  "d_model": 16,
  "decoder_start_token_id": 0,
  "dropout_rate": 0.1,
  "eos_token_id": 1,
  "initializer_factor": 1.0,
  "is_encoder_decoder": True,
  "layer_norm_epsilon": 1e-06,
  "num_heads": 3,
  "num_layers": 2,
  "pad_token_id": 0,
  "relative_attention_num_buckets": 32,
  "vocab_size": 48,
}
GATED = {
  **COMMON,
  "feed_forward_proj": "gated-gelu",
  "num_layers": 3,
  "num_decoder_layers": 2,
  "tie_word_embeddings": False,
  "use_cache": True,
}
FAMILIES = {
  "t5": {
    **COMMON,
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "n_positions": 512,
    "output_past": True,
  },
  "t5_1_1": {
    **GATED,
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
  },
  "flan_t5": {
    **GATED,
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 20,
    "dense_act_fn": "gelu_new",
    "is_gated_act": True,
    "model_type": "t5",
    "n_positions": 512,
    "output_past": True,
    "relative_attention_max_distance": 128,
  },
  "mt5": {
    **GATED,
    "architectures": ["MT5ForConditionalGeneration"],
    "model_type": "mt5",
    "num_heads": 2,
    "tokenizer_class": "T5Tokenizer",
    "vocab_size": 56,
  },
}
PROMPT_LENGTH = 5
LONGEST = 12
"""Tokens that are generated at most."""

BEAMS = 4
LENGTH_PENALTIES = (1.0, 0.6, 2.0)
LEAST_MARGIN = 1e-3
"""Greedy tokens are compared exactly, so the best two logits must differ by this."""

RELATIVE_TOLERANCE = 1e-5
"""Of --check: another torch or processor sums in another order."""

Arrays = dict[str, np.ndarray]
References = Callable[[str, int], Arrays]
"""Takes a family and a seed.

Raises `ValueError` where the seed makes a poor test.
"""


def random_weights(config: dict, rng: np.random.Generator) -> Arrays:
  """Returns fp32 weights by Hugging Face's names, sized so that every one matters."""
  width, hidden, heads = config["d_model"], config["d_ff"], config["num_heads"]
  joined = heads * config["d_kv"]
  gated = config.get("feed_forward_proj") == "gated-gelu"
  weights = {}

  def normal(name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> None:
    values = mean + std * rng.standard_normal(shape)
    weights[f"{name}.weight"] = values.astype(np.float32)

  def attention(name: str) -> None:
    normal(f"{name}.q", (joined, width), (width * config["d_kv"]) ** -0.5)
    normal(f"{name}.k", (joined, width), width**-0.5)
    normal(f"{name}.v", (joined, width), width**-0.5)
    normal(f"{name}.o", (width, joined), joined**-0.5)

  # With tied logits of full size a token would mostly be followed by itself.
  normal("shared", (config["vocab_size"], width), 1.0 if gated else 0.4)
  for stack, depth in (
    ("encoder", config["num_layers"]),
    ("decoder", config.get("num_decoder_layers", config["num_layers"])),
  ):
    for number in range(depth):
      block = f"{stack}.block.{number}.layer"
      parts = ["SelfAttention", "EncDecAttention", "DenseReluDense"]
      if stack == "encoder":
        parts.remove("EncDecAttention")
      for place, part in enumerate(parts):
        normal(f"{block}.{place}.layer_norm", (width,), 0.2, mean=1.0)
        if part == "DenseReluDense":
          for wi in ("wi_0", "wi_1") if gated else ("wi",):
            normal(f"{block}.{place}.{part}.{wi}", (hidden, width), width**-0.5)
          normal(f"{block}.{place}.{part}.wo", (width, hidden), hidden**-0.5)
        else:
          attention(f"{block}.{place}.{part}")
      if number == 0:
        normal(f"{block}.0.SelfAttention.relative_attention_bias", (32, heads), 1.0)
    normal(f"{stack}.final_layer_norm", (width,), 0.2, mean=1.0)
  if gated:
    normal("lm_head", (config["vocab_size"], width), width**-0.5)
  return weights


def loaded(
  config: dict, weights: Arrays, kind: type = transformers.AutoModelForSeq2SeqLM
) -> transformers.PreTrainedModel:
  """Returns the model that `transformers` makes of a folder with these weights.

  Args:
    config: content of config.json.
    weights: by Hugging Face's names.
    kind: the class that loads them.
  """
  with tempfile.TemporaryDirectory() as folder:
    (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(
      weights, pathlib.Path(folder) / "model.safetensors", {"format": "pt"}
    )
    model, report = kind.from_pretrained(
      folder, output_loading_info=True, dtype=torch.float32
    )
  assert type(model).__name__ == config["architectures"][0]
  faults = {what: names for what, names in report.items() if names}
  assert not faults, faults
  for name, parameter in model.named_parameters():
    assert np.array_equal(parameter.detach().numpy(), weights[name]), name
  return model.eval()


def random_tokens(
  lengths: list[int], longest: int, vocab_size: int, rng: np.random.Generator
) -> np.ndarray:
  """Returns rows of ordinary tokens (3 and up) that end with 1 and are padded with 0."""
  tokens = np.zeros((len(lengths), longest), np.int32)
  for row, length in zip(tokens, lengths, strict=True):
    row[: length - 1] = rng.integers(3, vocab_size, length - 1)
    row[length - 1] = 1
  return tokens


def references(family: str, seed: int) -> Arrays:
  """Returns the arrays of one file."""
  config = FAMILIES[family]
  rng = np.random.default_rng(seed)
  weights = random_weights(config, rng)
  model = loaded(config, weights)
  arrays = {f"weights/{name}": leaf for name, leaf in weights.items()}
  arrays["config"] = np.array(json.dumps(config, indent=2, sort_keys=True))
  arrays["beam_length_penalties"] = np.array(LENGTH_PENALTIES)
  arrays["seed"] = np.array(seed)
  rows = rng.standard_normal((PROMPT_LENGTH, config["d_model"])).astype(np.float32)
  cases = {
    "padded": ([20, 7, 1, 13], [9, 2, 5, 1], None),
    "even": ([11, 11, 11], [6, 6, 6], None),
    "long": ([150, 150], [140, 140], None),
    "prompted": ([20, 7, 1, 13], [9, 2, 5, 1], rows),
  }
  for case, (source_lengths, target_lengths, prompt) in cases.items():
    source = random_tokens(
      source_lengths, max(source_lengths), config["vocab_size"], rng
    )
    targets = random_tokens(
      target_lengths, max(target_lengths), config["vocab_size"], rng
    )
    found = {
      "encoder_input_tokens": source,
      "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
      "decoder_target_tokens": targets,
      **({} if prompt is None else {"prompt": prompt}),
      **scores(model, source, targets, prompt),
    }
    if case in ("padded", "even"):
      mask = torch.from_numpy((source > 0).astype(np.int64))
      found["greedy"] = greedy(model, source, mask, strict=case == "padded")
      found |= beams(model, source, mask, strict=case == "padded")
    arrays |= {f"{case}/{name}": value for name, value in found.items()}
  return arrays


def scores(
  model: transformers.PreTrainedModel,
  source: np.ndarray,
  targets: np.ndarray,
  prompt: np.ndarray | None,
) -> Arrays:
  """Returns logits, loss and how far the model's own bf16 logits are from these."""
  mask = torch.from_numpy((source > 0).astype(np.int64))
  labels = torch.from_numpy(np.where(targets > 0, targets, -100)).long()
  if prompt is not None:
    before = torch.ones(len(source), len(prompt), dtype=mask.dtype)
    mask = torch.cat([before, mask], dim=1)

  def output(model: transformers.PreTrainedModel) -> transformers.utils.ModelOutput:
    embedded = model.shared(torch.from_numpy(source).long())
    if prompt is not None:
      rows = torch.from_numpy(prompt).to(embedded.dtype)
      embedded = torch.cat([rows.expand(len(source), -1, -1), embedded], dim=1)
    with torch.no_grad():
      return model(inputs_embeds=embedded, attention_mask=mask, labels=labels)

  exact = output(model)
  logits = exact.logits.numpy()
  rounded = output(copy.deepcopy(model).to(torch.bfloat16)).logits.float().numpy()
  real = (targets > 0)[..., None]
  distance = np.abs((rounded - logits) * real).max() / np.abs(logits * real).max()
  return {
    "logits": logits,
    "loss": exact.loss.numpy(),
    "bf16_distance": np.float32(distance),
  }


def greedy(
  model: transformers.PreTrainedModel,
  source: np.ndarray,
  mask: torch.Tensor,
  strict: bool,
) -> np.ndarray:
  """Returns what `generate` writes, without the start token, padded with 0.

  Raises:
    ValueError: a step is too close to call, or (strict) the rows are a poor test: not
      one ends after three tokens or more, not one goes on, not one has four different
      tokens.
  """
  output = model.generate(
    torch.from_numpy(source).long(),
    attention_mask=mask,
    do_sample=False,
    num_beams=1,
    max_new_tokens=LONGEST,
    min_new_tokens=0,
    output_logits=True,
    return_dict_in_generate=True,
  )
  tokens = output.sequences[:, 1:].numpy().astype(np.int32)
  for step, logits in enumerate(output.logits):
    best = np.sort(logits.numpy(), axis=-1)
    margins = (best[:, -1] - best[:, -2])[tokens[:, step] != 0]
    if margins.size and margins.min() < LEAST_MARGIN:
      raise ValueError("a step is too close to call")
  written = (tokens != 0).sum(axis=1)
  ended = (tokens == 1).any(axis=1)
  variety = max(len(set(row)) for row in tokens.tolist())
  if strict and (not (ended & (written >= 3)).any() or ended.all() or variety < 4):
    raise ValueError("the rows are a poor test")
  return np.pad(tokens, ((0, 0), (0, LONGEST - tokens.shape[1])))


def beams(
  model: transformers.PreTrainedModel,
  source: np.ndarray,
  mask: torch.Tensor,
  strict: bool,
) -> Arrays:
  """Returns all beams of `generate` and their scores, for each length penalty.

  Raises:
    ValueError: fp64 finds other beams, so that fp32 could as well elsewhere; or (strict)
      the beams are a poor test: hardly any ends, or hardly any goes on.
  """

  def found(model: transformers.PreTrainedModel, penalty: float) -> tuple:
    output = model.generate(
      torch.from_numpy(source).long(),
      attention_mask=mask,
      do_sample=False,
      num_beams=BEAMS,
      num_return_sequences=BEAMS,
      length_penalty=penalty,
      early_stopping=False,
      max_new_tokens=LONGEST,
      min_new_tokens=0,
      output_scores=True,
      return_dict_in_generate=True,
    )
    tokens = output.sequences[:, 1:].numpy().astype(np.int32)
    tokens = np.pad(tokens, ((0, 0), (0, LONGEST - tokens.shape[1])))
    return (
      tokens.reshape(len(source), BEAMS, LONGEST),
      output.sequences_scores.numpy().reshape(len(source), BEAMS),
    )

  exact = copy.deepcopy(model).to(torch.float64)
  tokens, values = [], []
  for penalty in LENGTH_PENALTIES:
    beam_tokens, beam_scores = found(model, penalty)
    if not np.array_equal(beam_tokens, found(exact, penalty)[0]):
      raise ValueError("a beam is too close to call")
    ended = (beam_tokens == 1).any(axis=-1).mean()
    if strict and not 0.1 < ended < 0.9:
      raise ValueError("the beams are a poor test")
    tokens.append(beam_tokens)
    values.append(beam_scores)
  return {"beam_tokens": np.stack(tokens), "beam_scores": np.stack(values)}


def first_good(family: str, made: References) -> Arrays:
  """Returns the references of the first seed whose generations are a good test."""
  for seed in range(1000):
    try:
      return made(family, seed)
    except ValueError:
      continue
  raise ValueError(f"no seed gives a good test of {family}")


def differences(stored: Arrays, made: Arrays) -> list[str]:
  """Returns what differs, one line each."""
  if stored.keys() != made.keys():
    return [f"arrays only in one of both: {sorted(stored.keys() ^ made.keys())}"]
  found = []
  for name, value in made.items():
    if name.endswith(("/logits", "/loss", "/beam_scores")):
      distance = np.abs(stored[name] - value).max() / np.abs(value).max()
      if not distance < RELATIVE_TOLERANCE:
        found.append(f"{name} differs by {distance:.1e} relative")
    elif name.endswith(
      "/bf16_distance"
    ):  # Roundings differ from processor to processor.
      if not stored[name] / 4 < value < stored[name] * 4:
        found.append(f"{name} is {value:.1e}, not {stored[name]:.1e}")
    elif not np.array_equal(stored[name], value):
      found.append(f"{name} differs")
  return found


def asked_to_check(description: str) -> bool:
  """Returns whether `--check` was given; `transformers` keeps quiet from here on."""
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--check",
    action="store_true",
    help="compare with the stored files instead of writing them; exit code 1 if not equal",
  )
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  return parser.parse_args().check


def write_or_check(description: str, families: Iterable[str], made: References) -> int:
  """Writes the families' files or, with `--check`, compares them; returns the exit code."""
  check = asked_to_check(description)
  failed = False
  for family in families:
    path = HERE / f"hf_{family}.npz"
    if check:
      with np.load(path, allow_pickle=False) as file:
        stored = dict(file)
      faults = differences(stored, made(family, int(stored["seed"])))
      failed |= bool(faults)
      print(f"{path.name}: {'; '.join(faults) or 'equal'}")
    else:
      np.savez_compressed(path, **first_good(family, made))
      print(f"{path.name}: {path.stat().st_size} bytes")
  versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
  print(f"made with {versions}")
  return int(failed)


if __name__ == "__main__":
  sys.exit(write_or_check(__doc__, FAMILIES, references))
