"""Changes of bytes and of structures, each drawn from a given generator."""

import csv
import dataclasses
import hashlib
import io
import json
import pathlib
import random
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any


class Raw(str):
  """JSON that Python's writer would not write."""


NASTY: Sequence[Any] = (
  *(None, True, False, 0, -1, 1, 2, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63)),
  *(10**30, -(10**30), 1.5, -0.0, 1e308, Raw("1e999"), Raw("-1e999"), Raw("9e999999")),
  *(Raw("NaN"), Raw("Infinity"), Raw("1" + "0" * 5000), Raw("-" + "9" * 4400)),
  *("", " ", "x", "0", "-1", "\0", "\x1b[31mred\x1b[0m", "a\nb", "a\rb\u2028c"),
  *("../../../x", "/etc/passwd", "~nobody", "C:\\x", "é" * 300, "x" * 10_000),
  *(Raw('"\\ud800"'), Raw('"\\udc00\\ud800"'), "\u202ex", "٣", "<extra_id_0>"),
  *("F64", "I64", "BF16", "BOOL", "|O", "__metadata__", "http://127.0.0.1:9/x"),
  *([], {}, [[]], [None], [0], [-1, 4], [2**40, 2**40], [1] * 64, ["a", "b"]),
  *({"a": {}}, {"": 1}, [[[[[[1]]]]]], Raw("[" * 3000 + "]" * 3000)),
  *(Raw("[" * 100_000 + "]" * 100_000), Raw('{"a":' * 2000 + "1" + "}" * 2000)),
)
"""Values that a hostile or broken JSON file may hold anywhere."""


# --- bytes and text


def damaged(content: bytes, rng: random.Random) -> bytes:
  """Returns other bytes: some changed, cut off, put in, repeated, or exchanged."""
  data = bytearray(content)
  kind = rng.randrange(11) if data else 8
  at = rng.randrange(len(data)) if data else 0
  if len(data) > 400 and rng.random() < 0.4:  # Headers stand at the start.
    at = rng.randrange(400)
  if kind <= 1:  # one bit
    data[at] ^= 1 << rng.randrange(8)
  elif kind == 2:
    for _ in range(rng.randint(2, 20)):
      data[rng.randrange(len(data))] = rng.randrange(256)
  elif kind == 3:  # a length or an offset
    number = rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1))
    size = rng.choice((2, 4, 8))
    at = rng.choice((0, at))
    data[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
  elif kind == 4:
    del data[rng.choice((0, 1, at, at, len(data) - 1)) :]
  elif kind == 5:
    del data[at : at + rng.randint(1, 64)]
  elif kind == 6:
    data[at:at] = data[at : at + rng.randint(1, 64)]
  elif kind == 7:
    data[at : at + rng.choice((4, 16, 512))] = b"\0" * rng.choice((4, 16, 512))
  elif kind == 8:
    data += rng.choice((b"\0", b"\0" * 100_000, rng.randbytes(rng.randint(1, 64))))
  elif kind == 9:
    other, size = rng.randrange(len(data)), 16
    here, there = data[at : at + size], data[other : other + size]
    data[at : at + size], data[other : other + size] = there, here
  else:
    data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))
  return bytes(data)


