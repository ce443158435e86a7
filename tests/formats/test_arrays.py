"""Prompts as .npy, .npz and other tools' .safetensors: bit for bit, or refused."""

import dataclasses
import io
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from tpv_jax import cli
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.formats import arrays, sources
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import Provenance, Term

RNG = np.random.default_rng(0)
PROMPT = RNG.standard_normal((4, 6)).astype(np.float32)
DEPT = {
  "prompt_embeddings": RNG.standard_normal((3, 6)).astype(np.float32),
  "prompt_encoder.lora_embedding_A": RNG.standard_normal((5, 2)).astype(np.float32),
  "prompt_encoder.lora_embedding_B": RNG.standard_normal((2, 6)).astype(np.float32),
}
UNKNOWN = Provenance(kind="prompt", terms=(Term(None, 1.0),))


@pytest.fixture
def npy(tmp_path):
  """The function (array) -> a .npy file that NumPy wrote."""

  def write(array, **options):
    np.save(tmp_path / "prompt.npy", array, **options)
    return tmp_path / "prompt.npy"

  return write


@pytest.fixture
def npz(tmp_path):
  """The function (arrays) -> a .npz file that NumPy wrote."""

  def write(some, compressed=False):
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "prompts.npz", **some)
    return tmp_path / "prompts.npz"

  return write


def refused(path, pattern):
  with pytest.raises(UserError, match=pattern) as caught:
    sources.load(path)
  assert "\n" not in str(caught.value)


def with_header(header, values, version=1):
  text = header if isinstance(header, bytes) else header.encode()
  return (
    b"\x93NUMPY"
    + bytes([version, 0])
    + len(text).to_bytes(2 if version == 1 else 4, "little")
    + text
    + values
  )


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_npy_file_is_a_prompt_bit_for_bit_whatever_its_layout(npy, shape, order):
  path = npy(np.asarray(PROMPT.reshape(shape), order=order))
  loaded = sources.load(path)
  assert loaded.leaves["prompt"].tobytes() == PROMPT.tobytes()
  assert loaded.leaves["prompt"].shape == (4, 6)
  assert loaded.provenance == UNKNOWN


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", ">f8"])
def test_other_dtypes_are_read_where_no_value_changes(npy, dtype):
  values = PROMPT.astype("<f2").astype(dtype)
  found = sources.load(npy(values)).leaves["prompt"]
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, values.astype(np.float64))


@pytest.mark.parametrize(
  ("array", "pattern"),
  [
    (PROMPT.astype(np.float64) + 1e-12, r"values in float64, which fp32 would round"),
    (np.full((2, 2), 1e39), r"values in float64, which fp32 would round"),
    (np.ones((2, 2), np.int32), r"holds int32 values, not floating-point"),
    (np.ones((2, 2), "V2"), r"bf16 is written so.*Save them as fp32"),
    (np.ones(6, np.float32), r"is no prompt: it holds prompt \[6\]"),
    (np.ones((2, 3, 4), np.float32), r"is no prompt: it holds prompt \[2, 3, 4\]"),
    (np.ones((0, 4), np.float32), r"without values"),
    (np.float32([[1, np.nan]]), r"1 values that are NaN or infinite"),
    (np.float64([[1, np.inf]]), r"1 values that are NaN or infinite"),
  ],
)
def test_arrays_that_are_no_prompt_are_refused(npy, array, pattern):
  refused(npy(array), pattern)


def test_object_arrays_are_never_opened_and_say_how_to_save_them(npy, npz):
  class Evil:
    def __reduce__(self):
      return (pytest.fail, ("a pickle was run",))

  evil = np.array([Evil()], dtype=object)
  refused(npy(evil, allow_pickle=True), r"Python objects.*can run any code.*np.save")
  refused(npz({"a": evil}), r"npz:a.npy' holds Python objects.*never opened")


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.pkl", "x.npy", "x.npz"])
def test_pickles_are_never_opened_and_the_message_says_how_to_make_them_safe(
  tmp_path, name
):
  (tmp_path / name).write_bytes(pickle.dumps({"prompt": PROMPT}))
  refused(tmp_path / name, r"never opened.*save_file\(|is no .npz file")
  with zipfile.ZipFile(tmp_path / name, "w") as archive:  # As torch.save makes them.
    archive.writestr("archive/data.pkl", b"")
  refused(tmp_path / name, r"never opened.*save_file\(")


