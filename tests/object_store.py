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

import fsspec
from etils.epath import gpath
from fsspec.registry import _registry


class ObjectStore(fsspec.AbstractFileSystem):
  """Objects by "bucket/name"; a folder is there while an object lies in it."""

  protocol = ("gs", "gcs")
  objects: dict[str, bytes] = {}  # noqa: RUF012

  def ls(self, path, detail=True, **_):
    path = self._strip_protocol(path)
    below = {
      path + "/" + name.removeprefix(path + "/").split("/")[0]
      for name in self.objects
      if name.startswith(path + "/")
    }
    if not below and path not in self.objects:
      raise FileNotFoundError(path)
    names = sorted(below) or [path]
    return [self.info(name) for name in names] if detail else names

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
  """As much of Google's JSON API as tensorstore uses."""

  protocol_version = "HTTP/1.1"

  def _parts(self):
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    parts = url.path.split("/storage/v1/b/")[1].split("/")
    name = urllib.parse.unquote("/".join(parts[2:])) or query.get("name")
    return parts[0], name, query

  def _answer(self, status, content=b"", **headers):
    self.send_response(status)
    for key, value in headers.items():
      self.send_header(key.replace("_", "-"), value)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)

  def _answer_json(self, content):
    self._answer(200, json.dumps(content).encode(), Content_Type="application/json")

  def do_GET(self):
    bucket, name, query = self._parts()
    objects = ObjectStore.objects
    if name is None:
      names = sorted(n.removeprefix(bucket + "/") for n in objects)
      prefix = query.get("prefix", "")
      self._answer_json(
        {"items": [_described(bucket, n) for n in names if n.startswith(prefix)]}
      )
      return
    content = objects.get(f"{bucket}/{name}")
    if content is None:
      self._answer(404)
      return
    headers = {}
    if "alt" not in query:
      self._answer_json(_described(bucket, name))
      return
    if asked := self.headers.get("Range"):
      first, _, last = asked.removeprefix("bytes=").partition("-")
      size = len(content)
      start = int(first) if first else size - int(last)
      end = min(int(last) + 1, size) if first and last else size
      headers["Content_Range"] = f"bytes {start}-{end - 1}/{size}"
      self._answer(206, content[start:end], **headers)
      return
    self._answer(200, content, **headers)

  def do_POST(self):
    bucket, name, _ = self._parts()
    content = self.rfile.read(int(self.headers["Content-Length"]))
    ObjectStore.objects[f"{bucket}/{name}"] = content
    self._answer_json(_described(bucket, name))

  def do_DELETE(self):
    bucket, name, _ = self._parts()
    ObjectStore.objects.pop(f"{bucket}/{name}", None)
    self._answer(204)

  def log_message(self, *_):
    pass


def _described(bucket, name):
  size = str(len(ObjectStore.objects.get(f"{bucket}/{name}", b"")))
  return {"name": name, "bucket": bucket, "generation": "1", "size": size}


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