def text(content: bytes, rng: random.Random) -> bytes:
  """Returns other text: lines and characters as editors and other systems leave them."""
  lines = content.split(b"\n")
  at = rng.randrange(len(lines))
  kind = rng.randrange(16)
  insert = rng.choice(
    (
      *(b"\xff", b"\xed\xa0\x80", b"\0", b"\x1b[31m", b'"', b"'", b"\r", b"\t", b","),
      *("\u2028".encode(), "\x85".encode(), b"\x0b", b"\x1c", b"\\u0000", b"\\ud800"),
      *("\u202e".encode(), b"<pad>", b"</s>", b"<extra_id_0>", b"x" * 200_000, b";"),
      *(b"{", b"}", b"[", b"]", b"(", b"#", b"\\", b"%", b"@", b"=", b"\\N", b"NA"),
    )
  )
  if kind == 0:
    return b"\xef\xbb\xbf" + content
  if kind == 1:
    return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b"\n\r")))
  if kind == 2:
    how = rng.choice(("utf-16", "utf-32", "utf-16-le", "latin-1", "utf-7"))
    return content.decode(errors="replace").encode(how, errors="replace")
  if kind == 3:
    del lines[at]
  elif kind == 4:
    lines.insert(at, lines[rng.randrange(len(lines))])
  elif kind == 5:
    lines[at] = b""
  elif kind == 6:
    lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
  elif kind == 7:
    return content[: rng.randrange(len(content) + 1)]
  elif kind == 8:
    return rng.choice((b"", b"\n", b" ", b"\n" * 1000, b"\0" * 1000, insert))
  elif kind == 9:
    lines[at] = lines[at] * rng.choice((2, 100))
  elif kind == 10:
    return damaged(content, rng)
  else:
    place = rng.choice((0, len(lines[at]), rng.randrange(len(lines[at]) + 1)))
    lines[at] = lines[at][:place] + insert + lines[at][place:]
  return b"\n".join(lines)


# --- JSON


def dumps(value: Any) -> str:
  """Returns JSON with what is `Raw` in it as it is."""
  if isinstance(value, Raw):
    return str(value)
  if isinstance(value, dict):
    pairs = (f"{json.dumps(str(k))}: {dumps(v)}" for k, v in value.items())
    return "{" + ", ".join(pairs) + "}"
  if isinstance(value, list | tuple):
    return "[" + ", ".join(map(dumps, value)) + "]"
  return json.dumps(value, ensure_ascii=False)


def paths(value: Any, path: tuple = ()):
  """Yields where everything in a JSON value is, as keys and indices."""
  yield path
  children: Any = ()
  if isinstance(value, dict):
    children = value.items()
  elif isinstance(value, list):
    children = enumerate(value[:40])
  for key, child in children:
    yield from paths(child, (*path, key))


def changed_json(value: Any, rng: random.Random) -> str:
  """Returns JSON text with something in the value changed, removed, renamed or doubled."""
  places = [path for path in paths(value) if path]
  if not places or rng.random() < 0.02:
    return dumps(rng.choice(NASTY))
  value = json.loads(json.dumps(value))
  *parents, last = rng.choice(places)
  place = value
  for key in parents:
    place = place[key]
  old, kind = place[last], rng.randrange(12)
  number = isinstance(old, int | float) and not isinstance(old, bool)
  if kind == 0:
    del place[last]
  elif kind == 1 and isinstance(place, dict):
    name = rng.choice((f"{last}x", "", str(last).upper(), f"../{last}", f"{last}\0"))
    place[name] = place.pop(last)
  elif kind == 2 and isinstance(old, dict):
    name = rng.choice(("x", "", "prompt", "../x", "a/b", "\0", "__metadata__"))
    old[name] = rng.choice(NASTY)
  elif kind == 3 and isinstance(place, dict):
    key = f"{json.dumps(str(last))}: "
    double = key + dumps(rng.choice((old, rng.choice(NASTY)))) + ", "
    return dumps(value).replace(key, double + key, 1)
  elif kind == 4:
    place[last] = rng.choice(([old], {"x": old}, dumps(old), [old, old]))
  elif kind <= 6 and number:
    place[last] = rng.choice(
      (old + 1, old - 1, -old, old * 2, float(old), str(old), old * 10**6, old + 0.5)
    )
  elif kind == 7 and isinstance(old, list):
    place[last] = rng.choice((old[::-1], old[:-1], old * 2, [*old, old[:1]]))
  else:
    place[last] = rng.choice(NASTY)
  return dumps(value)


def json_file(content: bytes, rng: random.Random) -> bytes:
  """Returns the file with its value changed."""
  if rng.random() < 0.02:
    return b'{"a":' * 100_000
  return changed_json(json.loads(content), rng).encode("utf-8", "surrogatepass")


