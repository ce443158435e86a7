"""PEFT's side of `against_peft.py`: prompt tuning of Hugging Face's models with torch.

Not a command by itself. Imports torch, transformers, peft, safetensors and NumPy, but
nothing of tpv_jax, and has its own mapping of T5X's leaves to those of transformers.
"""

from typing import Any

import numpy as np
import record
import side
import torch
import transformers
from peft import PromptTuningConfig, get_peft_model
from safetensors.numpy import load_file

PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy")
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
      torch.set_float32_matmul_precision("high")  # TF32, JAX's default.
    name = torch.cuda.get_device_name() if self.place == "cuda" else "cpu"
    self.device = f"{'gpu' if self.place == 'cuda' else 'cpu'}: {name}"
    self.versions = record.versions(PACKAGES)
    self.dtype = getattr(torch, job["dtype"])
    self.causal = job["family"] == "llama"
    made = llama if self.causal else t5
    backbone = made(job["numbers"], load_file(job["weights"]))
    backbone = backbone.to(self.place, self.dtype)
    length = job["prompt_length"]
    model = get_peft_model(
      backbone,
      PromptTuningConfig(
        task_type="CAUSAL_LM" if self.causal else "SEQ_2_SEQ_LM",
        num_virtual_tokens=length,
        prompt_tuning_init="RANDOM",
      ),
    )
    # For a T5, PEFT allocates twice the rows and uses the first half (docs/methods.md,
    # "Prompt tuning").
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
    if job["evaluate"]:
      with np.load(job["examples"]) as file:
        self.candidates = side.candidates(file["prompts"], job["coefficients"])
    model.eval()  # No dropout, as on our side.
    self.model = torch.compile(model, dynamic=True) if job["compile"] else model

  def turn(
    self, sources: np.ndarray, targets: np.ndarray
  ) -> tuple[list[float], list[tuple[int, int, int]]]:
    """See `side.Trainer`."""
    if self.job["evaluate"]:
      return self._evaluate(sources, targets)
    losses, calls = [], []
    for source, target in zip(sources, targets, strict=True):
      if self.causal:
        source, target = joined_rows(source, target)
      if self.job["rows"] == "longest":
        longest = self._longest(source, source.shape[1])
        source = source[:, :longest]
        if not self.causal:
          longest = self._longest(target, target.shape[1])
        target = target[:, :longest]
      tokens = torch.from_numpy(np.ascontiguousarray(source)).to(self.place).long()
      labels = torch.from_numpy(np.ascontiguousarray(target)).to(self.place).long()
      mask, labels = (tokens > 0).long(), labels.masked_fill(labels == 0, IGNORED)
      if self.causal:  # Ids are the tokenizer's plus one.
        tokens, labels = (tokens - 1).clamp(min=0), labels - (labels > 0).long()
      loss = self.model(input_ids=tokens, attention_mask=mask, labels=labels).loss
      loss.backward()
      self.optimizer.step()
      self.optimizer.zero_grad(set_to_none=True)
      losses.append(loss.detach())  # Waiting for each loss would idle a GPU.
      joined = self.job["prompt_length"] + tokens.shape[1]
      # transformers computes the logits of the whole row.
      calls.append((len(tokens), joined, joined if self.causal else labels.shape[1]))
    if self.place == "cuda":
      torch.cuda.synchronize()
    return torch.stack(losses).float().tolist(), calls

  @torch.inference_mode()
  def _evaluate(
    self, sources: np.ndarray, targets: np.ndarray
  ) -> tuple[list[float], list[tuple[int, int, int]]]:
    """Evaluates one candidate after the other, a task's examples in one batch each."""
    prompt = self.model.prompt_encoder["default"].embedding.weight
    length, most = self.job["prompt_length"], self.job["new_tokens"]
    of_family = self._evaluate_llama if self.causal else self._evaluate_t5
    losses, calls = [], []
    for source, target, own in zip(sources, targets, self.candidates, strict=True):
      if self.job["rows"] == "longest":
        source = source[:, : self._longest(source, source.shape[1])]
      for candidate in own:
        prompt[:length] = torch.from_numpy(candidate).to(prompt)
        losses.append(of_family(source, target[:, :most]))
        made = length + source.shape[1] + (most if self.causal else 0)
        calls.append((len(source), made, most))
    if self.place == "cuda":
      torch.cuda.synchronize()
    return torch.stack(losses).tolist(), calls

  def _evaluate_t5(self, source: np.ndarray, target: np.ndarray) -> torch.Tensor:
    """Returns the sum of the written ids, or the targets' loss."""
    tokens, labels = self._placed(source), self._placed(target)
    mask = (tokens > 0).long()
    if self.job["evaluate"] == "generate":
      written = self.model.generate(
        input_ids=tokens,
        attention_mask=mask,
        max_new_tokens=labels.shape[1],
        do_sample=False,
        num_beams=1,
      )
      return written[:, 1:].sum().float()
    logits = self.model(
      input_ids=tokens,
      attention_mask=mask,
      labels=labels.masked_fill(labels == 0, IGNORED),
    ).logits
    return self._scored(logits, labels, labels)

  def _evaluate_llama(self, source: np.ndarray, target: np.ndarray) -> torch.Tensor:
    """Returns the sum of the written ids, or the targets' loss; ids are ours."""
    length = self.job["prompt_length"]
    if self.job["evaluate"] == "generate":
      # PEFT's own generation puts the prompt in front of every token that it writes. So
      # it is given as embeddings, padded on the left, as generation wants them.
      base = self.model.get_base_model()
      prompt = self.model.prompt_encoder["default"].embedding.weight[:length]
      embedded = base.get_input_embeddings()(self._placed(source - (source > 0)))
      counts = np.count_nonzero(source, axis=1).tolist()
      rows = [
        torch.cat([prompt.to(self.dtype), row[:count]])
        for row, count in zip(embedded, counts, strict=True)
      ]
      mask = [torch.ones(len(row), device=self.place).long() for row in rows]
      inputs, mask = (
        torch.nn.utils.rnn.pad_sequence(one, batch_first=True, padding_side="left")
        for one in (rows, mask)
      )
      written = base.generate(
        inputs_embeds=inputs,
        attention_mask=mask,
        max_new_tokens=target.shape[1],
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=0,
        pad_token_id=0,
      )
      ends = (written == 0).long()
      counted = ends.cumsum(1) - ends == 0  # Up to and with the first end token.
      return ((written + 1) * counted).sum().float()
    tokens, labels = map(self._placed, joined_rows(source, target))
    logits = self.model(
      input_ids=(tokens - 1).clamp(min=0), attention_mask=(tokens > 0).long()
    ).logits[:, length - 1 : -1]
    return self._scored(logits, labels, labels - 1)

  def _placed(self, tokens: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(tokens)).to(self.place).long()

  @staticmethod
  def _scored(
    logits: torch.Tensor, labels: torch.Tensor, wanted: torch.Tensor
  ) -> torch.Tensor:
    """Returns the loss of targets, and computes their exact match as well.

    Args:
      logits: [B, L, V], that predict each label.
      labels: [B, L], 0 where there is none.
      wanted: [B, L], the labels as ids of the network.
    """
    there = labels > 0
    logits = logits[there].float()
    own = torch.where(there, wanted, 0)[there]
    scores = torch.log_softmax(logits, -1).gather(-1, own[:, None])[:, 0]
    right = torch.ones_like(there)
    right[there] = logits.argmax(-1) == own
    right.all(1).sum()  # The exact match of greedy decoding, as our side computes it.
    return -scores.sum()

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


