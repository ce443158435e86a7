"""Commands `python` and `tpv` whose imports were paid for once.

A process imports JAX and our runner, starts no backend, and listens; the commands pass
it their arguments, environment, folder and standard streams, and it forks a child that
runs the module as the interpreter would. So a document's commands run in a shell as they
are printed, each in a process of its own, 5 s of imports sooner.
"""

import array
import atexit
import contextlib
import gc
import json
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time

CLIENT = """\
#!{interpreter} -IS
import array, json, os, socket, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
ours = name == "tpv" or arguments[:1] == ["-m"] and (
  arguments[1:2] and arguments[1].split(".")[0] in ("tpv_jax", "t5x"))
if not ours and not (arguments and arguments[0].startswith({scripts!r})):
  os.execv({interpreter!r}, [{interpreter!r}, *arguments])
with socket.socket(socket.AF_UNIX) as server:
  server.connect({address!r})
  streams = array.array("i", [0, 1, 2]).tobytes()
  server.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
  call = json.dumps([name, arguments, os.getcwd(), dict(os.environ)])
  server.sendall(call.encode() + b"\\n")
  with server.makefile() as answer:
    code = answer.readline()
sys.exit(int(code) if code else 1)
"""
"""The commands: what is not ours goes to the interpreter itself."""

SCRIPTS = ("benchmarks/", "examples/", "tests/", ".snippets/")


@contextlib.contextmanager
def commands(folder: pathlib.Path):
  """Writes `python`, `python3` and `tpv` into a folder; they work inside the context."""
  address = str(folder / "warm")
  client = CLIENT.format(interpreter=sys.executable, address=address, scripts=SCRIPTS)
  for name in ("python", "python3", "tpv"):
    (folder / name).write_text(client)
    (folder / name).chmod(0o755)
  server = subprocess.Popen([sys.executable, __file__, address])
  try:
    while not os.path.exists(address):
      assert server.poll() is None, "the process that should listen has ended"
      time.sleep(0.05)
    yield
  finally:
    server.terminate()
    server.wait()


def serve(address: str) -> None:
  """Listens and forks; returns in the child that shall run a command."""
  import matplotlib.figure
  import orbax.checkpoint
  import rich.table

  from tpv_jax.banks import bank
  from tpv_jax.cli import verbs
  from tpv_jax.evaluation import evaluation
  from tpv_jax.settings import refusals
  from tpv_jax.studies import ablation, few_shot, study
  from tpv_jax.training import training

  loaded = matplotlib.figure, orbax.checkpoint, rich.table, ablation, bank
  loaded += (
    tuple(map(verbs.load, verbs.VERBS)),
    refusals,
    evaluation,
    few_shot,
    study,
    training,
  )
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)
  gc.freeze()
  with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(address + "~")
    listener.listen()
    os.rename(address + "~", address)
    listener.settimeout(5)
    parent = os.getppid()
    while True:
      try:
        caller, _ = listener.accept()
      except TimeoutError:
        if os.getppid() != parent:
          os._exit(0)  # Nobody is left who would call.
        continue
      caller.setblocking(True)
      if os.fork() == 0:
        break
      caller.close()
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  _, passed, _, _ = caller.recvmsg(1, socket.CMSG_SPACE(3 * 4))
  streams = array.array("i", passed[0][2])
  with caller.makefile() as lines:
    call = json.loads(lines.readline())
  child = os.fork()
  if child:
    _, status = os.waitpid(child, 0)
    caller.sendall(b"%d\n" % max(os.waitstatus_to_exitcode(status) % 256, 0))
    os._exit(0)
  caller.close()
  for stream, number in zip(streams, (0, 1, 2), strict=True):
    os.dup2(stream, number)
    os.close(stream)
  prepare(*call)


def prepare(name: str, arguments: list[str], folder: str, environment: dict) -> None:
  """Takes over the caller's folder, environment and arguments."""
  os.chdir(folder)
  os.environ.clear()
  os.environ.update(environment)
  sys.argv = [name, *arguments]


def run() -> int:
  """Runs what `sys.argv` asks for as `python` or `tpv` would, and returns its exit code."""
  import documents
  import stand_ins

  name, *arguments = sys.argv
  parsed = os.environ.get("DOCUMENTS") == "parse"
  if name == "tpv":
    arguments = ["-m", "tpv_jax", *arguments]
  try:
    if arguments[0] == "-m":
      module, arguments = arguments[1], stand_ins.complete(*arguments[1:])
      if parsed:
        return stand_ins.parse(module, arguments)
      if documents.T5X.search(f"-m {module}"):  # It starts as it does for a user.
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
      sys.path[0] = os.getcwd()
      sys.argv = [name, *arguments]
      runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif parsed:
      return int(not os.path.isfile(arguments[0]))
    else:
      sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
      sys.argv = arguments
      runpy.run_path(arguments[0], run_name="__main__")
  except SystemExit as stop:
    if isinstance(stop.code, str):
      print(stop.code, file=sys.stderr)
    return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
  return 0


if __name__ == "__main__":
  serve(sys.argv[1])
  code = run()
  threading._shutdown()
  atexit._run_exitfuncs()
  sys.stdout.flush()
  os._exit(code)  # Taking JAX down object by object would copy all its pages.
