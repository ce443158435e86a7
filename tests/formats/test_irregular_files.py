"""A pipe, a device or a folder in place of a file is refused at once, wherever it stands."""

import contextlib
import os
import pathlib
import signal

import hf_references
import numpy as np
import pytest
from fuzz.inputs import backbones, prompts
from fuzz.inputs import vocabularies as tokenizers

from tpv_jax.backbones import loading
from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies
from tpv_jax.formats import sources
from tpv_jax.io import safetensors


@contextlib.contextmanager
def no_hang(seconds=60):
  """Fails if the block waits, instead of waiting with it."""

  def fail(*_):
    raise TimeoutError("it hangs")

  before = signal.signal(signal.SIGALRM, fail)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def hugging_face():
  hf_references.write_folder(pathlib.Path("t5"), "t5")


FOLDERS = {
  "Hugging Face": (hugging_face, "t5", loading.load_backbone),
  "adapter": (prompts._make_adapter, "adapter", sources.load),
  "tokenizer": (tokenizers._make_folder, "", vocabularies.load),
  "checkpoint": (backbones._make_orbax, "checkpoint_1", loading.load_backbone),
  "T5X of 2022": (backbones._make_legacy, "checkpoint_1", loading.load_backbone),
  "run": (prompts._make_run, "run", sources.load),
}
"""What makes each in the current folder, its name, and what reads it."""


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_pipe_in_a_folder_is_refused_or_not_read(tmp_path, monkeypatch, kind):
  make, name, read = FOLDERS[kind]
  monkeypatch.chdir(tmp_path)
  make()
  path = tmp_path / name
  read(path)
  refused = 0
  for file in sorted(p for p in path.rglob("*") if p.is_file()):
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    with no_hang():
      try:
        read(path)
      except UserError:
        refused += 1
    file.unlink()
    file.write_bytes(content)
  assert refused


@pytest.mark.parametrize(
  ("name", "read"),
  [
    *((f"x{ending}", sources.load) for ending in (".safetensors", ".npy", ".npz", "")),
    ("adapter_model.safetensors", sources.load),
    ("x.safetensors", loading.load_backbone),
    ("x.safetensors", safetensors.read_header),
    ("tokenizer.json", vocabularies.load),
    ("words.txt", vocabularies.load),
    ("spiece.model", vocabularies.load),
    ("x.json", files.read_json),
    ("x", files.read_bytes),
  ],
)
def test_a_pipe_or_device_in_place_of_a_file_is_refused(tmp_path, name, read):
  path = tmp_path / name
  os.mkfifo(path)
  with no_hang(), pytest.raises(UserError, match=r"is a pipe|is no |no backbone"):
    read(path)
  path.unlink()
  path.symlink_to("/dev/zero")
  with no_hang(), pytest.raises(UserError, match=r"is a device|is no |no backbone"):
    read(path)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
  with pytest.raises(UserError, match="is a folder, and only regular files are read"):
    files.read_bytes(tmp_path)
  with pytest.raises(FileNotFoundError):
    files.read_bytes(tmp_path / "nothing")
  np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
  (tmp_path / "link.npy").symlink_to("x.npy")  # A link to a file is one.
  assert sources.load(tmp_path / "link.npy").leaves["prompt"].shape == (2, 3)