def json_lines(content: bytes, rng: random.Random) -> bytes:
  """Returns the file with the object of a line changed."""
  lines = content.splitlines() or [b"{}"]  # A bank that stopped early has none.
  at = rng.randrange(len(lines))
  lines[at] = changed_json(json.loads(lines[at]), rng).encode("utf-8", "surrogatepass")
  return b"\n".join(lines) + b"\n"


def table(content: bytes, rng: random.Random) -> bytes:
  """Returns a CSV or TSV file with a cell, a row, or its form changed."""
  first = content.split(b"\n", 1)[0]
  separator = "\t" if b"\t" in first else ","
  rows = list(csv.reader(io.StringIO(content.decode()), delimiter=separator))
  row = rows[rng.choice((0, rng.randrange(len(rows))))]
  cell, kind = rng.randrange(len(row)), rng.randrange(9)
  if kind == 0:
    del row[cell]
  elif kind == 1:
    row.insert(cell, rng.choice((row[cell], "")))
  elif kind == 2:
    separator = rng.choice((";", "|", "\t", ",", " "))
  elif kind == 3:
    rows[0][cell % len(rows[0])] = rng.choice((*rows[0], "", "SENTENCE", " x", "x\0"))
  elif kind == 4:
    row[cell] = "y" * rng.choice((131_072, 131_073, 1_000_000))
  else:
    value = rng.choice([one for one in NASTY if not isinstance(one, Raw)])
    row[cell] = value if isinstance(value, str) else json.dumps(value)
  written = io.StringIO()
  quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
  csv.writer(written, delimiter=separator, quoting=quoting).writerows(rows)
  return written.getvalue().encode("utf-8", "surrogatepass")


# --- arrays


_SIGNED = b'{"__metadata__":{"content_digest":"'


def safetensors(content: bytes, rng: random.Random) -> bytes:
  """Returns the file with its header changed as JSON, its values as they were."""
  length = int.from_bytes(content[:8], "little")
  header = json.loads(content[8 : 8 + length])
  stated = header.get("__metadata__", {})
  nested = [name for name in ("provenance", "network", "index") if name in stated]
  if nested and rng.random() < 0.5:
    # What is signed and means something is JSON in the JSON.
    name = rng.choice(nested)
    stated[name] = changed_json(json.loads(stated[name]), rng)
    made = dumps(header).encode("utf-8", "surrogatepass")
  elif stated and rng.random() < 0.3:
    # A network has many leaves, and little else would ever be hit.
    changed = changed_json(header.pop("__metadata__"), rng)
    text = f'{{"__metadata__": {changed}, {dumps(header)[1:]}'
    made = text.encode("utf-8", "surrogatepass")
  else:
    made = json_file(content[8 : 8 + length], rng)
  if rng.random() < 0.8:
    made = _compact(made)
    made += b" " * (-len(made) % 8)
  return len(made).to_bytes(8, "little") + made + content[8 + length :]


def _compact(header: bytes) -> bytes:
  """Returns a header that starts as ours do, if it is near enough."""
  start = b'{"__metadata__": {"content_digest": "'
  return _SIGNED + header[len(start) :] if header.startswith(start) else header


def signed(content: bytes) -> bytes | None:
  """Returns a file of ours with its digest as its bytes demand; None if it has none."""
  if content[8 : 8 + len(_SIGNED)] != _SIGNED:
    return None
  data = bytearray(content)
  place = slice(8 + len(_SIGNED), 8 + len(_SIGNED) + 64)
  data[place] = b"0" * 64
  data[place] = hashlib.sha256(data).hexdigest().encode()
  return bytes(data)


def signed_by_values(content: bytes) -> bytes | None:
  """Returns a backbone of ours written and signed as ours are; None if it is no file."""
  from tpv_jax.core.errors import UserError
  from tpv_jax.io import safetensors

  try:
    metadata, leaves = safetensors.decode(content, "the file")
    digest = safetensors.ContentDigest()
    for name in sorted(leaves):
      digest.add(leaves[name])
    return safetensors.encode(leaves, digest.stated_in(leaves, metadata))
  except (UserError, UnicodeEncodeError):
    return None


