"""Cuts a file into parts that travel where one upload is limited, and joins them again.

    python benchmarks/halves.py cut FILE FOLDER          # parts of 55 MB and a digest
    python benchmarks/halves.py join FOLDER/FILE.sha256 FILE

Joining checks the digest. Imports the standard library.
"""

import argparse
import hashlib
import pathlib
import shutil
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tpv_jax.core.errors import UserError, run_command  # noqa: E402

PART_BYTES = 55_000_000
"""Below 64 MiB, with room for what travels beside it."""

DIGEST = ".sha256"


def main() -> int:
  """Cuts or joins; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("what", choices=("cut", "join"))
  parser.add_argument("source", type=pathlib.Path)
  parser.add_argument("target", type=pathlib.Path)
  options = parser.parse_args()
  what = cut if options.what == "cut" else join
  return run_command(lambda: what(options.source, options.target))


def cut(path: pathlib.Path, folder: pathlib.Path, size: int = PART_BYTES) -> None:
  """Writes the parts of a file, FILE.0 and so on, and its digest into a folder."""
  folder.mkdir(parents=True, exist_ok=True)
  digest = hashlib.sha256()
  with path.open("rb") as file:
    for number, part in enumerate(iter(lambda: file.read(size), b"")):
      digest.update(part)
      (folder / f"{path.name}.{number}").write_bytes(part)
  (folder / f"{path.name}{DIGEST}").write_text(f"{digest.hexdigest()}  {path.name}\n")


def join(digest: pathlib.Path, target: pathlib.Path) -> None:
  """Writes the file whose digest and parts lie in a folder.

  Raises:
    UserError: there is no part, or the digest is another one.
  """
  name = digest.name.removesuffix(DIGEST)
  scratch = target.with_name(f".{target.name}")
  number, found = 0, hashlib.sha256()
  with scratch.open("wb") as file:
    while (part := digest.with_name(f"{name}.{number}")).exists():
      found.update(part.read_bytes())
      with part.open("rb") as source:
        shutil.copyfileobj(source, file)
      number += 1
  if found.hexdigest() != digest.read_text().split()[0]:
    scratch.unlink()
    raise UserError(
      f"The {number} parts of '{name}' beside '{digest}' are not the file that was cut: "
      "its digest is another one. Copy them again."
    )
  scratch.replace(target)


if __name__ == "__main__":
  sys.exit(main())
