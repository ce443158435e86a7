"""A tiny model that stands in for SmolLM2: random weights and a byte-level BPE."""

import llama_models

from tpv_jax.data import byte_pairs

CONFIG = {
  **llama_models.COMMON,
  "model_type": "llama",
  "head_dim": 4,
  "hidden_size": 16,
  "max_position_embeddings": 512,
  "tie_word_embeddings": True,
}

TEMPLATE = (
  "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
  "{{ message['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokens(last):
  """Returns special tokens, the 256 bytes, and the pieces of a word, and its merges."""
  special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  pieces, merges = [], []
  made = "\u0120"  # A space, as byte-level BPE writes it.
  for letter in last:
    merges.append(f"{made} {letter}")
    made += letter
    pieces.append(made)
  return [*special, *byte_pairs.byte_letters(), *pieces], merges


def write_gguf(path, last="answer"):
  """Writes such a model as a GGUF file; `last` is the only word that is one token."""
  pieces, merges = tokens(last)
  keys = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": pieces,
    "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(pieces) - 3),
    "tokenizer.ggml.merges": merges,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": TEMPLATE,
  }
  content = {**CONFIG, "vocab_size": len(pieces)}
  return llama_models.write_gguf(path, content, keys=keys)
