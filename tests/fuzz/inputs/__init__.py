"""The kinds of inputs, a module for each family of them."""

from fuzz.campaign import Kind
from fuzz.inputs import (
  backbones,
  command_lines,
  data,
  prompts,
  runs,
  settings,
  vocabularies,
)

KINDS: dict[str, Kind] = {
  **prompts.KINDS,
  **backbones.KINDS,
  **vocabularies.KINDS,
  **data.KINDS,
  **settings.KINDS,
  **runs.KINDS,
  **command_lines.KINDS,
}
"""All kinds by name."""
