"""The checker of annotations that `conftest` installs: an int will do for a float."""

import beartype

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
