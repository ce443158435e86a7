"""Decoder-only vocabularies give the ids of `transformers`, plus one.

The references are those of tests/references/make_tokenizer_references.py.
"""

import copy
import importlib.util
import json
import subprocess
import sys

import pytest
from tokenizer_references import FILE, STORED, write

from tpv_jax.core.errors import UserError
from tpv_jax.data import batches, byte_pairs, decoder_files, labels, vocabularies
from tpv_jax.data.byte_pairs import BytePairVocabulary, Stated
from tpv_jax.data.tasks import Example

pytest.importorskip("tokenizers", reason="needs the extra 'llm'")
pytest.importorskip("jinja2", reason="needs the extra 'llm'")

BYTE_LEVEL = ("smollm", "llama_3", "qwen", "deepseek")


@pytest.fixture(params=STORED)
def family(request):
  return request.param


@pytest.fixture
def folder(family, tmp_path):
  return write(tmp_path, family)


def theirs(ids):
  """Returns our ids as the tokenizer's own."""
  return [index - 1 for index in ids]


def test_ids_of_texts_are_those_of_transformers(folder, family):
  vocabulary = vocabularies.load(folder)
  for text, with_bos, plain, back in STORED[family]["texts"]:
    assert theirs(vocabulary.encode(text)) == plain, text
    start = list(vocabulary.source_start)
    assert theirs([*start, *vocabulary.encode(text)]) == with_bos
    assert vocabulary.decode(vocabulary.encode(text)).strip() == back.strip()


def test_ids_of_conversations_are_those_of_transformers(folder, family):
  for system, user, answer, before, whole in STORED[family]["conversations"]:
    chat = True if system is None else {"system": system}
    vocabulary = vocabularies.of_backbone(folder, chat=chat)
    (source,) = vocabulary.encode_source(user)
    target = vocabulary.encode_target(answer)
    assert vocabulary.source_start == vocabulary.source_end == ()
    assert theirs(source) == before
    joint = [*source, *target, vocabulary.eos_id]
    assert theirs(joint) == whole[: len(joint)]
    assert vocabulary.decode([*target, vocabulary.eos_id, *target]) == answer


def test_a_source_and_its_target_are_the_ids_of_the_joint_text(folder, family):
  vocabulary = vocabularies.load(folder)
  (source,) = vocabulary.encode_source("the film is good \n")
  joint = vocabulary.encode("the film is good positive")
  assert [*source, *vocabulary.encode_target("positive")] == joint
  if family in (*BYTE_LEVEL, "gemma"):
    assert vocabulary.encode_target("positive") == vocabulary.encode(" positive")
  else:  # A space of its own stands in front of a text.
    assert vocabulary.encode_target("positive") == vocabulary.encode("positive")
  assert vocabulary.encode_target("") == []


def test_a_target_reads_back(folder):
  for chat in (None, True):
    vocabulary = vocabularies.of_backbone(folder, chat=chat)
    for text in ("positive", "not good", "Sci/Tech", "naïve 12", "é"):
      ids = vocabulary.encode_target(text)
      assert vocabulary.decode(ids) == labels.spelling(text, vocabulary) == text
      assert vocabulary.pad_id not in ids


def test_bos_and_end_ids_are_those_that_the_files_state(tmp_path):
  def found(family, **changed):
    folder = tmp_path / f"{family}{len(changed)}"
    folder.mkdir()
    one = vocabularies.load(write(folder, family, **changed))
    return theirs(one.source_start), theirs(one.end_ids)

  assert found("smollm") == ([], [2])
  assert found("llama_3") == ([0], [5, 1, 4])
  assert found("qwen") == ([], [2, 0])
  assert found("deepseek") == ([0], [1])
  assert found("mistral") == ([1], [2])
  # The setting goes before the post-processor.
  assert found("llama_3", add_bos_token=False) == ([], [5, 1, 4])
  assert found("smollm", add_bos_token=True) == ([1], [2])
  # What config.json says of BOS counts for nothing.
  (tmp_path / "qwen0" / "config.json").write_text('{"bos_token_id": 1}')
  assert vocabularies.load(tmp_path / "qwen0").source_start == ()