def npy(content: bytes, rng: random.Random) -> bytes:
  """Returns the file with a part of its header replaced."""
  length = int.from_bytes(content[8:10], "little")
  header = content[10 : 10 + length].decode("latin1").rstrip()
  dtypes = ("|O", "<f8", ">f4", "|V4", "<U9", "<f4,<f4", "<m8", "<c8", "[('a','<f4')]")
  shapes = ("(4,)", "()", "(-4, 8)", f"({2**62}, 8)", f"({2**31}, {2**33})", "(4, 8.0)")
  shapes += ("(0, 8)", "[4, 8]", "(4, 8" + ", 1" * 70 + ")", "(" * 500 + ")" * 500)
  shapes += (f"({2**28}, 8)", "(True, 8)", "(4, 8, 1)", "(9" + "9" * 5000 + ",)")
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
  made = header.replace(old, new).encode("latin1") + b"\n"
  version = rng.choice((content[6:8], content[6:8], b"\x02\0", b"\x09\0"))
  size = (len(made) % 2**16).to_bytes(2, "little")
  return content[:6] + version + size + made + content[10 + length :]


def npz(content: bytes, rng: random.Random) -> bytes:
  """Returns the archive with one member damaged, renamed, doubled or inflated."""
  written = io.BytesIO()
  form = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
  with (
    zipfile.ZipFile(io.BytesIO(content)) as old,
    zipfile.ZipFile(written, "w", form) as new,
    warnings.catch_warnings(action="ignore"),  # of a name that is there twice
  ):
    chosen, kind = rng.choice(old.namelist()), rng.randrange(8)
    for name in old.namelist():
      member = old.read(name)
      if name != chosen:
        pass
      elif kind == 0:
        member = damaged(member, rng)
      elif kind == 1:
        member += b"\0" * rng.choice((1, 2_000_000, 50_000_000))
      elif kind == 2:
        name = rng.choice(
          ("../a.npy", "a", "x.npy", "a/b/c.npy", ".npy", "\x1b[1m.npy")
        )
      elif kind == 3:
        new.writestr(name, member)
      elif kind == 4:
        continue
      else:
        member = npy(member, rng)
      new.writestr(name, member)
  made = written.getvalue()
  if rng.random() < 0.1:  # a size that the directory states and nothing has
    at = made.rfind(b"PK\x01\x02")
    size = rng.choice((0, 2**20, 2**32 - 2)).to_bytes(4, "little")
    made = made[: at + 24] + size + made[at + 28 :]
  return made


def msgpack_file(content: bytes, rng: random.Random) -> bytes:
  """Returns the file with something in it replaced by what a hostile file would say."""
  import msgpack

  tree = msgpack.unpackb(content, strict_map_key=False)
  *parents, last = rng.choice([path for path in paths(tree) if path])
  place = tree
  for key in parents:
    place = place[key]
  shape = rng.choice(((2**40,), (-1,), (2**32, 2**32), (4, 4), (), "x", (4.0, 4)))
  dtype = rng.choice(("float32", "object", "float64", "int8", "V9", "x", "", None))
  array = msgpack.packb((shape, dtype, b"\0" * rng.choice((0, 64, 100))))
  place[last] = rng.choice(
    (
      *(None, 1, "x", [], {}, b"", -1.5, {1: 2}, {b"a": 1}, {"": {}}, 2**63),
      *(msgpack.ExtType(rng.randrange(5), b"\x93"), msgpack.ExtType(1, array)),
      *(msgpack.ExtType(1, array), msgpack.ExtType(3, array)),
      {"driver": "zarr", "kvstore": {"driver": "file", "path": "../../x"}},
      {"driver": rng.choice(("json", "n5")), "kvstore": {"driver": "gcs", "path": "y"}},
    )
  )
  return msgpack.packb(tree)


