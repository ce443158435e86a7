"""Damages files of every format that is read, and tells what reading them does.

  python tests/fuzzing.py                    # 5,000 cases of each format
  python tests/fuzzing.py --cases 200 "PEFT adapter" "npz file"

A case is known by its format and number: the same files are damaged in the same way in
every run (`--only N` repeats one and shows its trace). Allowed are two ends: a clear
`UserError`, or values that pass all checks; for our own formats, which state a digest of
all bytes, only the first. A trace, a case that takes longer than `MOST_SECONDS`, or one
that asks for more than `MOST_BYTES` beyond what the process has, is a fault. The cases run
in a process of their own whose address space is limited, so nothing here can fill a
machine's memory.
"""

import argparse
import dataclasses
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[1]
if __name__ == "__main__":
  sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402

from tpv_jax import errors  # noqa: E402

MOST_SECONDS = 10.0
MOST_BYTES = 512 << 20
"""What any case may ask for; the files here have less than a hundred thousand bytes."""

NASTY = (
  *(-1, 0, 1, 2**31, 2**40, 2**62, 2**63, 2**64, -(2**63), 10**30, 1.5, 1e308),
  *(float("nan"), float("inf"), True, False, None, "", "x", "../../etc/passwd", "\0"),
  *(
    "/etc/passwd",
    "F32",
    "F64",
    "I64",
    "BOOL",
    "|O",
    "a" * 5000,
    "é\ud800",
    "__metadata__",
  ),
  *([], [[]], {}, [0], [-1, 4], [2**40, 2**40], [1] * 64, {"a": {}}, ["a", "b"]),
)


@dataclasses.dataclass(frozen=True)
class Format:
  """One format.

  Attributes:
    make: writes valid files into a folder and returns the path that is read.
    read: reads that path and checks what it gives.
    own: whether every damage must be refused.
    kept: files that are not damaged, by a part of their name.
  """

  make: Callable[[pathlib.Path], pathlib.Path]
  read: Callable[[pathlib.Path], None]
  own: bool = False
  kept: tuple[str, ...] = ()


# --- what is made and read


def _prompt() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {"prompt": rng.standard_normal((4, 8)).astype(np.float32)}


def _delta() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(1)
  return {**_prompt(), "delta": rng.standard_normal((6, 8)).astype(np.float32)}


def _loaded(leaves: dict[str, np.ndarray]):
  from tpv_jax.vectors.algebra import Loaded
  from tpv_jax.vectors.provenance import of_leaves

  return Loaded(leaves, of_leaves(leaves), "made here")


def _backbone() -> dict[str, np.ndarray]:
  """Returns the leaves of the smallest T5 1.0 by T5X path."""
  rng = np.random.default_rng(2)
  leaves = {"token_embedder/embedding": (8, 4)}
  for stack, parts in (
    ("encoder", ("attention",)),
    ("decoder", ("self_attention", "encoder_decoder_attention")),
  ):
    layer = f"{stack}/layers_0"
    leaves[f"{stack}/relpos_bias/rel_embedding"] = (2, 32)
    leaves[f"{stack}/{stack}_norm/scale"] = (4,)
    leaves[f"{layer}/pre_mlp_layer_norm/scale"] = (4,)
    leaves[f"{layer}/mlp/wi/kernel"] = (4, 6)
    leaves[f"{layer}/mlp/wo/kernel"] = (6, 4)
    for part in parts:
      norm = "cross_attention" if part.startswith("encoder_") else part
      leaves[f"{layer}/pre_{norm}_layer_norm/scale"] = (4,)
      for name in ("query", "key", "value", "out"):
        leaves[f"{layer}/{part}/{name}/kernel"] = (4, 4)
  return {
    path: rng.standard_normal(shape).astype(np.float32)
    for path, shape in leaves.items()
  }


def _make_prompt_file(folder: pathlib.Path) -> pathlib.Path:
  from tpv_jax.vectors import store

  item = _loaded(_delta())
  store.write(folder / "prompt.safetensors", item.leaves, item.provenance)
  return folder / "prompt.safetensors"


def _make_run(folder: pathlib.Path) -> pathlib.Path:
  from tpv_jax.vectors import store

  item = _loaded(_prompt())
  for which in ("initial", "best", "last"):
    path = folder / f"{which}_prompt.safetensors"
    store.write(path, item.leaves, item.provenance)
  manifest = {"status": "running", "task": "a", "steps": 3, "best_step": 2}
  (folder / "manifest.json").write_text(json.dumps(manifest))
  return folder