def joined_rows(
  source: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns rows of source, target and padding without a gap; and the targets' places."""
  columns = source.shape[1] + target.shape[1]
  tokens, labels = np.zeros((2, len(source), columns), source.dtype)
  for row, (one, other) in enumerate(zip(source, target, strict=True)):
    begin, length = np.count_nonzero(one), np.count_nonzero(other)
    tokens[row, :begin] = one[:begin]
    for made in (tokens, labels):
      made[row, begin : begin + length] = other[:length]
  return tokens, labels


def llama(
  config: dict[str, Any], weights: dict[str, np.ndarray]
) -> transformers.LlamaForCausalLM:
  """Returns Hugging Face's model with all of its weights replaced by ours."""
  tied = config.get("logits_via_embedding", False)
  model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=config["vocab_size"],
      hidden_size=config["emb_dim"],
      intermediate_size=config["mlp_dim"],
      num_hidden_layers=config["num_layers"],
      num_attention_heads=config["num_heads"],
      num_key_value_heads=config["num_kv_heads"],
      head_dim=config["head_dim"],
      max_position_embeddings=config["max_positions"],
      rms_norm_eps=config.get("norm_epsilon", 1e-5),
      rope_parameters={
        "rope_type": "default",
        "rope_theta": config.get("rope_theta", 10_000.0),
      },
      tie_word_embeddings=tied,
      use_cache=False,
    )
  ).eval()
  paths = {
    "model.embed_tokens": "decoder/token_embedder/embedding",
    "model.norm": "decoder/decoder_norm/scale",
  }
  if not tied:
    paths["lm_head"] = "decoder/logits_dense/kernel"
  for number in range(config["num_layers"]):
    theirs, ours = f"model.layers.{number}", f"decoder/layers_{number}"
    paths |= {
      f"{theirs}.input_layernorm": f"{ours}/pre_self_attention_layer_norm/scale",
      f"{theirs}.self_attn.q_proj": f"{ours}/self_attention/query/kernel",
      f"{theirs}.self_attn.k_proj": f"{ours}/self_attention/key/kernel",
      f"{theirs}.self_attn.v_proj": f"{ours}/self_attention/value/kernel",
      f"{theirs}.self_attn.o_proj": f"{ours}/self_attention/out/kernel",
      f"{theirs}.post_attention_layernorm": f"{ours}/pre_mlp_layer_norm/scale",
      f"{theirs}.mlp.gate_proj": f"{ours}/mlp/wi_0/kernel",
      f"{theirs}.mlp.up_proj": f"{ours}/mlp/wi_1/kernel",
      f"{theirs}.mlp.down_proj": f"{ours}/mlp/wo/kernel",
    }
  parameters = dict(model.named_parameters())
  assert parameters.keys() == {f"{name}.weight" for name in paths}
  assert set(paths.values()) == weights.keys()
  for name, path in paths.items():
    value, parameter = torch.from_numpy(weights[path]), parameters[f"{name}.weight"]
    if path.endswith("/kernel"):  # Hugging Face stores [out, in].
      value = value.T
    assert parameter.shape == value.shape, (name, path)
    with torch.no_grad():
      parameter.copy_(value)
  shared = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
  assert shared == tied
  return model


