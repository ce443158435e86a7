"""Prompts of decoder-only models against PEFT's (make_causal_peft_references.py).

PEFT's prompt tuning of its own loss, its own training and its own files. The backbone is
the tiny LLaMA of `hf_references`; ids in our batches are the tokenizer's plus one.
Distances are the largest difference over the largest value.
"""

import functools
import importlib.util
import json
import subprocess
import sys

import hf_references
import jax
import jax.numpy as jnp
import numpy as np
import peft_references
import pytest
from peft_references import TOLERANCE, TRAINING_TOLERANCE, distance

from tpv_jax.backbones.llama.network import Llama
from tpv_jax.core import identity
from tpv_jax.data import batches
from tpv_jax.formats import peft, sources
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import plain
from tpv_jax.prompts.equations import Folded
from tpv_jax.training import optimizers

pytestmark = pytest.mark.usefixtures("compiles_faster")

FOLDER = hf_references.FOLDER
INITIAL, TUNED = FOLDER / "peft_causal_initial", FOLDER / "peft_causal_tuned"
FAMILY = "llama"

# What make_causal_peft_references.py trained with.
RATE, WARMUP, DECAY = 0.01, 10, 0.01


class Ids:
  """A vocabulary of which only the end token matters."""

  eos_id, end_ids, unk_id = 3, (3,), -1


stored = functools.partial(peft_references.stored, "peft_causal")
part = functools.partial(peft_references.part, "peft_causal")
backbone = functools.partial(peft_references.backbone, "peft_causal", FAMILY)


@functools.cache
def prompt_of(adapter):
  return sources.load(adapter).leaves["prompt"]


@functools.cache
def model():
  network = Llama(**hf_references.llama_numbers(FAMILY))
  prompt = plain.Prompt(*prompt_of(INITIAL).shape)
  optimizer = optimizers.adamw(weight_decay=DECAY)
  return SoftPromptModel(network, prompt, Ids(), Ids(), optimizer)


def batch_of(tokens):
  return batches.features(
    *(tokens[name].astype(np.int32) + 1 for name in ("source", "target"))
  )


@functools.cache
def compiled():
  """Returns the function from prompt and leaves to the distances of logits and loss."""
  theirs, batch = part("forward"), batch_of(part("forward"))
  weights = batch["decoder_loss_weights"]
  before = len(prompt_of(INITIAL)) + np.count_nonzero(
    batch["encoder_input_tokens"], axis=1, keepdims=True
  )
  # What predicts a target stands before it.
  places = (before - 1 + np.arange(weights.shape[1])) * (weights > 0)
  expected = np.take_along_axis(
    theirs["logits"], places.astype(np.int64)[..., None], axis=1
  )

  @jax.jit
  def distances(prompt, frozen):
    params = identity.unflatten(frozen)
    logits = model().target_logits(Folded(prompt), params, batch)[..., 1:]
    difference = jnp.abs((logits - expected) * weights[..., None]).max()
    loss, _ = model().loss_fn({**params, "prompt": {"prompt": prompt}}, batch, None)
    return {
      "logits": difference / np.abs(expected).max(),
      "loss": jnp.abs(loss / theirs["loss"] - 1),
    }

  return distances


def forward(prompt=None, frozen=None):
  """Returns the distances of prompt tuning with PEFT's initial adapter."""
  prompt = prompt_of(INITIAL) if prompt is None else prompt
  found = compiled()(jnp.asarray(prompt), backbone() if frozen is None else frozen)
  return {name: float(value) for name, value in found.items()}


@functools.cache
def training():
  """Returns the losses of our training, and the prompt after it."""
  theirs = part("training")
  own = [
    batch_of({name: theirs[name][step] for name in ("source", "target")})
    for step in range(len(theirs["losses"]))
  ]
  return peft_references.train(
    model(), prompt_of(INITIAL), backbone(), own, RATE, WARMUP
  )


def training_distances():
  losses, prompt = training()
  theirs = part("training")["losses"]
  return {
    "losses": float(np.abs(losses / theirs - 1).max()),
    "prompt": distance(prompt, prompt_of(TUNED)),
  }


