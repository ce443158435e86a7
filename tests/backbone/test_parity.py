"""Our numbers against Hugging Face's (tests/references/make_hf_references.py)."""

import functools
import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tpv_jax import identity
from tpv_jax.backbone import decoding, loading, network

REFERENCES = pathlib.Path(__file__).parent.parent / "references"
VERSIONS = ("v1_0", "v1_1")
CASES = ("long", "padded", "prompted")
QUICK_FIRST = CASES[::-1]

TOLERANCE = 1e-5
"""Largest difference over largest logit, in fp32; about a hundred roundings."""


@functools.cache
def reference(version):
  with np.load(REFERENCES / f"hf_{version}.npz", allow_pickle=False) as file:
    return dict(file)


@functools.cache
def transformer(version, dtype="float32"):
  config = json.loads(str(reference(version)["config"]))
  return network.Transformer(**config, dtype=dtype)


def weights(version):
  return {
    name.removeprefix("weights/"): leaf
    for name, leaf in reference(version).items()
    if name.startswith("weights/")
  }


@functools.cache
def compiled(version, case, dtype="float32"):
  """Returns the function from flat weights to the distance from the reference."""
  arrays = {
    name.removeprefix(f"{case}/"): value
    for name, value in reference(version).items()
    if name.startswith(f"{case}/")
  }
  real = (arrays["decoder_target_tokens"] > 0)[..., None]

  @jax.jit
  def distance(flat):
    logits = transformer(version, dtype).apply(
      {"params": identity.unflatten(flat)},
      arrays["encoder_input_tokens"],
      arrays["decoder_input_tokens"],
      arrays["decoder_target_tokens"],
      prompt=arrays.get("prompt"),
    )
    difference = jax.numpy.abs(logits - arrays["logits"]) * real
    return difference.max() / jax.numpy.abs(arrays["logits"] * real).max()

  return distance


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_hugging_face(version, case):
  distance = float(compiled(version, case)(weights(version)))
  print(f"{version} {case}: {distance:.1e}")
  assert distance < TOLERANCE


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", ("padded",))
def test_bf16_logits_are_near_those_of_hugging_face(version, case):
  # bf16 keeps 8 bits: 0.4 % a rounding, over some forty operations in sequence.
  distance = float(compiled(version, case, "bfloat16")(weights(version)))
  assert 1e-4 < distance < 0.06


@pytest.mark.parametrize("version", VERSIONS)
def test_any_leaf_moved_by_a_thousandth_is_noticed(version):
  # An element that is read: token 1 ends every source; bucket 1 is the nearest token's.
  unnoticed = []
  flat = weights(version)
  for path, leaf in flat.items():
    moved = leaf.copy()
    moved[(1,) * leaf.ndim] += 1e-3
    flat_moved = {**flat, path: moved}
    if not any(
      float(compiled(version, c)(flat_moved)) > TOLERANCE for c in QUICK_FIRST
    ):
      unnoticed.append(path)
  assert unnoticed == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("stack", ("encoder", "decoder"))
def test_every_bucket_of_the_relative_bias_is_compared(version, stack):
  flat = weights(version)
  path = f"{stack}/relpos_bias/rel_embedding"
  unnoticed = []
  for bucket in range(network.RELATIVE_BUCKETS):
    moved = flat[path].copy()
    moved[:, bucket] += 0.5
    if not float(compiled(version, "long")({**flat, path: moved})) > TOLERANCE:
      unnoticed.append(bucket)
  # Distance 0 is counted once, so the first bucket of "later" is never used.
  assert unnoticed == ([16] if stack == "encoder" else [])


@pytest.mark.parametrize("version", VERSIONS)
def test_greedy_decoding_writes_what_hugging_face_generates(version):
  expected = reference(version)["padded/greedy"]
  source = reference(version)["padded/encoder_input_tokens"]
  net, params = transformer(version), identity.unflatten(weights(version))
  encoded = net.apply({"params": params}, source, method=net.encode)
  tokens, _ = decoding.greedy(net, params, encoded, source, expected.shape[1])
  assert np.array_equal(tokens, expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_reference_has_the_leaves_of_our_network(version):
  loading.check(weights(version), transformer(version), version)


def test_references_are_small():
  stored = REFERENCES.glob("*.npz")
  assert sum(path.stat().st_size for path in stored) < 1_000_000


def test_the_script_regenerates_the_references():
  for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"needs the extra 'parity': {package} is not installed")
  script = REFERENCES / "make_hf_references.py"
  done = subprocess.run(
    [sys.executable, script, "--check"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_imports_nothing_of_ours():
  script = (REFERENCES / "make_hf_references.py").read_text()
  code = [line for line in script.splitlines() if "import" in line.split()[:3]]
  assert code and not any("tpv_jax" in line for line in code)
