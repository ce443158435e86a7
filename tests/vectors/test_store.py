import errno
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tpv_jax.core.errors import UserError
from tpv_jax.vectors import store
from tpv_jax.vectors.provenance import Provenance, Term

VALUES = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
LEAVES = {"prompt": VALUES}
KNOWN = Provenance(
  kind="vector",
  terms=(Term("sst2", 1.0), Term("rté", -0.5)),
  initial_digest="ab" * 32,
  initial_seed=3,
)
ARRAYS = hnp.arrays(
  np.float32,
  hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
  elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "v.safetensors"
  store.write(path, LEAVES, KNOWN)
  return path


@settings(max_examples=50, deadline=None)
@given(leaves=st.dictionaries(st.text(min_size=1), ARRAYS, min_size=1, max_size=3))
def test_every_bit_and_every_field_come_back(tmp_path_factory, leaves):
  leaves.pop("__metadata__", None)
  path = tmp_path_factory.mktemp("round") / "v.safetensors"
  if not leaves:
    return
  store.write(path, leaves, KNOWN)
  read, provenance = store.read(path)
  assert provenance == KNOWN
  assert {k: (v.shape, v.dtype, v.tobytes()) for k, v in read.items()} == {
    k: (v.shape, np.dtype(np.float32), v.tobytes()) for k, v in leaves.items()
  }


def test_any_reader_of_safetensors_opens_the_file(path):
  np.testing.assert_array_equal(
    safetensors.numpy.load_file(path)["prompt"], LEAVES["prompt"]
  )
  with safetensors.safe_open(path, "np") as file:
    metadata = file.metadata()
  assert set(metadata) == {"content_digest", "format", "provenance", "written_by"}
  terms = json.loads(metadata["provenance"])["terms"]
  assert terms == [
    {"task": "sst2", "coefficient": 1.0},
    {"task": "rté", "coefficient": -0.5},
  ]


def test_the_content_digest_is_that_of_the_file_without_it(path):
  content = path.read_bytes()
  with safetensors.safe_open(path, "np") as file:
    stated = file.metadata()["content_digest"]
  assert content.count(stated.encode()) == 1
  zeroed = content.replace(stated.encode(), b"0" * 64)
  assert hashlib.sha256(zeroed).hexdigest() == stated == store.content_digest(path)


def test_equal_content_gives_equal_bytes(path, tmp_path):
  other = tmp_path / "other.safetensors"
  store.write(other, {"prompt": np.asfortranarray(VALUES)}, KNOWN)
  assert other.read_bytes() == path.read_bytes()


def test_narrow_floats_are_widened_exactly(tmp_path):
  for dtype in (np.float16, ml_dtypes.bfloat16, ">f4"):
    leaf = VALUES.astype(dtype)
    store.write(tmp_path / "v.safetensors", {"prompt": leaf}, KNOWN, overwrite=True)
    read = store.read(tmp_path / "v.safetensors")[0]["prompt"]
    np.testing.assert_array_equal(read, leaf.astype(np.float32))


def test_a_read_array_may_be_changed(path):
  leaves, _ = store.read(path)
  leaves["prompt"][0, 0] = 1.0


def test_no_byte_can_change_unseen(path, tmp_path):
  content = path.read_bytes()
  changed = tmp_path / "changed.safetensors"
  for position in range(len(content)):
    broken = bytearray(content)
    broken[position] ^= 1 << position % 8
    changed.write_bytes(broken)
    with pytest.raises(UserError, match=r"changed\.safetensors"):
      store.read(changed)


def test_no_file_cut_short_or_lengthened_is_read(path, tmp_path):
  content = path.read_bytes()
  changed = tmp_path / "changed.safetensors"
  for kept in [*range(0, len(content), 7), len(content) - 1]:
    changed.write_bytes(content[:kept])
    with pytest.raises(UserError, match=r"truncated"):
      store.read(changed)
  changed.write_bytes(content + b"\0")
  with pytest.raises(UserError, match=r"truncated, damaged or changed"):
    store.read(changed)


def resealed(content: bytes, old: bytes, new: bytes) -> bytes:
  """The file with other, equally long content and a digest that fits it."""
  assert len(old) == len(new)
  assert content.count(old) == 1
  changed = content.replace(old, new)
  stated = re.search(rb'"content_digest":"(\w{64})"', changed)[1]
  zeroed = changed.replace(stated, b"0" * 64)
  return changed.replace(stated, hashlib.sha256(zeroed).hexdigest().encode())


@pytest.mark.parametrize(
  ("old", "new", "expected"),
  [
    (b'"tpv_jax 1"', b'"tpv_jax 2"', r"its format is 'tpv_jax 2', not 'tpv_jax 1'"),
    (b'\\"vector\\"', b'\\"matrix\\"', r"neither 'prompt' nor 'vector'"),
    (b'\\"steps\\"', b'\\"stops\\"', r"unknown or missing fields: steps, stops"),
    (b'"provenance"', b'"provenence"', r"cannot be read"),
    # Half of a surrogate pair, which could be neither printed nor written again.
    (b"ab" * 32, rb"\\ud83d" + b"a" * 57, r"surrogates not allowed"),
  ],
)
def test_a_whole_file_of_another_version_says_so(path, old, new, expected):
  path.write_bytes(resealed(path.read_bytes(), old, new))
  with pytest.raises(UserError, match=expected) as bad:
    store.read(path)
  assert "Read it with the version that wrote it" in str(bad.value)


def test_a_resealed_file_without_a_change_is_read(path):
  path.write_bytes(resealed(path.read_bytes(), b"sst2", b"sst5"))
  assert store.read(path)[1].terms[0] == Term("sst5", 1.0)


def test_a_safetensors_file_of_another_tool_is_refused(tmp_path):
  path = tmp_path / "adapter.safetensors"
  for metadata in (None, {"format": "pt"}):
    safetensors.numpy.save_file(LEAVES, path, metadata=metadata)
    with pytest.raises(UserError, match=r"no prompt or vector of tpv_jax.*its origin"):
      store.read(path)


def test_a_header_that_claims_terabytes_is_refused_at_once(tmp_path):
  path = tmp_path / "v.safetensors"
  path.write_bytes((1 << 42).to_bytes(8, "little") + b'{"prompt":{}}')
  with pytest.raises(UserError, match=r"states a header of 4398046511104 bytes"):
    store.read(path)


@pytest.mark.parametrize(
  ("old", "new", "expected"),
  [
    (b'"F32"', b'"I32"', r"'prompt' in I32; the only dtypes read here are F32"),
    (b'"shape":[3,5]', b'"shape":[9,5]', r"in F32 needs 180 bytes"),
  ],
)
def test_a_leaf_that_is_not_what_its_values_are_is_refused(path, old, new, expected):
  path.write_bytes(resealed(path.read_bytes(), old, new))
  with pytest.raises(UserError, match=expected):
    store.read(path)


def test_pickles_are_refused_and_never_run(tmp_path):
  flag = tmp_path / "it_ran"

  class Evil:
    def __reduce__(self):
      return os.mkdir, (str(flag),)

  plain = tmp_path / "prompt.pkl"
  plain.write_bytes(pickle.dumps(Evil()))
  zipped = tmp_path / "prompt.pt"
  with zipfile.ZipFile(zipped, "w") as file:
    file.writestr("data.pkl", pickle.dumps(Evil()))
  for path in (plain, zipped):
    with pytest.raises(UserError, match=r"pickle.*can run any code"):
      store.read(path)
  assert not flag.exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"prompt" * 100, b"\0" * 100])