@functools.cache
def generated():
  """Returns what our greedy decoding of one padded batch writes with PEFT's prompt."""
  theirs = part("generation")
  source = theirs["source"] + 1
  batch = batches.features(source, np.zeros((len(source), 1), np.int32))
  decode = jax.jit(
    functools.partial(model()._decode, target_length=theirs["tokens"].shape[1])
  )
  folded = Folded(jnp.asarray(prompt_of(TUNED)))
  return np.asarray(decode(identity.unflatten(backbone()), folded, batch)[0])


def parity_rows():
  """Returns (implementation, case, largest relative difference) for each comparison."""
  name = "PEFT prompt tuning, LLaMA"
  with_prompt, trained = forward(), training_distances()
  theirs = part("generation")["tokens"] + 1
  vector = prompt_of(TUNED) - prompt_of(INITIAL)
  return [
    (name, "logits of targets", with_prompt["logits"]),
    (name, "loss", with_prompt["loss"]),
    (name, "loss of each of 100 AdamW steps", trained["losses"]),
    (name, "prompt after them", trained["prompt"]),
    (name, "greedy generation", float(np.any(generated() != theirs))),
    ("PEFT's files, LLaMA", "tuned - initial", distance(vector, stored()["vector"])),
  ]


def test_logits_and_loss_of_prompt_tuning_equal_those_of_peft():
  found = forward()
  assert max(found.values()) < TOLERANCE, found


def test_any_row_of_the_prompt_moved_by_a_thousandth_is_noticed():
  for row in range(len(prompt_of(INITIAL))):
    moved = prompt_of(INITIAL).copy()
    moved[row, 3] += 1e-3
    assert forward(moved)["logits"] > TOLERANCE, row


def test_a_hundred_steps_of_adamw_stay_with_those_of_peft():
  found = training_distances()
  assert max(found.values()) < TRAINING_TOLERANCE, found
  # The training moved the prompt, and other settings would have moved it elsewhere.
  assert distance(training()[1], prompt_of(INITIAL)) > 0.5


def test_prompts_that_peft_tuned_generate_what_peft_generates():
  np.testing.assert_array_equal(generated(), part("generation")["tokens"] + 1)


def test_pefts_files_are_read_as_peft_loads_them():
  vector = prompt_of(TUNED) - prompt_of(INITIAL)
  np.testing.assert_array_equal(vector, stored()["vector"])
  assert sources.load(TUNED).provenance.backbone_name == "tiny/llama"


def test_the_stored_files_are_small():
  files = [FOLDER / "peft_causal.npz", *INITIAL.iterdir(), *TUNED.iterdir()]
  assert sum(path.stat().st_size for path in files) < 50_000


def needs_parity():
  for package in ("torch", "transformers", "peft"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"needs the extra 'parity': {package} is not installed")


@pytest.mark.slow
def test_the_script_regenerates_the_references():
  needs_parity()
  script = FOLDER / "make_causal_peft_references.py"
  done = subprocess.run(
    [sys.executable, script, "--check"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_peft_loads_what_is_exported_and_generates_the_same(tmp_path):
  needs_parity()
  peft.write(tmp_path / "adapter", sources.load(TUNED))
  hf_references.write_folder(tmp_path / FAMILY, FAMILY)
  code = """if True:
    import sys
    import numpy as np, peft, torch, transformers
    base = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
    model = peft.PeftModel.from_pretrained(base, sys.argv[2]).eval()
    written = []
    for row in np.load(sys.argv[3])["generation/source"]:
      ids = torch.from_numpy(row[row >= 0]).long()[None]
      tokens = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
        num_beams=1, max_new_tokens=12, pad_token_id=0, use_cache=False)
      written.append(tokens[0, ids.shape[1]:].tolist())
    print(written)
  """
  given = [tmp_path / FAMILY, tmp_path / "adapter", FOLDER / "peft_causal.npz"]
  done = subprocess.run(
    [sys.executable, "-c", code, *given], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  expected = [row[row >= 0].tolist() for row in part("generation")["tokens"]]
  assert json.loads(done.stdout.splitlines()[-1]) == expected
