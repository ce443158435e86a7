"""Writes a backbone in another format, leaf by leaf, and checks what it wrote.

Only --dtype changes values. The fingerprint, over the values rounded to bf16, is the same
on both sides: vectors and prompts of one backbone belong to the other as well.

SOURCE is a folder of Hugging Face in safetensors (T5, T5 1.1, Flan-T5, mT5; LLaMA, SmolLM2,
DeepSeek-LLM, Mistral, Qwen 2.5, Qwen 3, Gemma 3), a GGUF file of the latter, a T5X
checkpoint (Orbax, or the layout of 2022), a .safetensors file of ours, or a name:
'embedded', 'smollm2'. Paths may be on gs://. An existing output is never replaced.
"""

import argparse

from tpv_jax.cli.arguments import Parser
from tpv_jax.core.errors import printable

EXAMPLES = """\
  tpv convert flan-t5-base -o t5x/checkpoint_0         Hugging Face to T5X
  tpv convert gs://t5-data/pretrained_models/t5x/t5_base/checkpoint_999900 \\
      -o t5_base --to hugging-face
  tpv convert mt5-small -o mt5.safetensors --dtype bfloat16
  tpv convert model.gguf -o model.safetensors --dtype bfloat16
  tpv convert flan-t5-base -o t5x/checkpoint_0 --dry-run
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds a backbone, its new format, and the output."""
  parser.add_argument("source", metavar="SOURCE", help="a backbone")
  parser.add_argument(
    "-o",
    "--output",
    metavar="OUT",
    required=True,
    help="a new folder, 'checkpoint_<step>' (T5X), or .safetensors file",
  )
  parser.add_argument(
    "--to",
    choices=("hugging-face", "t5x", "safetensors"),
    help="the format to write, if the name of OUT does not tell",
  )
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="of the output (default: that of SOURCE; fp16 becomes fp32)",
  )
  parser.add_argument(
    "--dry-run", action="store_true", help="list the mapping and write nothing"
  )


def run(options: argparse.Namespace) -> None:
  """Writes the backbone, or lists what would be written."""
  from tpv_jax.backbones import conversion
  from tpv_jax.core.screen import Bar

  to = conversion.target_of(options.output, options.to)
  conversion.check_output(options.output, to)
  with conversion.planned(options.source, to, options.dtype) as plan:
    if options.dry_run:
      print("\n".join(map(printable, conversion.describe(plan))))
      return
    with Bar(total=3 * plan.nbytes, unit="B", unit_scale=True) as bar:

      def report(doing: str, size: int) -> None:
        bar.set_description(doing, refresh=False)
        bar.update(size)

      fingerprint = conversion.convert(plan, options.source, options.output, report)
  name, output = printable(plan.source.name), printable(str(options.output))
  print(
    f"Wrote the backbone '{name}' to '{output}' ({to}): "
    f"{conversion.describe(plan)[-1]}.\n"
    f"  fingerprint {fingerprint}, the same when read back."
  )
  if to == "hugging-face":
    beside = ", ".join(conversion.tokenizer_files(options.output))
    print(
      f"  beside it: {beside}."
      if beside
      else "  no tokenizer: the source brings none. Copy the model's own files there."
    )