def _make_backbone_file(folder: pathlib.Path) -> pathlib.Path:
  from tpv_jax.backbone import loading

  loading.save_backbone(folder / "backbone.safetensors", _backbone(), "small")
  return folder / "backbone.safetensors"


def _make_hugging_face(folder: pathlib.Path) -> pathlib.Path:
  import hf_references

  hf_references.write_folder(folder / "t5", "t5")
  return folder / "t5"


def _make_sharded(folder: pathlib.Path) -> pathlib.Path:
  import hf_references
  from safetensors.numpy import save_file

  path = _make_hugging_face(folder)
  (path / "model.safetensors").unlink()
  weights = hf_references.weights("t5")
  names, place = sorted(weights), {}
  for index in range(2):
    file = f"model-0000{index + 1}-of-00002.safetensors"
    part = {name: weights[name] for name in names[index::2]}
    save_file(part, path / file, {"format": "pt"})
    place |= dict.fromkeys(part, file)
  total = sum(leaf.nbytes for leaf in weights.values())
  index = {"metadata": {"total_size": total}, "weight_map": place}
  (path / "model.safetensors.index.json").write_text(json.dumps(index))
  return path


def _make_adapter(folder: pathlib.Path) -> pathlib.Path:
  """PEFT's own, as it was stored for the parity tests."""
  shutil.copytree(ROOT / "tests" / "references" / "peft_tuned", folder / "adapter")
  return folder / "adapter"


def _make_our_adapter(folder: pathlib.Path) -> pathlib.Path:
  from tpv_jax.formats import peft

  peft.write(folder / "adapter", _loaded(_prompt()))
  return folder / "adapter"


def _make_npy(folder: pathlib.Path) -> pathlib.Path:
  np.save(folder / "prompt.npy", _prompt()["prompt"])
  return folder / "prompt.npy"


def _make_our_npy(folder: pathlib.Path) -> pathlib.Path:
  from tpv_jax.formats import arrays

  arrays.write(folder / "prompt.npy", _loaded(_prompt()))
  return folder / "prompt.npy"


def _make_npz(folder: pathlib.Path) -> pathlib.Path:
  leaves = _delta()
  np.savez_compressed(
    folder / "prompts.npz", **{f"a/{name}": leaf for name, leaf in leaves.items()}
  )
  return folder / "prompts.npz"


def _make_arrays(folder: pathlib.Path) -> pathlib.Path:
  from safetensors.numpy import save_file

  save_file(_prompt(), folder / "prompt.safetensors")
  return folder / "prompt.safetensors"


def _make_tokenizer(folder: pathlib.Path) -> pathlib.Path:
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

  words = [*"▁abcé", "▁a", "ab", "bc", "abc", "▁abc", "<extra_id_1>", "<extra_id_0>"]
  pieces = [(word, 0.0) for word in ("<pad>", "</s>", "<unk>")]
  pieces += [(word, -float(index)) for index, word in enumerate(words, 1)]
  tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.NFKC(), normalizers.Replace("x", "y")]
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
  )
  tokenizer.decoder = decoders.Metaspace()
  tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>"])
  tokenizer.save(str(folder / "tokenizer.json"))
  return folder / "tokenizer.json"


def _make_spiece(folder: pathlib.Path) -> pathlib.Path:
  """A SentencePiece model, written by hand as a protocol buffer."""

  def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content

  def piece(text: str, kind: int, score: float) -> bytes:
    value = b"\x15" + np.float32(score).tobytes() + b"\x18" + bytes([kind])
    return field(1, field(1, text.encode()) + value)

  control, unknown, normal = 3, 2, 1
  model = piece("<pad>", control, 0) + piece("</s>", control, 0)
  model += piece("<unk>", unknown, 0)
  for index, text in enumerate((*"▁abc", "▁a", "ab", "abc")):
    model += piece(text, normal, -float(index))
  trainer = b"\x18\x01" + b"\xc0\x02\x02" + b"\xc8\x02" + b"\xff" * 9 + b"\x01"
  trainer += b"\xd0\x02\x01" + b"\xd8\x02\x00"
  (folder / "spiece.model").write_bytes(model + field(2, trainer))
  return folder / "spiece.model"


