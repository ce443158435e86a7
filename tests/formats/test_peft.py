"""Adapters of PEFT in and out, their files and what is refused of them."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tpv_jax import cli
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.formats import peft, sources
from tpv_jax.io import safetensors as safetensors_io
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import Provenance, Term

# As `save_pretrained` of PEFT 0.21 writes them; the real files are in tests/references.
ROWS = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)
CONFIG = {
  "auto_mapping": None,
  "base_model_name_or_path": "google/t5-v1_1-base",
  "inference_mode": True,
  "modules_to_save": None,
  "num_attention_heads": 12,
  "num_layers": 12,
  "num_transformer_submodules": 2,
  "num_virtual_tokens": 5,
  "peft_type": "PROMPT_TUNING",
  "peft_version": "0.21.2",
  "prompt_tuning_init": "TEXT",
  "prompt_tuning_init_text": "Is this review good?",
  "task_type": "SEQ_2_SEQ_LM",
  "token_dim": 6,
}


@pytest.fixture
def adapter(tmp_path):
  """The function (leaves, changes of the config) -> an adapter's folder."""

  def write(leaves=None, **changes):
    folder = tmp_path / "adapter"
    folder.mkdir(exist_ok=True)
    config = {name: v for name, v in (CONFIG | changes).items() if v != "left out"}
    (folder / peft.CONFIG).write_text(json.dumps(config))
    leaves = {"prompt_embeddings": ROWS} if leaves is None else leaves
    safetensors.numpy.save_file(leaves, folder / peft.WEIGHTS, {"format": "pt"})
    return folder

  return write


def refused(path, pattern):
  with pytest.raises(UserError, match=pattern) as caught:
    sources.load(path)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stacks", [2, None, "left out"])
def test_of_doubled_rows_the_first_half_is_the_prompt_and_a_note_says_so(
  adapter, stacks
):
  loaded = sources.load(adapter(num_transformer_submodules=stacks))
  assert loaded.leaves["prompt"].tobytes() == ROWS[:5].tobytes()
  assert loaded.provenance == Provenance(
    kind="prompt",
    terms=(Term(None, 1.0),),
    backbone_name="google/t5-v1_1-base",
    versions={"peft": "0.21.2"},
    notes=(
      "its PEFT config says: task_type 'SEQ_2_SEQ_LM', prompt_tuning_init 'TEXT', "
      "prompt_tuning_init_text 'Is this review good?'",
      "rows 5 to 9 of the PEFT adapter were left out, because PEFT makes them for the "
      "decoder and never uses them",
    ),
  )


@pytest.mark.parametrize(
  "changes",
  [
    {"num_transformer_submodules": 1},
    {"num_transformer_submodules": None, "task_type": "CAUSAL_LM"},
  ],
)
def test_rows_that_are_not_doubled_are_all_the_prompt(adapter, changes):
  loaded = sources.load(adapter(num_virtual_tokens=10, **changes))
  assert loaded.leaves["prompt"].tobytes() == ROWS.tobytes()
  assert not any("left out" in note for note in loaded.provenance.notes)


