"""Our prompts against PEFT's and DePT's (tests/references/make_peft_references.py).

PEFT's prompt tuning of its own loss, its own training and its own files; the formula of
DePT as torch computes it. The backbone is the tiny T5 1.1 of `hf_references`. Distances
are the largest difference over the largest value.
"""

import functools
import importlib.util
import json
import subprocess
import sys
import types

import hf_references
import jax
import jax.numpy as jnp
import numpy as np
import peft_references
import pytest
from decoding_start import begin
from peft_references import TOLERANCE, TRAINING_TOLERANCE, distance

from tpv_jax import cli
from tpv_jax.backbones import decoding
from tpv_jax.backbones.t5 import network
from tpv_jax.core import identity
from tpv_jax.formats import peft, sources
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import ept, equations, plain
from tpv_jax.training import optimizers
from tpv_jax.vectors import store

FOLDER = hf_references.FOLDER
INITIAL, TUNED = FOLDER / "peft_initial", FOLDER / "peft_tuned"
FAMILY = "t5_1_1"

# What make_peft_references.py trained with, and DePT's alpha there.
RATE, WARMUP, DECAY, ALPHA = 0.3, 10, 0.01, 8.0


stored = functools.partial(peft_references.stored, "peft")
part = functools.partial(peft_references.part, "peft")
backbone = functools.partial(peft_references.backbone, "peft", FAMILY)


@functools.cache
def model_of(prompt):
  net = network.Transformer(**hf_references.numbers(FAMILY), dropout_rate=0.0)
  vocabulary = types.SimpleNamespace(eos_id=1)
  optimizer = optimizers.adamw(weight_decay=DECAY)
  return SoftPromptModel(net, prompt, vocabulary, vocabulary, optimizer)


def batch_of(tokens):
  source, targets = (
    tokens[name].astype(np.int32)
    for name in ("encoder_input_tokens", "decoder_target_tokens")
  )
  shift = [(0, 0)] * (targets.ndim - 1)
  return {
    "encoder_input_tokens": source,
    "decoder_input_tokens": np.pad(targets, [*shift, (1, 0)])[..., :-1],
    "decoder_target_tokens": targets,
    "decoder_loss_weights": (targets > 0).astype(np.float32),
  }


@functools.cache
def forward(prompt, case):
  """Returns the function from leaves to the distances of the logits and the loss."""
  theirs, model = part(case), model_of(prompt)
  batch = batch_of(theirs)
  real = batch["decoder_loss_weights"][..., None]

  @jax.jit
  def distances(leaves, frozen):
    params = identity.unflatten(frozen) | {"prompt": leaves}
    logits = model.network.apply(
      {"params": identity.unflatten(frozen)},
      *(batch[name] for name in list(batch)[:3]),
      **prompt.apply({"params": leaves})._asdict(),
    )
    difference = jnp.abs((logits - theirs["logits"]) * real).max()
    found = {"logits": difference / jnp.abs(theirs["logits"] * real).max()}
    if "loss" in theirs:
      loss, _ = model.loss_fn(params, batch, None)
      found["loss"] = jnp.abs(loss / theirs["loss"] - 1)
    return found

  return distances


def prompt_tuning(leaves=None, frozen=None):
  """Returns the distances of prompt tuning with PEFT's initial adapter."""
  leaves = sources.load(INITIAL).leaves if leaves is None else leaves
  prompt = plain.Prompt(*leaves["prompt"].shape)
  found = forward(prompt, "forward")(leaves, backbone() if frozen is None else frozen)
  return {name: float(value) for name, value in found.items()}


def dept(leaves=None, alpha=ALPHA, frozen=None):
  """Returns the distances of DePT's logits: of the parameters, of what they fold to."""
  theirs = part("dept")
  names = ("short_prompt", "low_rank_a", "low_rank_b")
  leaves = {name: theirs[name] for name in names} if leaves is None else leaves
  (tokens, width), (longest, rank) = (leaves[name].shape for name in names[:2])
  module = ept.EPT(tokens, width, longest, rank=rank, alpha=alpha, decomposition="dept")
  folded = equations.fold_exactly(leaves, alpha).leaves()
  frozen = backbone() if frozen is None else frozen
  found = {
    "parameters": forward(module, "dept")(leaves, frozen),
    "folded": forward(plain.Prompt(tokens, width, longest), "dept")(folded, frozen),
  }
  return {name: float(values["logits"]) for name, values in found.items()}


@functools.cache
def training():
  """Returns the losses of our training, and the prompt after it."""
  initial = sources.load(INITIAL).leaves["prompt"]
  theirs = part("training")
  every = batch_of(theirs)
  own = [
    {name: values[step] for name, values in every.items()}
    for step in range(len(theirs["losses"]))
  ]
  model = model_of(plain.Prompt(*initial.shape))
  return peft_references.train(model, initial, backbone(), own, RATE, WARMUP)


def training_distances():
  losses, prompt = training()
  theirs = part("training")["losses"]
  tuned = sources.load(TUNED).leaves["prompt"]
  return {
    "losses": float(np.abs(losses / theirs - 1).max()),
    "prompt": distance(prompt, tuned),
  }


@functools.cache
def generated():
  """Returns what our greedy decoding writes with the prompt that PEFT tuned."""
  theirs = part("generation")
  prompt = sources.load(TUNED).leaves["prompt"]
  net, source = model_of(None).network, theirs["encoder_input_tokens"]

  @jax.jit
  def generate(frozen):
    encoded = net.apply({"params": frozen}, source, prompt=prompt, method=net.encode)
    longest = theirs["tokens"].shape[1]
    start = begin(net, frozen, encoded, source, longest)
    return decoding.write(net, frozen, *start, longest)[0]

  return np.asarray(generate(identity.unflatten(backbone())))


