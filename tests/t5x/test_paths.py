"""T5X is told folders from the root, however they were spelled; no T5X is needed here."""

import pathlib
import re

import pytest

from tpv_jax.t5x import paths

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("path", ["runs/mine", "./runs/../runs/mine/", "~/runs/mine"])
def test_a_folder_is_told_from_the_root(path, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  assert paths.make_absolute(path) == f"{tmp_path}/runs/mine"


def test_a_folder_in_a_store_stays_as_it_is():
  assert paths.make_absolute("gs://bucket/runs/mine") == "gs://bucket/runs/mine"


def test_no_gin_file_hands_a_folder_on_as_it_was_spelled():
  folder = REPOSITORY / "gin_configs" / "t5x"
  text = "".join(path.read_text() for path in sorted(folder.glob("*.gin")))
  handed_on = re.findall(r"(\S+) = %(?:MODEL|OUTPUT)_DIR", text)
  assert set(handed_on) == {"paths.make_absolute.path"}
