"""A folder's tokenizer files give the ids that they say, or are refused by name.

The files are those that `transformers` 4.57 (T5Tokenizer, T5TokenizerFast) and 5.24 write.
"""

import json

import pytest

from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.data import tokenizer_files, vocabularies

TEXT = "the quick brown fox \uff21 ½ <extra_id_3> dog"
SENTINELS = [f"<extra_id_{number}>" for number in range(5)]


def token(content, **changed):
  return {
    **{"content": content, "lstrip": False, "normalized": False, "rstrip": False},
    **{"single_word": False, "special": True, **changed},
  }


def write(folder, name, content):
  (folder / name).write_text(json.dumps(content))


def change(folder, name, edit):
  content = json.loads((folder / name).read_text())
  edit(content)
  write(folder, name, content)


@pytest.fixture
def fast(spiece, converted, tmp_path):
  """What T5TokenizerFast of transformers 4 saves: 5 sentinels behind the pieces."""
  (tmp_path / "spiece.model").write_bytes(spiece.read_bytes())
  (tmp_path / "tokenizer.json").write_bytes(converted.read_bytes())
  size = vocabularies.SentencePieceVocabulary(spiece, 0).size
  own = ["<pad>", "</s>", "<unk>"]
  decoder = {str(index): token(text) for index, text in enumerate(own)}
  decoder |= {str(size + 4 - i): token(text) for i, text in enumerate(SENTINELS)}
  special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
  stated = {
    **{"add_prefix_space": None, "added_tokens_decoder": decoder, **special},
    **{"additional_special_tokens": SENTINELS, "extra_special_tokens": {}},
    **{"extra_ids": 5, "legacy": True, "model_max_length": 10**30},
    **{"sp_model_kwargs": {}, "tokenizer_class": "T5Tokenizer"},
  }
  write(tmp_path, "tokenizer_config.json", stated)
  named = {role: token(text) for role, text in special.items()}
  named["additional_special_tokens"] = SENTINELS
  write(tmp_path, "special_tokens_map.json", named)
  return tmp_path


def test_every_folder_that_transformers_saves_gives_the_ids_of_the_model(fast, spiece):
  expected = vocabularies.SentencePieceVocabulary(spiece, 5)
  assert vocabularies.load(fast).encode(TEXT) == expected.encode(TEXT)
  # The slow class of 4, which lists sentinels as added, and writes no tokenizer.json.
  saved = (fast / "tokenizer.json").read_bytes()
  (fast / "tokenizer.json").unlink()
  added = {text: expected.size - 1 - number for number, text in enumerate(SENTINELS)}
  write(fast, "added_tokens.json", added)
  assert vocabularies.load(fast).encode(TEXT) == expected.encode(TEXT)
  # And 5, which writes tokenizer.json alone.
  for name in ("added_tokens.json", "special_tokens_map.json", "spiece.model"):
    (fast / name).unlink()
  (fast / "tokenizer.json").write_bytes(saved)
  stated = {
    **{"backend": "tokenizers", "eos_token": "</s>", "extra_ids": 5, "unk_id": 2},
    **{"is_local": True, "tokenizer_class": "T5Tokenizer", "pad_token": "<pad>"},
  }
  write(fast, "tokenizer_config.json", stated)
  assert vocabularies.load(fast).encode(TEXT) == expected.encode(TEXT)


def test_the_steps_of_transformers_4_are_those_of_the_model(fast):
  def as_4_writes(content):
    steps = [
      content["normalizer"],
      {"type": "Strip", "strip_left": False, "strip_right": True},
      {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
    ]
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    content["pre_tokenizer"] = content["pre_tokenizer"]["pretokenizers"][1]
    end = [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}]
    content["post_processor"] = {"type": "TemplateProcessing", "single": end}

  change(fast, "tokenizer.json", as_4_writes)
  assert vocabularies.load(fast).size == vocabularies.load(fast, 5).size


def test_a_number_of_sentinels_that_the_user_gives_is_taken(fast, spiece):
  assert vocabularies.load(fast, extra_ids=0).size == (
    vocabularies.SentencePieceVocabulary(spiece, 0).size
  )


