"""Makes the references of prompts: what PEFT's prompt tuning and DePT's formula say.

Writes beside this file, for the backbone in `hf_t5_1_1.npz`:

  peft_initial/, peft_tuned/   adapters as `save_pretrained` writes them
  peft.npz                     what follows
    backbone                   SHA-256 of the backbone's weights
    forward/...                with peft_initial: tokens, PEFT's logits and loss
    training/...               tokens of each step, the loss before it; of `SETTINGS`
    generation/...             tokens, and what PEFT generates with peft_tuned
    vector                     peft_tuned - peft_initial of the rows that PEFT uses
    dept/...                   a DePT prompt, tokens, and the logits of DePT's formula

It imports nothing of tpv_jax, so that an error there cannot hide here. Needs the extra
'parity' (torch, transformers, peft).

  python tests/references/make_peft_references.py           # writes the files
  python tests/references/make_peft_references.py --check   # regenerates and compares
"""

import hashlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterable

import make_hf_references as hf
import numpy as np
import peft
import safetensors.numpy
import torch
import transformers

HERE = pathlib.Path(__file__).parent
STORED = HERE / "peft.npz"
ADAPTERS = ("peft_initial", "peft_tuned")

TOKENS = 5
SETTINGS = {
  "steps": 100,
  "rate": 0.3,
  "warmup_steps": 10,
  "weight_decay": 0.01,
}
"""Of the training: AdamW of torch, linear warm-up from 0, then constant."""

BATCH, SOURCE_LENGTH = 4, 12
DEPT = {"tokens": 3, "longest": 24, "rank": 2, "alpha": 8.0}

TOLERANCES = dict.fromkeys(
  ("training", "vector", "peft_tuned", "peft_causal_tuned"), 1e-4
)
"""Of --check, relative to the largest value: rounding grows over a hundred steps."""

OTHER_TOLERANCE = 1e-5

Arrays = dict[str, np.ndarray]
References = Callable[[int, pathlib.Path], Arrays]
"""Takes a seed, and the folder for adapters.

Raises `ValueError` where the seed makes a poor test.
"""


def backbone() -> tuple[transformers.PreTrainedModel, str]:
  """Returns the model with the stored weights, and their SHA-256."""
  with np.load(HERE / "hf_t5_1_1.npz", allow_pickle=False) as file:
    config = json.loads(str(file["config"]))
    weights = {
      name.removeprefix("weights/"): file[name]
      for name in sorted(file.files)
      if name.startswith("weights/")
    }
  digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in weights.values()))
  model = hf.loaded({**config, "dropout_rate": 0.0}, weights)
  model.name_or_path = "tiny/t5_1_1"
  model.config._name_or_path = "tiny/t5_1_1"
  return model, digest.hexdigest()


def prompt_tuning(
  model: transformers.PreTrainedModel, rows: np.ndarray, task_type: str
) -> peft.PeftModel:
  """Returns PEFT's model, all of its rows set to these."""
  config = peft.PromptTuningConfig(
    task_type=task_type, num_virtual_tokens=TOKENS, prompt_tuning_init="RANDOM"
  )
  tuned = peft.get_peft_model(model, config)
  with torch.no_grad():
    tuned.prompt_encoder.default.embedding.weight.copy_(torch.from_numpy(rows))
  return tuned


def inputs(source: np.ndarray, targets: np.ndarray) -> dict[str, torch.Tensor]:
  return {
    "input_ids": torch.from_numpy(source).long(),
    "attention_mask": torch.from_numpy((source > 0).astype(np.int64)),
    "labels": torch.from_numpy(np.where(targets > 0, targets.astype(np.int64), -100)),
  }


def some_tokens(rng: np.random.Generator, vocabulary: int) -> Arrays:
  source = hf.random_tokens([20, 7, 1, 13], 20, vocabulary, rng)
  targets = hf.random_tokens([9, 2, 5, 1], 9, vocabulary, rng)
  return {"encoder_input_tokens": source, "decoder_target_tokens": targets}


def forward(model: peft.PeftModel, tokens: Arrays) -> Arrays:
  with torch.no_grad():
    output = model(**inputs(*tokens.values()))
  return tokens | {"logits": output.logits.numpy(), "loss": output.loss.numpy()}