def test_the_first_end_id_is_the_end_of_the_turn_with_a_template(tmp_path):
  folder = write(tmp_path, "llama_3", eos_token="<|end_of_text|>")
  assert theirs(vocabularies.load(folder).end_ids) == [1, 4, 5]
  chat = vocabularies.of_backbone(folder, chat=True)
  assert theirs(chat.end_ids) == [5, 1, 4]
  for end in (1, 4, 5):
    assert chat.decode([*chat.encode_target("good"), end + 1, 200]) == "good"


def letters(tmp_path, text="abcd "):
  """A vocabulary whose token 0 is a letter, and whose end has the last id."""
  content = json.loads(STORED["smollm"]["files"]["tokenizer.json"])
  pieces = [*text.replace(" ", "Ġ"), *byte_pairs.byte_letters()]
  pieces = [*dict.fromkeys(pieces), "<end>"]
  content["model"] |= {"vocab": {p: i for i, p in enumerate(pieces)}, "merges": []}
  token = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
  token |= {"id": len(pieces) - 1, "content": "<end>", "special": True}
  content["added_tokens"] = [token]
  stated = Stated(tmp_path / "tokenizer.json", content, (), (len(pieces) - 1,))
  return BytePairVocabulary(stated)


def test_a_token_with_the_id_0_is_no_padding(tmp_path):
  vocabulary = letters(tmp_path)
  assert vocabulary.encode("aaab") == [1, 1, 1, 2]
  examples = [Example("aaaa", "a"), Example("ab", "aa")]
  rows = batches.tokenize(examples, vocabulary, {"inputs": 6, "targets": 5})
  assert rows.inputs.tolist() == [[1, 1, 1, 1, 0, 0], [1, 2, 0, 0, 0, 0]]
  end = vocabulary.eos_id
  assert rows.targets.tolist() == [[5, 1, end, 0, 0], [5, 1, 1, end, 0]]
  assert vocabulary.decode(rows.targets[1]) == "aa"
  assert batches.token_counts(rows.inputs).tolist() == [4, 2]
  assert not rows.sources
  assert not rows.answers


def test_special_tokens_in_the_texts_of_a_task_are_letters(folder, family):
  special = json.loads(STORED[family]["files"]["tokenizer.json"])["added_tokens"]
  for chat in (None, True):
    vocabulary = vocabularies.of_backbone(folder, chat=chat)
    (without,) = vocabulary.encode_source("a b")
    for token in special:
      if not token["special"]:
        continue
      (ids,) = vocabulary.encode_source(f"a {token['content']} b")
      assert ids.count(token["id"] + 1) == without.count(token["id"] + 1)
      assert token["content"] in vocabulary.decode(
        index for index in ids if index not in vocabulary.end_ids
      )
      assert token["id"] + 1 not in vocabulary.encode_target(token["content"])


def test_added_tokens_that_are_not_special_are_recognised_as_in_transformers(tmp_path):
  vocabulary = vocabularies.load(write(tmp_path, "qwen"))
  added = json.loads(STORED["qwen"]["files"]["tokenizer.json"])["added_tokens"]
  (think,) = [one["id"] for one in added if one["content"] == "<think>"]
  assert think + 1 in vocabulary.encode("a <think> b")


def test_an_empty_source_is_the_words_of_the_template(tmp_path):
  folder = write(tmp_path, "llama_2")
  vocabulary = vocabularies.of_backbone(folder, chat={"system": "Be brief."})
  (ids,) = vocabulary.encode_source(" ")
  assert vocabulary.decode(ids) == "<s> [INST] <<SYS>>\nBe brief.\n<</SYS>> [/INST]"


def test_a_long_source_keeps_the_words_around_its_columns(folder):
  text = "premise: the film is good hypothesis: a film is here label:"
  columns = ((9, 25), (38, 52))
  assert [text[a:b] for a, b in columns] == ["the film is good", "a film is here"]
  for chat in (None, True):
    vocabulary = vocabularies.of_backbone(folder, chat=chat)
    (whole,) = vocabulary.encode_source(text)
    parts = vocabulary.encode_source(text, columns)
    assert [index for part in parts for index in part] == whole
    example = Example(text, "a", fields=columns)
    most = len(whole) + len(vocabulary.source_start)
    assert batches.source_ids(example, vocabulary, most)[1] == 0
    ids, lost = batches.source_ids(example, vocabulary, most - 7)
    assert (len(ids), lost) == (most - 7, 7)
    words = [*vocabulary.source_start, *parts[0]]
    assert ids[: len(words)] == words
    assert ids[-len(parts[4]) :] == parts[4]
    least = len(words) + len(parts[2]) + len(parts[4]) + 2
    with pytest.raises(UserError, match=f"to {least} or more"):
      batches.source_ids(example, vocabulary, least - 1)
    assert len(batches.source_ids(example, vocabulary, least)[0]) == least


