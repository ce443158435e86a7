"""No family of backbones, and no architecture, is known outside its own files."""

import ast
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "tpv_jax"

PARAMETERS = re.compile(
  r"token_embedder|rel_embedding|relpos_bias|layers_\d|logits_dense|(en|de)coder_norm"
  r"|(self|cross|encoder_decoder)_attention|mlp/w[io]"
)
"""Parts of the paths of parameters."""

FEATURES = re.compile(
  r"(encoder|decoder)_(input_tokens|target_tokens|loss_weights|segment_ids|positions"
  r"|prompt_ids|causal_attention)"
)
"""Names of a batch's arrays."""

PADDING = re.compile(r"\b(tokens|ids|targets|inputs|sources?)\)?\s*(>|!=|==)\s*0\b")
"""A test by hand of what `batches.is_padding` tells."""

OF_A_FAMILY = tuple(
  f"backbones/{folder.name}/"
  for folder in sorted((PACKAGE / "backbones").iterdir())
  if (folder / "__init__.py").is_file()
)
SHARED = (
  *(f"backbones/decoder_{part}.py" for part in ("config", "gguf", "stack")),
  "backbones/quantization.py",
)
"""What families share: a stack of layers, and T5X's name of an output layer."""
OF_AN_ARCHITECTURE = (
  *OF_A_FAMILY,
  *(
    "backbones/protocol.py",
    "encoder_decoder.py",
    "decoder_only.py",
    "data/batches.py",
    "data/packing.py",
  ),
)


def code(path):
  """Returns a file without its docstrings and comments."""
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    body = getattr(node, "body", None)
    if isinstance(body, list):
      node.body = [
        one
        for one in body
        if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
      ] or [ast.Pass()]
  return ast.unparse(tree)


FILES = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob("*.py")}


def found(pattern, allowed):
  return {
    name: sorted({match[0] for match in pattern.finditer(code(path))})
    for name, path in FILES.items()
    if not name.startswith(allowed) and pattern.search(code(path))
  }


@pytest.mark.parametrize(
  ("pattern", "allowed"),
  [
    (PARAMETERS, (*OF_A_FAMILY, *SHARED)),
    (FEATURES, OF_AN_ARCHITECTURE),
    (PADDING, (*OF_A_FAMILY, "backbones/decoding.py")),
  ],
  ids=("parameters", "features", "padding"),
)
def test_what_is_of_a_family_is_named_in_its_files_only(pattern, allowed):
  assert not found(pattern, allowed)


def test_networks_are_made_with_inputs_of_their_own():
  for name, path in FILES.items():
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call) and "network.init" in ast.unparse(node):
        assert "init_inputs()" in ast.unparse(node), name


@pytest.mark.parametrize("family", OF_A_FAMILY)
def test_families_are_imported_by_their_registry_only(family):
  module = family.strip("/").replace("/", ".")
  importers = {
    name
    for name, path in FILES.items()
    if module in code(path) and not name.startswith(family)
  }
  assert importers == {"backbones/registry.py"}
