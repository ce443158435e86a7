"""Soft prompts: the module that holds one, and the arrays it may start from."""