def test_a_source_without_columns_is_cut_inside_the_turn(tmp_path):
  vocabulary = vocabularies.of_backbone(write(tmp_path, "smollm"), chat=True)
  before, text, after = vocabulary.encode_source("a b c d e", ((0, 9),))
  ids, lost = batches.source_ids(
    Example("a b c d e", ""), vocabulary, len(before) + len(after) + 2
  )
  assert ids == [*before, *text[:2], *after]
  assert lost == len(text) - 2


def test_the_digest_names_the_pieces(folder, family):
  vocabulary = vocabularies.load(folder)
  model = json.loads(STORED[family]["files"]["tokenizer.json"])
  ids = {**model["model"]["vocab"]}
  ids |= {token["content"]: token["id"] for token in model["added_tokens"]}
  assert {piece: i for i, piece in enumerate(vocabulary.pieces)} == ids
  assert vocabulary.vocab_size == vocabulary.size == len(ids) + 1
  alone = vocabularies.load(folder / "tokenizer.json")
  chat = vocabularies.of_backbone(folder, chat=True)
  assert alone.digest == vocabulary.digest == chat.digest
  assert copy.deepcopy(vocabulary).encode("a b") == vocabulary.encode("a b")


def test_a_backbones_rows_may_be_many_more_than_the_pieces(tmp_path):
  vocabulary = vocabularies.load(write(tmp_path, "smollm"))
  count = len(vocabulary.pieces)
  vocabularies.check_fits(vocabulary, count)
  vocabularies.check_fits(vocabulary, count + 256)
  with pytest.raises(UserError, match=f"has only {count} ids"):
    vocabularies.check_fits(vocabulary, count + 257)
  with pytest.raises(UserError, match=f"has {count} ids, but .* only {count - 1}"):
    vocabularies.check_fits(vocabulary, count - 1)
  # DeepSeek-LLM's numbers.
  large = copy.copy(vocabulary)
  large.vocab_size = 100_015 + 1
  vocabularies.check_fits(large, 102_400)


