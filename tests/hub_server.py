"""A server that speaks as much of the hub's API as fetching a model needs."""

import contextlib
import fnmatch
import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse


class Hub:
  """Models by name, each a folder; `asked` has the files that were fetched.

  A model is at `COMMIT`, its branch is 'main'. A name in `refused` gives that error.
  """

  COMMIT = "0123456789abcdef0123456789abcdef01234567"

  def __init__(self, models: dict[str, pathlib.Path], refused: dict[str, str] = {}):  # noqa: B006
    self.models, self.refused, self.asked = models, refused, []
    self.address = ""

  def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
    """Returns status, headers and content for a path of a request."""
    parts = urllib.parse.unquote(urllib.parse.urlsplit(path).path).strip("/").split("/")
    api = parts[:2] == ["api", "models"]
    name = "/".join(parts[2:4] if api else parts[:2])
    rest = parts[4:] if api else parts[2:]
    if name in self.refused:
      return 403, {"X-Error-Code": self.refused[name]}, b"{}"
    if name not in self.models:
      return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
    if len(rest) > 1 and rest[1] not in ("main", self.COMMIT):
      return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
    folder = self.models[name]
    if not api:
      content = (folder / "/".join(rest[2:])).read_bytes()
      self.asked.append("/".join(rest[2:]))
      etag = hashlib.sha256(content).hexdigest()
      return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": self.COMMIT}, content
    files = sorted(one.name for one in folder.iterdir())
    sizes = {name: (folder / name).stat().st_size for name in files}
    if rest[:1] == ["tree"]:
      listed = [
        {"type": "file", "path": name, "size": size, "oid": "0" * 40}
        for name, size in sizes.items()
      ]
      return 200, {}, json.dumps(listed).encode()
    siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
    content = {"id": name, "sha": self.COMMIT, "siblings": siblings}
    return 200, {}, json.dumps(content).encode()


@contextlib.contextmanager
def serving(hub: Hub):
  """Serves a hub; its `address` is for HF_ENDPOINT."""

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
      status, headers, content = hub.answer(self.path)
      self.send_response(status)
      for name, value in headers.items():
        self.send_header(name, value)
      self.send_header("Content-Length", str(len(content)))
      self.end_headers()
      if self.command == "GET":
        self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 (the name that the server calls)

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  hub.address = f"http://127.0.0.1:{server.server_port}"
  try:
    yield hub
  finally:
    server.shutdown()
    server.server_close()


def lay(cache: pathlib.Path, name: str, folder: pathlib.Path, pattern: str = "*"):
  """Lays a model's files into a cache as the hub's package does; returns its snapshot."""
  model = cache / f"models--{name.replace('/', '--')}"
  snapshot = model / "snapshots" / Hub.COMMIT
  snapshot.mkdir(parents=True)
  (model / "blobs").mkdir()
  (model / "refs").mkdir()
  (model / "refs" / "main").write_text(Hub.COMMIT)
  for file in folder.iterdir():
    if fnmatch.fnmatch(file.name, pattern):
      content = file.read_bytes()
      blob = model / "blobs" / hashlib.sha256(content).hexdigest()
      blob.write_bytes(content)
      (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
  return snapshot


def models(folder: pathlib.Path) -> pathlib.Path:
  """Writes 't5' and 'llama' into a folder, with what a repository has beside them."""
  import llama_models
  import stand_ins
  import tokenizer_references

  from tpv_jax.data import vocabularies

  stand_ins.t5_with_vocabulary("flan_t5")(folder / "t5")
  vocabulary = tokenizer_references.write(folder, "smollm")
  rows = vocabularies.load(vocabulary / "tokenizer.json").vocab_size - 1
  content = llama_models.CONFIGS["llama tied"] | {"vocab_size": rows}
  llama_models.write(folder / "llama", content)
  tokenizer_references.write(folder / "llama", "smollm")
  for name in ("t5", "llama"):
    (folder / name / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / name / "README.md").write_text("a card")
  return folder