def test_other_files_are_refused(tmp_path, content):
  path = tmp_path / "x.txt"
  path.write_bytes(content)
  with pytest.raises(UserError, match=r"truncated or no prompt|no safetensors file"):
    store.read(path)


def test_a_missing_file_names_its_near_misses(path):
  with pytest.raises(UserError, match=r"does not exist. Did you mean 'v.safetensors'"):
    store.read(path.with_name("w.safetensors"))
  expected = (
    r"nowhere/v.safetensors' does not exist, because there is no '.*nowhere'\. Check"
  )
  with pytest.raises(UserError, match=expected):
    store.read(path.parent / "nowhere" / "v.safetensors")


def test_a_folder_is_refused(tmp_path):
  with pytest.raises(UserError, match="is a folder"):
    store.read(tmp_path)


def test_an_existing_output_is_kept_unless_overwriting_is_asked(path):
  before = path.read_bytes()
  with pytest.raises(UserError, match=r"exists and was left as it is.*overwrite=True"):
    store.write(path, {"prompt": VALUES * 2}, KNOWN)
  assert path.read_bytes() == before
  store.write(path, {"prompt": VALUES * 2}, KNOWN, overwrite=True)
  np.testing.assert_array_equal(store.read(path)[0]["prompt"], VALUES * 2)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_device_leaves_the_old_file_and_nothing_else(path, monkeypatch, call):
  before = path.read_bytes()

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, call, full)
  for output in (path, path.with_name("new.safetensors")):
    with pytest.raises(OSError, match="No space left"):
      store.write(output, {"prompt": VALUES * 2}, KNOWN, overwrite=True)
  assert os.listdir(path.parent) == ["v.safetensors"]
  assert path.read_bytes() == before


