"""Backbones: ours, Hugging Face's folders, checkpoints of T5X."""

import functools
import json
import pathlib
import random
import shutil

import numpy as np

from fuzz import mutations
from fuzz.campaign import Kind
from fuzz.inputs import tpv


def leaves() -> dict[str, np.ndarray]:
  """Returns the leaves of the smallest T5 1.0 by T5X path."""
  rng = np.random.default_rng(2)
  shapes: dict[str, tuple[int, ...]] = {"token_embedder/embedding": (8, 4)}
  for stack, parts in (
    ("encoder", ("attention",)),
    ("decoder", ("self_attention", "encoder_decoder_attention")),
  ):
    layer = f"{stack}/layers_0"
    shapes[f"{stack}/relpos_bias/rel_embedding"] = (2, 32)
    shapes[f"{stack}/{stack}_norm/scale"] = (4,)
    shapes[f"{layer}/pre_mlp_layer_norm/scale"] = (4,)
    shapes[f"{layer}/mlp/wi/kernel"] = (4, 6)
    shapes[f"{layer}/mlp/wo/kernel"] = (6, 4)
    for part in parts:
      norm = "cross_attention" if part.startswith("encoder_") else part
      shapes[f"{layer}/pre_{norm}_layer_norm/scale"] = (4,)
      for name in ("query", "key", "value", "out"):
        shapes[f"{layer}/{part}/{name}/kernel"] = (4, 4)
  return {
    path: rng.standard_normal(shape).astype(np.float32)
    for path, shape in shapes.items()
  }


def _make_ours() -> None:
  from tpv_jax.backbones import loading

  loading.save_backbone("b.safetensors", leaves(), "small")


def _make_hugging_face(family: str = "t5") -> None:
  import hf_references

  hf_references.write_folder(pathlib.Path("b"), family)


def _make_sharded() -> None:
  import hf_references
  from safetensors.numpy import save_file

  _make_hugging_face()
  pathlib.Path("b/model.safetensors").unlink()
  weights = hf_references.weights("t5")
  names = sorted(weights)
  place: dict[str, str] = {}
  for index in range(2):
    file = f"model-0000{index + 1}-of-00002.safetensors"
    part = {name: weights[name] for name in names[index::2]}
    save_file(part, f"b/{file}", {"format": "pt"})
    place |= dict.fromkeys(part, file)
  total = sum(leaf.nbytes for leaf in weights.values())
  index = {"metadata": {"total_size": total}, "weight_map": place}
  pathlib.Path("b/model.safetensors.index.json").write_text(json.dumps(index))


def _make_llama(name: str) -> None:
  import llama_models

  llama_models.write(pathlib.Path("b"), llama_models.CONFIGS[name])


def _make_gemma(with_images: bool = False) -> None:
  import gemma_models

  path = pathlib.Path("b")
  if with_images:
    gemma_models.write_with_images(path)
  else:
    gemma_models.write(path)


def _make_gemma_gguf() -> None:
  import gemma_models

  gemma_models.write_gguf(pathlib.Path("b.gguf"), kind="F16")


def _make_converted(output: str, to: str) -> None:
  """A LLaMA in another format, which states the network's numbers."""
  import llama_models

  from tpv_jax.backbones import conversion

  folder = llama_models.write(pathlib.Path("folder"), llama_models.CONFIGS["llama"])
  with conversion.planned(folder, to) as plan:
    conversion.convert(plan, folder, output, lambda *_: None)
  shutil.rmtree(folder)


def _damage_network(folder: pathlib.Path, rng: random.Random) -> mutations.Done:
  """Changes the numbers that a file of ours states, and signs it again."""
  from tpv_jax.io import safetensors

  path = folder / "b.safetensors"
  metadata, leaves = safetensors.read(path)
  before = metadata["network"]
  after = mutations.changed_json(json.loads(before), rng)
  metadata["network"] = after.encode("utf-8", "replace").decode()
  signed = mutations.signed_by_values(safetensors.encode(leaves, metadata))
  assert signed is not None
  path.write_bytes(signed)
  return mutations.Done(f"network: {after[:300]}")


def _make_gguf(kind: str = "F16") -> None:
  import llama_models

  content = llama_models.CONFIGS["llama"]
  if kind == "Q8_0":
    content = {**content, "hidden_size": 32, "head_dim": 8}
  llama_models.write_gguf(pathlib.Path("b.gguf"), content, kind=kind)


