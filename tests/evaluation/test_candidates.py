"""Prompts that are tried on other words than they were trained on are named."""

import types

from tpv_jax.evaluation import candidates
from tpv_jax.vectors.provenance import Provenance, Term

TRAINED = {"kind": "prompt", "terms": (Term("sst2", 1.0),)}


def test_another_chat_template_than_in_training_is_said(capsys):
  chat = types.SimpleNamespace(digest="a" * 64)
  own = Provenance(**TRAINED, chat_digest="a" * 64)
  candidates.say_other_template([own, None, Provenance(kind="prompt")], chat)
  candidates.say_other_template([Provenance(**TRAINED)], None)
  assert capsys.readouterr().out == ""
  candidates.say_other_template([own, own], None)
  line = capsys.readouterr().out
  assert "written by chat template aaaaaaaaaaaa… and is tried" in line
  assert "without a stated chat template. If" in line
  assert line.count("\n") == 1
  candidates.say_other_template([Provenance(**TRAINED)], chat)
  assert "written without a stated chat template and" in capsys.readouterr().out
