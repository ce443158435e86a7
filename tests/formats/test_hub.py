"""Models of the hub by name: in the cache, fetched, or refused in one line."""

import json
import os
import subprocess
import sys

import pytest
from hub_server import Hub, lay

from tpv_jax import cli
from tpv_jax.backbones import loading, networks
from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies
from tpv_jax.formats import hub
from tpv_jax.runs import subject

COMMIT = Hub.COMMIT

fetched = hub._fetched


def offline(model, cache):
  raise UserError(f"{model} is not fetched")


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache, in an empty folder; nothing is fetched."""
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setattr(hub, "_fetched", offline)
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  hub._located.cache_clear()
  return tmp_path / "hub"


@pytest.mark.parametrize(
  ("given", "model"),
  [
    ("google/flan-t5-small", ("google/flan-t5-small", None)),
    ("hf:google/flan-t5-small", ("google/flan-t5-small", None)),
    ("hf:org/name@refs/pr/1", ("org/name", "refs/pr/1")),
    ("org/name@abc", ("org/name", "abc")),
    ("hf:gpt2", ("gpt2", None)),
    *((path, None) for path in ("gpt2", "embedded", "smollm2", "a/b/c", "./a", "/a/b")),
    *(
      (f"models/{name}", None) for name in ("x.gguf", "x.safetensors", "checkpoint_10")
    ),
    *(
      (path, None) for path in ("gs://a/b", "../a", "hf:../a", "org/a@../b", "~/a", "")
    ),
  ],
)
def test_what_names_a_model_and_what_is_a_path(cache, given, model):
  found = hub.named(given)
  assert found == model if model is None else tuple(found) == model


def test_a_local_folder_of_that_name_wins(cache, hub_models):
  lay(cache, "org/name", hub_models / "t5")
  assert hub.named("org/name") is not None
  os.makedirs("org/other")
  # A mistyped path beside existing ones is no model, unless the prefix says so.
  assert hub.named("org/name") is None
  assert hub.named("hf:org/name") is not None
  with pytest.raises(
    UserError, match="If it is a model of Hugging Face, write 'hf:org"
  ):
    loading.load_backbone("org/nam")


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_model_in_the_cache_is_read_without_the_package(
  cache, hub_models, kind, monkeypatch
):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  snapshot = lay(cache, "org/name", hub_models / kind)
  for given in ("org/name", "hf:org/name", f"org/name@{COMMIT}"):
    assert loading.located(given) == snapshot
  expected = loading.load_backbone(hub_models / kind)
  network = networks.network("org/name")
  vocabulary = vocabularies.of_backbone("org/name")
  found = loading.load_backbone("org/name", network, vocabulary)
  assert found.fingerprint == expected.fingerprint
  assert found.name == "org/name"
  assert found.stated(network)["revision"] == COMMIT
  assert vocabulary.digest == vocabularies.of_backbone(hub_models / kind).digest
  assert vocabularies.load("hf:org/name").digest == vocabulary.digest
  assert loading.brings("org/name", vocabulary.path)


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_the_cache_is_where_the_package_has_it(tmp_path, variable):
  names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
  environment = {k: v for k, v in os.environ.items() if k not in names}
  code = (
    "from huggingface_hub import constants; from tpv_jax.formats import hub; "
    "assert str(hub.cache_folder()) == constants.HF_HUB_CACHE, hub.cache_folder()"
  )
  environment[variable] = str(tmp_path / "x")
  subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_manifest_states_the_commit_of_a_name_and_of_a_folder_in_a_cache(
  cache, hub_models, tmp_path
):
  snapshot = lay(cache, "org/name", hub_models / "t5")
  pinned = f"hf:org/name@{COMMIT}"
  assert subject.portable("org/name", tmp_path / "run") == pinned
  assert subject.portable(snapshot, tmp_path / "run") == pinned
  assert subject.portable("embedded", tmp_path / "run") == "embedded"
  assert hub.revision_of(snapshot) == hub.revision_of("org/name") == COMMIT
  assert hub.revision_of(hub_models / "t5") is None


def test_show_describes_a_model_in_the_cache_and_fetches_none(
  cache, hub_models, capsys
):
  lay(cache, "org/name", hub_models / "llama")
  assert cli.main(["show", "org/name", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["family"] == "llama"
  assert cli.main(["show", "org/typo"]) == 2
  error = capsys.readouterr().err
  assert "does not exist" in error
  assert "write 'hf:org/typo'" in error


def test_weights_that_are_not_whole_are_fetched_and_a_lost_tokenizer_is_no_fault(
  cache, hub_models
):
  lay(cache, "org/config", hub_models / "t5", "config.json")
  with pytest.raises(UserError, match="org/config is not fetched"):
    loading.located("org/config")
  snapshot = lay(cache, "org/weights", hub_models / "t5", "*[!l]")  # No spiece.model.
  assert not (snapshot / "spiece.model").exists()
  assert loading.located("org/weights") == snapshot


def test_without_the_package_a_line_says_what_to_install(cache, monkeypatch):
  monkeypatch.setattr(hub, "_fetched", fetched)
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(UserError, match=r"is no local path.*pip install 'tpv_jax\[hf\]'"):
    loading.load_backbone("org/name")
