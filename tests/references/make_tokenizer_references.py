"""Makes the references of decoder-only tokenizers: the ids that `transformers` gives.

Writes `tokenizers.json` beside this file. For each of `FAMILIES` it holds

  files         a folder's files: a BPE tokenizer trained here on a small text, with the
                family's steps before and after it, settings and a chat template of ours
                with the same constructs
  texts         [text, ids with BOS, ids without, the text of the latter]
  conversations [system text or None, user's text, answer, ids up to the answer, ids of all]

The ids are those of `AutoTokenizer` on the folder. Texts spell no special token, which
`transformers` reads in any text. It imports nothing of tpv_jax, so that an error there
cannot hide here. Needs the extra 'parity' (transformers).

  python tests/references/make_tokenizer_references.py           # writes the file
  python tests/references/make_tokenizer_references.py --check   # regenerates and compares
"""

import argparse
import json
import pathlib
import sys
import tempfile

import transformers
from tokenizers import (
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  processors,
  trainers,
)
from tokenizers import pre_tokenizers as pre

FILE = pathlib.Path(__file__).parent / "tokenizers.json"

CORPUS = """
The film is a quiet, moving story, and the actors are very good in it.
A film that is neither good nor bad: the story's slow, but it doesn't bore.
sentence1: It wasn't the worst film of 2024. sentence2: They've seen 1234 films, I'm told.
Is the review positive or negative? Reply with one word: positive, negative, neutral.
premise: The man walks his dogs. hypothesis: A man is outside. label: entailment
user assistant system label labels sentence sentence question answer context the the the
Naïve café, déjà vu; Ünïcödé — “quotes”… 東京は大きい。 Привет, мир! 🙂
def f(x):
    return x + 1

a  b   c    d
"""

TEXTS = (
  "the film is good",
  "  two spaces, a tab\tand\na new line",
  "x\n\n1. It's 2024, and they've 12345 films!!",
  "Naïve café — 東京は大きい。 Привет 🙂 ½ Ⅷ ٣٤",
  "DON'T shout: I'LL, we'Re",
  "e\u0301 \u212b \uff21",
  "a  b   c    d \u00a0\u3000e",
  "",
)

ANSWERS = ("positive", "not good", "Sci/Tech")

USERS = ("sentence: the film is good\nlabel:", "Naïve 12 films?")

