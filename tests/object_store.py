"""A bucket in memory that stands in for gs://: objects, no folders, no append.

etils reaches it through fsspec, as it reaches Google's by gcsfs. tensorstore, with which
Orbax reads and writes arrays, speaks HTTP of its own to TENSORSTORE_GCS_HTTP_URL, where
`serve` answers from the same objects as Google's JSON API would.
"""

import functools
import http.server
import io
import json
import threading
import urllib.parse
import zlib

import fsspec
from etils.epath import gpath
from fsspec.registry import _registry


class ObjectStore(fsspec.AbstractFileSystem):
  """Objects by "bucket/name"; a folder is there while an object lies in it."""

  protocol = ("gs", "gcs")
  objects: dict[str, bytes] = {}  # noqa: RUF012

  def ls(self, path, detail=True, **_):
    path = self._strip_protocol(path)
    if path in self.dircache:  # As in gcsfs, which never looks again.
      return self.dircache[path] if detail else [i["name"] for i in self.dircache[path]]
    below = {
      path + "/" + name.removeprefix(path + "/").split("/")[0]
      for name in self.objects
      if name.startswith(path + "/")
    }
    if not below and path not in self.objects:
      raise FileNotFoundError(path)
    found = [self.info(name) for name in sorted(below) or [path]]
    self.dircache[path] = found
    return found if detail else [info["name"] for info in found]

  def info(self, path, **_):
    path = self._strip_protocol(path)
    if path in self.objects:
      return {"name": path, "size": len(self.objects[path]), "type": "file"}
    if any(name.startswith(path + "/") for name in self.objects):
      return {"name": path, "size": 0, "type": "directory"}
    raise FileNotFoundError(path)

  def _open(self, path, mode="rb", **_):
    if mode == "wb":
      return _Upload(self.objects, path)
    if mode != "rb":
      raise NotImplementedError(f"An object store does not open with '{mode}'.")
    return io.BytesIO(self.objects[self.info(path)["name"]])

  def mkdir(self, path, create_parents=True, **_):
    pass

  def makedirs(self, path, exist_ok=False):
    pass

  def rm(self, path, recursive=False, **_):
    path = self._strip_protocol(path)
    inside = [name for name in self.objects if name.startswith(path + "/")]
    names = [path] if path in self.objects else inside if recursive else []
    if not names:
      raise FileNotFoundError(path)
    for name in names:
      del self.objects[name]


class _Upload(io.BytesIO):
  def __init__(self, objects, name):
    super().__init__()
    self._objects, self._name = objects, name

  def close(self):
    if not self.closed:
      self._objects[self._name] = self.getvalue()
    super().close()


class _Handler(http.server.BaseHTTPRequestHandler):
  """As much of Google's JSON API as tensorstore uses: download, upload if unchanged."""

  protocol_version = "HTTP/1.1"
  lock = threading.Lock()

  def do_GET(self):
    name, query = self._asked()
    content = ObjectStore.objects.get(name)
    generation = _generation(content)
    if content is None:
      self._answer(404)
    elif query.get("ifGenerationNotMatch") == generation:
      self._answer(304, generation=generation)
    elif span := self.headers.get("Range"):
      first, _, last = span.removeprefix("bytes=").partition("-")
      start = int(first) if first else len(content) - int(last)
      end = int(last) + 1 if first and last else len(content)
      part = content[start:end]
      whole = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
      self._answer(206, part, generation, whole)
    else:
      self._answer(200, content, generation)

  def do_POST(self):
    name, query = self._asked()
    content = self.rfile.read(int(self.headers["Content-Length"]))
    with self.lock:
      there = _generation(ObjectStore.objects.get(name))
      if query.get("ifGenerationMatch", there) != there:
        self._answer(412)
        return
      ObjectStore.objects[name] = content
    described = {
      "name": query["name"],
      "generation": _generation(content),
      "size": str(len(content)),
    }
    self._answer(200, json.dumps(described).encode())

  def log_message(self, *_):
    pass

  def _asked(self):
    """Returns "bucket/name" of the object and the query."""
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    bucket, _, name = url.path.split("/storage/v1/b/")[1].partition("/o")
    name = urllib.parse.unquote(name.removeprefix("/")) or query["name"]
    return f"{bucket}/{name}", query

  def _answer(self, status, content=b"", generation=None, content_range=None):
    self.send_response(status)
    if generation is not None:
      self.send_header("x-goog-generation", generation)
    if content_range is not None:
      self.send_header("Content-Range", content_range)
    if status != 304:
      self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)


def _generation(content):
  """A number for this content of an object; 0 is what Google says of none."""
  return str(0 if content is None else 1 + zlib.crc32(content))


@functools.cache
def serve():
  """Answers on loopback until the process ends; returns the address."""
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  return f"http://127.0.0.1:{server.server_address[1]}"


def stand_in(monkeypatch):
  """Makes gs:// mean an empty `ObjectStore`, for etils and for tensorstore."""
  monkeypatch.setattr(ObjectStore, "objects", {})
  for scheme in ObjectStore.protocol:
    monkeypatch.setitem(_registry, scheme, ObjectStore)
  monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
  monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", serve())
  monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
