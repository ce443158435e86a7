"""Soft prompts: the methods, their equations and their budget."""
