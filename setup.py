"""Where the packages lie; everything else is in pyproject.toml.

The top-level folder gin_configs/ is shipped as the package tpv_jax.gin_configs, so that
the same files serve from the clone, after `pip install -e .` and after `pip install .`.
"""

from setuptools import find_packages, setup

GIN = find_packages(include=["gin_configs", "gin_configs.*"])

setup(
  packages=find_packages(include=["tpv_jax", "tpv_jax.*"])
  + [f"tpv_jax.{package}" for package in GIN],
  package_dir={"tpv_jax.gin_configs": "gin_configs"},
)