def _make_tokenizer_folder(folder: pathlib.Path) -> pathlib.Path:
  _make_spiece(folder)
  (folder / "tokenizer_config.json").write_text(
    '{"extra_ids": 5, "unk_token": "<unk>"}'
  )
  return folder


def _make_orbax(folder: pathlib.Path) -> pathlib.Path:
  from tpv_jax import orbax_io

  orbax_io.save_checkpoint(folder / "checkpoint_1", _backbone())
  return folder / "checkpoint_1"


def _make_legacy(folder: pathlib.Path) -> pathlib.Path:
  """The layout of 2022: arrays in the msgpack file, and one beside it."""
  import msgpack
  import tensorstore

  path = folder / "checkpoint_2"
  path.mkdir()

  def array(values: np.ndarray) -> msgpack.ExtType:
    content = (values.shape, values.dtype.name, values.tobytes())
    return msgpack.ExtType(1, msgpack.packb(content))

  target: dict = {}
  for name, leaf in _backbone().items():
    *parents, last = name.split("/")
    place = target
    for parent in parents:
      place = place.setdefault(parent, {})
    place[last] = array(leaf)
  name = "target.token_embedder.embedding"
  spec = {
    "driver": "zarr",
    "kvstore": {"driver": "file", "path": str(path / name)},
    "metadata": {"compressor": {"id": "gzip"}, "chunks": [8, 4]},
  }
  embedding = _backbone()["token_embedder/embedding"]
  stored = tensorstore.open(
    spec, create=True, dtype=tensorstore.float32, shape=embedding.shape
  ).result()
  stored.write(embedding).result()
  target["token_embedder"]["embedding"] = {
    "driver": "zarr",
    "kvstore": {"driver": "file", "path": f"old/{name}"},
    "metadata": {"shape": [8, 4], "dtype": "<f4"},
  }
  content = {"version": 1, "optimizer": {"target": target, "state": {"step": 2}}}
  (path / "checkpoint").write_bytes(msgpack.packb(content))
  return path


def _read_prompt(path: pathlib.Path) -> None:
  from tpv_jax.vectors import sources, store

  loaded = sources.load(path)
  assert loaded.leaves
  for leaf in loaded.leaves.values():
    assert leaf.dtype == np.float32 and leaf.size and np.isfinite(leaf).all()
  store.encode(loaded.leaves, loaded.provenance)


def _read_backbone(path: pathlib.Path) -> None:
  from tpv_jax import identity
  from tpv_jax.backbone import loading

  backbone = loading.load_backbone(path)
  flat = identity.flatten(backbone.params)
  assert backbone.fingerprint == identity.backbone_fingerprint(flat)
  for leaf in flat.values():
    assert np.isfinite(np.asarray(leaf, np.float32)).all()


def _read_vocabulary(path: pathlib.Path) -> None:
  from tpv_jax.data import vocabularies

  vocabulary = vocabularies.load(path)
  for text in ("abc é x <extra_id_0> </s>", "", "b" * 100):
    ids = vocabulary.encode(text)
    assert all(0 <= index < vocabulary.vocab_size for index in ids)
    assert isinstance(vocabulary.decode(ids), str)
  assert len(vocabulary.digest) == 64


FORMATS = {
  "our prompt": Format(_make_prompt_file, _read_prompt, own=True),
  "our backbone": Format(_make_backbone_file, _read_backbone, own=True),
  "run folder": Format(_make_run, _read_prompt, kept=("_prompt.safetensors",)),
  "Hugging Face folder": Format(_make_hugging_face, _read_backbone),
  "Hugging Face shards": Format(_make_sharded, _read_backbone),
  "PEFT adapter": Format(_make_adapter, _read_prompt),
  "our PEFT adapter": Format(_make_our_adapter, _read_prompt),
  "npy file": Format(_make_npy, _read_prompt),
  "our npy file": Format(_make_our_npy, _read_prompt),
  "npz file": Format(_make_npz, _read_prompt),
  "foreign safetensors": Format(_make_arrays, _read_prompt),
  "tokenizer.json": Format(_make_tokenizer, _read_vocabulary),
  "SentencePiece": Format(_make_spiece, _read_vocabulary),
  "tokenizer's folder": Format(_make_tokenizer_folder, _read_vocabulary),
  "Orbax checkpoint": Format(_make_orbax, _read_backbone),
  "T5X of 2022": Format(_make_legacy, _read_backbone),
}


