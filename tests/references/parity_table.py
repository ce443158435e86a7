"""Prints the parity table: what is compared with whom, and the largest difference.

Each row is what a test holds (`MODULES` and, where T5X can be imported, `WITH_T5X`). The
difference is the largest one over the largest value; of tokens it is 0 where all are equal.

  python tests/references/parity_table.py
"""

import importlib.util
import pathlib
import sys

TESTS = pathlib.Path(__file__).parents[1]
MODULES = (
  "backbones/t5/test_parity.py",
  "backbones/test_decoder_parity.py",
  "formats/test_prompt_parity.py",
  "formats/test_causal_prompt_parity.py",
)
WITH_T5X = "t5x/test_converted.py"


def rows(path: str) -> list[tuple[str, str, float]]:
  """Returns (implementation, case, largest relative difference) of one test module."""
  spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, TESTS / path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.parity_rows()


def main() -> None:
  modules = [*MODULES]
  # Looked for before tests/t5x can be found as it.
  if importlib.util.find_spec("t5x") is not None:
    modules.append(WITH_T5X)
  sys.path[:0] = [str(TESTS), str(TESTS.parent)]
  print("| implementation | case | largest relative difference |")
  print("| --- | --- | ---: |")
  for path in modules:
    for implementation, case, difference in rows(path):
      shown = f"{difference:.1e}" if difference else "0"
      print(f"| {implementation} | {case} | {shown} |")


if __name__ == "__main__":
  main()
