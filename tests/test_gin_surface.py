"""What gin files of users rely on: selectors, parameters and macros stay.

`gin_surface.json` was written with the code of 0.1.0. A module may move; the name by which the
package's gin files import it, what it offers under that name and their macros don't go.
"""

import ast
import functools
import importlib.util
import json
import pathlib
import re

import pytest

from tpv_jax.settings import gin_files

SURFACE = json.loads(pathlib.Path(__file__).with_name("gin_surface.json").read_text())


def imported(text):
  """Yields (name in the file, module) of the modules of ours that a gin file imports."""
  pattern = r"^from (tpv_jax[\w.]*) import (\w+)(?: as (\w+))?$"
  for package, module, name in re.findall(pattern, text, re.MULTILINE):
    yield name or module, f"{package}.{module}"


def parameters(node):
  """Returns the parameters of a function, or the fields or arguments of a class."""
  if isinstance(node, ast.FunctionDef):
    given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    return [one.arg for one in given if one.arg != "self"]
  made = [one for one in node.body if isinstance(one, ast.FunctionDef)]
  if start := [one for one in made if one.name == "__init__"]:
    return parameters(start[0])
  fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
  return [one.target.id for one in fields if not one.target.id.startswith("_")]


@functools.cache
def offered(module):
  """Returns the public functions and classes of a module, read without importing it."""
  spec = importlib.util.find_spec(module)
  tree = ast.parse(pathlib.Path(spec.origin).read_text())
  return {
    node.name: parameters(node)
    for node in tree.body
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
  }


@functools.cache
def surface():
  """Returns what today's gin files use, comments included, in the form of the file.

  Where modules of both runners share a name, a selector has the parameters of both.
  """
  selectors, macros = {}, {}
  for name, text in gin_files.shipped().items():
    macros[name] = sorted({*re.findall(r"^([A-Z][A-Z0-9_]*) *=", text, re.MULTILINE)})
    for short, module in imported(text):
      for function, given in offered(module).items():
        selector = f"{short}.{function}"
        if re.search(rf"\b{re.escape(selector)}\b", text):
          selectors[selector] = sorted({*selectors.get(selector, ()), *given})
  return {"selectors": dict(sorted(selectors.items())), "macros": macros}


@pytest.mark.parametrize("name", SURFACE["macros"])
def test_a_gin_file_keeps_its_macros(name):
  assert set(SURFACE["macros"][name]) <= set(surface()["macros"].get(name, ()))


def test_the_selectors_that_gin_files_use_keep_their_parameters():
  today = surface()["selectors"]
  lost = {
    f"{selector}.{parameter}"
    for selector, given in SURFACE["selectors"].items()
    for parameter in given
    if parameter not in today.get(selector, ())
  }
  assert not lost