def protobuf(content: bytes, rng: random.Random) -> bytes:
  """Returns a message with one of its outermost fields removed, doubled or changed."""
  fields, at = [], 0
  while at < len(content):  # All that we write are of a byte's length.
    size = 2 + content[at + 1]
    fields.append(content[at : at + size])
    at += size
  place, kind = rng.randrange(len(fields)), rng.randrange(5)
  if kind == 0:
    del fields[place]
  elif kind == 1:
    fields.insert(rng.randrange(len(fields)), fields[place])
  elif kind == 2:
    rng.shuffle(fields)
  elif kind == 3:
    piece = rng.choice((b"", b"\xff", b"x" * 100, b"<pad>", b"<extra_id_0>", b"\0"))
    inner = b"\x0a" + bytes([len(piece)]) + piece + b"\x15\0\0\xc0\x7f"
    fields[place] = b"\x0a" + bytes([len(inner)]) + inner
  else:
    inner = damaged(fields[place][2:], rng)[:127]
    fields[place] = fields[place][:1] + bytes([len(inner)]) + inner
  return b"".join(fields)


def gguf(content: bytes, rng: random.Random) -> bytes:
  """Returns the file with a number, a type, a length or a text of its header changed."""
  sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
  numbers, texts, at = [(4, 4), (8, 8), (16, 8)], [], 24

  def number(size: int) -> int:
    nonlocal at
    numbers.append((at, size))
    at += size
    return int.from_bytes(content[at - size : at], "little")

  def word() -> None:
    nonlocal at
    start, length = at, number(8)
    texts.append((start, length))
    at += length

  def value(kind: int) -> None:
    if kind == 8:
      word()
    elif kind == 9:
      inner, count = number(4), number(8)
      for _ in range(count):
        value(inner)
    else:
      number(sizes[kind])

  tensors, keys = (int.from_bytes(content[a : a + 8], "little") for a in (8, 16))
  for _ in range(keys):
    word()
    value(number(4))
  for _ in range(tensors):
    word()
    for size in (8,) * number(4) + (4, 8):
      number(size)
  if rng.random() < 0.4:
    start, length = rng.choice(texts)
    old = content[start + 8 : start + 8 + length]
    new = rng.choice(
      (
        *(b"", b"llama", b"qwen2", b"gemma3", b"yarn", b"linear", b"model", b"\xff"),
        *(b"x" * 5000, b"../x", b"\x1b[31m", b"\0", old + b"x", old[:-1], old.upper()),
        *(b"general.alignment", b"output.weight", b"rope_freqs.weight", b"split.count"),
        *(b"llama.rope.scaling.type", b"llama.expert_count", b"blk.1.attn_q.weight"),
      )
    )
    made = len(new).to_bytes(8, "little") + new
    return content[:start] + made + content[start + 8 + length :]
  start, size = rng.choice(numbers)
  old = int.from_bytes(content[start : start + size], "little")
  new = rng.choice(
    (
      *(0, 1, 2, 3, 8, 9, 12, 30, 99, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1),
      *(old + 1, old - 1, 2 * old, old + 32, old // 2, 0x7FC00000, 0xBF800000),
    )
  )
  made = (new % 2 ** (8 * size)).to_bytes(size, "little")
  return content[:start] + made + content[start + size :]


# --- gin


VALUES = (
  *(
    "None",
    "True",
    "False",
    "0",
    "-1",
    "1",
    "0.5",
    "-0.5",
    "1e999",
    "-1e999",
    "1e-320",
  ),
  *(
    "2**3",
    "9223372036854775808",
    "10000000000000000000000",
    "100000000",
    "1.0",
    "nan",
  ),
  *(
    "''",
    "'x'",
    '"a b"',
    "'\\x00'",
    "'\\ud800'",
    "'" + "x" * 5000 + "'",
    "'0'",
    "'-1'",
  ),
  *("'\\x1b[31m'", "'~/x'", "'no/such'", "'.'", "'run\\n'", "b'x'", "'''x'''", "x"),
  *("[]", "()", "{}", "[1]", "['x']", "[None]", "{'a': 1}", "{1: 'x'}", "{None: None}"),
  *(
    "[[1], [2]]",
    "{'inputs': 24}",
    "{'inputs': '24', 'targets': 2}",
    "{[]: 1}",
    "(1,)",
  ),
  *("{'inputs': 100000000, 'targets': 2}", "{'inputs': 0, 'targets': -1}", "{1, 2}"),
  *("%X", "%RUN_DIR", "%TRAIN_STEPS", "%gin.REQUIRED", "@x", "@x()", "@a/b.c()", "@"),
  *("@training.train", "@training.train()", "@run/optimizers.constant()", "%", "..."),
  *("@optimizers.adamw", "@optimizers.constant()", "@suite.tasks()", "@network.T5()"),
  *("lambda: 1", "print(1)", "1 +", "(", "[1, 2", "{'a'", "'open", '"""open', "\\"),
  *("[" * 500 + "]" * 500, "(" * 100 + "1" + ")" * 100, "-" * 500 + "1", "1j", "0x10"),
  *("1_000", "01", "1e", "1 2", "'a' 'b'", "f'x'", "`x`", "$x", "\x00", "é", "\ufeff1"),
)
"""Values that a user, or a broken file, may give to any binding."""

_LINES = (
  *(
    "include 'mine.gin'",
    "include './mine.gin'",
    "include 'no.gin'",
    "include",
    "import",
  ),
  *("include 5", "include ''", "include 'data'", "import nothing_like_it", "from x"),
  *(
    "from __gin__ import dynamic_registration",
    "import tpv_jax.nothing",
    "import a.b.c",
  ),
  *(
    "from tpv_jax import nothing",
    "from tpv_jax.training import nothing",
    "X = 1",
    "X",
  ),
  *("TRAIN_STEP = 5", "training.train.steps = 5", "training.trains.total_steps = 5"),
  *("train.total_steps = 5", "a/b/training.train.seed = 1", "= 5", "X =", "X == 1"),
  *("training.train:", "training.train:\n  seed = 1", "  seed = 1", "\tseed = 1"),
  *("A = %B\nB = %A", "A = %A", "RUN_DIR = %A\nA = [%A]", "'x' = 1", "1 = 2", "(", ")"),
  *("from tpv_jax import gin_configs", "import json", "json.loads.s = 'x'", "X: 1"),
  *("include '/dev/null'", "include 'gin_configs/runs/embedded.gin'", "x.y.z = 1", "@"),
)


def _lines_of(content: bytes) -> list[str]:
  return content.decode(errors="surrogateescape").splitlines()


def _text_of(lines: list[str]) -> bytes:
  return ("\n".join(lines) + "\n").encode(errors="surrogateescape")


def gin_file(content: bytes, rng: random.Random) -> bytes:
  """Returns a gin file with a line changed, or something put in or taken out."""
  lines = _lines_of(content)
  at = rng.randrange(len(lines))
  kind = rng.randrange(12)
  bindings = [i for i, line in enumerate(lines) if " = " in line]
  if kind <= 4 and bindings:
    at = rng.choice(bindings)
    name = lines[at].split(" = ")[0]
    lines[at] = f"{name} = {rng.choice(VALUES)}"
  elif kind == 5 and bindings:
    at = rng.choice(bindings)
    name, value = lines[at].split(" = ", 1)
    lines[at] = f"{misspelt(name, rng)} = {value}"
  elif kind == 6:
    lines.insert(at, rng.choice(_LINES))
  elif kind == 7:
    del lines[at]
  elif kind == 8:
    lines[at] = misspelt(lines[at], rng)
  elif kind == 9:
    rng.shuffle(lines)
  elif kind == 10:
    lines[at] = rng.choice(("  ", "\t", "#", "\\\n", "")) + lines[at]
  else:
    return text(content, rng)
  return _text_of(lines)


def misspelt(word: str, rng: random.Random) -> str:
  """Returns the word with a character more, fewer, or another, as typing goes wrong."""
  at = rng.randrange(len(word) + 1)
  put = rng.choice("x_./ =%@'\"([{}])\\#:,0\n\té\0-")
  return word[:at] + rng.choice(("", put)) + word[at + rng.choice((0, 1)) :]


_TOML = (
  *(
    '""',
    '"x"',
    "''",
    "5",
    "-1",
    "0",
    "1.5",
    "nan",
    "inf",
    "1e400",
    "true",
    "'a",
    '"a',
  ),
  *(
    "9" * 30,
    "9" * 5000,
    "0x1",
    "2024-01-01",
    "12:00:00",
    "[",
    "{",
    "[]",
    "{}",
    "null",
  ),
  *('["a"]', "[1, 2]", "[[1]]", '["a.csv", "a.csv"]', '{ train = "a.csv" }', "label"),
  *('{ 0 = "bad" }', '{ 0 = "bad", 1 = "bad" }', "{ 0 = 5 }", "{ a = { b = 1 } }"),
  *('{ 0 = "" }', '{ 0.5 = "bad" }', "{ validation = 0.5 }", "{ test = 2 }"),
  *("{ validation = 0 }", "{ train = 0.5 }", "{ inputs = 0, targets = 2 }"),
  *("{ inputs = 9999999999 }", '"{no}"', '"{"', '"{label}"', '"{sentence!r}"', '"{0}"'),
  *('"/etc/passwd"', '"/dev/zero"', '"no.csv"', '"."', '"\\u0000"', '"\\u001b[31m"'),
  *('"paper"', '"json"', '"gs://x/y"', '"~nobody"', '"' + "x" * 5000 + '"', "\x00"),
  *("[" * 3000 + "]" * 3000, "{ a = " * 500 + "1" + " }" * 500, '"""open', "\ufeff1"),
)
"""Values that a user, or a broken file, may give to any key of a TOML file."""


def toml(content: bytes, rng: random.Random) -> bytes:
  """Returns a TOML file with a line changed, or something put in or taken out."""
  lines = _lines_of(content)
  at, kind = rng.randrange(len(lines)), rng.randrange(9)
  key, _, value = lines[at].partition(" = ")
  if kind <= 3:
    lines[at] = f"{key} = {rng.choice(_TOML)}"
  elif kind == 4:
    lines[at] = f"{misspelt(key, rng)} = {value}"
  elif kind == 5:
    tables = ("[labels]", "[paths]", "[x]", "[[x]]", "[a.b]", "[", key, f"x = {value}")
    lines.insert(at, rng.choice((*tables, lines[at], f"{key}.x = 1", "#", "\t")))
  elif kind == 6:
    del lines[at]
  elif kind == 7:
    lines[at] = misspelt(lines[at], rng)
  else:
    return text(content, rng)
  return _text_of(lines)


def yaml_head(content: bytes, rng: random.Random) -> bytes:
  """Returns a README whose metadata has a line changed, put in or taken out."""
  lines = _lines_of(content)
  at = rng.randrange(1, len(lines))
  kind = rng.randrange(6)
  value = rng.choice(
    (
      *("", "[", "{", "- ", "null", "5", "!!python/object/apply:os.getcwd []", "*a"),
      *("&a [*a]", "../*.jsonl", "/etc/passwd", "http://127.0.0.1:9/x.parquet", "~"),
      *("'open", "x: y: z", "\t", "%", "@", "`", "hf://x", "**", "[a, b]", "{a: b}"),
      *("data/*.parquet", "train", "x" * 5000, "\x1b[31m", "---", "? a", "2024-01-01"),
    )
  )
  if kind == 0:
    del lines[at]
  elif kind == 1:
    lines.insert(at, rng.choice((value, f"  {value}", f"x: {value}")))
  elif kind == 2:
    lines[at] = lines[at][: len(lines[at]) - len(lines[at].lstrip())] + value
  elif kind == 3 and ":" in lines[at]:
    lines[at] = f"{lines[at].split(':')[0]}: {value}"
  elif kind == 4:
    lines[at] = misspelt(lines[at], rng)
  else:
    return text(content, rng)
  return _text_of(lines)


# --- files


STRUCTURED: dict[str, Sequence[Callable[[bytes, random.Random], bytes]]] = {
  ".json": (json_file,),
  ".jsonl": (json_lines, text),
  ".csv": (table, text),
  ".tsv": (table, text),
  ".txt": (text,),
  ".md": (yaml_head,),
  ".gin": (gin_file,),
  ".toml": (toml,),
  ".safetensors": (safetensors,),
  ".gguf": (gguf,),
  ".npy": (npy,),
  ".npz": (npz,),
  ".model": (protobuf,),
  "_METADATA": (json_file,),
  "_CHECKPOINT_METADATA": (json_file,),
  ".zarray": (json_file,),
  "checkpoint": (msgpack_file,),
}
"""How a file is changed beside its bytes, by what its name ends in."""


@dataclasses.dataclass(frozen=True)
class Done:
  """What was done.

  Attributes:
    what: a line about it.
    refused: whether nothing but a refusal is right.
  """

  what: str
  refused: bool = False


def damage(
  folder: pathlib.Path,
  rng: random.Random,
  kept: Sequence[str] = (),
  own: Sequence[str] = (),
  sign: Callable[[bytes], bytes | None] = signed,
) -> Done:
  """Damages one file of a folder in place and returns what was done.

  Args:
    folder: of the files.
    rng: decides.
    kept: parts of the names of files that are left as they are.
    own: ends of the names of files of which each byte is signed.
    sign: returns such a file with the digest that it should state; None if it has none.
  """
  files = sorted(
    path
    for path in folder.rglob("*")
    if path.is_file()
    and not any(part in str(path.relative_to(folder)) for part in kept)
  )
  # Orbax has one folder with most of the files.
  parent = rng.choice(sorted({path.parent for path in files}))
  path = rng.choice([path for path in files if path.parent == parent])
  name = str(path.relative_to(folder))
  content = path.read_bytes()
  signs = name.endswith(tuple(own)) if own else False
  choice = rng.random()
  if choice < 0.04:
    return Done(f"{name}: {_replaced(path, rng)}")
  if choice < 0.06 and len(files) > 1:
    other = rng.choice([one for one in files if one != path])
    path.write_bytes(other.read_bytes())
    return Done(f"{name}: holds what {other.relative_to(folder)} holds")
  known = [change for end, change in STRUCTURED.items() if path.name.endswith(end)]
  chosen = rng.choice(known[-1]) if known and rng.random() < 0.7 else damaged
  after = chosen(content, rng)
  while after == content:
    after, chosen = damaged(content, rng), damaged
  refused = signs
  if signs and chosen is not damaged:
    again = sign(after)
    if rng.random() < 0.7 and again is not None:
      after, refused = again, False
    # A header written anew that states nothing of ours is another tool's, and no damage.
    refused = refused and again is not None
  path.write_bytes(after)
  return Done(
    f"{name}: {chosen.__name__}, {len(content)} to {len(after)} bytes", refused
  )


def _replaced(path: pathlib.Path, rng: random.Random) -> str:
  """Puts something else in a file's place and returns what."""
  import os

  kind = rng.choice(
    [
      *("removed", "removed", "empty", "empty", "a folder", "a folder", "a link away"),
      *("a link away", "a link to itself", "a pipe", "a socket"),
    ]
  )
  path.unlink()
  if kind == "a folder":
    path.mkdir()
  elif kind == "a link away":
    path.symlink_to(rng.choice(("/etc/passwd", "/dev/null", "/no/such", "/dev/zero")))
  elif kind == "a link to itself":
    path.symlink_to(path.name)
  elif kind == "empty":
    path.write_bytes(b"")
  elif kind == "a pipe":
    os.mkfifo(path)
  elif kind == "a socket":
    import stat

    os.mknod(path, stat.S_IFSOCK | 0o600)
  return kind
