"""The tasks of both papers by name; a new task is an entry of a table in `papers`.

`tpv tasks` writes `gin_configs/tasks/NAME.gin` and docs/tasks.md from them.
"""

import dataclasses

from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.data.papers import glue, instruct_style, others, super_glue, t5_style
from tpv_jax.data.papers.definition import Definition

_PAPER_STYLE = (*glue.TASKS, *super_glue.TASKS, *others.TASKS)

DEFINITIONS: dict[str, Definition] = {
  which.name: which
  for which in (
    *_PAPER_STYLE,
    *(
      dataclasses.replace(
        which,
        name=f"{which.name}_t5",
        variant_of=which,
        template=t5_style.TEMPLATES[which.name],
        **t5_style.DIFFERENCES.get(which.name, {}),
      )
      for which in _PAPER_STYLE
      if which.name in t5_style.TEMPLATES
    ),
    *(
      dataclasses.replace(
        which,
        name=f"{which.name}_instruct",
        variant_of=which,
        template=instruct_style.TEMPLATES[which.name],
        labels=instruct_style.LABELS.get(which.name, which.labels),
        instruction="TPV" if which.name in instruct_style.AUTHORS else "ours",
        most_tokens=instruct_style.AUTHORS_LENGTH,
      )
      for which in _PAPER_STYLE
    ),
  )
}
"""Every task by its name: in the papers' style, in the T5 package's, and as an instruction."""


def definition(name: str) -> Definition:
  """Returns the definition of a task.

  Raises:
    UserError: there is none of that name; the message has near misses.
  """
  if name not in DEFINITIONS:
    raise UserError(
      f"There is no task '{name}'.{near_misses(str(name), DEFINITIONS)} 'tpv tasks list' "
      "names all; your own files need gin_configs/tasks/text_files.gin."
    )
  return DEFINITIONS[name]