def test_a_converted_pickle_is_read_by_the_names_of_depts_code(tmp_path):
  path = tmp_path / "dept.safetensors"
  safetensors.numpy.save_file(DEPT, path, {"format": "pt"})
  loaded = sources.load(path)
  assert loaded.provenance == dataclasses.replace(
    UNKNOWN, method="dept", space="factor", alpha=None
  )
  for ours, theirs in zip(
    ("short_prompt", "low_rank_a", "low_rank_b"), DEPT, strict=True
  ):
    np.testing.assert_array_equal(loaded.leaves[ours], DEPT[theirs])
  with pytest.raises(UserError, match="does not state their alpha"):
    algebra.fold(loaded)
  delta = algebra.fold(sources.with_alpha(loaded, 8.0)).leaves["delta"]
  a, b = list(DEPT.values())[1:]
  np.testing.assert_allclose(delta, 8 / np.sqrt(2) * a @ b, rtol=1e-5)


@pytest.mark.parametrize("compressed", [False, True])
def test_one_prompt_of_several_is_chosen_by_name(npz, compressed):
  some = {"SST2": PROMPT, "RTE": -PROMPT}
  some |= {f"cola/{name}": leaf for name, leaf in DEPT.items()}
  some |= {"nq/prompt_embeddings": 2 * PROMPT}
  path = npz(some, compressed)
  assert arrays.prompts(path) == ["RTE", "SST2", "cola", "nq"]
  np.testing.assert_array_equal(sources.load(f"{path}:RTE").leaves["prompt"], -PROMPT)
  np.testing.assert_array_equal(sources.load(f"{path}:nq").leaves["prompt"], 2 * PROMPT)
  assert set(sources.load(f"{path}:cola").leaves) == {
    "short_prompt",
    "low_rank_a",
    "low_rank_b",
  }
  refused(path, r"holds 4 prompts or other arrays: say which.* RTE, SST2, cola, nq\.")
  refused(f"{path}:SST", r"has no prompt 'SST'\. Did you mean 'SST2'\?")


@pytest.mark.parametrize(
  "changed",
  [
    {"prompt_encoder.lora_embedding_A": np.ones((5, 3), np.float32)},
    {"prompt_encoder.lora_embedding_B": None},
    {"prompt_encoder.lora_embedding_B": np.ones((2, 7), np.float32)},
    {"fusion_query": np.ones((6, 2), np.float32)},
    {"delta": np.ones((5, 6), np.float32)},
    {"short_prompt": np.ones((3, 6), np.float32)},
  ],
)
def test_leaves_that_do_not_fit_each_other_are_refused(npz, changed):
  some = {name: leaf for name, leaf in (DEPT | changed).items() if leaf is not None}
  refused(npz(some), "is no prompt: it holds")


def test_fusion_without_the_update_that_it_attends_to_is_refused(npz, ept_initial):
  leaves = dict(ept_initial(0).leaves)
  del leaves["low_rank_a"], leaves["low_rank_b"]
  refused(npz(leaves), "is no prompt: it holds")


def test_a_leaf_given_under_two_names_is_refused(npz):
  refused(npz({"prompt": PROMPT, "prompt_embeddings": PROMPT}), "second array for")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_in_the_archive_is_refused(npz):
  path = npz({"a": PROMPT})
  with zipfile.ZipFile(path, "a") as archive:
    archive.writestr("a.npy", archive.read("a.npy"))
  refused(path, "holds a name twice")


