"""Backbones in, out and back: the same bits, one fingerprint, and nothing half done."""

import importlib.util
import json
import re
import subprocess
import sys
import tracemalloc

import hf_references as references
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tpv_jax import cli
from tpv_jax.backbones import conversion, loading
from tpv_jax.backbones.t5 import hugging_face, network
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.io import orbax as orbax_io
from tpv_jax.io import safetensors as safetensors_io

OUTPUTS = {
  "hugging-face": "folder",
  "t5x": "t5x/checkpoint_7",
  "safetensors": "ours.safetensors",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Every family as a folder of Hugging Face."""
  root = tmp_path_factory.mktemp("hugging face")
  for family in references.FAMILIES:
    references.write_folder(root / family, family)
  return root


def convert(source, output, to=None, dtype=None):
  with conversion.planned(source, conversion.target_of(output, to), dtype) as plan:
    return conversion.convert(plan, source, output, lambda doing, size: None)


def flat(path, family=None):
  net = network.Transformer(**references.numbers(family)) if family else None
  return identity.flatten(loading.load_backbone(path, net).params)


def same(one, other):
  return one.keys() == other.keys() and all(
    one[path].dtype == other[path].dtype
    and one[path].tobytes() == other[path].tobytes()
    for path in one
  )


@pytest.mark.parametrize("family", references.FAMILIES)
def test_a_chain_through_every_form_keeps_bits_and_fingerprint(
  folders, tmp_path, family
):
  loaded = loading.load_backbone(folders / family)
  source, stated = folders / family, set()
  for to in ("t5x", "safetensors", "hugging-face", "t5x"):
    output = tmp_path / to / str(len(stated)) / "checkpoint_7"
    if to == "safetensors":
      output = output.with_suffix(".safetensors")
    if to == "hugging-face":
      output = output.with_name("model")
    output.parent.parent.mkdir(exist_ok=True)
    output.parent.mkdir(exist_ok=True)
    if output.exists():
      output = output.with_name("checkpoint_8")
    stated.add(convert(source, output, to))
    backbone = loading.load_backbone(output)
    assert same(flat(output, family), identity.flatten(loaded.params))
    assert backbone.name == family
    stated.add(backbone.fingerprint)
    source = output
  assert stated == {loaded.fingerprint}
  assert loaded.fingerprint == identity.backbone_fingerprint(
    identity.flatten(loaded.params)
  )


@pytest.mark.parametrize("family", references.FAMILIES)
def test_hugging_faces_weights_come_back_as_they_were(folders, tmp_path, family):
  convert(folders / family, tmp_path / "checkpoint_0")
  convert(tmp_path / "checkpoint_0", tmp_path / "back", "hugging-face")
  stored = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
  assert same(stored, references.weights(family))
  before = references.config(family)
  after = json.loads((tmp_path / "back" / "config.json").read_text())
  for name in set(before) & set(after):
    assert after[name] == before[name], name
  assert "dropout_rate" not in after  # No leaf tells it, and it is not made up.
  assert after["tie_word_embeddings"] == (family == "t5")


LOAD = """
import sys, numpy as np, torch, transformers
model, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(
  sys.argv[1], output_loading_info=True
)
assert not any(report.values()), report
arrays = np.load(sys.argv[2])
source, inputs = (
  torch.from_numpy(arrays[f"padded/{name}_input_tokens"]).long()
  for name in ("encoder", "decoder")
)
with torch.no_grad():
  logits = model.eval()(
    input_ids=source, attention_mask=(source > 0).long(), decoder_input_ids=inputs
  ).logits.numpy()
expected = arrays["padded/logits"]
print(type(model).__name__, np.abs(logits - expected).max() / np.abs(expected).max())
"""

KNOWN = "The tied weights mapping and config for this model specifies to tie"
"""What transformers 5 says of every T5 whose logits are its own, Google's files too."""


@pytest.mark.parametrize("family", references.FAMILIES)
def test_transformers_loads_what_is_written_without_a_warning(
  folders, tmp_path, family
):
  for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"needs the extra 'parity': {package} is not installed")
  convert(folders / family, tmp_path / "checkpoint_0")
  convert(tmp_path / "checkpoint_0", tmp_path / "back", "hugging-face")
  stored = references.FOLDER / f"hf_{family}.npz"
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", LOAD, tmp_path / "back", stored],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  name, distance = done.stdout.split()
  assert name == references.config(family)["architectures"][0]
  assert float(distance) < 1e-5
  said = [
    line
    for line in done.stderr.splitlines()
    if line.startswith("[transformers]") and not (family != "t5" and KNOWN in line)
  ]
  assert said == []