def test_an_adapter_is_read_by_its_weights_file_too(adapter):
  folder = adapter()
  one, other = sources.load(folder), sources.load(folder / peft.WEIGHTS)
  assert one.provenance == other.provenance
  np.testing.assert_array_equal(one.leaves["prompt"], other.leaves["prompt"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened(adapter, dtype):
  rows = ROWS.astype(dtype)
  loaded = sources.load(adapter({"prompt_embeddings": rows}))
  assert loaded.leaves["prompt"].dtype == np.float32
  np.testing.assert_array_equal(loaded.leaves["prompt"], rows[:5].astype(np.float32))


@pytest.mark.parametrize(
  "changes",
  [
    {"num_virtual_tokens": 4},
    {"num_virtual_tokens": 10},
    {"num_virtual_tokens": 0},
    {"num_virtual_tokens": "5"},
    {"num_virtual_tokens": True},
    {"num_virtual_tokens": None},
    {"num_transformer_submodules": 1},
    {"num_transformer_submodules": 3},
    {"num_transformer_submodules": [2]},
    {"task_type": "CAUSAL_LM", "num_transformer_submodules": None},
    {"token_dim": 7},
  ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(adapter, changes):
  refused(adapter(**changes), "adapter_config.json of .* does not fit its weights")


@pytest.mark.parametrize(
  ("kind", "pattern"),
  [
    ("MULTITASK_PROMPT_TUNING", r"multitask prompt tuning \(MPT\).*of 3 tasks.*\.npy"),
    ("PREFIX_TUNING", "is an adapter of PREFIX_TUNING; only adapters of PROMPT_TUN"),
    ("LORA", "is an adapter of LORA; only adapters of PROMPT_TUNING and of"),
    ("P_TUNING", "is an adapter of P_TUNING; only adapters of PROMPT_TUNING"),
    (None, "is an adapter of None; only"),
  ],
)
def test_other_kinds_of_adapters_are_refused_by_name(adapter, kind, pattern):
  refused(adapter(peft_type=kind, num_tasks=3), pattern)


@pytest.mark.parametrize(
  ("leaves", "pattern"),
  [
    (
      {"prompt_embeddings": ROWS, "lm_head.weight": ROWS},
      "holds lm_head.weight, prompt",
    ),
    ({"prompt": ROWS}, "holds prompt, but an adapter of prompt tuning holds"),
    ({"prompt_embeddings": ROWS[0]}, r"of shape \(6,\), no matrix"),
    (
      {"prompt_embeddings": ROWS.astype(np.int32)},
      r"in I32; the only dtypes read here",
    ),
    (
      {"prompt_embeddings": ROWS.astype(np.float64)},
      r"in F64; the only dtypes read here",
    ),
    (
      {"prompt_embeddings": np.where(ROWS > 1, np.nan, ROWS)},
      "that are NaN or infinite",
    ),
  ],
)
def test_other_leaves_than_a_finite_matrix_of_floats_are_refused(
  adapter, leaves, pattern
):
  refused(adapter(leaves), pattern)


@pytest.mark.parametrize(
  "text",
  [
    "",
    "{",
    "[1]",
    "[" * 10_000,
    '{"a":' + "9" * 5000 + "}",
    json.dumps({**CONFIG, "base_model_name_or_path": "a\ud800"}),  # Half a character.
    json.dumps({**CONFIG, "\udc00": 1}),
  ],
)
def test_a_config_that_is_no_json_object_is_refused(adapter, text):
  folder = adapter()
  (folder / peft.CONFIG).write_text(text)
  refused(folder, r"adapter_config.json' is no JSON object")


def test_a_pickle_in_the_folder_is_never_opened(adapter):
  folder = adapter()
  (folder / peft.WEIGHTS).rename(folder / "adapter_model.bin")
  for path in (folder, folder / "adapter_model.bin"):
    refused(
      path,
      r"adapter_model.bin' is a pickle.*never opened.*"
      rf"torch\.load\(\"{folder}/adapter_model\.bin\", .*save_file\(.*"
      rf", \"{folder}/adapter_model\.safetensors\"\)",
    )
  (folder / "adapter_model.bin").unlink()
  refused(folder, "has no adapter_model.safetensors")


def test_weights_without_their_config_are_refused(adapter):
  folder = adapter()
  (folder / peft.CONFIG).unlink()
  for path in (folder, folder / peft.WEIGHTS):
    refused(path, "has no adapter_config.json, which says how many of the rows")


def test_weights_by_another_name_are_read_with_their_config_and_not_without(tmp_path):
  source = pathlib.Path(__file__).parents[1] / "references" / "peft_tuned"
  file = tmp_path / "sst2.safetensors"
  shutil.copy(source / peft.WEIGHTS, file)
  for path in (file, f"{file}:prompt"):
    refused(path, r"Copy it there|with its adapter_config.json beside it")
  shutil.copy(source / peft.CONFIG, tmp_path)
  loaded, whole = sources.load(file), sources.load(source)
  rows = safetensors.numpy.load_file(file)["prompt_embeddings"]
  assert rows.shape == (10, 16)
  assert loaded.leaves["prompt"].tobytes() == rows[:5].tobytes()
  assert loaded.provenance == whole.provenance
  assert loaded.name == str(file)


def test_every_truncation_is_refused(adapter):
  file = adapter() / peft.WEIGHTS
  content = file.read_bytes()
  for size in range(0, len(content), 7):
    file.write_bytes(content[:size])
    refused(file.parent, "no safetensors file, or a truncated or damaged one")


def test_a_link_out_of_the_folder_is_refused_but_that_of_hugging_faces_cache(
  adapter, tmp_path
):
  folder = adapter()
  for name in (peft.CONFIG, peft.WEIGHTS):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    refused(folder, rf"{name}' is a .*link out of its folder, to '{tmp_path / name}'")
    (folder / name).unlink()
    (tmp_path / name).rename(folder / name)
  cache = tmp_path / "models--x"
  (cache / "blobs").mkdir(parents=True)
  (cache / "snapshots" / "0a1b").mkdir(parents=True)
  for name in (peft.CONFIG, peft.WEIGHTS):
    (folder / name).rename(cache / "blobs" / name)
    link = cache / "snapshots" / "0a1b" / name
    link.symlink_to(os.path.join("..", "..", "blobs", name))
  assert sources.load(cache / "snapshots" / "0a1b").leaves["prompt"].shape == (5, 6)


def test_what_is_exported_is_what_peft_writes_and_comes_back_bit_for_bit(
  initial_prompt, tuned_prompt, tmp_path
):
  prompt = tuned_prompt(initial_prompt(0), "sst2", 1)
  peft.write(tmp_path / "out", prompt, "google/t5-v1_1-base")
  again = sources.load(tmp_path / "out")
  assert again.provenance == prompt.provenance
  assert again.leaves["prompt"].tobytes() == prompt.leaves["prompt"].tobytes()
  written = json.loads((tmp_path / "out" / peft.CONFIG).read_text())
  assert (
    written.items()
    <= {
      **CONFIG,
      "num_virtual_tokens": 4,
      # What PEFT takes from the model itself, or does not read of a trained adapter.
      "num_attention_heads": None,
      "num_layers": None,
      "prompt_tuning_init": "RANDOM",
      "prompt_tuning_init_text": None,
      "revision": None,
      "tokenizer_name_or_path": None,
    }.items()
  )
  rows = safetensors.numpy.load_file(tmp_path / "out" / peft.WEIGHTS)
  np.testing.assert_array_equal(rows["prompt_embeddings"][:4], prompt.leaves["prompt"])
  assert rows["prompt_embeddings"].shape == (8, 6)
  assert not rows["prompt_embeddings"][4:].any()
  assert safetensors_io.read_header(tmp_path / "out" / peft.WEIGHTS).metadata == {
    "format": "pt"
  }


def causal(rows=5):
  """The changes of `CONFIG` with which PEFT writes a decoder-only model's adapter."""
  return {
    "base_model_name_or_path": "meta-llama/Llama-3.1-8B",
    "num_transformer_submodules": 1,
    "num_virtual_tokens": rows,
    "task_type": "CAUSAL_LM",
  }


def test_an_adapter_of_a_decoder_only_model_is_all_prompt_and_says_so(adapter):
  loaded = sources.load(adapter({"prompt_embeddings": ROWS[:5]}, **causal()))
  assert loaded.leaves["prompt"].tobytes() == ROWS[:5].tobytes()
  assert loaded.provenance.architecture == "decoder_only"
  assert loaded.provenance.backbone_name == "meta-llama/Llama-3.1-8B"
  (note,) = loaded.provenance.notes
  assert "task_type 'CAUSAL_LM'" in note


def test_a_decoder_only_models_prompt_goes_out_as_peft_writes_it(
  adapter, initial_prompt, tmp_path
):
  start = initial_prompt(0)
  known = dataclasses.replace(start.provenance, architecture="decoder_only")
  start = dataclasses.replace(start, provenance=known)
  peft.write(tmp_path / "out", start)
  written = json.loads((tmp_path / "out" / peft.CONFIG).read_text())
  expected = causal(len(start.leaves["prompt"])) | {"base_model_name_or_path": None}
  assert expected.items() <= written.items()
  rows = safetensors.numpy.load_file(tmp_path / "out" / peft.WEIGHTS)
  assert rows["prompt_embeddings"].tobytes() == start.leaves["prompt"].tobytes()
  again = sources.load(tmp_path / "out")
  assert again.provenance == start.provenance
  assert again.leaves["prompt"].tobytes() == start.leaves["prompt"].tobytes()


def test_what_a_prompts_backbone_is_goes_along_with_every_operation(
  initial_prompt, tuned_prompt, adapter, tmp_path
):
  def of_a_decoder(item):
    known = dataclasses.replace(item.provenance, architecture="decoder_only")
    return dataclasses.replace(item, provenance=known)

  start = of_a_decoder(initial_prompt(0))
  tuned = of_a_decoder(tuned_prompt(start, "sst2", 1))
  vector = algebra.diff(tuned, start)
  both = algebra.sum_vectors([vector, algebra.scale(vector, 0.5)])
  for item in (vector, both, algebra.apply(both, start), algebra.fold(tuned)):
    assert item.provenance.architecture == "decoder_only"
  path = tmp_path / "out.safetensors"
  sources.save(path, both)
  assert sources.load(path).provenance == both.provenance
  assert "architecture" not in initial_prompt(0).provenance.to_json()


def test_a_backbone_that_is_named_tells_what_it_is(adapter, tmp_path):
  import llama_models

  folder = llama_models.write(tmp_path / "model", llama_models.CONFIGS["llama tied"])
  np.save(tmp_path / "p.npy", np.ones((3, 12), np.float32))
  arguments = ["-o", str(tmp_path / "p.safetensors"), "--backbone", str(folder)]
  assert cli.main(["import", str(tmp_path / "p.npy"), *arguments]) == 0
  loaded = sources.load(tmp_path / "p.safetensors")
  assert loaded.provenance.architecture == "decoder_only"


def test_depts_adapters_of_decoder_only_models_are_refused(adapter):
  folder = adapter(**causal(), peft_type=peft.DEPT)
  refused(folder, "adds its update to every position of a row, targets and padding")


def test_peft_applies_what_is_exported_for_a_decoder_only_model(
  initial_prompt, tmp_path
):
  torch = pytest.importorskip("torch")
  theirs = pytest.importorskip("peft")
  transformers = pytest.importorskip("transformers")
  start = initial_prompt(0)
  known = dataclasses.replace(start.provenance, architecture="decoder_only")
  peft.write(tmp_path / "out", dataclasses.replace(start, provenance=known))
  config = transformers.LlamaConfig(
    vocab_size=12,
    hidden_size=6,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
  )
  model = transformers.LlamaForCausalLM(config).eval()
  ids = torch.tensor([[3, 4, 5]])
  rows = torch.from_numpy(start.leaves["prompt"].copy())[None]
  joined = torch.cat([rows, model.get_input_embeddings()(ids)], dim=1)
  with torch.no_grad():
    expected = model(inputs_embeds=joined).logits
    found = theirs.PeftModel.from_pretrained(model, tmp_path / "out")(ids).logits
  torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_vector_and_a_delta_have_no_place_in_an_adapter(
  initial_prompt, tuned_prompt, ept_initial, ept_tuned, tmp_path
):
  start = initial_prompt(0)
  vector = algebra.diff(tuned_prompt(start, "sst2", 1), start)
  with pytest.raises(UserError, match="Apply it to an initial prompt"):
    peft.write(tmp_path / "out", vector)
  ept = ept_tuned(ept_initial(0), "rte", 1)
  with pytest.raises(
    UserError, match=r"adds a delta \[5, 6\] to them.*--to npz.*infer"
  ):
    peft.write(tmp_path / "out", ept)
  assert list(tmp_path.iterdir()) == []


def test_a_dept_or_ept_prompt_whose_delta_is_zero_goes_out_folded(
  ept_initial, tmp_path
):
  ept = ept_initial(0)
  leaves = {**ept.leaves, "low_rank_a": np.zeros_like(ept.leaves["low_rank_a"])}
  prompt = Loaded(leaves, dataclasses.replace(ept.provenance, initial_digest=None))
  peft.write(tmp_path / "out", prompt)
  folded = algebra.fold(prompt).leaves["prompt"]
  again = sources.load(tmp_path / "out")
  assert again.leaves["prompt"].tobytes() == folded.tobytes()
  assert (again.provenance.method, again.provenance.space) == ("ept", "effective")


def test_provenance_beside_other_rows_is_refused(initial_prompt, adapter):
  folder = adapter()
  peft.write(folder, initial_prompt(0), overwrite=True)
  assert sources.load(folder).provenance == initial_prompt(0).provenance
  adapter()  # As `save_pretrained` would, which leaves our file where it is.
  refused(folder, r"tpv_provenance.json' states the provenance of other values")
  (folder / peft.PROVENANCE).unlink()
  assert sources.load(folder).provenance.versions == {"peft": "0.21.2"}


def test_an_existing_folder_is_left_alone(initial_prompt, tmp_path):
  (tmp_path / "out").mkdir()
  with pytest.raises(UserError, match="out' exists and was left as it is"):
    peft.write(tmp_path / "out", initial_prompt(0))
  assert list((tmp_path / "out").iterdir()) == []
  peft.write(tmp_path / "out", initial_prompt(0), overwrite=True)
  (tmp_path / "file").write_text("mine")
  with pytest.raises(UserError, match=r"it is a file\. Name a folder"):
    peft.write(tmp_path / "file", initial_prompt(0), overwrite=True)
  with pytest.raises(UserError, match=r"the folder '.*nowhere' does not exist"):
    peft.write(tmp_path / "nowhere" / "out", initial_prompt(0))


def test_an_export_that_failed_leaves_no_adapter(initial_prompt, tmp_path, monkeypatch):
  real = peft.files.writing

  def full(path, overwrite):
    if path.name == peft.WEIGHTS:
      raise OSError(28, "No space left on device")
    return real(path, overwrite)

  monkeypatch.setattr(peft.files, "writing", full)
  with pytest.raises(OSError, match="No space"):
    peft.write(tmp_path / "out", initial_prompt(0))
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("call", "nth"),
  [*((call, n) for call in ("fsync", "replace") for n in (1, 2, 3)), ("rename", 1)],
)
def test_on_a_full_disk_no_adapter_is_left_and_none_is_mixed(
  initial_prompt, tmp_path, full_disk, call, nth
):
  folder, first = tmp_path / "out", initial_prompt(0)
  with full_disk(call, nth), pytest.raises(OSError, match="No space"):
    peft.write(folder, first)
  assert list(tmp_path.iterdir()) == []
  peft.write(folder, first)  # The same command again.
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
  assert len(list(folder.iterdir())) == 3
  if call == "fsync":
    with full_disk(call, nth), pytest.raises(OSError, match="No space"):
      peft.write(folder, initial_prompt(1), overwrite=True)
    assert sources.load(folder).provenance == first.provenance
    assert len(list(folder.iterdir())) == 3


def test_a_bucket_holds_adapters_too(bucket, initial_prompt):
  peft.write(f"{bucket}/out", initial_prompt(0))
  again = sources.load(f"{bucket}/out")
  assert again.provenance == initial_prompt(0).provenance
  with pytest.raises(UserError, match="exists and was left"):
    peft.write(f"{bucket}/out", initial_prompt(0))


def test_vector_commands_read_and_compare_adapters(adapter, make_run, tmp_path, capsys):
  folder, run = adapter(), make_run("run")
  out, back = tmp_path / "sst2.safetensors", tmp_path / "back"
  given = ["--task", "sst2", "--backbone", str(run / "best_prompt.safetensors")]
  assert cli.main(["import", str(folder), "-o", str(out), *given]) == 0
  printed = capsys.readouterr().out
  assert "note: rows 5 to 9 of the PEFT adapter were left out" in printed
  assert "unknown: the initial prompt (--initial).\n" in printed
  known = store.read(out)[1]
  assert known.backbone_fingerprint == "ab" * 32
  assert known.backbone_name == "google/t5-v1_1-base"
  arguments = ["export", str(out), "--to", "peft", "-o", str(back)]
  assert cli.main([*arguments, "--base-model", "t5"]) == 0
  assert "in '" + str(back / peft.PROVENANCE) in capsys.readouterr().out
  assert json.loads((back / peft.CONFIG).read_text())["base_model_name_or_path"] == "t5"
  assert sources.load(back).provenance == known
  assert cli.main(["show", str(back)]) == 0
  shown = capsys.readouterr().out
  assert identity.prompt_digest({"prompt": ROWS[:5]}) in shown
  assert "initial       unknown" in shown
  assert "steps         unknown" in shown


RNG = np.random.default_rng(1)
DEPT = {
  "prompt_embeddings": ROWS[:4],
  "prompt_encoder.lora_embedding_A": RNG.standard_normal((8, 3)).astype(np.float32),
  "prompt_encoder.lora_embedding_B": RNG.standard_normal((3, 6)).astype(np.float32),
}
# As ShiZhengyan/DePT publishes it, in checkpoints/cola.
DEPT_CONFIG = {
  **{"peft_type": "PROMPT_TUNING_LORA", "num_virtual_tokens": 4, "r": 3},
  **{"lora_alpha": 8, "max_length": 8, "num_transformer_submodules": 1, "bias": "none"},
  **{"hidden_size": 6, "save_lora_embeddings": True, "init_lora_weights": True},
}


def test_an_adapter_of_depts_code_gives_its_parameters_and_alpha(adapter):
  item = sources.load(adapter(DEPT, **DEPT_CONFIG))
  assert item.provenance.alpha == 8
  assert item.provenance.method == "dept"
  folded = algebra.fold(item).leaves
  np.testing.assert_array_equal(folded["prompt"], ROWS[:4])
  # Their forward adds lora_alpha / sqrt(r) * A[:length] @ B to a source's embeddings.
  a, b = (DEPT[f"prompt_encoder.lora_embedding_{name}"] for name in "AB")
  np.testing.assert_allclose(folded["delta"], 8 / np.sqrt(3) * (a @ b), rtol=1e-5)


@pytest.mark.parametrize("alpha", [None, "8", True, 10**400, float("nan")])
def test_an_adapter_of_depts_code_without_alpha_asks_for_it(adapter, alpha):
  item = sources.load(adapter(DEPT, **{**DEPT_CONFIG, "lora_alpha": alpha}))
  with pytest.raises(UserError, match="--alpha"):
    algebra.fold(item)


@pytest.mark.parametrize(
  ("left", "changes", "pattern"),
  [
    (
      1,
      {},
      "holds prompt_embeddings, but an adapter of DePT holds exactly .* and 'prom",
    ),
    (3, {"r": 4}, r"the rank 4, and A is \[8, 3\], B \[3, 6\], the prompt \[4, 6\]"),
    (3, {"max_length": 256}, "a longest source of 256 and the rank 3, and A is"),
    (3, {"num_virtual_tokens": 5}, "does not fit its weights: it states 5 virtual"),
  ],
)
def test_an_adapter_of_depts_code_that_does_not_fit_is_refused(
  adapter, left, changes, pattern
):
  leaves = dict([*DEPT.items()][:left])
  refused(adapter(leaves, **{**DEPT_CONFIG, **changes}), pattern)


def test_the_command_for_a_multitask_adapter_gives_the_prompt_that_peft_uses(
  adapter, tmp_path
):
  cols = RNG.standard_normal((3, 10, 1)).astype(np.float32)
  rows = RNG.standard_normal((3, 1, 6)).astype(np.float32)
  leaves = {
    **{"prefix_task_cols": cols, "prefix_task_rows": rows, "prompt_embeddings": ROWS}
  }
  folder = adapter(leaves, peft_type="MULTITASK_PROMPT_TUNING", num_tasks=3)
  with pytest.raises(UserError) as caught:
    sources.load(folder)
  command = re.search(r"python -c '.*'$", str(caught.value))[0]
  command = command.replace("task = 0", "task = 2")
  path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  environment = {**os.environ, "PATH": path}
  subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=environment)
  found = sources.load(tmp_path / "OUT.npy").leaves["prompt"]
  # PEFT multiplies all rows and puts the first num_virtual_tokens before a source.
  np.testing.assert_allclose(found, (ROWS * (cols[2] @ rows[2]))[:5], rtol=1e-6)


def test_a_multitask_adapter_as_a_pickle_is_told_to_be_one(adapter):
  folder = adapter(peft_type="MULTITASK_PROMPT_TUNING", num_virtual_tokens="x]; exit(")
  with pytest.raises(UserError) as caught:
    sources.load(folder)
  assert "exit" not in str(caught.value)
  (folder / peft.WEIGHTS).rename(folder / "adapter_model.bin")
  refused(folder, "adapter_model.bin' is a pickle")


def test_an_adapter_in_a_subfolder_is_named(adapter):
  folder = adapter()
  (folder.parent / "out").mkdir()
  folder.rename(folder.parent / "out" / "sst2")
  refused(folder.parent / "out", "It holds sst2: give one of these")


@pytest.mark.parametrize(
  ("base", "name"),
  [
    ("/home/alice/secret/t5-base/", "t5-base"),
    ("~/models/t5", "t5"),
    ("C:\\Users\\alice\\t5", "t5"),
    ("google/t5-v1_1-base", "google/t5-v1_1-base"),
    ("models/t5", "models/t5"),
  ],
)
def test_no_path_of_a_machine_goes_into_files_that_others_get(
  adapter, tmp_path, base, name, capsys
):
  folder = adapter(base_model_name_or_path=base)
  item = sources.load(folder)
  assert item.provenance.backbone_name == name
  command = ["export", str(folder), "--to=peft", "-o", str(tmp_path / "out")]
  code = cli.main([*command, "--base-model", base])
  if base == name:
    assert code == 0
    content = json.loads((tmp_path / "out" / peft.CONFIG).read_text())
    assert content["base_model_name_or_path"] == base
  else:
    assert code == 2
    assert not (tmp_path / "out").exists()
    assert (
      f"is a path of this machine, and others would find it in the {peft.CONFIG}"
      in (capsys.readouterr().err)
    )
