"""safetensors files: what the library writes is read, what is damaged is refused."""

import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tpv_jax.core.errors import UserError
from tpv_jax.io import safetensors as safetensors_io

RNG = np.random.default_rng(0)
LEAVES = {
  "b": RNG.standard_normal((3, 4)).astype(np.float32),
  "a/deep": RNG.standard_normal(5).astype(np.float16),
  "scalar": np.array(2.5, np.float32),
  "none": np.zeros((0, 4), np.float32),
  "half": RNG.standard_normal((2, 2)).astype(ml_dtypes.bfloat16),
}


def same(one, other):
  """Whether two mappings hold the same bits."""
  return one.keys() == other.keys() and all(
    one[name].dtype == other[name].dtype
    and one[name].shape == other[name].shape
    and one[name].tobytes() == other[name].tobytes()
    for name in one
  )


def with_header(header, values=b"\0" * 16):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + values


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "leaves.safetensors"
  safetensors_io.write(path, LEAVES, {"who": "ich, für alle"})
  return path


def test_what_is_written_is_read_bit_by_bit(path):
  metadata, leaves = safetensors_io.read(path)
  assert metadata == {"who": "ich, für alle"}
  assert same(leaves, LEAVES)
  assert path.read_bytes() == safetensors_io.encode(LEAVES, metadata)
  assert same(safetensors_io.decode(path.read_bytes(), "bytes")[1], LEAVES)


def test_the_library_reads_what_is_written_and_the_other_way_round(path, tmp_path):
  assert same(safetensors.numpy.load_file(path), LEAVES)
  theirs = tmp_path / "theirs.safetensors"
  safetensors.numpy.save_file(LEAVES, theirs, {"format": "np"})
  metadata, leaves = safetensors_io.read(theirs)
  assert metadata == {"format": "np"}
  assert same(leaves, LEAVES)


def test_the_order_of_the_leaves_changes_no_byte(path):
  backwards = dict(reversed(LEAVES.items()))
  again = safetensors_io.encode(backwards, {"who": "ich, für alle"})
  assert again == path.read_bytes()


def test_leaves_are_read_one_by_one(tmp_path):
  leaf = np.ones(1 << 20, np.float32)
  path = tmp_path / "many.safetensors"
  safetensors_io.write(path, {f"leaf{n}": leaf for n in range(6)}, {})
  copy = tmp_path / "copy.safetensors"
  tracemalloc.start()
  with safetensors_io.opened(path) as (_, leaves):
    for lazy in leaves.values():
      assert np.array_equal(lazy, leaf)
    safetensors_io.write(copy, leaves, {})
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert copy.read_bytes() == path.read_bytes()
  assert peak < 2.5 * leaf.nbytes  # A leaf, and the comparison's or the file's buffer.


def test_leaves_are_turned_and_cast_as_they_are_read(path):
  with safetensors_io.opened(path) as (_, leaves):
    turned = leaves["b"].transposed().cast(np.dtype(ml_dtypes.bfloat16))
    assert turned.shape == (4, 3)
    assert turned.nbytes == 24
    assert np.asarray(turned).flags.c_contiguous
    assert np.array_equal(turned, LEAVES["b"].T.astype(ml_dtypes.bfloat16))


def test_a_file_in_a_bucket_has_the_same_bytes(path, bucket):
  remote = f"{bucket}/leaves.safetensors"
  safetensors_io.write(remote, LEAVES, {"who": "ich, für alle"})
  metadata, leaves = safetensors_io.read(remote)
  assert same(leaves, LEAVES)
  assert safetensors_io.encode(leaves, metadata) == path.read_bytes()


def test_a_write_that_fails_leaves_nothing(tmp_path, bucket):
  def broken():
    raise OSError("the disk is gone")

  leaf = safetensors_io.Leaf((2,), np.dtype(np.float32), broken)
  for folder in (tmp_path, bucket):
    path = f"{folder}/new.safetensors"
    with pytest.raises(OSError, match="gone"):
      safetensors_io.write(path, {"a": np.zeros(3, np.float32), "b": leaf}, {})
    assert not safetensors_io.files.to_path(path).exists()
  assert list(tmp_path.iterdir()) == []


def test_every_truncation_is_refused(path):
  content = path.read_bytes()
  for kept in range(len(content)):
    with pytest.raises(UserError, match="'x' is no safetensors file, or a trunc"):
      safetensors_io.decode(content[:kept], "x")
  with pytest.raises(UserError, match=f"end at byte {len(content)}, and it has"):
    safetensors_io.decode(content + b"\0", "x")


GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
HUGE = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}