PAIRS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHATML = (
  "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
  "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

HEADERS = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{#- The system text comes first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

THINKING = """{%- if tools %}
    {{- tools | tojson }}
{%- endif %}
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\n' }}
        {%- if loop.index0 == ns.last %}
            {{- '<think>\n\n</think>\n\n' }}
        {%- endif %}
        {{- content.lstrip('\n') + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

COLONS = (
  "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
  "{% endif %}{{ bos_token }}{% for message in messages %}"
  "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
  "{% elif message['role'] == 'assistant' %}"
  "{{ 'Assistant: ' + message['content'] + eos_token }}"
  "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}"
  "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

INSTRUCTIONS = (
  "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
  "{% set system_message = messages[0]['content'] %}{% else %}"
  "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
  "{% for message in loop_messages %}"
  "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
  "{% if loop.index0 == 0 and system_message != false %}"
  "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
  "{% else %}{% set content = message['content'] %}{% endif %}"
  "{% if message['role'] == 'user' %}"
  "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
  "{% elif message['role'] == 'assistant' %}"
  "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

MODEL_TURNS = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set before = messages[0]['content'] + '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set before = "" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (before if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""

TURNS = (
  "{{ bos_token }}{% for message in messages %}"
  "{% if message['role'] == 'system' %}{{ '<|sys|>\n' + message['content'] + eos_token }}"
  "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + eos_token }}"
  "{% else %}{% generation %}{{ '<|bot|>' + message['content'] + eos_token }}"
  "{% endgeneration %}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}"
)


def byte_level(first, special, others=(), normalizer=None, regex=False, **model):
  """Returns a byte-level BPE tokenizer, trained on `CORPUS`.

  Args:
    first: the steps that split a text before its bytes are written as letters.
    special: special tokens, which have the first ids.
    others: tokens that are added without being special, which have the last ids.
    normalizer: or None.
    regex: whether GPT-2's rule splits the text, too.
    model: further settings of BPE.
  """
  made = Tokenizer(models.BPE(**model))
  level = pre.ByteLevel(add_prefix_space=False, use_regex=regex)
  made.pre_tokenizer = pre.Sequence([*first, level])
  made.decoder = decoders.ByteLevel()
  if normalizer is not None:
    made.normalizer = normalizer
  trainer = trainers.BpeTrainer(
    vocab_size=420,
    special_tokens=list(special),
    initial_alphabet=pre.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator([CORPUS], trainer)
  made.add_tokens(list(others))
  return made


def sentence_piece(first=None, normalizer=None, special=()):
  """Returns a BPE tokenizer as it is converted from SentencePiece, trained on `CORPUS`."""
  learner = Tokenizer(models.BPE())
  learner.pre_tokenizer = pre.Metaspace()
  reserved = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
  trainer = trainers.BpeTrainer(
    vocab_size=420, special_tokens=reserved, show_progress=False
  )
  learner.train_from_iterator([CORPUS.replace("東京", "")], trainer)
  learnt = json.loads(learner.to_str())["model"]
  made = Tokenizer(
    models.BPE(
      vocab=learnt["vocab"],
      merges=[tuple(pair) for pair in learnt["merges"]],
      unk_token="<unk>",
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  made.add_special_tokens(["<unk>", "<s>", "</s>", *special])
  if first is not None:
    made.pre_tokenizer = first
  if normalizer is not None:
    made.normalizer = normalizer
  made.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  return made


def with_bos(made, word):
  """Returns a tokenizer that puts `word` in front of a text."""
  made.post_processor = processors.TemplateProcessing(
    single=f"{word} $A",
    pair=f"{word} $A {word}:1 $B:1",
    special_tokens=[(word, made.token_to_id(word))],
  )
  return made


def described(word):
  """Returns a special token in the longer form that files have."""
  flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
  return {"__type": "AddedToken", "content": word, **flags}


def isolated(*patterns):
  """Returns steps that make each match of a pattern a part of its own."""
  return [pre.Split(Regex(pattern), "isolated") for pattern in patterns]


def smollm():
  """Every digit alone, GPT-2's rule, no BOS, a system text in the template."""
  special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
  made = byte_level([pre.Digits(individual_digits=True)], special, regex=True)
  config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
  return made, {**config, "chat_template": CHATML}, {"eos_token_id": 2}


def llama_3():
  """BOS by the post-processor, several end ids."""
  special = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>")
  special += ("<|end_header_id|>", "<|eom_id|>", "<|eot_id|>")
  made = byte_level(isolated(PAIRS + r"\p{N}{1,3}" + REST), special, ignore_merges=True)
  config = {"bos_token": special[0], "eos_token": described("<|eot_id|>")}
  return (
    with_bos(made, special[0]),
    {**config, "chat_template": HEADERS},
    {"bos_token_id": 0, "eos_token_id": [1, 4, 5]},
  )


def qwen():
  """NFC, and tokens that are added without being special; config.json has a BOS."""
  special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
  made = byte_level(
    isolated(PAIRS + r"\p{N}" + REST),
    special,
    others=("<think>", "</think>"),
    normalizer=normalizers.NFC(),
  )
  config = {"eos_token": "<|im_end|>", "add_prefix_space": False}
  config |= {"add_bos_token": False, "bos_token": None}
  templates = [{"name": "default", "template": THINKING}]
  return (
    made,
    {**config, "chat_template": templates},
    {"bos_token_id": 0, "eos_token_id": [2, 0]},
  )


def deepseek():
  """BOS by the setting; bytes that UTF-8 never has are added tokens."""
  special = ("<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>")
  splits = isolated("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
  made = byte_level(
    [*splits, pre.Digits(individual_digits=True)], special, others=("ø", "ö")
  )
  config = {"add_bos_token": True, "bos_token": described(special[0])}
  config |= {"eos_token": described(special[1]), "legacy": True}
  return (
    with_bos(made, special[0]),
    {**config, "chat_template": COLONS},
    {"eos_token_id": 1},
  )


def llama_2():
  """SentencePiece's BPE with a space in front of every part."""
  steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
  made = sentence_piece(normalizer=normalizers.Sequence(steps))
  config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
  config |= {"add_bos_token": True, "add_eos_token": False}
  return (
    with_bos(made, "<s>"),
    {**config, "chat_template": INSTRUCTIONS},
    {"eos_token_id": 2},
  )


def mistral():
  """SentencePiece's BPE with a space in front of the whole text only."""
  first = pre.Metaspace(prepend_scheme="first", split=False)
  made = sentence_piece(first, special=("<|sys|>", "<|user|>", "<|bot|>"))
  config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
  return with_bos(made, "<s>"), config, {"eos_token_id": 2}


def gemma():
  """SentencePiece's BPE without a space in front; runs of spaces and lines are pieces."""
  special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
  special += ("<start_of_turn>", "<end_of_turn>")
  runs = [letter * count for letter in "\n▁" for count in range(1, 6)]
  learner = Tokenizer(models.BPE())
  learner.pre_tokenizer = pre.Metaspace()
  reserved = [*special, *runs, *(f"<0x{byte:02X}>" for byte in range(256))]
  trainer = trainers.BpeTrainer(
    vocab_size=440, special_tokens=reserved, show_progress=False
  )
  learner.train_from_iterator(CORPUS.replace("東京", "").split("\n"), trainer)
  learnt = json.loads(learner.to_str())["model"]
  # Runs are joined first: SentencePiece never splits pieces of the user's.
  of_runs = [(run[:cut], run[cut:]) for run in runs for cut in range(1, len(run))]
  made = Tokenizer(
    models.BPE(
      vocab=learnt["vocab"],
      merges=[*of_runs, *(tuple(pair) for pair in learnt["merges"])],
      unk_token="<unk>",
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  made.add_special_tokens(list(special))
  made.normalizer = normalizers.Replace(" ", "▁")
  made.pre_tokenizer = pre.Split(" ", "merged_with_previous")
  made.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  config = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
  config |= {"add_bos_token": True, "chat_template": MODEL_TURNS}
  return with_bos(made, "<bos>"), config, {"eos_token_id": [1, 6]}


FAMILIES = {
  "smollm": smollm,
  "llama_3": llama_3,
  "qwen": qwen,
  "deepseek": deepseek,
  "llama_2": llama_2,
  "mistral": mistral,
  "gemma": gemma,
}


def files(name):
  """Returns the files of a family's folder, by name."""
  made, config, generation = FAMILIES[name]()
  config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
  found = {
    "tokenizer.json": made.to_str(),
    "tokenizer_config.json": json.dumps(config),
    "generation_config.json": json.dumps(generation),
  }
  if name == "mistral":
    found["chat_template.jinja"] = TURNS
  return found


def reference(name):
  """Returns what the file holds of a family."""
  found = files(name)
  with tempfile.TemporaryDirectory() as folder:
    for file, content in found.items():
      (pathlib.Path(folder) / file).write_text(content)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
  texts = []
  for text in TEXTS:
    plain = theirs.encode(text, add_special_tokens=False)
    texts.append([text, theirs.encode(text), plain, theirs.decode(plain)])
  conversations = []
  for system in (None, "Be brief."):
    for user in USERS:
      for answer in ANSWERS:
        turns = [{"role": "user", "content": user}]
        if system is not None:
          turns.insert(0, {"role": "system", "content": system})
        before = chat(theirs, turns, True)
        whole = chat(theirs, [*turns, {"role": "assistant", "content": answer}], False)
        conversations.append([system, user, answer, before, whole])
  return {"files": found, "texts": texts, "conversations": conversations}


def chat(theirs, turns, add_generation_prompt):
  """Returns the ids of a conversation."""
  return theirs.apply_chat_template(
    turns, add_generation_prompt=add_generation_prompt, return_dict=False
  )


def main():
  """Writes the file, or compares it."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--check", action="store_true")
  check = parser.parse_args().check
  found = {name: reference(name) for name in FAMILIES}
  text = json.dumps(found, ensure_ascii=False, indent=0) + "\n"
  if not check:
    FILE.write_text(text)
  elif text != FILE.read_text():
    sys.exit(f"{FILE} differs.")
  print(f"{FILE.name}: {len(text)} letters, transformers {transformers.__version__}")


if __name__ == "__main__":
  main()