def _make_orbax() -> None:
  from tpv_jax.io import orbax

  orbax.save_checkpoint(pathlib.Path("checkpoint_1").absolute(), leaves())


def _make_legacy() -> None:
  """The layout of 2022: arrays in the msgpack file, and one beside it."""
  import msgpack
  import tensorstore

  path = pathlib.Path("checkpoint_1").absolute()
  path.mkdir()

  def array(values: np.ndarray) -> msgpack.ExtType:
    content = (values.shape, values.dtype.name, values.tobytes())
    return msgpack.ExtType(1, msgpack.packb(content))

  target: dict = {}
  for name, leaf in leaves().items():
    *parents, last = name.split("/")
    place = target
    for parent in parents:
      place = place.setdefault(parent, {})
    place[last] = array(leaf)
  name = "target.token_embedder.embedding"
  spec = {
    "driver": "zarr",
    "kvstore": {"driver": "file", "path": str(path / name)},
    "metadata": {"compressor": {"id": "gzip"}, "chunks": [8, 4]},
  }
  embedding = leaves()["token_embedder/embedding"]
  stored = tensorstore.open(
    spec, create=True, dtype=tensorstore.float32, shape=embedding.shape
  ).result()
  stored.write(embedding).result()
  target["token_embedder"]["embedding"] = {
    "driver": "zarr",
    "kvstore": {"driver": "file", "path": f"old/{name}"},
    "metadata": {"shape": [8, 4], "dtype": "<f4"},
  }
  content = {"version": 1, "optimizer": {"target": target, "state": {"step": 2}}}
  (path / "checkpoint").write_bytes(msgpack.packb(content))


def _converts(path: str, *more: str):
  return tpv.one_of(
    f"convert {path} -o out.safetensors",
    f"convert {path} -o out --to hugging-face",
    f"convert {path} -o checkpoint_9 --to t5x",
    f"convert {path} -o out --to hugging-face --dry-run",
    *more,
  )


_OUT = ("out*", "checkpoint_9")

_damage_ours = functools.partial(
  mutations.damage, own=(".safetensors",), sign=mutations.signed_by_values
)

KINDS = {
  "our backbone": Kind(
    _make_ours,
    _converts("b.safetensors"),
    _damage_ours,
    _OUT,
  ),
  "Hugging Face folder": Kind(_make_hugging_face, _converts("b"), outputs=_OUT),
  "Hugging Face folder, gated": Kind(
    functools.partial(_make_hugging_face, "flan_t5"), _converts("b"), outputs=_OUT
  ),
  "LLaMA folder": Kind(
    functools.partial(_make_llama, "llama"), _converts("b", "show b"), outputs=_OUT
  ),
  "Qwen folder": Kind(
    functools.partial(_make_llama, "qwen3"), _converts("b", "show b"), outputs=_OUT
  ),
  "Gemma folder": Kind(_make_gemma, _converts("b", "show b"), outputs=_OUT),
  "Gemma folder with images": Kind(
    functools.partial(_make_gemma, True), _converts("b", "show b"), outputs=_OUT
  ),
  "Gemma GGUF file": Kind(
    _make_gemma_gguf, _converts("b.gguf", "show b.gguf"), outputs=_OUT, needs="gguf"
  ),
  "our decoder-only backbone": Kind(
    functools.partial(_make_converted, "b.safetensors", "safetensors"),
    _converts("b.safetensors"),
    _damage_ours,
    _OUT,
  ),
  "network of a backbone": Kind(
    functools.partial(_make_converted, "b.safetensors", "safetensors"),
    _converts("b.safetensors", "show b.safetensors"),
    _damage_network,
    _OUT,
  ),
  "decoder-only checkpoint": Kind(
    functools.partial(_make_converted, "checkpoint_1", "t5x"),
    _converts("checkpoint_1"),
    outputs=_OUT,
  ),
  "GGUF file": Kind(
    _make_gguf, _converts("b.gguf", "show b.gguf"), outputs=_OUT, needs="gguf"
  ),
  "quantised GGUF file": Kind(
    functools.partial(_make_gguf, "Q8_0"),
    _converts("b.gguf", "show b.gguf --json"),
    outputs=_OUT,
    needs="gguf",
  ),
  "Hugging Face shards": Kind(_make_sharded, _converts("b"), outputs=_OUT),
  "Orbax checkpoint": Kind(_make_orbax, _converts("checkpoint_1"), outputs=_OUT),
  "T5X of 2022": Kind(
    _make_legacy, _converts("checkpoint_1"), outputs=_OUT, needs="msgpack"
  ),
}