def test_what_is_exported_is_imported_bit_for_bit_with_its_provenance(
  initial_prompt, tuned_prompt, ept_initial, ept_tuned, tmp_path
):
  prompt = tuned_prompt(initial_prompt(0), "sst2", 1)
  ept = ept_tuned(ept_initial(0), "rte", 2)
  items = {
    "plain.npy": prompt,
    "plain.npz": prompt,
    "vector.npy": algebra.diff(prompt, initial_prompt(0)),
    "ept.npz": ept,
    "folded.npz": algebra.fold(ept),
  }
  for name, item in items.items():
    arrays.write(tmp_path / name, item)
    again = sources.load(tmp_path / name)
    assert again.provenance == item.provenance
    assert again.leaves.keys() == item.leaves.keys()
    for leaf, values in item.leaves.items():
      assert again.leaves[leaf].tobytes() == values.tobytes()
  # NumPy reads them by itself.
  np.testing.assert_array_equal(
    np.load(tmp_path / "plain.npy"), prompt.leaves["prompt"]
  )
  with np.load(tmp_path / "ept.npz") as file:
    assert set(file.files) == set(ept.leaves)


def test_equal_content_gives_equal_bytes(ept_initial, tmp_path):
  for name in ("a.npz", "b.npz"):
    arrays.write(tmp_path / name, ept_initial(0))
  assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_npy_file_has_no_place_for_a_delta(ept_initial, tmp_path):
  folded = algebra.fold(ept_initial(0))
  with pytest.raises(UserError, match=r"holds one array.*delta, prompt.*--to npz"):
    arrays.write(tmp_path / "x.npy", folded)
  assert list(tmp_path.iterdir()) == []


def test_provenance_of_other_values_is_refused(initial_prompt, tmp_path):
  path = tmp_path / "x.npy"
  arrays.write(path, initial_prompt(0))
  np.save(path, PROMPT)
  refused(path, r"x.npy.json' states the provenance of other values \(digest .*Remove")
  beside = tmp_path / "x.npy.json"
  arrays.write(path, initial_prompt(0), overwrite=True)
  content = json.loads(beside.read_text())
  for text in ("{", "[]", "{}", json.dumps({**content, "format": "x"})):
    beside.write_text(text)
    refused(path, r"x.npy.json' (is no JSON object|does not state the provenance)")
  beside.write_text(" " * (1 << 21))
  refused(path, "has more than 1048576 bytes")


def test_an_existing_file_or_note_is_left_alone(initial_prompt, tmp_path):
  for existing in ("x.npy", "x.npy.json"):
    (tmp_path / existing).write_text("mine")
    with pytest.raises(UserError, match="exists and was left"):
      arrays.check_output(tmp_path / "x.npy")
    with pytest.raises(UserError, match=rf"{existing}' exists and was left"):
      arrays.write(tmp_path / "x.npy", initial_prompt(0))
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    (tmp_path / existing).unlink()
  with pytest.raises(UserError, match=r"ends neither in .npy nor in .npz"):
    arrays.write(tmp_path / "x.bin", initial_prompt(0))