def t5(
  config: dict[str, Any], weights: dict[str, np.ndarray]
) -> transformers.T5ForConditionalGeneration:
  """Returns Hugging Face's model with all of its weights replaced by ours."""
  tied = config["logits_via_embedding"]
  model = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=config["vocab_size"],
      d_model=config["emb_dim"],
      d_kv=config["head_dim"],
      d_ff=config["mlp_dim"],
      num_layers=config["num_encoder_layers"],
      num_decoder_layers=config["num_decoder_layers"],
      num_heads=config["num_heads"],
      feed_forward_proj="relu" if len(config["mlp_activations"]) == 1 else "gated-gelu",
      tie_word_embeddings=tied,
      decoder_start_token_id=0,
      dropout_rate=0.0,
    )
  ).eval()
  if not tied:  # transformers 5 ties them even so, until a checkpoint says otherwise.
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
  missing = {name for name, _ in model.named_parameters()}

  def put(name: str, path: str) -> None:
    value = torch.from_numpy(weights[path].T.copy())  # Hugging Face stores [out, in].
    parameter = model.get_parameter(name)
    assert parameter.shape == value.shape, (name, path)
    with torch.no_grad():
      parameter.copy_(value)
    missing.remove(name)

  def attention(name: str, path: str) -> None:
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
      put(f"{name}.{theirs}.weight", f"{path}/{ours}/kernel")

  with torch.no_grad():
    model.shared.weight.copy_(torch.from_numpy(weights["token_embedder/embedding"]))
  missing.remove("shared.weight")
  for stack in ("encoder", "decoder"):
    put(
      f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
      f"{stack}/relpos_bias/rel_embedding",
    )
    for number in range(config[f"num_{stack}_layers"]):
      theirs, ours = f"{stack}.block.{number}.layer", f"{stack}/layers_{number}"
      own = "attention" if stack == "encoder" else "self_attention"
      put(f"{theirs}.0.layer_norm.weight", f"{ours}/pre_{own}_layer_norm/scale")
      attention(f"{theirs}.0.SelfAttention", f"{ours}/{own}")
      last = 1
      if stack == "decoder":
        last = 2
        put(
          f"{theirs}.1.layer_norm.weight",
          f"{ours}/pre_cross_attention_layer_norm/scale",
        )
        attention(f"{theirs}.1.EncDecAttention", f"{ours}/encoder_decoder_attention")
      put(f"{theirs}.{last}.layer_norm.weight", f"{ours}/pre_mlp_layer_norm/scale")
      count = len(config["mlp_activations"])
      for name in ["wi"] if count == 1 else ["wi_0", "wi_1"]:
        put(
          f"{theirs}.{last}.DenseReluDense.{name}.weight", f"{ours}/mlp/{name}/kernel"
        )
      put(f"{theirs}.{last}.DenseReluDense.wo.weight", f"{ours}/mlp/wo/kernel")
    put(f"{stack}.final_layer_norm.weight", f"{stack}/{stack}_norm/scale")
  if not tied:
    put("lm_head.weight", "decoder/logits_dense/kernel")
  assert not missing, missing
  shared = model.lm_head.weight.data_ptr() == model.shared.weight.data_ptr()
  assert shared == tied
  return model


if __name__ == "__main__":
  side.serve(Peft)
