"""What a folder of Hugging Face says that `tpv convert` writes, and what lies in it.

That transformers computes the same from it is tested in test_live_parity.py.
"""

import json

import hf_references as references
import pytest

from tpv_jax import cli
from tpv_jax.backbones import conversion, rotary
from tpv_jax.backbones.llama import hugging_face
from tpv_jax.core.errors import UserError


def convert(source, output, to=None):
  with conversion.planned(source, conversion.target_of(output, to)) as plan:
    conversion.convert(plan, source, output, lambda *_: None)
  return output


@pytest.mark.parametrize("family", references.LLAMAS)
def test_its_config_states_the_numbers_of_the_source(family, tmp_path):
  folder = references.write_folder(tmp_path / family, family)
  ours = convert(folder, tmp_path / "ours.safetensors")
  expected = hugging_face.read_config(folder).numbers
  for source, name in ((folder, "straight"), (ours, "by_our_file")):
    out = convert(source, tmp_path / name, "hugging-face")
    found = hugging_face.read_config(out).numbers
    assert found["rope_divisors"] == pytest.approx(expected["rope_divisors"], rel=1e-6)
    assert {**found, "rope_divisors": ()} == {**expected, "rope_divisors": ()}
    content = json.loads((out / "config.json").read_text())
    stated = references.config(family)
    assert content["architectures"] == stated["architectures"]
    if family == "mistral":
      assert content["sliding_window"] == stated["sliding_window"] == 160
    if family == "llama_3_1":
      assert content["rope_scaling"] == pytest.approx(stated["rope_scaling"])
    # The ids of special tokens are the source's; a file of ours does not know them.
    ends = stated["eos_token_id"] if source == folder else None
    assert content["eos_token_id"] == ends


@pytest.mark.parametrize("original", [512, 4_096, 8_192, 131_072])
def test_a_scaling_goes_out_by_its_first_length(original):
  divisors = rotary.llama3(64, 5e5, 32.0, original=original)
  assert rotary.scaling(divisors, 64, 5e5) == {
    "rope_type": "llama3",
    "factor": pytest.approx(32.0),
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": original,
  }


def test_a_scaling_of_another_form_is_refused():
  with pytest.raises(UserError, match="has no name"):
    rotary.scaling(rotary.llama3(64, 5e5, 32.0, low=2.0, high=3.0), 64, 5e5)


BESIDE = {
  "tokenizer.json": '{"a": 1}',
  "tokenizer_config.json": "{}",
  "chat_template.jinja": "{{ messages }}",
  "generation_config.json": '{"eos_token_id": [2, 5]}',
}


def test_the_tokenizer_comes_along_from_folder_to_folder(tmp_path, capsys):
  folder = references.write_folder(tmp_path / "llama", "llama")
  for name, text in {**BESIDE, "README.md": "not copied"}.items():
    (folder / name).write_text(text)
  out = tmp_path / "out"
  call = ["convert", str(folder), "-o", str(out), "--to", "hugging-face"]
  assert cli.main(call) == 0
  assert f"  beside it: {', '.join(BESIDE)}.\n" in capsys.readouterr().out
  for name, text in BESIDE.items():
    assert (out / name).read_text() == text
  assert not (out / "README.md").exists()


def test_where_the_source_brings_no_tokenizer_the_command_says_so(tmp_path, capsys):
  folder = references.write_folder(tmp_path / "llama", "llama")
  ours = convert(folder, tmp_path / "ours.safetensors")
  (tmp_path / "tokenizer.json").write_text("{}")  # Of who knows which model.
  out = tmp_path / "out"
  assert cli.main(["convert", str(ours), "-o", str(out), "--to", "hugging-face"]) == 0
  assert "no tokenizer: the source brings none." in capsys.readouterr().out
  assert not (out / "tokenizer.json").exists()


def test_a_gguf_file_goes_out_with_the_tokenizer_inside_it(tmp_path):
  pytest.importorskip("gguf", reason="needs the extra 'llm'")
  pytest.importorskip("tokenizers", reason="needs the extra 'llm'")
  import llm_stand_in

  from tpv_jax.data import vocabularies

  gguf = llm_stand_in.write_gguf(tmp_path / "tiny.gguf")
  out = convert(gguf, tmp_path / "out", "hugging-face")
  inside, beside = map(vocabularies.of_backbone, (gguf, out))
  assert beside.digest == inside.digest
  assert beside.end_ids == inside.end_ids