def parity_rows():
  """Returns (implementation, case, largest relative difference) for each comparison."""
  with_prompt, with_dept, trained = prompt_tuning(), dept(), training_distances()
  vector = sources.load(TUNED).leaves["prompt"] - sources.load(INITIAL).leaves["prompt"]
  return [
    ("PEFT prompt tuning", "logits", with_prompt["logits"]),
    ("PEFT prompt tuning", "loss", with_prompt["loss"]),
    ("PEFT prompt tuning", "loss of each of 100 AdamW steps", trained["losses"]),
    ("PEFT prompt tuning", "prompt after them", trained["prompt"]),
    (
      "PEFT prompt tuning",
      "greedy generation",
      distance(generated(), part("generation")["tokens"]),
    ),
    ("PEFT's files", "tuned - initial", distance(vector, stored()["vector"])),
    ("DePT's formula (torch)", "logits, parameters", with_dept["parameters"]),
    ("DePT's formula (torch)", "logits, folded", with_dept["folded"]),
  ]


def test_logits_and_loss_of_prompt_tuning_equal_those_of_peft():
  found = prompt_tuning()
  assert max(found.values()) < TOLERANCE, found


def test_any_row_of_the_prompt_moved_by_a_thousandth_is_noticed():
  initial = sources.load(INITIAL).leaves["prompt"]
  for row in range(len(initial)):
    moved = initial.copy()
    moved[row, 3] += 1e-3
    assert prompt_tuning({"prompt": moved})["logits"] > TOLERANCE, row


def test_any_leaf_of_the_backbone_moved_by_a_thousandth_is_noticed():
  unnoticed = []
  for path, leaf in backbone().items():
    moved = leaf.copy()
    moved[(1,) * leaf.ndim] += 1e-3
    changed = {**backbone(), path: moved}
    # A unit of a layer may be off in all tokens of the one.
    cases = (prompt_tuning(frozen=changed)["logits"], dept(frozen=changed)["folded"])
    if max(cases) < TOLERANCE:
      unnoticed.append(path)
  assert unnoticed == []


def test_a_hundred_steps_of_adamw_stay_with_those_of_peft():
  found = training_distances()
  assert max(found.values()) < TRAINING_TOLERANCE, found
  # The training moved the prompt, and other settings would have moved it elsewhere.
  initial = sources.load(INITIAL).leaves["prompt"]
  assert distance(training()[1], initial) > 1


def test_prompts_that_peft_tuned_generate_what_peft_generates():
  np.testing.assert_array_equal(generated(), part("generation")["tokens"])


def test_logits_of_dept_equal_those_of_its_formula():
  found = dept()
  assert max(found.values()) < TOLERANCE, found


def test_another_scale_or_a_parameter_moved_by_a_thousandth_is_noticed():
  theirs = part("dept")
  names = ("short_prompt", "low_rank_a", "low_rank_b")
  assert min(dept(alpha=ALPHA + 1e-2).values()) > TOLERANCE
  for name in names:
    leaves = {one: theirs[one].copy() for one in names}
    leaves[name][1, 1] += 1e-3
    assert min(dept(leaves).values()) > TOLERANCE, name


def test_tpv_diff_of_pefts_files_is_their_difference_as_peft_loads_them(tmp_path):
  output = tmp_path / "vector.safetensors"
  assert cli.main(["diff", str(TUNED), str(INITIAL), "-o", str(output)]) == 0
  leaves, known = store.read(output)
  # Both are one rounding of the exact difference.
  np.testing.assert_array_equal(leaves["prompt"], stored()["vector"])
  assert known.backbone_name == "tiny/t5_1_1"
  assert known.initial_digest == identity.prompt_digest(sources.load(INITIAL).leaves)


def test_the_stored_files_are_small():
  files = [FOLDER / "peft.npz", *INITIAL.iterdir(), *TUNED.iterdir()]
  assert sum(path.stat().st_size for path in files) < 50_000


def needs_parity():
  for package in ("torch", "transformers", "peft"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"needs the extra 'parity': {package} is not installed")


def test_the_script_regenerates_the_references():
  needs_parity()
  script = FOLDER / "make_peft_references.py"
  done = subprocess.run(
    [sys.executable, script, "--check"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_peft_loads_what_is_exported_and_generates_the_same(tmp_path):
  needs_parity()
  peft.write(tmp_path / "adapter", sources.load(TUNED))
  hf_references.write_folder(tmp_path / "t5", FAMILY)
  code = """if True:
    import sys
    import numpy as np, peft, torch, transformers
    base = transformers.AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])
    model = peft.PeftModel.from_pretrained(base, sys.argv[2]).eval()
    source = torch.from_numpy(np.load(sys.argv[3])["generation/encoder_input_tokens"])
    tokens = model.generate(
      input_ids=source.long(), attention_mask=(source > 0).long(), do_sample=False,
      num_beams=1, max_new_tokens=12)
    print(tokens[:, 1:].tolist())
    model.save_pretrained(sys.argv[4])
  """
  given = [
    tmp_path / "t5",
    tmp_path / "adapter",
    FOLDER / "peft.npz",
    tmp_path / "back",
  ]
  done = subprocess.run(
    [sys.executable, "-c", code, *given], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  expected = part("generation")["tokens"]
  tokens = np.array(json.loads(done.stdout))
  np.testing.assert_array_equal(tokens, expected[:, : tokens.shape[1]])
  again = sources.load(tmp_path / "back").leaves
  np.testing.assert_array_equal(again["prompt"], sources.load(TUNED).leaves["prompt"])
