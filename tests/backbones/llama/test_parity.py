"""Our numbers against Hugging Face's (tests/references/make_llama_references.py).

The stored weights are written as a folder of Hugging Face, by its own library, and our
code loads that folder, so that reading and mapping are compared as well. Ids in our
batches are the tokenizer's plus one.
"""

import functools
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

import hf_references as references
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tpv_jax.backbones import loading
from tpv_jax.backbones.llama import config, hugging_face
from tpv_jax.backbones.llama.network import Llama
from tpv_jax.core import identity
from tpv_jax.data import batches
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts.equations import Folded

pytestmark = pytest.mark.usefixtures("compiles_faster")

FAMILIES = references.LLAMAS
NAMES = {
  "llama": "LLaMA",
  "llama_tied": "LLaMA, tied",
  "llama_3_1": "LLaMA 3.1",
  "qwen2": "Qwen 2.5",
  "qwen3": "Qwen 3",
  "mistral": "Mistral",
}
CASES = ("long", "padded", "prompted")
DECODED = ("padded", "prompted")
QUICK = {"long": (), "prompted": (), "padded": pytest.mark.slow}
"""Rows without a prompt differ from those with one by a prompt of no rows."""

TOLERANCE = 1e-5
"""Largest difference over largest logit, in fp32; about a hundred roundings."""


class Ids:
  """A vocabulary of which only the end tokens matter."""

  def __init__(self, end_ids):
    self.end_ids, self.eos_id, self.unk_id = end_ids, end_ids[0], -1


@functools.cache
def flat(family):
  """Returns the leaves of a family by T5X path, as we load Hugging Face's folder."""
  with tempfile.TemporaryDirectory() as root:
    folder = references.write_folder(pathlib.Path(root) / family, family)
    found = hugging_face.read_config(folder).numbers
    expected = references.llama_numbers(family)
    assert found.pop("rope_divisors") == pytest.approx(expected.pop("rope_divisors"))
    assert found == expected
    return identity.flatten(loading.load_backbone(folder, network(family)).params)


@functools.cache
def network(family, dtype="float32"):
  return Llama(**references.llama_numbers(family), dtype=dtype)


@functools.cache
def model_of(family, dtype="float32"):
  stated = references.config(family)["eos_token_id"]
  vocabulary = Ids(tuple(int(one) + 1 for one in np.atleast_1d(stated)))
  return SoftPromptModel(network(family, dtype), None, vocabulary, vocabulary)


def prompt_of(arrays, family):
  """Returns the prompt of a case, of no rows where it has none."""
  width = references.llama_numbers(family)["emb_dim"]
  return Folded(jnp.asarray(arrays.get("prompt", np.zeros((0, width), np.float32))))


def batch_of(arrays):
  """Returns the batch of a case: every id is the tokenizer's plus one."""
  return batches.features(arrays["source"] + 1, arrays["target"] + 1)


def whole_rows(arrays):
  """Returns rows of source, target and padding; and where their targets stand."""
  batch = batch_of(arrays)
  rows = np.zeros(arrays["logits"].shape[:2], np.int32)
  rows = rows[:, len(arrays.get("prompt", ())) :]
  places = np.zeros(batch["decoder_target_tokens"].shape, np.int64)
  for number, (source, target) in enumerate(
    zip(batch["encoder_input_tokens"], batch["decoder_target_tokens"], strict=True)
  ):
    source, target = source[source > 0], target[target > 0]
    rows[number, : len(source) + len(target)] = [*source, *target]
    places[number, : len(target)] = len(source) + np.arange(len(target))
  return rows, places


@functools.cache
def compiled(family, case, dtype="float32"):
  """Returns the function from flat weights to the distances from their numbers.

  Those of the logits of whole rows, of the logits of the targets in our batches, and of the
  loss.
  """
  arrays = references.case(family, case)
  net, model, batch = network(family, dtype), model_of(family, dtype), batch_of(arrays)
  rows, places = whole_rows(arrays)
  folded = prompt_of(arrays, family)
  before = len(folded.prompt)
  expected = arrays["logits"]
  largest = np.abs(expected).max()
  real = np.pad(rows > 0, ((0, 0), (before, 0)), constant_values=True)[..., None]
  weights = batch["decoder_loss_weights"]
  # What predicts a target stands before it.
  of_targets = np.take_along_axis(expected, (before + places - 1)[..., None], axis=1)

  @jax.jit
  def distances(flat):
    params = identity.unflatten(flat)

    def apply(*inputs, method):
      return net.apply({"params": params}, *inputs, method=method)

    x = apply(jnp.asarray(rows), method=net.embed)
    repeated = jnp.broadcast_to(folded.prompt, (len(rows), *folded.prompt.shape))
    x = jnp.concatenate([repeated.astype(x.dtype), x], axis=1)
    width = x.shape[1]
    mask = jnp.tril(jnp.ones((len(x), 1, width, width), bool))
    positions = jnp.broadcast_to(jnp.arange(width), x.shape[:2])
    states = apply(x, positions, mask, method=net.states)
    logits = apply(states, method=net.logits)[..., 1:]
    whole = jnp.abs((logits - expected) * real).max() / largest
    logits = model.target_logits(folded, params, batch)[..., 1:]
    ours = jnp.abs(logits - of_targets) * weights[..., None]
    log = jax.nn.log_softmax(logits)
    at = jnp.maximum(batch["decoder_target_tokens"] - 1, 0)
    chosen = jnp.take_along_axis(log, at[..., None], axis=-1)[..., 0]
    loss = -(chosen * weights).sum() / weights.sum()
    return {
      "logits": whole,
      "logits of targets": ours.max() / largest,
      "loss": jnp.abs(loss / arrays["loss"] - 1),
    }

  return distances