@pytest.mark.parametrize("to", OUTPUTS)
def test_bf16_halves_the_bytes_and_keeps_the_fingerprint(folders, tmp_path, to):
  output = tmp_path / OUTPUTS[to]
  stated = convert(folders / "t5", output, to, "bfloat16")
  backbone = loading.load_backbone(output)
  whole = loading.load_backbone(folders / "t5")
  assert stated == backbone.fingerprint == whole.fingerprint
  for path, leaf in identity.flatten(backbone.params).items():
    exact = identity.flatten(whole.params)[path]
    assert np.array_equal(leaf, exact.astype(ml_dtypes.bfloat16)), path


def test_the_embedded_backbone_goes_out_and_comes_back(tmp_path):
  embedded = loading.load_backbone("embedded")
  convert("embedded", tmp_path / "model", "hugging-face")
  convert(tmp_path / "model", tmp_path / "checkpoint_3")
  again = loading.load_backbone(tmp_path / "checkpoint_3")
  assert again.fingerprint == embedded.fingerprint
  # What neither format has a place for lies beside the weights.
  assert again.vocabulary == embedded.vocabulary is not None
  assert again.name == embedded.name
  assert orbax_io.checkpoint_step(tmp_path / "checkpoint_3") == 3


def test_a_run_starts_from_a_folder_of_hugging_face_as_from_our_file(tiny, tmp_path):
  ours = tmp_path / "tiny.safetensors"
  loading.save_backbone(ours, identity.flatten(tiny.backbone.params), "tiny")
  convert(ours, tmp_path / "theirs", "hugging-face")
  for name in (ours.name, "theirs"):
    tiny.train(tmp_path / "runs" / name, backbone=str(tmp_path / name))
  one, other = (
    (tmp_path / "runs" / name / "best_prompt.safetensors").read_bytes()
    for name in (ours.name, "theirs")
  )
  assert one == other


def test_weights_changed_after_a_conversion_are_noticed(folders, tmp_path):
  convert(folders / "t5", tmp_path / "model", "hugging-face")
  weights = references.weights("t5")
  weights["shared.weight"] = weights["shared.weight"] + np.float32(0.01)
  safetensors.numpy.save_file(weights, tmp_path / "model" / "model.safetensors")
  with pytest.raises(UserError, match="were altered or damaged"):
    loading.load_backbone(tmp_path / "model")
  with pytest.raises(UserError, match="were altered or damaged"):
    convert(tmp_path / "model", tmp_path / "checkpoint_0")
  assert not (tmp_path / "checkpoint_0").exists()


def test_what_lies_beside_the_weights_is_a_file_of_the_folder_and_text(
  folders, tmp_path, capsys
):
  convert(folders / "t5", tmp_path / "model", "hugging-face")
  beside = tmp_path / "model" / loading.BESIDE
  noted = json.loads(beside.read_text())
  beside.write_text(json.dumps({**noted, "name": "a\ud800"}))
  command = ["convert", str(tmp_path / "model"), "-o", str(tmp_path / "checkpoint_0")]
  assert cli.main(command) == 2
  assert "tpv_jax.json' is no JSON object" in capsys.readouterr().err
  (tmp_path / "elsewhere.json").write_text(json.dumps(noted))
  beside.unlink()
  beside.symlink_to(tmp_path / "elsewhere.json")
  with pytest.raises(UserError, match=r"json' is a symbolic link out of its folder"):
    loading.load_backbone(tmp_path / "model")