def train(model: peft.PeftModel, rng: np.random.Generator, vocabulary: int) -> Arrays:
  """Trains the prompt; returns the batches and the loss before each step.

  Sources are random; the target is 3 or 4, by the first token of the source, and the end,
  and in half of the rows 5 stands between, so that targets are padded.
  """
  steps = SETTINGS["steps"]
  sources = np.zeros((steps, BATCH, SOURCE_LENGTH), np.uint8)
  targets = np.zeros((steps, BATCH, 3), np.uint8)
  for step in range(steps):
    lengths = rng.integers(2, SOURCE_LENGTH + 1, BATCH).tolist()
    sources[step] = hf.random_tokens(lengths, SOURCE_LENGTH, vocabulary, rng)
    targets[step, :, 0] = 3 + sources[step, :, 0] % 2
    targets[step, :, 1] = np.where(sources[step, :, 0] % 4 < 2, 5, 1)
    targets[step, :, 2] = np.where(targets[step, :, 1] == 5, 1, 0)
  rows = (2 * TOKENS, model.config.d_model)
  return {
    "encoder_input_tokens": sources,
    "decoder_target_tokens": targets,
    "losses": adamw(model, rows, map(inputs, sources, targets), SETTINGS["rate"]),
  }


def adamw(
  model: peft.PeftModel,
  rows: tuple[int, int],
  batches: Iterable[dict[str, torch.Tensor]],
  rate: float,
) -> np.ndarray:
  """Trains the prompt, whose rows have this shape; returns the loss before each step."""
  trainable = [p for p in model.parameters() if p.requires_grad]
  assert [tuple(p.shape) for p in trainable] == [rows]
  optimizer = torch.optim.AdamW(
    trainable, lr=rate, weight_decay=SETTINGS["weight_decay"]
  )
  schedule = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda step: min(1.0, step / SETTINGS["warmup_steps"])
  )
  model.train()
  losses = []
  for batch in batches:
    loss = model(**batch).loss
    losses.append(loss.item())
    loss.backward()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
  model.eval()
  return np.array(losses)


def generation(model: peft.PeftModel, source: np.ndarray) -> Arrays:
  """Returns what the model generates.

  Raises:
    ValueError: a step is too close to call, or all rows are alike.
  """
  given = inputs(source, source)
  del given["labels"]
  output = model.generate(
    **given,
    do_sample=False,
    num_beams=1,
    max_new_tokens=hf.LONGEST,
    output_logits=True,
    return_dict_in_generate=True,
  )
  tokens = output.sequences[:, 1:].numpy().astype(np.int32)
  for step, logits in enumerate(output.logits):
    best = np.sort(logits.numpy(), axis=-1)
    margins = (best[:, -1] - best[:, -2])[tokens[:, step] != 0]
    if margins.size and margins.min() < hf.LEAST_MARGIN:
      raise ValueError("a step is too close to call")
  if len({tuple(row) for row in tokens.tolist()}) == 1:
    raise ValueError("all rows are alike")
  padding = ((0, 0), (0, hf.LONGEST - tokens.shape[1]))
  return {"encoder_input_tokens": source, "tokens": np.pad(tokens, padding)}


def dept(
  model: transformers.PreTrainedModel, tokens: Arrays, rng: np.random.Generator
) -> Arrays:
  """Returns a DePT prompt and the logits of its formula, stated with torch.

  (Shi & Lipani 2023): the row at position j of the source is e_j + s (A B)_j with
  s = alpha / sqrt(R), and the short prompt stands before it.
  """
  rank, width = DEPT["rank"], model.config.d_model
  arrays = {
    "short_prompt": rng.standard_normal((DEPT["tokens"], width)),
    "low_rank_a": 0.3 * rng.standard_normal((DEPT["longest"], rank)),
    "low_rank_b": 0.3 * rng.standard_normal((rank, width)),
  }
  arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
  short, a, b = (torch.from_numpy(values) for values in arrays.values())
  given = inputs(*tokens.values())
  embedded = model.shared(given["input_ids"])
  update = DEPT["alpha"] / rank**0.5 * torch.matmul(a, b)
  embedded = embedded + update[None, : embedded.shape[1]]
  before = short.expand(len(embedded), -1, -1)
  mask = torch.ones(before.shape[:2], dtype=torch.int64)
  with torch.no_grad():
    output = model(
      inputs_embeds=torch.cat([before, embedded], dim=1),
      attention_mask=torch.cat([mask, given["attention_mask"]], dim=1),
      labels=given["labels"],
    )
  return arrays | tokens | {"logits": output.logits.numpy()}