def test_the_script_regenerates_the_references():
  if importlib.util.find_spec("transformers") is None:
    pytest.skip("needs the extra 'parity': transformers is not installed")
  script = FILE.with_name("make_tokenizer_references.py")
  done = subprocess.run(
    [sys.executable, script, "--check"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_ids_without_a_piece_are_shown(tmp_path):
  vocabulary = vocabularies.load(write(tmp_path, "smollm"))
  ids = vocabulary.encode("a b")
  assert vocabulary.decode([*ids, vocabulary.vocab_size, *ids]) == "a b\ufffda b"


def edited(family, edit):
  content = json.loads(STORED[family]["files"]["tokenizer.json"])
  edit(content)
  return json.dumps(content)


@pytest.mark.parametrize(
  ("family", "edit", "message"),
  [
    ("smollm", lambda c: c["model"].update(dropout=0.1), "dropout 0.1, with which"),
    ("smollm", lambda c: c["model"]["vocab"].pop("Z"), "no pieces for 1 bytes"),
    ("smollm", lambda c: c["model"]["vocab"].update(zz=-1), "a piece has the id -1"),
    ("smollm", lambda c: c["model"]["vocab"].update(zz=10**9), "a piece has the id 1"),
    ("smollm", lambda c: c["model"]["vocab"].update(zz="9"), "a piece has the id '9'"),
    ("smollm", lambda c: c["model"]["vocab"].update(zz=5), "two pieces have one id"),
    ("smollm", lambda c: c["model"].update(vocab=[]), "its pieces"),
    ("smollm", lambda c: c["model"].pop("vocab"), "its pieces"),
    ("smollm", lambda c: c["model"]["merges"].append(["a", "qqq"]), "cannot be read"),
    ("smollm", lambda c: c["model"]["vocab"].update({"z" * 2000: 5}), "2000 letters"),
    ("smollm", lambda c: c.update(pre_tokenizer={"type": "?"}), "cannot be read"),
    ("smollm", lambda c: c["added_tokens"][0].update(content=""), "token is empty"),
    ("smollm", lambda c: c["added_tokens"][0].update(id=999), "not at its id 999"),
    ("smollm", lambda c: c["added_tokens"][0].update(id=5), "not at its id 5"),
    ("smollm", lambda c: c["added_tokens"][0].update(lstrip=True), "take the white"),
    (
      "llama_2",
      lambda c: c["model"].update(unk_token="<no>"),
      "unk_token '<no>', which",
    ),
    ("llama_2", lambda c: c["added_tokens"].append({"id": 5}), "its pieces"),
    ("llama_3", lambda c: c.update(post_processor={"type": "?"}), None),
    (
      "llama_3",
      lambda c: c.update(post_processor={"type": "TemplateProcessing", "single": 3}),
      "its post_processor",
    ),
  ],
)
def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path, family, edit, message):
  folder = write(tmp_path, family)
  (folder / "tokenizer.json").write_text(edited(family, edit))
  if message is None:
    vocabularies.load(folder)
    return
  with pytest.raises(UserError, match=message) as caught:
    vocabularies.load(folder)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("tokenizer_config.json", {"eos_token": "<no>"}, "eos_token '<no>', which is not"),
    ("tokenizer_config.json", {"add_bos_token": 1}, "add_bos_token in .*, 1"),
    ("tokenizer_config.json", {"add_bos_token": True}, "its bos_token None is not"),
    ("tokenizer_config.json", {"add_prefix_space": True}, "add_prefix_space True, and"),
    ("tokenizer_config.json", {"added_tokens_decoder": []}, None),
    ("tokenizer_config.json", {"added_tokens_decoder": {"9": {"content": "<x>"}}}, "x"),
    ("added_tokens.json", {"<x>": 999}, "add tokens that it does not have \\('<x>'"),
    ("generation_config.json", {"eos_token_id": "2"}, "eos_token_id, '2'"),
    ("generation_config.json", {"eos_token_id": [2, 99999]}, "state the id 99999"),
    ("chat_template.jinja", "\udcff", "UTF-8"),
  ],
)
def test_files_that_disagree_are_refused(tmp_path, name, content, message):
  folder = write(tmp_path, "smollm")
  text = content if isinstance(content, str) else json.dumps(content)
  (folder / name).write_bytes(text.encode(errors="surrogateescape"))
  if message is None:
    assert vocabularies.load(folder).eos_id == 3
    return
  with pytest.raises(UserError, match=message) as caught:
    vocabularies.load(folder)
  assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
  path = tmp_path / "tokenizer.json"
  path.write_text(STORED["smollm"]["files"]["tokenizer.json"])
  with pytest.raises(UserError, match="state no end token"):
    vocabularies.load(path)


def test_what_is_written_reads_the_same(folder, tmp_path):
  stated = decoder_files.read(folder)
  again = tmp_path / "again"
  again.mkdir()
  decoder_files.write(stated, again)
  found = decoder_files.read(again)
  for name in ("content", "start", "ends", "words", "template"):
    assert getattr(found, name) == getattr(stated, name), name


def test_a_backbone_without_a_vocabulary_needs_one(tmp_path):
  file = tmp_path / "mine.safetensors"
  with pytest.raises(UserError, match=r"brings no vocabulary.*Set VOCABULARY_FILE"):
    vocabularies.of_backbone(file)
  folder = write(tmp_path, "smollm")
  assert (
    vocabularies.of_backbone(file, folder).digest == vocabularies.load(folder).digest
  )
  assert vocabularies.of_backbone("embedded") is vocabularies.embedded()
  with pytest.raises(UserError, match="CHAT is for decoder-only models"):
    vocabularies.of_backbone("embedded", chat=True)
  with pytest.raises(UserError, match="extra_ids = 3 is for a SentencePiece model"):
    vocabularies.load(folder, extra_ids=3)
