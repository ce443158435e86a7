"""Soft prompts on frozen language models in JAX: task prompt vectors and EPT."""

__version__ = "0.1.0"