def references(seed: int, folder: pathlib.Path) -> Arrays:
  """Returns the arrays of the file, and writes the adapters into `folder`."""
  rng = np.random.default_rng(seed)
  model, digest = backbone()
  vocabulary, width = model.config.vocab_size, model.config.d_model
  rows = rng.uniform(-0.5, 0.5, (2 * TOKENS, width)).astype(np.float32)
  tokens = some_tokens(rng, vocabulary)
  parts = {"dept": dept(model, tokens, rng)}
  tuned = prompt_tuning(model, rows, "SEQ_2_SEQ_LM")
  parts["forward"] = forward(tuned, tokens)
  save(tuned, folder / "peft_initial")
  parts["training"] = train(tuned, rng, vocabulary)
  save(tuned, folder / "peft_tuned")
  loaded = [
    peft.PeftModel.from_pretrained(backbone()[0], folder / name) for name in ADAPTERS
  ]
  initial, trained = (
    one.get_prompt(batch_size=1)[0, :TOKENS].detach().numpy() for one in loaded
  )
  source = hf.random_tokens([20, 7, 11, 13, 3, 16], 20, vocabulary, rng)
  parts["generation"] = generation(loaded[1].eval(), source)
  return {
    "backbone": np.array(digest),
    "seed": np.array(seed),
    "vector": trained - initial,
    **{f"{part}/{name}": v for part, some in parts.items() for name, v in some.items()},
  }


def save(model: peft.PeftModel, folder: pathlib.Path) -> None:
  model.save_pretrained(folder)
  (folder / "README.md").unlink()


def first_good(folder: pathlib.Path, made: References) -> Arrays:
  """Returns the references of the first seed whose generation is a good test."""
  for seed in range(100):
    try:
      return made(seed, folder)
    except ValueError as error:
      print(f"seed {seed}: {error}")
  raise ValueError("no seed gives a good test")


def files_of(folder: pathlib.Path, adapters: Iterable[str]) -> Arrays:
  """Returns what the adapters hold, their configs as text without PEFT's version."""
  found = {}
  for name in adapters:
    config = json.loads((folder / name / "adapter_config.json").read_text())
    config.pop("peft_version", None)
    found[f"{name}/config"] = np.array(json.dumps(config, sort_keys=True))
    leaves = safetensors.numpy.load_file(folder / name / "adapter_model.safetensors")
    found |= {f"{name}/{leaf}": values for leaf, values in leaves.items()}
  return found


def differences(stored: Arrays, made: Arrays) -> list[str]:
  """Returns what differs, one line each."""
  if stored.keys() != made.keys():
    return [f"arrays only in one of both: {sorted(stored.keys() ^ made.keys())}"]
  found = []
  for name, value in made.items():
    if stored[name].shape != value.shape or stored[name].dtype != value.dtype:
      found.append(f"{name} has another shape or dtype")
    elif value.dtype.kind == "f":
      distance = np.abs(stored[name] - value).max() / np.abs(value).max()
      if not distance < TOLERANCES.get(name.partition("/")[0], OTHER_TOLERANCE):
        found.append(f"{name} differs by {distance:.1e} relative")
    elif not np.array_equal(stored[name], value):
      found.append(f"{name} differs")
  return found


def write_or_check(
  description: str, path: pathlib.Path, adapters: Iterable[str], made: References
) -> int:
  """Writes a file and adapters or, with `--check`, compares; returns the exit code."""
  faults = []
  if hf.asked_to_check(description):
    with np.load(path, allow_pickle=False) as file:
      stored = dict(file)
    with tempfile.TemporaryDirectory() as folder:
      found = made(int(stored["seed"]), pathlib.Path(folder))
      found |= files_of(pathlib.Path(folder), adapters)
    faults = differences(stored | files_of(HERE, adapters), found)
    print(f"{path.name} and the adapters: {'; '.join(faults) or 'equal'}")
  else:
    found = first_good(HERE, made)
    np.savez_compressed(path, **found)
    print(f"{path.name}: {path.stat().st_size} bytes")
    print(f"losses: {np.round(found['training/losses'][::11], 3)}")
  packages = (torch, transformers, peft)
  print("made with", ", ".join(f"{p.__name__} {p.__version__}" for p in packages))
  return int(bool(faults))


if __name__ == "__main__":
  sys.exit(write_or_check(__doc__, STORED, ADAPTERS, references))
