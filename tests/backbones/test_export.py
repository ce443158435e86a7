"""A pre-training run becomes one file, rounded to what the fingerprint names."""

import ml_dtypes
import numpy as np
import pytest

from tpv_jax import cli
from tpv_jax.backbones import export, loading
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "pretraining"
  tiny.train(
    folder,
    model=tiny.model(prompt=None, trainable=".*"),
    backbone=None,
    initial_prompt=None,
    best_metric=None,
    total_steps=4,
    eval_period=2,
    log_period=2,
  )
  return folder


def test_weights_of_another_vocabulary_are_not_stamped_with_ours(run, tmp_path):
  with pytest.raises(UserError, match="32"):
    export.export(run, tmp_path / "backbone.safetensors", "mine")
  assert not list(tmp_path.iterdir())


def test_the_file_has_the_newest_weights_rounded_to_bf16(
  tiny, run, tmp_path, monkeypatch
):
  monkeypatch.setattr(vocabularies, "embedded", lambda: tiny.vocabulary)
  output = tmp_path / "backbone.safetensors"
  fingerprint = export.export(run, output, "mine")
  trained = loading.load_backbone(run / "checkpoints" / "checkpoint_4")
  stored = loading.load_backbone(output)
  assert stored.name == "mine"
  assert stored.vocabulary == vocabularies.embedded().digest
  assert fingerprint == stored.fingerprint == trained.fingerprint
  there = identity.flatten(trained.params)
  for path, leaf in identity.flatten(stored.params).items():
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(
      leaf, np.asarray(there[path]).astype(ml_dtypes.bfloat16).astype(np.float32)
    )


def test_a_run_without_a_checkpoint_and_an_existing_file_are_refused(
  tiny, run, tmp_path, capsys, monkeypatch
):
  def tpv_export(run, output):
    return cli.main(["export", str(run), "--to", "backbone", "-o", str(output)])

  output = tmp_path / "backbone.safetensors"
  assert tpv_export(tmp_path, output) == 2
  assert "has no checkpoint" in capsys.readouterr().err
  monkeypatch.setattr(vocabularies, "embedded", lambda: tiny.vocabulary)
  output.write_text("mine")
  assert tpv_export(run, output) == 2
  assert "exists" in capsys.readouterr().err
  assert output.read_text() == "mine"
