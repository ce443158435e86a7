"""The vectors in folders of runs and files."""

import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.formats import collected, sources
from tpv_jax.vectors import algebra


def test_a_run_gives_the_vector_of_its_prompt(make_run):
  run = make_run("run")
  for which in ("best", "last"):
    expected = algebra.diff(sources.load(run, which), sources.load(run, "initial"))
    found = collected.vector(run, which)
    np.testing.assert_array_equal(found.leaves["prompt"], expected.leaves["prompt"])
    assert found.provenance == expected.provenance


def test_a_folder_gives_its_runs_and_files_however_deep_each_once(make_run, tmp_path):
  first, second = make_run("bank/a", "a"), make_run("bank/deep/b", "b", change=2)
  (tmp_path / "bank/vectors").mkdir()
  sources.save(tmp_path / "bank/vectors/a.safetensors", collected.vector(first))
  third = make_run("other", "c", change=3)
  sources.save(tmp_path / "bank/vectors/c.safetensors", collected.vector(third))
  found = collected.collect([tmp_path / "bank"])
  assert [one.name for one in found.vectors] == [
    str(first),
    str(second),
    str(tmp_path / "bank/vectors/c.safetensors"),
  ]
  assert found.left_out == (
    (
      str(tmp_path / "bank/vectors/a.safetensors"),
      f"it has the values of '{first}'",
    ),
  )


def test_what_is_no_vector_is_left_out_of_a_folder_and_refused_by_itself(
  make_run, tmp_path
):
  run = make_run("folder/run")
  alone = tmp_path / "folder/prompt.safetensors"
  sources.save(alone, sources.load(run))
  broken = tmp_path / "folder/broken.safetensors"
  broken.write_bytes(b"no header")
  untrained = make_run("folder/untrained", which=("initial",))
  found = collected.collect([tmp_path / "folder"])
  assert [one.name for one in found.vectors] == [str(run)]
  assert [path for path, _ in found.left_out] == list(
    map(str, (broken, alone, untrained))
  )
  for path in (broken, alone, untrained):
    with pytest.raises(UserError):
      collected.collect([path])


def test_links_that_lead_in_a_circle_and_hidden_folders_are_not_followed(
  make_run, tmp_path
):
  run = make_run("folder/run")
  make_run("folder/.replaced/old", change=5)
  (tmp_path / "folder/again").symlink_to(tmp_path / "folder")
  found = collected.collect([tmp_path / "folder"])
  assert [one.name for one in found.vectors] == [str(run)]
  assert not found.left_out


def test_a_folder_without_anything_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"holds no run and no \.safetensors file"):
    collected.collect([tmp_path])