# --- how it is damaged


def damaged(content: bytes, rng: random.Random) -> bytes:
  """Returns other bytes: some changed, cut off, put in, or repeated."""
  data = bytearray(content)
  kind = rng.randrange(8) if data else 7
  at = rng.randrange(len(data)) if data else 0
  if kind <= 1:  # one bit
    data[at] ^= 1 << rng.randrange(8)
  elif kind == 2:
    for _ in range(rng.randint(2, 20)):
      data[rng.randrange(len(data))] = rng.randrange(256)
  elif kind == 3:  # a length or an offset
    number = rng.choice(
      (0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
    )
    size = rng.choice((2, 4, 8))
    at = rng.choice((0, at))
    data[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
  elif kind == 4:
    del data[at:]
  elif kind == 5:
    del data[at : at + rng.randint(1, 64)]
  elif kind == 6:
    part = data[at : at + rng.randint(1, 64)]
    data[at:at] = part
  else:
    data += bytes(rng.randrange(256) for _ in range(rng.randint(1, 64)))
  return bytes(data)


def _paths(value, path=()):
  """Yields where everything in a JSON value is, as keys and indices."""
  yield path
  children = ()
  if isinstance(value, dict):
    children = value.items()
  elif isinstance(value, list):
    children = enumerate(value)
  for key, child in children:
    yield from _paths(child, (*path, key))


def damaged_value(value, rng: random.Random):
  """Returns a JSON value with something in it changed, removed, renamed or moved."""
  *parents, last = rng.choice([path for path in _paths(value) if path] or [(None,)])
  if last is None:
    return rng.choice(NASTY)
  value = json.loads(json.dumps(value))
  place = value
  for key in parents:
    place = place[key]
  kind = rng.randrange(6)
  if kind == 0:
    del place[last]
  elif kind == 1 and isinstance(place, dict):
    place[str(rng.choice(NASTY))[:100]] = place.pop(last)
  elif kind == 2:
    place[last] = [place[last]] if rng.random() < 0.5 else {"a": place[last]}
  elif kind == 3 and isinstance(place[last], int | float):
    place[last] += rng.choice((-1, 1, 2**20, 2**40, 0.5))
  else:
    place[last] = rng.choice(NASTY)
  return value


def _damaged_json(content: bytes, rng: random.Random) -> bytes:
  if rng.random() < 0.05:
    return b'{"a":' * 100_000
  return json.dumps(damaged_value(json.loads(content), rng)).encode()


def _damaged_safetensors(content: bytes, rng: random.Random) -> bytes:
  """Returns the file with its header changed as JSON, its values as they were."""
  length = int.from_bytes(content[:8], "little")
  header = _damaged_json(content[8 : 8 + length], rng)
  return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _damaged_npy(content: bytes, rng: random.Random) -> bytes:
  """Returns the file with a part of its header replaced."""
  length = int.from_bytes(content[8:10], "little")
  text = content[10 : 10 + length].decode("latin1").rstrip()
  dtypes = ("|O", "<f8", ">f4", "|V4", "<U9", "<f4,<f4", "<m8", "<c8", "[('a','<f4')]")
  shapes = ("(4,)", "()", "(-4, 8)", f"({2**62}, 8)", f"({2**31}, {2**33})", "(4, 8.0)")
  shapes += ("(0, 8)", "[4, 8]", "(4, 8" + ", 1" * 70 + ")", "(" * 500 + ")" * 500)
  old, new = rng.choice(
    [
      ("'<f4'", repr(rng.choice(dtypes))),
      ("(4, 8)", rng.choice(shapes)),
      ("False", rng.choice(("True", "None", "2", "__import__('os')"))),
      ("'shape'", rng.choice(("'form'", "'descr'", "shape"))),
      ("}", rng.choice(("", ", 'a': 1}", "}}", "\0"))),
      ("{", rng.choice(("", "[", "exit({", "-" * 5000 + "{"))),
    ]
  )
  header = text.replace(old, new).encode("latin1") + b"\n"
  version = rng.choice((content[6:8], content[6:8], b"\x02\x00", b"\x09\x00"))
  return (
    content[:6]
    + version
    + len(header).to_bytes(2, "little")
    + header
    + (content[10 + length :])
  )


def _damaged_npz(content: bytes, rng: random.Random) -> bytes:
  """Returns the archive with one member damaged, renamed, doubled or inflated."""
  written = io.BytesIO()
  with (
    zipfile.ZipFile(io.BytesIO(content)) as old,
    zipfile.ZipFile(
      written,
      "w",
      rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)),
    ) as new,
  ):
    names = old.namelist()
    chosen = rng.choice(names)
    for name in names:
      member, kind = old.read(name), rng.randrange(5)
      if name == chosen and kind == 0:
        member = damaged(member, rng)
      elif name == chosen and kind == 1:
        member = member + b"\0" * 2_000_000
      elif name == chosen and kind == 2:
        name = rng.choice(("../a/prompt.npy", "a", "x.npy", "a/b/c.npy", "a/delta.npy"))
      elif name == chosen:
        member = _damaged_npy(member, rng)
      with warnings.catch_warnings(action="ignore"):  # of a name that is there twice
        new.writestr(name, member)
  return written.getvalue()