def distances(family, case, dtype="float32"):
  found = compiled(family, case, dtype)(flat(family))
  return {name: float(value) for name, value in found.items()}


def bf16_distances(family):
  """Returns how far our bf16 logits and `transformers`' own are from its fp32 logits."""
  theirs = float(references.case(family, "prompted")["bf16_distance"])
  return distances(family, "prompted", "bfloat16")["logits"], theirs


def greedy(family, case):
  """Returns our tokens and theirs, 0 after the end."""
  arrays, model = references.case(family, case), model_of(family)
  expected = arrays["greedy"] + 1
  decode = jax.jit(functools.partial(model._decode, target_length=expected.shape[1]))
  params = identity.unflatten(flat(family))
  return np.asarray(
    decode(params, prompt_of(arrays, family), batch_of(arrays))[0]
  ), expected


def parity_rows():
  """Returns (implementation, case, largest relative difference) for each comparison."""
  rows = []
  for family in FAMILIES:
    name = f"transformers {NAMES[family]}"
    for case in CASES:
      rows += [
        (name, f"{what}, {case}", d) for what, d in distances(family, case).items()
      ]
    ours, theirs = bf16_distances(family)
    rows.append((name, f"bf16 logits, prompted (its own bf16: {theirs:.1e})", ours))
    for case in DECODED:
      tokens, expected = greedy(family, case)
      rows.append((name, f"greedy tokens, {case}", float(np.any(tokens != expected))))
  return rows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
  "case", [pytest.param(case, marks=marks) for case, marks in QUICK.items()]
)
def test_logits_and_loss_equal_those_of_hugging_face(family, case):
  found = distances(family, case)
  assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("family", ["llama_tied", "qwen2", "qwen3"])
def test_bf16_logits_are_as_near_as_hugging_faces_own(family):
  ours, theirs = bf16_distances(family)
  assert 1e-4 < ours < 2 * theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_any_leaf_moved_by_a_thousandth_is_noticed(family):
  unnoticed = []
  leaves = flat(family)
  for path, leaf in leaves.items():
    moved = leaf.copy()
    # A row of the table that is read: that of the first source's first token.
    row = references.case(family, "prompted")["source"][0, 0]
    # A head's first feature turns: what a key's others add is nearly the same for all keys.
    first = row if path == network(family).TABLE else int(leaf.ndim > 1)
    moved[(first, *(1,) * (leaf.ndim - 1))] += 1e-3
    found = compiled(family, "prompted")({**leaves, path: moved})
    if not float(found["logits"]) > TOLERANCE:
      unnoticed.append(path)
  assert unnoticed == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
  "case", ["padded", pytest.param("prompted", marks=pytest.mark.slow)]
)
def test_greedy_decoding_writes_what_hugging_face_generates(family, case):
  tokens, expected = greedy(family, case)
  assert np.array_equal(tokens, expected)


def test_each_end_token_ends_an_answer_of_the_references():
  written = [references.case(family, "padded")["greedy"] for family in FAMILIES]
  stated = [references.config(family)["eos_token_id"] for family in FAMILIES]
  assert any(isinstance(ends, list) for ends in stated)
  for rows, ends in zip(written, stated, strict=True):
    assert np.isin(rows, ends).any()


def stored_leaves(family):
  """Returns Hugging Face's weights by T5X path, matrices transposed."""
  numbers = config.Config(family, **references.llama_numbers(family))
  theirs = references.weights(family)
  return {
    place.path: theirs[place.name].T if place.turned else theirs[place.name]
    for place in config.places(numbers)
  }


def assert_equal_leaves(folder, family):
  found = identity.flatten(loading.load_backbone(folder, network(family)).params)
  expected = stored_leaves(family)
  assert found.keys() == expected.keys()
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf)


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
def test_shards_give_the_leaves_bit_by_bit(family, tmp_path):
  folder = references.write_folder(tmp_path / family, family)
  leaves = safetensors.numpy.load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  places = {}
  for number, names in enumerate(np.array_split(sorted(leaves), 3), 1):
    shard = f"model-0000{number}-of-00003.safetensors"
    own = {str(name): leaves[name] for name in names}
    safetensors.numpy.save_file(own, folder / shard, {"format": "pt"})
    places |= dict.fromkeys(own, shard)
  index = {"metadata": {"total_size": 0}, "weight_map": places}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  assert_equal_leaves(folder, family)


def test_references_are_small():
  stored = [references.FOLDER / f"hf_{family}.npz" for family in FAMILIES]
  assert sum(path.stat().st_size for path in stored) < 600_000


def needs_parity():
  for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"needs the extra 'parity': {package} is not installed")


@pytest.mark.slow
def test_the_script_regenerates_the_references():
  needs_parity()
  script = references.FOLDER / "make_llama_references.py"
  done = subprocess.run(
    [sys.executable, script, "--check"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_folders_that_transformers_writes_in_shards_are_read_bit_by_bit(tmp_path):
  needs_parity()
  for family in FAMILIES:
    references.write_folder(tmp_path / family, family)
  code = """if True:
    import pathlib, sys
    import torch, transformers
    for folder in map(pathlib.Path, sys.argv[1:]):
      model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32)
      model.save_pretrained(folder / "saved", max_shard_size="8KB")
  """
  folders = [tmp_path / family for family in FAMILIES]
  done = subprocess.run(
    [sys.executable, "-c", code, *folders], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  for family in FAMILIES:
    saved = tmp_path / family / "saved"
    assert len([*saved.glob("*.safetensors")]) > 1
    read = hugging_face.read_config(saved)
    assert read.numbers == hugging_face.read_config(tmp_path / family).numbers
    assert_equal_leaves(saved, family)