@pytest.mark.parametrize(
  ("leaves", "expected"),
  [
    ({}, "no leaves"),
    (
      {"prompt": np.float32([[1, np.nan], [np.inf, 2]])},
      r"2 values.*first at \(0, 1\)",
    ),
    ({"prompt": np.zeros((2, 2))}, "is float64"),
    ({"prompt": np.zeros((2, 2), np.int32)}, "is int32"),
    ({"prompt": np.zeros((0, 2), np.float32)}, r"shape \(0, 2\) is empty"),
    ({"": np.zeros(2, np.float32)}, "cannot be named ''"),
    ({"__metadata__": np.zeros(2, np.float32)}, "cannot be named '__metadata__'"),
  ],
)
def test_leaves_that_are_no_prompt_are_refused_and_nothing_is_written(
  tmp_path, leaves, expected
):
  with pytest.raises(UserError, match=expected):
    store.write(tmp_path / "v.safetensors", leaves, KNOWN)
  assert os.listdir(tmp_path) == []


def test_an_output_that_cannot_be_is_refused(tmp_path):
  (tmp_path / "folder.safetensors").mkdir()
  for name, expected in {
    "v.npz": "does not end in .safetensors",
    "nowhere/v.safetensors": "folder '.*nowhere' does not exist",
    "folder.safetensors": "is a folder",
  }.items():
    with pytest.raises(UserError, match=expected):
      store.write(tmp_path / name, LEAVES, KNOWN, overwrite=True)


def test_a_header_too_long_to_be_read_is_not_written(tmp_path):
  known = Provenance(kind="vector", notes=("x" * store.MAX_HEADER_BYTES,))
  with pytest.raises(UserError, match="Shorten the notes"):
    store.write(tmp_path / "v.safetensors", LEAVES, known)


def test_a_writer_killed_at_the_rename_leaves_no_readable_half(path):
  code = (
    "import os, sys, numpy as np\n"
    "from tpv_jax.vectors import store, provenance\n"
    "os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
    "leaves = {'prompt': np.zeros((3, 5), np.float32)}\n"
    "known = provenance.Provenance(kind='vector')\n"
    "store.write(sys.argv[1], leaves, known, overwrite=True)\n"
  )
  before = path.read_bytes()
  killed = subprocess.run([sys.executable, "-c", code, path], check=False)
  assert killed.returncode == -9
  assert path.read_bytes() == before


@pytest.mark.parametrize(
  ("known", "leaves", "problem"),
  [
    (
      {"space": "factor", "method": "ept"},
      ["prompt"],
      "of the factor space, and holds p",
    ),
    (
      {},
      ["short_prompt", "low_rank_a"],
      "of the effective space, and holds low_rank_a, ",
    ),
    (
      {"method": "ept", "space": "factor"},
      ["short_prompt"],
      "a ept prompt, and holds s",
    ),
    (
      {"steps": 0, "initial_digest": "0" * 64},
      ["prompt"],
      "the initial prompt 00000000",
    ),
  ],
)
def test_what_a_file_says_of_itself_is_held_against_its_values(
  tmp_path, known, leaves, problem
):
  path = tmp_path / "p.safetensors"
  shapes = {"low_rank_a": (5, 2)}
  values = {name: np.ones(shapes.get(name, (3, 4)), np.float32) for name in leaves}
  store.write(path, values, Provenance(kind="prompt", **known))
  with pytest.raises(UserError, match=f"says that it is {problem}"):
    store.read(path)