def config(**stated):
  return lambda folder: change(
    folder, "tokenizer_config.json", lambda content: content.update(stated)
  )


def tokenizer(edit):
  return lambda folder: change(folder, "tokenizer.json", edit)


def add_token(folder):
  size = vocabularies.load(folder).size
  write(folder, "added_tokens.json", {"<ORG>": size})


def add_to_the_tokenizer(folder, text="<ORG>", index=None):
  change(
    folder,
    "tokenizer.json",
    lambda content: content["added_tokens"].append(
      {"id": index or len(content["model"]["vocab"]), **token(text, special=False)}
    ),
  )


def add_a_piece_that_there_is(folder):
  index = vocabularies.load(folder).pieces.index("o")
  add_to_the_tokenizer(folder, "o", index)


def lose_the_table(content):
  content["normalizer"] = None


REFUSED = {
  "added_tokens.json": (
    add_token,
    r"added_tokens.json' adds tokens .*'<ORG>'.* splits",
  ),
  "added_tokens_decoder": (
    config(added_tokens_decoder={"65": token("<ORG>")}),
    r"tokenizer_config.json' adds tokens to T5's own \('<ORG>'\)",
  ),
  "a sentinel at another id": (
    config(added_tokens_decoder={"60": token("<extra_id_0>")}),
    r"adds tokens to T5's own \('<extra_id_0>'\)",
  ),
  "a special token": (
    config(additional_special_tokens=[*SENTINELS, "<sep>"]),
    r"adds tokens to T5's own \('<sep>'\)",
  ),
  "a special token by name": (
    config(extra_special_tokens={"image_token": "<image>"}),
    r"adds tokens to T5's own \('<image>'\)",
  ),
  "added tokens that are none": (
    config(added_tokens_decoder={"x": 3}),
    "states no added tokens that can be read",
  ),
  "another end": (
    lambda folder: write(folder, "special_tokens_map.json", {"eos_token": "<end>"}),
    r"special_tokens_map.json' states the eos_token '<end>', .* \(id 1\)",
  ),
  "another padding": (config(pad_token="</s>"), "states the pad_token '</s>', which"),
  "another class": (config(tokenizer_class="XLMRobertaTokenizer"), "is none of T5's"),
  "sampling": (
    config(sp_model_kwargs={"enable_sampling": True}),
    r"sp_model_kwargs \{'enable_sampling': True\}, with which transformers gives other",
  ),
  "no space in front": (config(add_prefix_space=False), "add_prefix_space False"),
  "another number of sentinels": (
    config(extra_ids=7, additional_special_tokens=[], added_tokens_decoder={}),
    r"gives other ids than the spiece.model beside it: it has \d+ pieces",
  ),
  "a piece that was added": (add_to_the_tokenizer, r"tokenizer.json' adds .*'<ORG>'"),
  "a piece that is cut out first": (add_a_piece_that_there_is, r"adds tokens .*'o'"),
  "another piece": (
    tokenizer(lambda content: content["model"]["vocab"][9].__setitem__(0, "zz")),
    r"its piece 9 is 'zz', and the model's is '",
  ),
  "another score": (
    tokenizer(lambda content: content["model"]["vocab"][9].__setitem__(1, -9.5)),
    r"the score of its piece 9 is -9.5, and the model's is -",
  ),
  "lower case": (
    tokenizer(lambda content: content.update(normalizer={"type": "Lowercase"})),
    r'it changes a text by \{"type": "Lowercase"\}',
  ),
  "no table of letters": (tokenizer(lose_the_table), "by another table"),
  "another table of letters": (
    tokenizer(
      lambda content: content["normalizer"].update(precompiled_charsmap="AAAA")
    ),
    "replaces letters by another table",
  ),
  "words split elsewhere": (
    tokenizer(lambda content: content.update(pre_tokenizer={"type": "Digits"})),
    'it changes a text by {"type": "Digits"}',
  ),
  "a start for every text": (
    tokenizer(
      lambda content: content.update(
        post_processor={
          "type": "TemplateProcessing",
          "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
        }
      )
    ),
    "adds <s> in front to every text .post_processor., and T5 expects only </s>",
  ),
  "a huge list of added tokens": (
    lambda folder: (folder / "added_tokens.json").write_text("[" * 99_999),
    "added_tokens.json' is no JSON object",
  ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_ids_is_refused_by_name(fast, case):
  edit, expected = REFUSED[case]
  edit(fast)
  with pytest.raises(UserError, match=expected) as caught:
    vocabularies.load(fast)
  assert "\n" not in str(caught.value)


def test_removing_the_added_tokens_as_advised_reads_the_folder(fast):
  expected = vocabularies.load(fast).encode(TEXT)
  add_token(fast)
  with pytest.raises(UserError, match="remove them from the files"):
    vocabularies.load(fast)
  (fast / "added_tokens.json").unlink()
  assert vocabularies.load(fast).encode(TEXT) == expected


DAMAGED = {
  "a table of letters": lambda content: content.update(
    normalizer={"type": "Precompiled", "precompiled_charsmap": "EAAAAKqqqqqqqqqq"}
  ),
  "words of no letter": lambda content: content.update(
    pre_tokenizer={"type": "FixedLength", "length": 0}
  ),
  "a piece of a million letters": lambda content: content["model"]["vocab"][
    20
  ].__setitem__(0, "a" * 10**6),
  "a score that is no number": lambda content: content["model"]["vocab"][
    20
  ].__setitem__(1, float("nan")),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_the_library_dies_of_is_one_line(converted, tmp_path, capfd, case):
  content = json.loads(converted.read_text())
  DAMAGED[case](content)
  write(tmp_path, "tokenizer.json", content)
  with pytest.raises(UserError, match=r"cannot be read as a tokenizer.json \(") as e:
    vocabularies.load(tmp_path)
  assert "\n" not in str(e.value)
  assert capfd.readouterr().err == ""  # Nor does the library speak for itself.


def test_a_tokenizer_that_ends_its_process_is_refused(tmp_path, monkeypatch):
  pytest.importorskip("tokenizers", reason="needs the extra 'tokenizers'")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  trial = tokenizer_files._TRIAL
  kill = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
  monkeypatch.setattr(tokenizer_files, "_TRIAL", kill)
  with pytest.raises(UserError, match="its process ended with -11"):
    tokenizer_files.try_out("{}", "x.json")
  monkeypatch.setattr(tokenizer_files, "_TRIAL", "import time; time.sleep(60)")
  monkeypatch.setattr(tokenizer_files, "MOST_SECONDS", 0.2)
  with pytest.raises(UserError, match=r"takes longer than 0.2 s"):
    tokenizer_files.try_out("{}", "x.json")
  # The limit is one of the processor's time: a busy machine takes longer for a large one.
  limit = "import resource, sys; n = int(sys.argv[2])\nwhile True:\n  "
  limit += "resource.setrlimit(resource.RLIMIT_CPU, (n, n + 9))"
  assert "RLIMIT_CPU, (seconds, seconds + 10)" in trial
  monkeypatch.setattr(tokenizer_files, "_TRIAL", limit)
  monkeypatch.setattr(tokenizer_files, "MOST_SECONDS", 1)
  with pytest.raises(UserError, match=r"takes longer than 1 s"):
    tokenizer_files.try_out("{}", "x.json")
  assert list(tmp_path.iterdir()) == []


def test_what_passed_once_is_not_tried_again(converted, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  first = vocabularies.load(converted)
  (passed,) = files.cache_folder().iterdir()
  assert passed.suffix == ".tokenizer"
  monkeypatch.setattr(tokenizer_files.subprocess, "run", None)
  assert vocabularies.load(converted).encode(TEXT) == first.encode(TEXT)


def test_a_panic_while_encoding_is_one_line():
  class PanicException(BaseException):
    """As that of the library, which no Exception is."""

  with (
    pytest.raises(
      UserError, match=r"'x' cannot be read as a tokenizer.json .*index out of bounds"
    ),
    tokenizer_files.panics_told("x"),
  ):
    raise PanicException("index out of bounds")
  with pytest.raises(KeyboardInterrupt), tokenizer_files.panics_told("x"):
    raise KeyboardInterrupt
