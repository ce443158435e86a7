"""The side of transformers of `against_transformers.py`: what it says of a real model.

Not a command by itself: it takes a GGUF file, a JSON file with texts, and the .npz file to
write. Imports torch, transformers and NumPy, but nothing of tpv_jax.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers


def main(gguf: str, texts: str, output: str) -> None:
  """Writes ids, logits, log-probabilities and continuations of the texts."""
  path, asked = pathlib.Path(gguf), json.loads(pathlib.Path(texts).read_text())
  transformers.logging.disable_progress_bar()
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    path.parent, gguf_file=path.name
  )
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  ).eval()
  found = {
    "parameters": np.array(sum(one.numel() for one in model.parameters())),
    "ends": np.atleast_1d(model.generation_config.eos_token_id),
    "versions": np.array(f"torch {torch.__version__}, transformers "
    f"{transformers.__version__}"),
  }  # fmt: skip
  for number, text in enumerate([*asked["texts"], asked["long"]]):
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
      logits = model(ids).logits[0]
    found[f"ids/{number}"] = ids[0].numpy()
    if text != asked["long"]:
      found[f"logits/{number}"] = logits.numpy()
    log = torch.log_softmax(logits[:-1].double(), -1)
    found[f"log/{number}"] = log.gather(-1, ids[0, 1:, None])[:, 0].numpy()
  for number, text in enumerate(asked["prompts"]):
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    made = model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      do_sample=False,
      num_beams=1,
      max_new_tokens=asked["tokens"],
      output_logits=True,
      pad_token_id=0,
      return_dict_in_generate=True,
    )
    best = torch.stack(made.logits)[:, 0].topk(2).values
    found[f"source/{number}"] = ids[0].numpy()
    found[f"written/{number}"] = made.sequences[0, ids.shape[1] :].numpy()
    found[f"margins/{number}"] = (best[:, 0] - best[:, 1]).numpy()
  np.savez(output, **found)


if __name__ == "__main__":
  main(*sys.argv[1:])