def test_a_dry_run_lists_the_mapping_and_writes_nothing(folders, tmp_path, capsys):
  output = tmp_path / "checkpoint_0"
  arguments = ["convert", str(folders / "mt5"), "-o", str(output), "--dry-run"]
  assert cli.main([*arguments, "--dtype", "bfloat16"]) == 0
  lines = capsys.readouterr().out.splitlines()
  (head,) = [line for line in lines if line.startswith("lm_head.weight ")]
  assert head.split()[1:] == ["target/decoder/logits_dense/kernel", "16x56", "bfloat16"]
  assert len(lines) == len(references.weights("mt5")) + 1
  count = sum(leaf.size for leaf in references.weights("mt5").values())
  assert lines[-1].startswith(f"61 leaves, {count:,} parameters")
  assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote_and_its_fingerprint(folders, tmp_path, capsys):
  output = tmp_path / "ours.safetensors"
  assert cli.main(["convert", str(folders / "t5"), "-o", str(output)]) == 0
  printed = capsys.readouterr()
  fingerprint = loading.load_backbone(output).fingerprint
  assert f"Wrote the backbone 't5' to '{output}' (safetensors): 47 leav" in printed.out
  assert f"fingerprint {fingerprint}, the same when read back" in printed.out
  assert "100%" in printed.err


@pytest.mark.parametrize("to", OUTPUTS)
def test_an_existing_output_is_left_as_it_is(folders, tmp_path, capsys, to):
  output = tmp_path / OUTPUTS[to]
  output.mkdir(parents=True)
  (output / "precious").write_text("x")
  command = ["convert", str(folders / "t5"), "-o", str(output), "--to", to]
  assert cli.main(command) == 2
  assert "exists and was left as it is" in capsys.readouterr().err
  assert [path.name for path in output.iterdir()] == ["precious"]


@pytest.mark.parametrize("to", OUTPUTS)
def test_a_conversion_that_fails_half_way_leaves_nothing(folders, tmp_path, to):
  output = tmp_path / OUTPUTS[to]

  def fail(doing, size):
    if doing == "write" and seen.append(size) is None and len(seen) == 20:
      raise OSError("no space")

  seen = []
  with (
    conversion.planned(folders / "t5", to) as plan,
    pytest.raises(OSError, match="no space"),
  ):
    conversion.convert(plan, folders / "t5", output, fail)
  left = [path for path in tmp_path.rglob("*") if path.name != "t5x"]
  assert left == []


def test_a_folder_made_for_a_checkpoint_that_fails_is_removed_again(folders, tmp_path):
  def fail(doing, size):
    if doing == "check":
      raise OSError("no such disk")

  source, output = folders / "t5", tmp_path / "new" / "checkpoint_0"
  for kept in ([], ["mine"]):
    for name in kept:
      output.parent.mkdir()
      (output.parent / name).write_text("x")
    with (
      conversion.planned(source, "t5x") as plan,
      pytest.raises(OSError, match="no such disk"),
    ):
      conversion.convert(plan, source, output, fail)
    assert output.parent.exists() == bool(kept)
  assert [path.name for path in output.parent.iterdir()] == ["mine"]


