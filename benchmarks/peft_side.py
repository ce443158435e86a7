"""PEFT's side of `against_peft.py`: prompt tuning of Hugging Face's T5 with torch.

Not a command by itself. Imports nothing of tpv_jax: torch, transformers, peft,
safetensors and NumPy, and the parity references' own mapping of T5X's leaves to theirs.
"""

import importlib.metadata
import importlib.util
import pathlib
import platform
from typing import Any

import numpy as np
import side
import torch
from peft import PromptTuningConfig, get_peft_model
from safetensors.numpy import load_file

PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy")
REFERENCES = (
  pathlib.Path(__file__).parents[1] / "tests" / "references" / "make_hf_references.py"
)
IGNORED = -100
"""The label of a position without a target, in transformers."""


class Peft:
  """Trains one prompt on batches padded to a length, or to each batch's longest."""

  def __init__(self, job: dict[str, Any]):
    self.job = job
    self.place = "cuda" if torch.cuda.is_available() else "cpu"
    if job["threads"]:
      torch.set_num_threads(job["threads"])
    if self.place == "cuda" and not job["check"]:
      torch.set_float32_matmul_precision("high")  # TF32, which JAX takes by itself.
    name = torch.cuda.get_device_name() if self.place == "cuda" else "cpu"
    self.device = f"{'gpu' if self.place == 'cuda' else 'cpu'}: {name}"
    self.versions = {
      "python": platform.python_version(),
      **{name: importlib.metadata.version(name) for name in PACKAGES},
    }
    self.dtype = getattr(torch, job["dtype"])
    spec = importlib.util.spec_from_file_location("references", REFERENCES)
    references = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(references)
    backbone = references.hugging_face_model(job["numbers"], load_file(job["weights"]))
    backbone = backbone.to(self.place, self.dtype)
    length = job["prompt_length"]
    model = get_peft_model(
      backbone,
      PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=length, prompt_tuning_init="RANDOM"
      ),
    )
    # PEFT allocates twice the rows and uses the first half (methods.md, section 1).
    prompt = model.prompt_encoder["default"].embedding.weight
    self.notes = {
      "attention": backbone.config._attn_implementation,
      "allocated_rows": len(prompt),
      "prompt_dtype": str(prompt.dtype),
    }
    with np.load(job["examples"]) as file, torch.no_grad():
      prompt[:length] = torch.from_numpy(file["prompts"][0])
    trained = [one for one in model.parameters() if one.requires_grad]
    assert [one.data_ptr() for one in trained] == [prompt.data_ptr()]
    self.optimizer = torch.optim.AdamW(
      trained, lr=job["learning_rate"], weight_decay=job["weight_decay"]
    )
    model.eval()  # No dropout, as on our side.
    self.model = torch.compile(model, dynamic=True) if job["compile"] else model

  def turn(
    self, sources: np.ndarray, targets: np.ndarray
  ) -> tuple[list[float], list[tuple[int, int, int]]]:
    """See `side.Trainer`."""
    losses, calls = [], []
    for source, target in zip(sources, targets, strict=True):
      if self.job["rows"] == "longest":
        source = source[:, : self._longest(source, source.shape[1])]
        target = target[:, : self._longest(target, target.shape[1])]
      tokens = torch.from_numpy(np.ascontiguousarray(source)).to(self.place).long()
      labels = torch.from_numpy(np.ascontiguousarray(target)).to(self.place).long()
      loss = self.model(
        input_ids=tokens,
        attention_mask=(tokens > 0).long(),
        labels=labels.masked_fill(labels == 0, IGNORED),
      ).loss
      loss.backward()
      self.optimizer.step()
      self.optimizer.zero_grad(set_to_none=True)
      losses.append(loss.detach())  # Not waited for: it would idle a GPU.
      joined = self.job["prompt_length"] + tokens.shape[1]
      calls.append((len(tokens), joined, labels.shape[1]))
    if self.place == "cuda":
      torch.cuda.synchronize()
    return torch.stack(losses).float().tolist(), calls

  def _longest(self, tokens: np.ndarray, most: int) -> int:
    """Returns the longest row's length, on a GPU rounded up to a multiple of 8."""
    grain = 8 if self.place == "cuda" else 1
    longest = int(np.count_nonzero(tokens, axis=1).max())
    return min(most, -(-longest // grain) * grain)

  def product(self, size: int, times: int) -> None:
    """See `side.Trainer`."""
    if not hasattr(self, "_factors"):
      self._factors = [
        torch.randn(size, size).to(self.place, self.dtype) for _ in range(2)
      ]
    with torch.no_grad():
      for _ in range(times):
        self._factors[0] @ self._factors[1]
    if self.place == "cuda":
      torch.cuda.synchronize()

  def device_peak(self) -> int | None:
    """See `side.Trainer`."""
    return torch.cuda.max_memory_allocated() if self.place == "cuda" else None


if __name__ == "__main__":
  side.serve(Peft)
