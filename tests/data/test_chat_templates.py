"""Chat templates run in a sandbox, do not depend on the day, and are refused in one line."""

import datetime

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import chat_templates
from tpv_jax.data.chat_templates import Turn

pytest.importorskip("jinja2", reason="needs the extra 'llm'")

MESSAGES = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"


def chosen(template, setting=True, **words):
  return chat_templates.chosen(setting, template, words, "folder")


def test_what_stands_around_each_turn_is_found():
  template = chosen("{{ bos_token }}" + MESSAGES + PROMPT, bos_token="<s>")
  assert template.source("a\n b") == Turn("<s><user>", "a\n b", "</><assistant>")
  assert template.target("yes") == Turn("", "yes", "</>")


def test_a_text_that_the_template_strips_is_found_where_it_begins():
  template = chosen(MESSAGES.replace("m.content", "m.content | trim") + PROMPT)
  assert template.source(" \na b ") == Turn("<user>", "a b", "</><assistant>", 2)


@pytest.mark.parametrize(
  ("setting", "before"),
  [
    (True, "<user>"),
    ({}, "<user>"),
    ({"system": None}, "<user>"),
    ({"system": ""}, "<system></><user>"),
    ({"system": "Be kind."}, "<system>Be kind.</><user>"),
  ],
)
def test_the_system_text_is_a_setting(setting, before):
  assert chosen(MESSAGES + PROMPT, setting).source("a").before == before


def test_the_digest_names_the_template_and_the_system_text():
  digests = {
    chosen(template, setting).digest
    for template in (MESSAGES + PROMPT, "x" + MESSAGES + PROMPT)
    for setting in (True, {"system": ""}, {"system": "a"})
  }
  assert len(digests) == 6
  assert chosen(MESSAGES + PROMPT).digest == chosen(MESSAGES + PROMPT, {}).digest


def test_the_date_is_fixed():
  day = "{{ strftime_now('%d %b %Y') }}"
  before = chosen(day + MESSAGES + PROMPT).source("a").before
  assert before == "26 Jul 2024<user>"
  assert str(datetime.date.today()) not in before


@pytest.mark.parametrize(
  ("extra", "written"),
  [
    (
      "{% for i in range(9) %}{% if i > 1 %}{% break %}{% endif %}{{ i }}{% endfor %}",
      "01",
    ),
    ("{{ {'b': '<ü>', 'a': 1} | tojson }}", '{"b": "<ü>", "a": 1}'),
    ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
    ("  {% set x = namespace(y=1) %}\n{{ x.y }}", "1"),
    ("{% generation %}g{% endgeneration %}", "g"),
    (
      "{{ tools is none }}{{ documents is none }}{{ nothing is defined }}",
      "TrueTrueFalse",
    ),
  ],
)
def test_templates_have_what_they_have_in_transformers(extra, written):
  assert chosen(extra + MESSAGES + PROMPT).source("a").before == f"{written}<user>"


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ("{% for %}", "cannot be read .*TemplateSyntaxError"),
    ("{{ messages.__class__ }}", "'__class__' of a 'list' is not for templates"),
    ("{{ ''['__class__'] }}", "'__class__' of a 'str' is not for templates"),
    ("{{ (messages | map(attribute='__class__') | list) }}", "is not for templates"),
    ("{{ messages.append(1) }}", "'append' of a 'list' is not for templates"),
    ("{% include '/etc/passwd' %}", "fails .*no loader"),
    (
      "{{ raise_exception('no\nsystem text') }}",
      "fails \\(TemplateError: no system text",
    ),
    ("{{ messages[9].content + 1 }}", "fails \\(UndefinedError"),
    ("{{ 1 / 0 }}", "fails \\(ZeroDivisionError"),
    ("{{ lipsum() }}", "'lipsum' is undefined"),
    ("{{ [1] | random }}", "No filter named 'random'"),
    ("{{ messages[0].role }}", "writes the user's text 0 times"),
    (MESSAGES + MESSAGES, "writes the user's text 2 times"),
    (MESSAGES.replace("m.content", "m.content | upper"), "writes the user's text 0"),
    (
      "{% if messages | length > 1 %}x{% endif %}" + MESSAGES,
      "does not begin as the text that it lets the model answer: 'x<user>",
    ),
    ("x" * (1 << 21), "has 2097152 letters"),
  ],
)
def test_a_template_that_fails_is_refused_in_one_line(template, message):
  with pytest.raises(UserError, match=message) as caught:
    chosen(template)
  assert "chat template of 'folder'" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_text_that_the_template_changes_is_refused():
  template = chosen(
    MESSAGES.replace("m.content", "m.content | replace('xaz', 'b')") + PROMPT
  )
  assert template.source("xyz").text == "xyz"
  with pytest.raises(UserError, match=r"changes a text beyond white space .*: 'xaz'"):
    template.source("xaz")


@pytest.mark.parametrize(
  "costly",
  [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set a = 'a' * 2000000000 %}",
  ],
)
def test_a_template_that_takes_too_much_is_refused(costly, monkeypatch):
  monkeypatch.setattr(chat_templates, "MOST_SECONDS", 0.2)
  with pytest.raises(UserError, match=r"takes more than 0\.2 s or 1024 MiB"):
    chosen(costly + MESSAGES + PROMPT)


@pytest.mark.parametrize(
  ("setting", "message"),
  [
    ("yes", "CHAT is 'yes'; it must be None, True or"),
    ({"sytem": "a"}, "no setting 'sytem'. Did you mean 'system'"),
    ({"system": 3}, "The system text in CHAT is 3"),
  ],
)
def test_settings_that_are_none_are_refused(setting, message):
  with pytest.raises(UserError, match=message):
    chosen(MESSAGES, setting)


def test_without_a_template_only_its_absence_can_be_asked_for():
  assert chosen(None, None) is None
  assert chosen(MESSAGES, False) is None
  with pytest.raises(UserError, match=r"'folder' has no chat template.*CHAT = None"):
    chosen(None, True)
