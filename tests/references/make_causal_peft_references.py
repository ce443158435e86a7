"""Makes the references of prompts of decoder-only models: what PEFT's prompt tuning says.

Writes beside this file, for the backbone in `hf_llama.npz`:

  peft_causal_initial/, peft_causal_tuned/   adapters as `save_pretrained` writes them
  peft_causal.npz     what follows; tokens are the tokenizer's ids, -1 at padding
    backbone          SHA-256 of the backbone's weights
    forward/...       with peft_causal_initial: source, target, PEFT's logits and loss
    training/...      source and target of each step, the loss before it; as `SETTINGS` in
                      make_peft_references.py, at `RATE`
    generation/...    source, and what PEFT generates with peft_causal_tuned
    vector            peft_causal_tuned - peft_causal_initial

Rows are [prompt][source][target] and padding on the right: on the left it would stand
between prompt and source, and PEFT counts positions from the prompt on. So each source is
continued by itself, without a cache: with one, PEFT 0.21 puts the prompt in front of every
token that it writes (transformers 5). Labels of sources are -100. It imports nothing of
tpv_jax, so that an error there cannot hide here. Needs the extra 'parity'.

  python tests/references/make_causal_peft_references.py           # writes the files
  python tests/references/make_causal_peft_references.py --check   # compares
"""

import hashlib
import json
import pathlib
import sys

import make_hf_references as hf
import make_llama_references as llama
import make_peft_references as shared
import numpy as np
import peft
import torch
import transformers

HERE = shared.HERE
STORED = HERE / "peft_causal.npz"
ADAPTERS = ("peft_causal_initial", "peft_causal_tuned")

RATE = 0.01
BATCH, SOURCE_LENGTH = 4, 12


def backbone() -> tuple[transformers.PreTrainedModel, str]:
  """Returns the model with the stored weights, and their SHA-256."""
  with np.load(HERE / "hf_llama.npz", allow_pickle=False) as file:
    config = json.loads(str(file["config"]))
    weights = {
      name.removeprefix("weights/"): file[name]
      for name in sorted(file.files)
      if name.startswith("weights/")
    }
  digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in weights.values()))
  model = hf.loaded(config, weights, transformers.AutoModelForCausalLM)
  model.name_or_path = "tiny/llama"
  model.config._name_or_path = "tiny/llama"
  return model, digest.hexdigest()


def inputs(source: np.ndarray, target: np.ndarray) -> dict[str, torch.Tensor]:
  tokens, labels = llama.joined(source, target)
  return {
    "input_ids": torch.from_numpy(np.maximum(tokens, 0)),
    "attention_mask": torch.from_numpy((tokens >= 0).astype(np.int64)),
    "labels": torch.from_numpy(labels),
  }


def forward(model: peft.PeftModel, rng: np.random.Generator) -> hf.Arrays:
  vocabulary = model.config.vocab_size
  source = llama.random_tokens([20, 7, 1, 13], vocabulary, rng)
  target = llama.random_tokens([9, 2, 5, 1], vocabulary, rng)
  given = inputs(source, target)
  with torch.no_grad():
    output = model(**given)
  real = np.pad(
    given["attention_mask"].numpy(), ((0, 0), (shared.TOKENS, 0)), constant_values=1
  )
  return {
    "source": source,
    "target": target,
    "logits": output.logits.numpy() * real[..., None].astype(np.float32),
    "loss": output.loss.numpy(),
  }


def train(model: peft.PeftModel, rng: np.random.Generator) -> hf.Arrays:
  """Trains the prompt; returns the batches and the loss before each step.

  Sources are random; the target is 3 or 4, by the first token of the source, and the end,
  and in half of the rows 5 stands between, so that rows are padded.
  """
  steps = shared.SETTINGS["steps"]
  sources = np.full((steps, BATCH, SOURCE_LENGTH), llama.NONE, np.int8)
  targets = np.full((steps, BATCH, 3), llama.NONE, np.int8)
  for source, target in zip(sources, targets, strict=True):
    lengths = [SOURCE_LENGTH, *rng.integers(1, SOURCE_LENGTH + 1, BATCH - 1)]
    source[:] = llama.random_tokens(lengths, model.config.vocab_size, rng)
    target[:, 0] = 3 + source[:, 0] % 2
    target[:, 1] = np.where(source[:, 0] % 4 < 2, 5, 2)
    target[:, 2] = np.where(target[:, 1] == 5, 2, llama.NONE)
  losses = shared.adamw(
    model,
    (shared.TOKENS, model.config.hidden_size),
    map(inputs, sources, targets),
    RATE,
  )
  return {"source": sources, "target": targets, "losses": losses}


def generation(model: peft.PeftModel, source: np.ndarray) -> hf.Arrays:
  """Returns what the model generates behind each source by itself.

  Raises:
    ValueError: a step is too close to call, or all rows are alike.
  """
  prompt = model.get_prompt(batch_size=1)[0].detach().numpy()
  written = llama.greedy(model.base_model, source, prompt, strict=False)
  for row, tokens in zip(written, source, strict=True):
    ids = torch.from_numpy(tokens[None, tokens >= 0]).long()
    output = model.generate(
      input_ids=ids,
      attention_mask=torch.ones_like(ids),
      do_sample=False,
      num_beams=1,
      max_new_tokens=hf.LONGEST,
      pad_token_id=0,
      use_cache=False,
    )
    made = output[0, ids.shape[1] :].numpy()
    assert np.array_equal(made, row[: len(made)]), "PEFT's model writes something else"
    assert (row[len(made) :] == llama.NONE).all()
  if len({tuple(row) for row in written.tolist()}) == 1:
    raise ValueError("all rows are alike")
  return {"source": source, "tokens": written}


def references(seed: int, folder: pathlib.Path) -> hf.Arrays:
  """Returns the arrays of the file, and writes the adapters into `folder`."""
  rng = np.random.default_rng(seed)
  model, digest = backbone()
  rows = rng.uniform(-0.5, 0.5, (shared.TOKENS, model.config.hidden_size))
  tuned = shared.prompt_tuning(model, rows.astype(np.float32), "CAUSAL_LM")
  parts = {"forward": forward(tuned, rng)}
  initial, trained = (folder / name for name in ADAPTERS)
  shared.save(tuned, initial)
  parts["training"] = train(tuned, rng)
  shared.save(tuned, trained)
  loaded = [
    peft.PeftModel.from_pretrained(backbone()[0], path) for path in (initial, trained)
  ]
  first, last = (one.get_prompt(batch_size=1)[0].detach().numpy() for one in loaded)
  source = llama.random_tokens([20, 7, 11, 13, 3, 16], model.config.vocab_size, rng)
  parts["generation"] = generation(loaded[1].eval(), source)
  return {
    "backbone": np.array(digest),
    "seed": np.array(seed),
    "vector": last - first,
    **{f"{part}/{name}": v for part, some in parts.items() for name, v in some.items()},
  }


if __name__ == "__main__":
  sys.exit(shared.write_or_check(__doc__, STORED, ADAPTERS, references))