def _damaged_msgpack(content: bytes, rng: random.Random) -> bytes:
  """Returns the file with something in it replaced by what a hostile file would say."""
  import msgpack

  tree = msgpack.unpackb(content, strict_map_key=False)
  places = [path for path in _paths(tree) if path]
  *parents, last = rng.choice(places)
  place = tree
  for key in parents:
    place = place[key]
  shape = rng.choice(((2**40,), (-1,), (2**32, 2**32), (4, 4), (), "x", (4.0, 4)))
  dtype = rng.choice(("float32", "object", "float64", "int8", "V9", "x", "", None))
  array = msgpack.packb((shape, dtype, b"\0" * rng.choice((0, 64, 100))))
  place[last] = rng.choice(
    (
      *(None, 1, "x", [], {}, b"", -1.5),
      *(msgpack.ExtType(rng.randrange(5), b"\x93"), msgpack.ExtType(1, array)),
      *(msgpack.ExtType(1, array), msgpack.ExtType(3, array)),
      {"driver": "zarr", "kvstore": {"driver": "file", "path": "../../x"}},
      {"driver": rng.choice(("json", "n5")), "kvstore": {"driver": "gcs", "path": "y"}},
    )
  )
  return msgpack.packb(tree)


STRUCTURED = {
  ".json": _damaged_json,
  ".safetensors": _damaged_safetensors,
  ".npy": _damaged_npy,
  ".npz": _damaged_npz,
  "_METADATA": _damaged_json,
  "_CHECKPOINT_METADATA": _damaged_json,
  ".zarray": _damaged_json,
  "checkpoint": _damaged_msgpack,
}


def damage(
  pristine: dict[pathlib.Path, bytes],
  kept: tuple[str, ...],
  rng: random.Random,
  own: bool,
) -> str:
  """Damages one file in place and returns what was done."""
  files = [path for path in pristine if not any(part in str(path) for part in kept)]
  parents = sorted({path.parent for path in files})
  parent = rng.choice(parents)  # Orbax has one folder with most of the files.
  path = rng.choice([path for path in files if path.parent == parent])
  content = pristine[path]
  structured = [change for end, change in STRUCTURED.items() if path.name.endswith(end)]
  choice = rng.random()
  if len(pristine) > 1 and not own and choice < 0.06:
    path.unlink()
    kind = rng.randrange(4)
    if kind == 0:
      path.mkdir()
    elif kind == 1:
      path.symlink_to("/etc/passwd")
    elif kind == 2:
      path.write_bytes(b"")
    return f"{path.name}: {('a folder', 'a link', 'empty', 'removed')[kind]}"
  chosen = structured[-1] if structured and choice < (0.25 if own else 0.6) else damaged
  after = chosen(content, rng)
  # A header written anew that states nothing of ours is another tool's, and no damage.
  stripped = own and chosen is not damaged and b"content_digest" not in after
  while after == content or stripped:
    chosen, stripped = damaged, False
    after = chosen(content, rng)
  path.write_bytes(after)
  return f"{path.name}: {chosen.__name__}, {len(content)} to {len(after)} bytes"


# --- the campaign


class Slow(BaseException):
  """A case that took too long; no code may catch it as an ordinary error."""


def _too_slow(*_):
  raise Slow


def _restore(folder: pathlib.Path, pristine: dict[pathlib.Path, bytes]) -> None:
  for path, content in pristine.items():
    if path.is_symlink():
      path.unlink()
    elif path.is_dir():
      shutil.rmtree(path)
    path.write_bytes(content)


