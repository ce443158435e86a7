"""Gin files, shipped as the package tpv_jax.gin_configs; they hold no code."""
