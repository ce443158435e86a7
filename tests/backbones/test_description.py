"""`tpv show` of a backbone: what every form states, and what stays unknown."""

import json

import hf_references as references
import llama_models as models
import pytest

from tpv_jax import cli
from tpv_jax.backbones import conversion


@pytest.fixture
def forms(tmp_path):
  """A model as a folder, a file of ours and a GGUF file, and the file's fingerprint."""
  content = models.CONFIGS["llama tied"]
  folder = models.write(tmp_path / "model", content)
  path = tmp_path / "one.safetensors"
  with conversion.planned(folder, "safetensors") as plan:
    fingerprint = conversion.convert(plan, folder, path, lambda *_: None)
  return folder, path, models.write_gguf(tmp_path / "a.gguf", content), fingerprint


def test_every_form_shows_the_network(forms, capsys):
  folder, path, gguf, fingerprint = forms
  for one, kind, known in (
    (folder, "hugging-face", None),
    (path, "safetensors", fingerprint),
    (gguf, "gguf", None),
  ):
    assert cli.main(["show", str(one), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["format"] == kind
    assert content["family"] == "llama"
    assert content["fingerprint"] == known
    assert content["network"]["head_dim"] == 4
    # The table and two layers of four projections, three maps and two norms, and one norm.
    layer = 2 * 12 * 16 + 2 * 12 * 8 + 3 * 12 * 20 + 2 * 12
    assert content["parameters"] == 24 * 12 + 2 * layer + 12
    assert cli.main(["show", str(one)]) == 0
    printed = capsys.readouterr().out
    assert f"kind          backbone ({kind})" in printed
    assert "vocab_size 24, emb_dim 12, num_heads 4, num_kv_heads 2" in printed


def test_a_t5_is_shown_too(tmp_path, capsys):
  folder = references.write_folder(tmp_path / "model", "mt5")
  assert cli.main(["show", str(folder)]) == 0
  printed = capsys.readouterr().out
  assert "family        t5" in printed
  assert "fingerprint   unknown" in printed


def test_what_is_no_backbone_is_refused_as_before(tmp_path, capsys):
  assert cli.main(["show", str(tmp_path)]) == 2
  assert (
    "is an empty folder. Give a run, a checkpoint or a file" in capsys.readouterr().err
  )


def test_a_damaged_backbone_is_one_line(forms, capsys):
  folder, _, gguf, _ = forms
  (folder / "config.json").write_text("{")
  gguf.write_bytes(gguf.read_bytes()[:100])
  for path, expected in ((folder, "is no JSON object"), (gguf, "is no GGUF file")):
    assert cli.main(["show", str(path)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert expected in printed
