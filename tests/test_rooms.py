"""The rooms of the house: each imports only those before it, lazily or not."""

import ast
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "tpv_jax"

ROOMS = (
  *("core", "io", "devices", "prompts", "vectors", "formats", "data", "embedded"),
  *(
    "backbones",
    "encoder_decoder",
    "decoder_only",
    "model",
    "runs",
    "evaluation",
    "training",
    "banks",
    "studies",
  ),
  *("settings", "t5x", "api", "cli", "__main__"),
)
"""In the order of their arrows; those from `encoder_decoder` to `model` are one module each."""

NEVER = {
  "settings": set(ROOMS[2:-1]) - {"devices", "backbones", "settings"},
  "t5x": {"studies", "cli"},
}
"""What comes before a room in the order, and it does without."""


def room_of(module):
  return module.split(".")[1] if "." in module else "facade"


def imported(path):
  """Yields (line, module) of what a file of this package imports from it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}:{node.lineno}: relative"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    yield from ((node.lineno, name) for name in names if name.startswith("tpv_jax"))


FILES = {
  room: [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).with_suffix("").parts[0] == room
  ]
  for room in ROOMS
}


def test_every_file_is_in_a_room():
  inside = {path for paths in FILES.values() for path in paths}
  assert set(PACKAGE.rglob("*.py")) - inside == {PACKAGE / "__init__.py"}
  assert all(FILES.values())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it(room):
  allowed = set(ROOMS[: ROOMS.index(room) + 1]) - NEVER.get(room, set())
  wrong = [
    f"{path.relative_to(PACKAGE)}:{line}: {module}"
    for path in FILES[room]
    for line, module in imported(path)
    if room_of(module) not in allowed
  ]
  assert not wrong


def test_nothing_but_the_facade_imports_the_facade():
  for paths in FILES.values():
    for path in paths:
      assert all(module != "tpv_jax" for _, module in imported(path)), path


def test_contributing_lists_the_rooms_in_their_order():
  text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
  cells = re.findall(r"^\| (`[^|]+`) \|.*\| [^|]+ \|$", text, re.M)
  listed = re.findall(r"`(\w+)(?:/|\.py)`", " ".join(cells[: len(ROOMS)]))
  assert listed == [room for room in ROOMS if room != "__main__"]