def test_what_is_written_is_read_back_before_it_appears(folders, tmp_path, monkeypatch):
  real = safetensors_io.write

  def damaged(path, leaves, metadata, overwrite=False):
    real(path, leaves, metadata, overwrite)
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x40
    path.write_bytes(content)

  monkeypatch.setattr(safetensors_io, "write", damaged)
  for to, expected in (
    ("safetensors", "changed after it was written"),
    ("hugging-face", "another fingerprint when it is read back"),
  ):
    with pytest.raises(UserError, match=expected):
      convert(folders / "t5", tmp_path / OUTPUTS[to], to)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ("output", "to", "expected"),
  [
    ("model", None, "does not say what to write. Give --to hugging-face"),
    ("model", "t5x", r"checkpoint_<step>. Name the output '.*model/checkpoint_0'"),
    ("model", "safetensors", "does not end in .safetensors"),
    (
      "x.safetensors",
      "hugging-face",
      r"means another format \(safetensors\) than --to",
    ),
    ("checkpoint_7", "hugging-face", r"means another format \(t5x\) than --to"),
    ("checkpoint_7", "safetensors", "does not end in .safetensors"),
    ("x.safetensors", "t5x", "Name the output '.*x.safetensors/checkpoint_0'"),
    ("no/where/checkpoint_0", None, "the folder '.*no' does not exist"),
    ("no/ours.safetensors", None, "the folder '.*no' does not exist"),
  ],
)
def test_an_output_that_cannot_be_is_refused_first(
  folders, tmp_path, capsys, output, to, expected
):
  command = ["convert", str(folders / "t5"), "-o", str(tmp_path / output)]
  assert cli.main([*command, *(["--to", to] if to else [])]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert re.search(expected, line), line
  assert list(tmp_path.iterdir()) == []


def test_leaves_that_are_no_t5_are_refused(tmp_path, capsys):
  path = tmp_path / "odd.safetensors"
  loading.save_backbone(path, {"layer/kernel": np.ones((2, 2), np.float32)}, "odd")
  assert cli.main(["convert", str(path), "-o", str(tmp_path / "checkpoint_0")]) == 2
  printed = capsys.readouterr().err
  assert "odd.safetensors' has no 'token_embedder/embedding' (T5) or " in printed


def test_a_bucket_holds_the_same_bytes_as_a_folder(bucket, tmp_path):
  from object_store import ObjectStore

  weights = references.weights("t5")
  shallow = {name: weights[name] for name in weights if ".block.1." not in name}
  folder = references.write_folder(tmp_path / "t5", "t5", shallow, num_layers=1)
  for path in folder.iterdir():
    ObjectStore.objects[f"bucket/t5/{path.name}"] = path.read_bytes()
  for output, to in (("ours.safetensors", None), ("out", "hugging-face")):
    convert(f"{bucket}/t5", f"{bucket}/{output}", to)
    convert(folder, tmp_path / output, to)
  names = ["ours.safetensors", "out/model.safetensors", "out/config.json"]
  for name in names:
    content = (tmp_path / name).read_bytes()
    assert ObjectStore.objects[f"bucket/{name}"] == content, name
  convert(f"{bucket}/t5", f"{bucket}/t5x/checkpoint_0")
  assert same(flat(f"{bucket}/t5x/checkpoint_0"), flat(folder))
  with pytest.raises(UserError, match="'gs://bucket/out' exists"):
    convert(f"{bucket}/t5", f"{bucket}/out", "hugging-face")


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
  """A backbone of 21 MB whose largest leaf is 4 MB, as a folder of Hugging Face."""
  root = tmp_path_factory.mktemp("larger")
  numbers = {
    "d_model": 64,
    "d_ff": 4096,
    "num_heads": 4,
    "d_kv": 16,
    "vocab_size": 2**14,
  }
  config = {**references.config("t5"), **numbers, "num_layers": 8}
  (root / "config.json").write_text(json.dumps(config))
  places = hugging_face.places(hugging_face.read_config(root))
  rng = np.random.default_rng(0)
  weights = {p.name: rng.standard_normal(p.shape).astype(np.float32) for p in places}
  safetensors.numpy.save_file(weights, root / "model.safetensors")
  return root


def peak_of(function):
  tracemalloc.start()
  try:
    kept = function()
    return kept, tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize("to", OUTPUTS)
def test_converting_holds_about_one_leaf(larger, tmp_path, monkeypatch, to):
  monkeypatch.setattr(orbax_io, "AT_ONCE_BYTES", 1 << 20)
  with conversion.planned(larger, to) as plan:
    largest = max(leaf.nbytes for leaf in plan.source.leaves.values())
    total = plan.nbytes
  assert total > 5 * largest
  import orbax.checkpoint  # noqa: F401  Its modules are not to be counted.

  _, peak = peak_of(lambda: convert(larger, tmp_path / OUTPUTS[to], to))
  print(f"{to}: peak {peak / 1e6:.1f} MB, largest {largest / 1e6:.1f} MB")
  assert peak < 3 * largest + (2 << 20)  # Turned: two of it; the rest is bookkeeping.


def test_loading_holds_about_one_leaf_above_the_result(larger):
  backbone, peak = peak_of(lambda: loading.load_backbone(larger))
  leaves = identity.flatten(backbone.params).values()
  total, largest = sum(x.nbytes for x in leaves), max(x.nbytes for x in leaves)
  assert total < peak < total + 2 * largest + (2 << 20)
  _, peak = peak_of(lambda: loading.load_backbone(larger, place=lambda path, leaf: 0))
  assert peak < 3 * largest + (2 << 20)  # Nothing is kept: no whole copy exists.
