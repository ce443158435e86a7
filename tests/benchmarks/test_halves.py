"""A file that was cut is joined to the same bytes, or refused."""

import importlib
import pathlib

import pytest

from tpv_jax.core.errors import UserError

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def halves(monkeypatch):
  monkeypatch.syspath_prepend(FOLDER)
  return importlib.import_module("halves")


@pytest.mark.parametrize("length", [0, 5, 10, 11])
def test_parts_make_the_file_again(halves, tmp_path, length):
  source = tmp_path / "model.whl"
  source.write_bytes(bytes(range(length)))
  halves.cut(source, tmp_path / "carried", size=5)
  parts = sorted(path.name for path in (tmp_path / "carried").iterdir())
  assert len(parts) == 1 + -(-length // 5)
  halves.join(tmp_path / "carried/model.whl.sha256", tmp_path / "again.whl")
  assert (tmp_path / "again.whl").read_bytes() == source.read_bytes()


def test_parts_that_lack_or_differ_are_refused_and_nothing_is_left(halves, tmp_path):
  source = tmp_path / "model.whl"
  source.write_bytes(bytes(range(9)))
  for damage in (lambda part: part.unlink(), lambda part: part.write_bytes(b"other")):
    halves.cut(source, tmp_path / "carried", size=5)
    damage(tmp_path / "carried/model.whl.1")
    with pytest.raises(UserError, match=r"parts of 'model\.whl'"):
      halves.join(tmp_path / "carried/model.whl.sha256", tmp_path / "again.whl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["carried", "model.whl"]