@pytest.mark.parametrize(
  ("header", "expected"),
  [
    ({"a": HUGE}, "end at byte 4398046511"),
    ({"a": {**HUGE, "data_offsets": [0, 16]}}, "needs 4398046511104 bytes"),
    ({"a": {**GOOD, "shape": [-2, -2]}}, r"shape of the leaf 'a' is \[-2, -2\]"),
    ({"a": {**GOOD, "shape": [True, 4]}}, r"shape of the leaf 'a' is \[True, 4\]"),
    ({"a": {**GOOD, "shape": [4.0]}}, r"shape of the leaf 'a' is \[4.0\]"),
    ({"a": {**GOOD, "shape": [0, 1 << 62]}}, "the shape \\[0, 4611686018427387904\\]"),
    ({"a": {**GOOD, "shape": [1 << 32, 0, 1 << 31]}}, "has the shape"),
    ({"a": {**GOOD, "shape": 4}}, "shape of the leaf 'a' is 4"),
    ({"a": {**GOOD, "shape": [1] * 40}}, "has 40 axes"),
    ({"a": {**GOOD, "shape": [3, 2]}}, "needs 24 bytes"),
    ({"a": {**GOOD, "data_offsets": [16, 0]}}, r"its offsets are \[16, 0\]"),
    ({"a": {**GOOD, "data_offsets": [0, 16, 16]}}, "and 3 offsets"),
    ({"a": {**GOOD, "dtype": "F33"}}, "unknown dtype 'F33'"),
    ({"a": {**GOOD, "dtype": None}}, "unknown dtype 'None'"),
    ({"a": {**GOOD, "extra": 1}}, "needs exactly dtype, shape and data_offsets"),
    ({"a": []}, "needs exactly dtype, shape and data_offsets"),
    ({"a": GOOD, "b": GOOD}, "'b' overlaps the leaf before it"),
    ({"a": {**GOOD, "shape": [2], "data_offsets": [8, 16]}}, "'a' leaves a gap"),
    ({"__metadata__": {"a": 1}, "a": GOOD}, "metadata are not strings"),
    ({"__metadata__": [], "a": GOOD}, "metadata are not strings"),
    ({}, "end at byte 10, and it has 26"),
    (b'{"a":1,"a":1}', "states a name twice"),
    (b'{"a":' + b"[" * 100_000, "no safetensors file"),
    (b'{"a":1' + b"0" * 5000 + b"}", "no safetensors file"),
    (b'{"a":\xff}', "can't decode byte"),
    (b'["a"]', "does not begin with a header"),
  ],
)
def test_a_header_that_does_not_describe_the_file_is_refused(header, expected):
  with pytest.raises(UserError, match=expected) as caught:
    safetensors_io.decode(with_header(header), "x")
  assert len(str(caught.value)) < 600


def test_the_length_of_a_header_is_not_believed(tmp_path):
  path = tmp_path / "long.safetensors"
  tracemalloc.start()
  for length in (1 << 62, (1 << 64) - 1, safetensors_io.MAX_HEADER_BYTES, 200):
    path.write_bytes(length.to_bytes(8, "little") + b'{"a": ' + b" " * 50)
    with pytest.raises(UserError, match=r"states a header of|header alone needs"):
      safetensors_io.read(path)
  assert tracemalloc.get_traced_memory()[1] < 1 << 20
  tracemalloc.stop()


def test_other_dtypes_are_refused_by_name(tmp_path):
  path = tmp_path / "wide.safetensors"
  safetensors.numpy.save_file({"wide": np.zeros(2)}, path)
  assert safetensors_io.read_header(path).entries["wide"].dtype == "F64"
  with pytest.raises(
    UserError, match=r"holds the leaf 'wide' in F64; .*F32, F16, BF16"
  ):
    safetensors_io.read(path)
  with pytest.raises(
    UserError, match="'half' in BF16; the only dtypes read here are F32"
  ):
    safetensors_io.decode(
      safetensors_io.encode({"half": LEAVES["half"]}, {}), "x", ("F32",)
    )
  with pytest.raises(UserError, match="Leaf 'wide' is float64"):
    safetensors_io.encode({"wide": np.zeros(2)}, {})


def test_a_pickle_is_not_opened(tmp_path):
  path = tmp_path / "model.bin"
  for start in (b"PK\x03\x04", b"\x80\x02", b"\x80\x05"):
    path.write_bytes(start + b"\0" * 100)
    with pytest.raises(UserError, match=r"model.bin' is a pickle .*torch.load\(\""):
      safetensors_io.read(path)


@pytest.mark.parametrize("size", [1 << 58, 1 << 59, 1 << 62])
def test_an_empty_leaf_is_read_or_refused_however_large_its_other_size(size):
  entry = {"dtype": "F32", "shape": [0, size], "data_offsets": [0, 0]}
  content = with_header({"a": entry}, b"")
  if size < 1 << 59:
    assert safetensors_io.decode(content, "x")[1]["a"].shape == (0, size)
    return
  with pytest.raises(UserError, match=rf"the leaf 'a' has the shape \[0, {size}\]"):
    safetensors_io.decode(content, "x")


@pytest.mark.parametrize("length", [0x280, 0x580])
def test_a_header_as_long_as_a_pickle_begins_is_read(length):
  # Padded to where the length itself reads b"\\x80\\x02", the start of a pickle.
  text = json.dumps({"a": GOOD}).encode().ljust(length)
  assert np.array_equal(
    safetensors_io.decode(with_header(text), "x")[1]["a"], np.zeros((2, 2))
  )


def test_what_is_no_file_is_told(tmp_path, path):
  with pytest.raises(UserError, match=r"does not exist. Did you mean 'leaves.safet"):
    safetensors_io.read(tmp_path / "leave.safetensors")
  with pytest.raises(UserError, match="is a folder"):
    safetensors_io.read(tmp_path)
  with pytest.raises(UserError, match="exists and was left as it is"):
    safetensors_io.write(path, {}, {})
  with pytest.raises(UserError, match=r"does not end in \.safetensors"):
    safetensors_io.write(tmp_path / "x.bin", {}, {})


def test_a_file_cut_while_it_is_read_ends_in_one_line(tmp_path):
  path = tmp_path / "cut.safetensors"
  safetensors_io.write(path, {"a": np.zeros(1 << 20, np.float32)}, {})
  with safetensors_io.opened(path) as (_, leaves):
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="became shorter while it was read"):
      safetensors_io.read_all(leaves)