def run(name: str, cases: range, seed: int) -> dict:
  """Runs cases of one format in this process and returns what came of them."""
  one = FORMATS[name]
  report = {"refused": 0, "loaded": 0, "faults": [], "slowest": 0.0}
  resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    path = one.make(folder)
    one.read(path)  # What is whole is read; and every library is loaded.
    pristine = {
      found: found.read_bytes()
      for found in sorted(folder.rglob("*"))
      if found.is_file()
    }
    _limit()
    for case in cases:
      rng = random.Random(f"{seed} {name} {case}")
      done = damage(pristine, one.kept, rng, one.own)
      print(f"case\t{name}\t{case}\t{done}", flush=True)  # The last one may kill.
      began, fault = time.perf_counter(), None
      signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
      try:
        one.read(path)
        report["loaded"] += 1
        if one.own:
          fault = "loaded, although it was changed"
      except errors.UserError as error:
        report["refused"] += 1
        if not str(error) or len(str(error)) > errors.MOST_TEXT:
          fault = f"a message of {len(str(error))} characters"
      except Slow:
        fault = f"took more than {MOST_SECONDS} seconds"
      except KeyboardInterrupt:
        raise
      except BaseException as error:
        fault = traceback.format_exc(limit=-4)[-1500:] or repr(error)
      finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
      report["slowest"] = max(report["slowest"], time.perf_counter() - began)
      if fault is not None:
        report["faults"].append({"case": case, "done": done, "fault": fault})
      _restore(folder, pristine)
  return report


def _limit() -> None:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
  most = pages * resource.getpagesize() + MOST_BYTES
  resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def campaign(names: list[str], cases: int, seed: int = 0, first: int = 0) -> dict:
  """Runs cases of several formats in a process of their own; see `run`."""
  numbers = {"--cases": cases, "--seed": seed, "--first": first}
  options = [str(part) for pair in numbers.items() for part in pair]
  return reports_of([__file__, "--here", *options, *names])


def reports_of(arguments: list[str]) -> dict:
  """Returns the reports that a process of Python prints; its death is a fault."""
  done = subprocess.run(
    [sys.executable, *arguments],
    capture_output=True,
    text=True,
    errors="replace",
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "2"},
  )
  reports, last = {}, "nothing\t"
  for line in done.stdout.splitlines():
    kind, _, rest = line.partition("\t")
    if kind == "case":
      last = rest
    elif kind == "report":
      name, _, text = rest.partition("\t")
      reports[name] = json.loads(text)
  if done.returncode:
    name, _, case = last.partition("\t")
    died = {
      "case": case,
      "fault": f"exit code {done.returncode}: {done.stderr[-1500:]}",
    }
    reports[name] = {"refused": 0, "loaded": 0, "slowest": 0.0, "faults": [died]}
  return reports


def main() -> int:
  """Runs the campaign, prints a table of what came of it, and returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("formats", nargs="*", metavar="FORMAT", help=", ".join(FORMATS))
  parser.add_argument("--cases", type=int, default=5000)
  parser.add_argument("--first", type=int, default=0, help="the first case's number")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", type=int, help="repeat one case, and show its trace")
  parser.add_argument("--here", action="store_true", help="in this process")
  options = parser.parse_args()
  names = options.formats or list(FORMATS)
  cases = range(options.first, options.first + options.cases)
  if options.only is not None:
    cases, options.here = range(options.only, options.only + 1), True
  if options.here:
    signal.signal(signal.SIGALRM, _too_slow)
    for name in names:
      report = run(name, cases, options.seed)
      print(f"report\t{name}\t{json.dumps(report)}", flush=True)
      for fault in report["faults"] if options.only is not None else ():
        print(fault["fault"])
    return 0
  print("| format | cases | refused | loaded, all checks passed | faults | slowest |")
  print("|---|---|---|---|---|---|")
  faults = 0
  for name in names:
    report = campaign([name], options.cases, options.seed, options.first)[name]
    faults += len(report["faults"])
    print(
      f"| {name} | {options.cases} | {report['refused']} | {report['loaded']} | "
      f"{len(report['faults'])} | {report['slowest']:.2f} s |",
      flush=True,
    )
    for fault in report["faults"][:20]:
      print(json.dumps(fault), file=sys.stderr)
  return 1 if faults else 0


if __name__ == "__main__":
  sys.exit(main())
