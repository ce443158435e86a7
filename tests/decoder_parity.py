"""Our numbers against Hugging Face's, for families of decoder-only networks.

The stored weights (tests/references) are written as a folder of Hugging Face, by its own
library, and our code loads that folder, so that reading and mapping are compared as well.
Ids in our batches are the tokenizer's plus one.
"""

import functools
import importlib.util
import pathlib
import tempfile

import hf_references as references
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpv_jax.backbones import loading, registry
from tpv_jax.core import identity
from tpv_jax.data import batches
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts.equations import Folded

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
    found = dict(registry.of_folder(folder).read_config(folder).numbers)
    expected = references.decoder_numbers(family)
    assert found.pop("rope_divisors") == pytest.approx(expected.pop("rope_divisors"))
    assert found == expected
    return identity.flatten(loading.load_backbone(folder, network(family)).params)


@functools.cache
def network(family, dtype="float32"):
  """Returns our network of a family of references."""
  key = "gemma3" if family in references.GEMMAS else "llama"
  numbers = references.decoder_numbers(family)
  return registry.family(key).network(**numbers, dtype=dtype)


@functools.cache
def model_of(family, dtype="float32"):
  stated = references.config(family)["eos_token_id"]
  vocabulary = Ids(tuple(int(one) + 1 for one in np.atleast_1d(stated)))
  return SoftPromptModel(network(family, dtype), None, vocabulary, vocabulary)


def prompt_of(arrays, family):
  """Returns the prompt of a case, of no rows where it has none."""
  width = references.decoder_numbers(family)["emb_dim"]
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


def needs_transformers():
  """Skips a test where the library, or torch, is not installed."""
  for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"needs the extra 'parity': {package} is not installed")


def logits_of_transformers(folder, length):
  """Returns the library's fp32 logits of the row of ids 0, 1, ..., by a folder's model."""
  needs_transformers()
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  with torch.no_grad():
    return model.eval()(torch.arange(length)[None]).logits.numpy()


def parity_rows(names):
  """Returns (implementation, case, largest relative difference) for each comparison.

  Args:
    names: family of references -> its name for people.
  """
  rows = []
  for family, name in names.items():
    name = f"transformers {name}"
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


def unnoticed(family):
  """Returns the leaves of which a value may be moved by a thousandth, unnoticed."""
  found = []
  leaves = flat(family)
  for path, leaf in leaves.items():
    moved = leaf.copy()
    # A row of the table that is read: that of the first source's first token.
    row = references.case(family, "prompted")["source"][0, 0]
    # A head's first feature turns: what a key's others add is nearly the same for all keys.
    first = row if path == network(family).TABLE else int(leaf.ndim > 1)
    moved[(first, *(1,) * (leaf.ndim - 1))] += 1e-3
    if (
      not float(compiled(family, "prompted")({**leaves, path: moved})["logits"])
      > TOLERANCE
    ):
      found.append(path)
  return found
