"""Atomic writes: the old file, the new one, or none."""

import errno
import json
import os
import pathlib

import pytest

from tpv_jax.core import files
from tpv_jax.core.errors import UserError


def test_a_file_is_written_and_replaced_only_when_told(tmp_path):
  path = tmp_path / "a.json"
  files.write_json(path, {"x": [1, 2]})
  assert json.loads(path.read_text()) == {"x": [1, 2]}
  with pytest.raises(UserError, match="exists and was left as it is"):
    files.write_text(path, "new", overwrite=False)
  files.write_text(path, "new")
  assert path.read_text() == "new"
  assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
  tmp_path, monkeypatch, call
):
  path = tmp_path / "a"
  path.write_bytes(b"old")

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, call, full)
  with pytest.raises(OSError, match="No space left"):
    files.write_bytes(path, b"new")
  assert path.read_bytes() == b"old"
  assert os.listdir(tmp_path) == ["a"]


def test_a_hidden_file_is_no_near_miss_of_another_name(tmp_path):
  for name in (".both.safetensors.lock", "boht.safetensors"):
    (tmp_path / name).touch()
  told = files.missing(tmp_path / "both.safetensors")
  assert told.endswith("Did you mean 'boht.safetensors'? Check the path.")


def test_outputs_that_are_one_file_are_refused(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  files.refuse_same({"OUTPUT": "a.json", "TABLE": "a.csv", "REPORT": None})
  for again in ("a.json", "./a.json", tmp_path / "b" / ".." / "a.json"):
    with pytest.raises(UserError, match=r"OUTPUT and TABLE are one file, .*a\.json"):
      files.refuse_same({"OUTPUT": "a.json", "TABLE": again})


def test_a_new_file_has_the_rights_that_the_umask_leaves(tmp_path):
  previous = os.umask(0o027)
  try:
    files.write_bytes(tmp_path / "a", b"")
  finally:
    os.umask(previous)
  assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
  ("text", "problem"),
  [
    ('{"name": "\\ud83d"}', "surrogates not allowed"),
    (b'{"name": "\xed\xa0\xbd"}', "surrogates not allowed"),
    ("[" * 100_000, "nested too deeply"),
    ("{", "property name"),
  ],
)
def test_json_that_could_not_be_written_again_is_a_value_error(text, problem):
  with pytest.raises(ValueError, match=problem):
    files.parse_json(text)
  assert files.parse_json('{"name": "\\ud83d\\ude00 \u00e9"}') == {
    "name": "\U0001f600 \u00e9"
  }


def test_json_without_a_meaning_is_refused(tmp_path):
  with pytest.raises(ValueError, match="not JSON compliant"):
    files.write_json(tmp_path / "a", float("nan"))
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("nth", [1, 2])
def test_files_that_belong_together_are_all_there_or_none(
  tmp_path, full_disk, call, nth
):
  contents = {tmp_path / "values": b"new", tmp_path / "note": b"new"}
  with full_disk(call, nth), pytest.raises(OSError, match="No space left"):
    files.write_together(contents)
  assert os.listdir(tmp_path) == []
  files.write_together(contents)
  assert sorted(os.listdir(tmp_path)) == ["note", "values"]
  with pytest.raises(UserError, match="exists and was left"):
    files.write_together({**contents, tmp_path / "third": b""})
  assert sorted(os.listdir(tmp_path)) == ["note", "values"]


@pytest.mark.parametrize("nth", [1, 2])
def test_of_old_files_that_belong_together_none_is_replaced_on_a_full_disk(
  tmp_path, full_disk, nth
):
  paths = (tmp_path / "values", tmp_path / "note")
  files.write_together(dict.fromkeys(paths, b"old"))
  with full_disk("fsync", nth), pytest.raises(OSError, match="No space left"):
    files.write_together(dict.fromkeys(paths, b"new"), overwrite=True)
  assert [path.read_bytes() for path in paths] == [b"old", b"old"]
  assert sorted(os.listdir(tmp_path)) == ["note", "values"]


def test_a_new_folder_has_the_rights_that_the_umask_leaves(tmp_path):
  previous = os.umask(0o027)
  try:
    with files.new_folder(tmp_path / "a") as folder:
      (folder / "x").touch()
      assert not (tmp_path / "a").exists()
  finally:
    os.umask(previous)
  assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750
  assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  files.write_text("~/a.txt", "x\n")
  assert (tmp_path / "a.txt").read_text() == "x\n"
  assert files.read_bytes("~/a.txt")
  with pytest.raises(UserError, match="exists"):
    files.refuse_existing("~/a.txt", overwrite=False)
  assert files.absolute("~") == tmp_path
  assert files.to_path("./~/b") == pathlib.Path("./~/b")
  with pytest.raises(UserError, match="'~nobody-of-this-name/a' begins with a home"):
    files.to_path("~nobody-of-this-name/a")


def test_a_path_with_two_dots_is_the_one_that_the_system_finds(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "far" / "away").mkdir(parents=True)
  (tmp_path / "link").symlink_to("far/away")
  for path in ("a/../b", "../b", "link/../b", "b/.."):
    found = files.to_path(path)
    assert ".." not in found.parts
    assert str(found) == os.path.realpath(path)
  assert files.to_path("link/../b") == tmp_path / "far" / "b"
  assert files.to_path("link/b") == pathlib.Path("link/b")
  assert str(files.to_path("gs://bucket/a/../b")) == "gs://bucket/b"


def test_a_path_that_no_file_can_have_is_refused():
  with pytest.raises(UserError, match="NUL character"):
    files.to_path("a\0b")