def test_nothing_is_left_of_a_write_that_failed(initial_prompt, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(arrays.sidecar, "encode", full)
  with pytest.raises(OSError, match="No space"):
    arrays.write(tmp_path / "x.npy", initial_prompt(0))
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nth", [1, 2])
def test_on_a_full_disk_nothing_is_left_and_nothing_replaced(
  initial_prompt, tmp_path, full_disk, nth
):
  path, first, second = tmp_path / "x.npy", initial_prompt(0), initial_prompt(1)
  with full_disk("fsync", nth), pytest.raises(OSError, match="No space"):
    arrays.write(path, first)
  assert list(tmp_path.iterdir()) == []
  arrays.write(path, first)
  with full_disk("fsync", nth), pytest.raises(OSError, match="No space"):
    arrays.write(path, second, overwrite=True)
  again = sources.load(path)
  assert again.provenance == first.provenance
  assert again.leaves["prompt"].tobytes() == first.leaves["prompt"].tobytes()
  assert len(list(tmp_path.iterdir())) == 2


def test_old_values_beside_a_new_note_are_refused_with_what_to_do(
  initial_prompt, tmp_path, full_disk
):
  path = tmp_path / "x.npy"
  arrays.write(path, initial_prompt(0))
  with full_disk("replace", 2), pytest.raises(OSError, match="No space"):
    arrays.write(path, initial_prompt(1), overwrite=True)
  refused(path, "if an export with --overwrite was stopped, repeat it")
  arrays.write(path, initial_prompt(1), overwrite=True)
  assert sources.load(path).provenance == initial_prompt(1).provenance


HEADER = "{{'descr': '<f4', 'fortran_order': False, 'shape': {}, }}"


@pytest.mark.parametrize(
  ("header", "pattern"),
  [
    (
      HEADER.format("(250000000000, 768)"),
      r"needs 768000000000000 bytes, and 96 follow",
    ),
    (HEADER.format("(4, 7)"), r"\[4, 7\] of float32 needs 112 bytes, and 96 follow"),
    (HEADER.format("(-4, -6)"), r"its shape is \(-4, -6\)"),
    (HEADER.format("(4.0, 6)"), r"its shape is \(4.0, 6\)"),
    (HEADER.format("(9" + "9" * 30 + ", 1)"), r"its shape is"),
    (HEADER.format("(4, 6)").replace("<f4", "<f3"), r"of the kind '<f3'"),
    (HEADER.format("(4, 6)").replace("'<f4'", "[('a', '<f4')]"), r"of the kind"),
    (HEADER.format("(4, 6)").replace("False", "None"), r"its shape is"),
    (HEADER.format("(0, 4611686018427387904)"), r"its shape is \(0, 4611686"),
    (HEADER.format("__import__('os')"), r"its header is not a dictionary"),
    ("(" * 5000, r"its header is not a dictionary"),
    (HEADER.format("(4, 6)") + " " * 20_000, r"it states a header of 200\d\d bytes"),
    ("{}", r"needs exactly descr, fortran_order and shape"),
    (b"\xff\xfe", r"its header is not a dictionary"),
  ],
)
@pytest.mark.parametrize("version", [1, 3])
def test_a_header_is_checked_before_memory_is_asked_for(
  tmp_path, header, pattern, version
):
  path = tmp_path / "x.npy"
  path.write_bytes(with_header(header, PROMPT.tobytes(), version))
  tracemalloc.start()
  refused(
    path, pattern if header != b"\xff\xfe" or version == 1 else "x.npy' is no .npy"
  )
  assert tracemalloc.get_traced_memory()[1] < 3 << 20
  tracemalloc.stop()


@pytest.mark.parametrize("descr", ["<f2", "<f4", "<f8", "<f16"])
@pytest.mark.parametrize("size", [1 << bits for bits in range(56, 63)])
def test_an_array_without_values_is_refused_whatever_its_other_size(
  tmp_path, descr, size
):
  header = HEADER.format(f"({size}, 0)").replace("<f4", descr)
  (tmp_path / "x.npy").write_bytes(with_header(header, b""))
  refused(tmp_path / "x.npy", r"its shape is|without values")


def test_every_truncation_is_refused(npy, npz):
  for path in (npy(PROMPT), npz({"a": PROMPT}), npz({"a": PROMPT}, compressed=True)):
    content = path.read_bytes()
    for size in range(0, len(content), 5):
      path.write_bytes(content[:size])
      refused(path, "is no .np[yz] file, or a truncated|holds no array")
    path.write_bytes(content)
    sources.load(path)


def test_a_member_that_claims_more_than_it_holds_is_refused(tmp_path):
  def zipped(content, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
      archive.writestr("a.npy", content)
    return tmp_path / "x.npz"

  tracemalloc.start()
  huge = with_header(HEADER.format("(500, 1000000)"), bytes(4096))
  refused(zipped(huge), r"needs 2000000000 bytes, and 4096 follow")
  # The archive may lie about it too: what counts is what comes out.
  size = len(with_header(HEADER.format("(4, 6)"), PROMPT.tobytes()))
  content = with_header(HEADER.format("(500, 1000000)"), PROMPT.tobytes())
  path = zipped(content)
  stated = len(content).to_bytes(4, "little")
  claimed = (len(content) - 96 + 2_000_000_000).to_bytes(4, "little")
  assert size < len(content)
  assert path.read_bytes().count(stated) == 2
  path.write_bytes(path.read_bytes().replace(stated, claimed))
  refused(path, r"values of 2000000000 bytes in fp32, and a prompt has at most")
  assert tracemalloc.get_traced_memory()[1] < 8 << 20
  tracemalloc.stop()
  content = with_header(HEADER.format("(4, 6)"), PROMPT.tobytes())
  refused(zipped(content, zipfile.ZIP_BZIP2), "compressed with an unknown method")
  damaged = bytearray(zipped(content, zipfile.ZIP_STORED).read_bytes())
  damaged[damaged.index(PROMPT.tobytes()) + 5] ^= 1
  (tmp_path / "x.npz").write_bytes(damaged)
  refused(tmp_path / "x.npz", "Bad CRC-32")


def test_a_prompt_larger_than_any_is_refused(npy, monkeypatch):
  monkeypatch.setattr(arrays, "MAX_BYTES", 95)
  refused(npy(PROMPT), "values of 96 bytes in fp32, and a prompt has at most 95")


def advised(path):
  """Returns the command that a message advises, as it is printed."""
  with pytest.raises(UserError) as caught:
    sources.load(path)
  return re.search(r"python -c '.*'$", str(caught.value).strip())[0]


def run(command, folder, **environment):
  """Runs a command in a shell whose `python` is this one."""
  path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  environment = {**os.environ, "PATH": path, **environment}
  subprocess.run(command, shell=True, check=True, cwd=folder, env=environment)


def move_to_gpu(path):
  """Makes of a file of `torch.save` what it is when its tensors were on a GPU."""
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    for name, content in members.items():
      cpu, gpu = b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"
      assert not name.endswith("data.pkl") or cpu in content
      archive.writestr(name, content.replace(cpu, gpu))


@pytest.mark.parametrize("kind", ["dict", "tensor", "parameter", "checkpoint", "batch"])
def test_the_command_for_a_pickle_saves_it_as_printed(tmp_path, kind):
  torch = pytest.importorskip("torch", reason="torch is not installed (extra 'parity')")
  turned = torch.tensor(PROMPT.T.copy()).T  # in no order that can be stored as it is
  path = tmp_path / 'it\'s a "prompt".pt'
  saved = {
    "dict": {"prompt": turned, "epoch": 3},
    "tensor": turned,
    "parameter": torch.nn.Parameter(turned),
    "checkpoint": {"state_dict": {"prompt": turned}, "step": 7},
    "batch": turned[None],
  }[kind]
  torch.save(saved, path)
  move_to_gpu(path)
  run(advised(path), tmp_path)
  found = sources.load(path.with_suffix(".safetensors")).leaves["prompt"]
  np.testing.assert_array_equal(found, PROMPT)


STAND_IN = """
import numpy
class Tensor(numpy.ndarray):
  def detach(self): return self
  clone = contiguous = detach
is_tensor = lambda x: isinstance(x, Tensor)
def load(path, map_location, weights_only):
  assert map_location == "cpu" and weights_only is True and open(path, "rb").read(2)
  return numpy.ones((2, 3), "f4").view(Tensor)
"""


def test_the_command_for_a_pickle_is_one_that_a_shell_runs(tmp_path):
  # The same with a stand-in for torch, which is not installed everywhere.
  modules = {"torch.py": STAND_IN, "safetensors/__init__.py": ""}
  modules["safetensors/torch.py"] = (
    "def save_file(x, path): print(sorted(x), file=open(path, 'w'))"
  )
  (tmp_path / "safetensors").mkdir()
  for name, content in modules.items():
    (tmp_path / name).write_text(content)
  path = tmp_path / 'it\'s $HOME "x".pt'
  path.write_bytes(b"PK\x03\x04")
  run(advised(path), tmp_path, PYTHONPATH=str(tmp_path))
  assert path.with_suffix(".safetensors").read_text() == "['prompt']\n"


@pytest.mark.parametrize(
  ("array", "saved"),
  [
    (np.int32([[1, 2]]), "OUT.npy"),
    (np.float64([[0.1, 0.2]]), "OUT.npy"),
    (
      np.float32([[1.5, -2]]).view("V4").view("u2")[:, 1::2].copy().view("V2"),
      "OUT.npy",
    ),
    (np.array([[1, 2]], dtype=object), "OUT.npz"),
    (np.array({"prompt": [[1, 2]]}, dtype=object), "OUT.npz"),
  ],
)
def test_the_command_for_values_of_another_kind_saves_them_as_printed(
  npy, npz, tmp_path, array, saved
):
  expected = np.float32([[1.5, -2]]) if array.dtype == "V2" else None
  for path in (npy(array), npz({"a": array})):
    run(advised(path), tmp_path)
    found = sources.load(tmp_path / saved).leaves["prompt"]
    if expected is None:
      held = array.tolist()
      held = held["prompt"] if isinstance(held, dict) else held
      expected = np.asarray(held, np.float32)
    np.testing.assert_array_equal(found, expected)
    (tmp_path / saved).unlink()


def test_a_small_file_that_unpacks_to_more_than_any_prompt_is_refused(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(arrays, "MAX_BYTES", (1 << 24) - 1)
  header = with_header(HEADER.format("(2048, 2048)"), b"")
  with (
    zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
    archive.open("prompt.npy", "w", force_zip64=True) as member,
  ):
    member.write(header)
    member.write(bytes(1 << 24))
  assert (tmp_path / "x.npz").stat().st_size < 1 << 15
  tracemalloc.start()
  refused(tmp_path / "x.npz", "values of 16777216 bytes in fp32, and a prompt has")
  assert tracemalloc.get_traced_memory()[1] < 4 << 20
  tracemalloc.stop()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_reading_takes_little_more_than_the_values(npz, dtype, order, monkeypatch):
  monkeypatch.setattr(arrays, "_AT_ONCE", 1 << 12)
  values = np.random.default_rng(0).integers(-9, 9, (700, 500)).astype(dtype)
  path = npz({"a": np.asarray(values, order=order)}, compressed=True)
  tracemalloc.start()
  found = arrays.read(path).leaves["prompt"]
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  np.testing.assert_array_equal(found, values)
  # The result, a mask of what is finite, the digest's part, and a few buffers.
  assert peak < 2 * found.nbytes + (1 << 20)


def test_a_zip_file_with_a_long_table_of_contents_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(arrays, "_MAX_DIRECTORY_BYTES", 1000)
  with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
    for number in range(30):
      archive.writestr(f"{number}.npy", b"")
  refused(tmp_path / "x.npz", "its table of contents is too long")


def test_a_changed_byte_of_our_own_file_does_not_make_it_another_tools(
  initial_prompt, tmp_path
):
  item = initial_prompt(0)
  path = tmp_path / "x.safetensors"
  store.write(path, item.leaves, item.provenance)
  content = path.read_bytes()
  for word in (b"__metadata__", b"content_digest", b"provenance", b"written_by"):
    start = content.index(word)
    for place in range(start - 1, start + len(word) + 2):
      changed = bytes([content[place] ^ 1])
      path.write_bytes(content[:place] + changed + content[place + 1 :])
      with pytest.raises(UserError):
        sources.load(path)


def test_another_tools_backbone_is_no_prompt_and_none_of_its_values_is_read(tmp_path):
  path = tmp_path / "model.safetensors"
  leaves = {f"block.{n}.wo": np.full((2, 2), np.nan, np.float32) for n in range(30)}
  safetensors.numpy.save_file(leaves, path)
  refused(path, r"holds 30 prompts or other arrays.* and 10 more")


def test_our_backbone_is_no_prompt_and_none_of_its_values_is_read(tmp_path):
  path = tmp_path / "backbone.safetensors"
  header = b'{"__metadata__":{"content_digest":"%s","fingerprint":"x"}}' % (b"0" * 64)
  path.write_bytes(len(header).to_bytes(8, "little") + header)
  refused(path, r"is a backbone, and no prompt or vector\.")


def test_missing_files_are_named(tmp_path):
  for name in ("x.npy", "x.npz", "x.pt", "x.npz:a", "x.safetensors:a"):
    refused(tmp_path / name, "does not exist")
  (tmp_path / "folder.npy").mkdir()
  refused(tmp_path / "folder.npy", "is an empty folder")


def test_a_bucket_holds_arrays_too(bucket, initial_prompt):
  item = initial_prompt(0)
  arrays.write(f"{bucket}/x.npy", item)
  arrays.write(f"{bucket}/x.npz", item)
  for path in (f"{bucket}/x.npy", f"{bucket}/x.npz", f"{bucket}/x.npz:prompt"):
    again = sources.load(path)
    assert again.provenance == item.provenance
    np.testing.assert_array_equal(again.leaves["prompt"], item.leaves["prompt"])


def test_tpv_import_asks_for_what_is_unknown_and_records_what_is_said(
  npy, tmp_path, initial_prompt, capsys
):
  start = initial_prompt(3)
  np.save(tmp_path / "start.npy", start.leaves["prompt"])
  path, out = npy(PROMPT), tmp_path / "out.safetensors"
  assert cli.main(["import", str(path), "-o", str(out)]) == 0
  assert capsys.readouterr().out.endswith(
    "unknown: the backbone (--backbone), the initial prompt (--initial), the task "
    "(--task).\n"
  )
  assert store.read(out)[1] == UNKNOWN
  given = ["--backbone", "ab" * 32, "--initial", str(tmp_path / "start.npy")]
  given += ["--task", "sst2", "--overwrite"]
  assert cli.main(["import", str(path), "-o", str(out), *given]) == 0
  assert "unknown:" not in capsys.readouterr().out
  leaves, known = store.read(out)
  digest = identity.prompt_digest(start.leaves)
  assert leaves["prompt"].tobytes() == PROMPT.tobytes()
  assert known == Provenance(
    kind="prompt",
    terms=(Term("sst2", 1.0),),
    backbone_fingerprint="ab" * 32,
    initial_digest=digest,
    notes=(
      f"that it was tuned from the initial prompt {digest[:12]} is the user's word",
    ),
  )
  # An initial prompt that knows its seed gives it; what is stated is not overruled.
  item = Loaded({"prompt": PROMPT}, UNKNOWN)
  assert sources.with_initial(item, start).provenance.initial_seed == 3
  tuned = Loaded(
    start.leaves, dataclasses.replace(start.provenance, initial_digest="cd" * 32)
  )
  assert sources.with_initial(item, tuned).provenance.initial_seed is None
  code = cli.main(
    ["import", str(out), "-o", str(tmp_path / "b.safetensors"), "--initial", str(path)]
  )
  assert code == 2
  assert "states its origin itself" in capsys.readouterr().err
  assert not (tmp_path / "b.safetensors").exists()


def test_what_no_run_can_have_started_from_is_refused_as_initial_prompt(
  npy, tmp_path, initial_prompt, capsys
):
  start, path = initial_prompt(3), npy(PROMPT)
  known = dataclasses.replace(start.provenance, backbone_fingerprint="cd" * 32)
  vector = dataclasses.replace(known, kind="vector", terms=(Term("sst2", 1.0),))
  store.write(tmp_path / "vector.safetensors", start.leaves, vector)
  store.write(tmp_path / "start.safetensors", start.leaves, known)
  for initial, expected in (
    ("vector", "vector.safetensors' is a vector, and a run starts from a prompt"),
    ("start", f"belongs to the backbone {'cd' * 6}…, and"),
  ):
    arguments = ["import", str(path), "-o", str(tmp_path / "out.safetensors")]
    arguments += ["--backbone", "ab" * 32]
    arguments += ["--initial", str(tmp_path / f"{initial}.safetensors")]
    assert cli.main(arguments) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
  # Of an item whose backbone is unknown, nothing contradicts it.
  assert cli.main([*arguments[:4], *arguments[-2:]]) == 0


def test_an_initial_prompt_counts_as_no_task(npy, tmp_path):
  path, out = str(npy(PROMPT)), str(tmp_path / "start.safetensors")
  assert cli.main(["import", path, "-o", out, "--initial", path]) == 0
  known = store.read(out)[1]
  digest = identity.prompt_digest({"prompt": PROMPT})
  assert known == Provenance(kind="prompt", initial_digest=digest, steps=0)


def test_imported_dept_parameters_know_their_folded_start(npz, tmp_path):
  tuned, start = npz(DEPT), tmp_path / "start.npz"
  zeros = {name: leaf * (not name.endswith("B")) for name, leaf in DEPT.items()}
  np.savez(start, **zeros)
  out = tmp_path / "out.safetensors"
  arguments = ["import", str(tuned), "-o", str(out), "--initial", str(start)]
  assert cli.main([*arguments, "--alpha", "8"]) == 0
  known = store.read(out)[1]
  folded = {
    "prompt": DEPT["prompt_embeddings"],
    "delta": np.zeros((5, 6), np.float32),
  }
  assert known.initial_folded_digest == identity.prompt_digest(folded)
  assert known.alpha == 8.0


@pytest.mark.parametrize("target", ["npy", "npz"])
def test_tpv_export_writes_what_vector_commands_read(
  make_run, tmp_path, target, capsys
):
  run, out = make_run("run"), tmp_path / f"out.{target}"
  assert cli.main(["export", str(run), "--to", target, "-o", str(out)]) == 0
  assert f"lies beside it, in '{out}.json'" in capsys.readouterr().out
  best, loaded = sources.load(run), sources.load(out)
  assert loaded.provenance == best.provenance
  assert cli.main(["cosine", str(run), str(out)]) == 0
  assert capsys.readouterr().out.count("1.0000") == 4
  assert cli.main(["show", str(out)]) == 0
  assert best.provenance.initial_digest in capsys.readouterr().out


def test_tpv_export_of_an_ept_prompt_refuses_npy_with_the_reason(
  make_run, tmp_path, capsys
):
  run, out = make_run("run", method="ept"), tmp_path / "out.npy"
  assert cli.main(["export", str(run), "--to", "npy", "-o", str(out)]) == 2
  error = capsys.readouterr().err
  assert "adds a delta [5, 6]" in error
  assert "--to npz" in error
  assert [path.name for path in tmp_path.iterdir()] == ["run"]
  arguments = ["export", str(run), "--to", "npz", "-o", str(tmp_path / "out.npz")]
  assert cli.main([*arguments, "--base-model", "x"]) == 2
  assert "--base-model is read with --to peft only" in capsys.readouterr().err
  assert cli.main(arguments) == 0


def test_bytes_in_a_stream_are_read_as_they_come():
  # The reader asks for what the header states, not for the rest of a file.
  content = io.BytesIO()
  np.save(content, PROMPT)
  size = content.tell()
  content.write(b"more")
  content.seek(0)
  header = arrays._read_header(content, size, "x", "")
  np.testing.assert_array_equal(arrays._read_values(content, header), PROMPT)
