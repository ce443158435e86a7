"""`gin_configs/backbones/pretrained.gin`: any backbone by its path, and nothing else."""

import json
import shutil

import gin
import llama_models as models
import pytest
import stand_ins
import tokenizer_references

from tpv_jax import cli
from tpv_jax.data import vocabularies
from tpv_jax.vectors import store

pytest.importorskip("tokenizers", reason="needs the extra 'llm'")


pytestmark = pytest.mark.usefixtures("compiles_faster")


@pytest.fixture(autouse=True)
def clean_gin():
  yield
  gin.clear_config()


@pytest.fixture
def task(tmp_path):
  """The gin file of a small task from a file of rows."""
  path = tmp_path / "rows.csv"
  path.write_text(
    "text,label\n" + "".join(f"a fine day {n},{n % 2}\n" for n in range(12))
  )
  mine = tmp_path / "mine.gin"
  mine.write_text(
    f"TASK_NAME = 'mine'\nPATHS = {str(path)!r}\nTEMPLATE = 'text: {{text}}'\n"
    "TARGET = 'label'\nLABELS = {'0': 'bad', '1': 'good'}\nMETRIC = 'macro_f1'\n"
    "SPLITS = {'validation': 4, 'test': 4}\nLENGTHS = {'inputs': 24, 'targets': 6}\n"
  )
  return mine


def tpv(verb, run_file, task, *bindings):
  files = (f"gin_configs/runs/{run_file}.gin", "gin_configs/tasks/text_files.gin", task)
  return cli.main(
    [
      verb,
      *(f"--gin_file={file}" for file in files),
      *(f"--gin.{binding}" for binding in bindings),
    ]
  )


FEW = ("TRAIN_STEPS=2", "EVAL_PERIOD=2", "BATCH_SIZE=4", "PROMPT_LENGTH=3")


def decoder(folder, **changed):
  """Writes a tiny LLaMA with a byte-level tokenizer; returns its config and weights."""
  tokenizer = json.loads(
    tokenizer_references.STORED["smollm"]["files"]["tokenizer.json"]
  )
  ids = {**tokenizer["model"]["vocab"]}
  ids |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
  content = {**models.CONFIGS["llama tied"], "vocab_size": max(ids.values()) + 1}
  content |= changed
  leaves = models.weights(content)
  models.write(folder, content, leaves)
  tokenizer_references.write(folder, "smollm")
  return content, leaves


def test_a_decoder_only_folder_is_tuned_and_its_gguf_file_takes_the_prompt(
  tmp_path, task, capsys
):
  folder, run = tmp_path / "model", tmp_path / "run"
  content, leaves = decoder(folder)
  backbone = f"BACKBONE={str(folder)!r}"
  assert tpv("train", "llm", task, backbone, f"RUN_DIR={str(run)!r}", *FEW) == 0
  manifest = json.loads((run / "manifest.json").read_text())
  assert manifest["status"] == "finished"
  gguf = models.write_gguf(tmp_path / "model.gguf", content, leaves)
  bindings = [f"BACKBONE={str(gguf)!r}", f"VOCABULARY_FILE={str(folder)!r}"]
  bindings += [f"PROMPT_PATH={str(run)!r}", f"OUTPUT={str(tmp_path / 'r.json')!r}"]
  code = tpv("eval", "eval_llm", task, *bindings)
  assert code == 0, capsys.readouterr().err
  capsys.readouterr()
  assert cli.main(["show", str(run), "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["architecture"] == "decoder_only"


@pytest.mark.slow
def test_a_prompt_states_the_chat_template_that_it_was_trained_by(
  tmp_path, task, capsys
):
  pytest.importorskip("jinja2", reason="needs the extra 'llm'")
  folder, run = tmp_path / "model", tmp_path / "run"
  decoder(folder, max_position_embeddings=128)
  bindings = [f"BACKBONE={str(folder)!r}", "LENGTHS={'inputs': 100, 'targets': 6}"]
  chat = "CHAT={'system': 'Be brief.'}"
  code = tpv("train", "llm", task, *bindings, chat, f"RUN_DIR={str(run)!r}", *FEW)
  assert code == 0, capsys.readouterr().err
  template = vocabularies.of_backbone(folder, chat={"system": "Be brief."}).chat
  data = json.loads((run / "manifest.json").read_text())["data"]
  assert (data["chat"], data["system_text"]) == (template.digest, "Be brief.")
  assert cli.main(["diff", str(run), "-o", str(tmp_path / "v.safetensors")]) == 0
  _, known = store.read(tmp_path / "v.safetensors")
  assert known.chat_digest == template.digest
  capsys.readouterr()
  bindings += [f"PROMPT_PATH={str(run)!r}", f"OUTPUT={str(tmp_path / 'r.json')!r}"]
  assert tpv("eval", "eval_llm", task, *bindings) == 0
  line = (
    f"written by chat template {template.digest[:12]}… and is tried on texts written"
  )
  assert line in capsys.readouterr().out


@pytest.mark.slow
def test_a_t5s_folder_is_tuned_by_the_same_file(tmp_path, task):
  folder, run = tmp_path / "model", tmp_path / "run"
  stand_ins.t5_with_vocabulary("flan_t5")(folder)
  backbone = f"BACKBONE={str(folder)!r}"
  assert tpv("train", "llm", task, backbone, f"RUN_DIR={str(run)!r}", *FEW) == 0
  manifest = json.loads((run / "manifest.json").read_text())
  assert manifest["status"] == "finished"


def test_a_file_of_ours_asks_for_its_vocabulary(tmp_path, task, capsys):
  folder = tmp_path / "model"
  decoder(folder)
  path = tmp_path / "model.safetensors"
  assert cli.main(["convert", str(folder), "-o", str(path)]) == 0
  shutil.rmtree(folder)
  bindings = (f"BACKBONE={str(path)!r}", f"RUN_DIR={str(tmp_path / 'run')!r}")
  assert tpv("train", "llm", task, *bindings, *FEW) == 2
  printed = capsys.readouterr().err
  assert "brings no vocabulary. Set VOCABULARY_FILE" in printed
