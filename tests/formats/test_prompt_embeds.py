"""Prompts as `prompt_embeds`; and the example of docs/formats.md, where torch is there."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys

import documents
import numpy as np
import pytest
import safetensors.numpy

from tpv_jax import cli
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.formats import peft, prompt_embeds, sources
from tpv_jax.vectors import algebra, store

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "formats.md"


def test_the_rows_go_out_under_their_name_and_come_back(make_run, tmp_path, capsys):
  run, out = make_run("run"), tmp_path / "out.safetensors"
  call = ["export", str(run), "--to", "prompt-embeds", "-o", str(out)]
  assert cli.main(call) == 0
  assert f"lies beside it, in '{out}.json'" in capsys.readouterr().out
  best = sources.load(run)
  held = safetensors.numpy.load_file(out)
  assert list(held) == ["prompt_embeds"]
  np.testing.assert_array_equal(held["prompt_embeds"], best.leaves["prompt"])
  assert held["prompt_embeds"].dtype == np.float32
  again = sources.load(out)
  assert again.provenance == best.provenance
  assert identity.prompt_digest(again.leaves) == identity.prompt_digest(best.leaves)
  assert cli.main(call) == 2
  assert "exists" in capsys.readouterr().err


def test_another_ending_is_refused(initial_prompt, tmp_path):
  with pytest.raises(UserError, match=r"Name the output '.*out\.npy\.safetensors'"):
    prompt_embeds.write(tmp_path / "out.npy", initial_prompt(0))
  assert list(tmp_path.iterdir()) == []


OUTPUTS = {"peft": "out", "npy": "out.npy", "prompt-embeds": "out.safetensors"}


@pytest.mark.parametrize("target", OUTPUTS)
@pytest.mark.parametrize("architecture", [None, "decoder_only"])
def test_an_ept_prompt_goes_out_without_its_delta_only_if_that_is_asked_for(
  ept_initial, ept_tuned, tmp_path, capsys, target, architecture
):
  tuned = ept_tuned(ept_initial(0), "rte", 1)
  known = dataclasses.replace(tuned.provenance, architecture=architecture)
  store.write(tmp_path / "ept.safetensors", tuned.leaves, known)
  out = tmp_path / OUTPUTS[target]
  call = ["export", str(tmp_path / "ept.safetensors"), "--to", target, "-o", str(out)]
  assert cli.main(call) == 2
  error = capsys.readouterr().err
  assert "adds a delta [5, 6]" in error
  assert "--without-delta" in error
  assert not out.exists()
  assert cli.main([*call, "--without-delta"]) == 0
  folded = algebra.fold(tuned).leaves
  norms = [np.linalg.norm(folded[name]) for name in ("delta", "prompt")]
  lost = (
    f"the delta [5, 6] on source tokens was left out, of norm {norms[0]:.4g} beside the "
    f"rows' {norms[1]:.4g}, so answers are not the whole prompt's"
  )
  assert f"note: {lost}.\n" in capsys.readouterr().out
  again = sources.load(out)
  np.testing.assert_array_equal(again.leaves["prompt"], folded["prompt"])
  assert again.provenance.notes[-1] == lost
  assert again.provenance.architecture == architecture
  if target == "peft":
    config = json.loads((out / peft.CONFIG).read_text())
    kind = "CAUSAL_LM" if architecture else "SEQ_2_SEQ_LM"
    assert config["task_type"] == kind


def test_a_prompt_without_a_delta_loses_nothing(initial_prompt):
  found, folded = peft.without_delta(initial_prompt(0)), algebra.fold(initial_prompt(0))
  assert found.provenance == folded.provenance
  assert identity.prompt_digest(found.leaves) == identity.prompt_digest(folded.leaves)


def test_the_example_for_transformers_writes_our_greedy_tokens(tmp_path, capsys):
  for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"needs the extra 'parity': {package} is not installed")
  import llm_stand_in

  from tpv_jax.backbones import loading, networks
  from tpv_jax.data import vocabularies
  from tpv_jax.data.tasks import Example
  from tpv_jax.evaluation.evaluator import Evaluator
  from tpv_jax.model import SoftPromptModel
  from tpv_jax.vectors.provenance import of_leaves

  # 1. A folder of Hugging Face with its tokenizer, and rows that move the answer.
  gguf = llm_stand_in.write_gguf(tmp_path / "tiny.gguf")
  folder, embeds = tmp_path / "model", tmp_path / "out.safetensors"
  call = ["convert", str(gguf), "-o", str(folder), "--to", "hugging-face"]
  assert cli.main(call) == 0
  assert "beside it: tokenizer.json" in capsys.readouterr().out
  rows = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
  prompt = tmp_path / "prompt.safetensors"
  store.write(prompt, {"prompt": rows}, of_leaves({"prompt": rows}))
  call = ["export", str(prompt), "--to", "prompt-embeds", "-o", str(embeds)]
  assert cli.main(call) == 0
  # 2. The example, as printed.
  (script,) = (
    step.text
    for step in documents.markdown(DOCUMENT)
    if step.mark == "file generate.py"
  )
  (tmp_path / "generate.py").write_text(script)
  text = "Review: I have never slept so well in a hotel. Sentiment:"
  done = subprocess.run(
    [sys.executable, tmp_path / "generate.py", folder, embeds, text],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  theirs, _, answer = done.stdout.partition("\n")
  # 3. Ours.
  vocabulary = vocabularies.of_backbone(folder)
  network = networks.network(str(folder))
  loaded = loading.load_backbone(folder, network, vocabulary)
  evaluator = Evaluator(
    SoftPromptModel(network, None, vocabulary, vocabulary),
    loaded.params,
    vocabulary,
    {"inputs": 128, "targets": 16},
    batch_size=1,
    at_once=1,
  )
  inputs = evaluator.tokenize([Example(text, "")]).inputs
  (ours,) = evaluator.decode([({"prompt": rows}, inputs)])[0]
  ours = ours[ours > 0]
  assert json.loads(theirs) == (ours - 1).tolist()
  assert len(ours) > 2
  assert answer.strip()
  # Without the rows other tokens follow.
  (alone,) = evaluator.decode([(None, inputs)])[0]
  assert alone[alone > 0].tolist() != ours.tolist()
