"""What stands in for what a document names and a test has not: models, data, other tools.

A clone of the repository in a scratch folder, its T5 sizes made tiny; files and folders
under the names that documents give them; and a call completed where a document wrote
`...`, shortened where it would take minutes, or parsed only.
"""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest.mock

import hf_references
import llama_models
import numpy as np

REPOSITORY = pathlib.Path(__file__).parents[1]

EMBEDDED = "3256aeaeb465605ff79fc6461a5ab3c4f9c63f870b756b6089fbdda97c2b2e0a"
"""The fingerprint of the embedded backbone."""

BRIEF = {
  "t5x.train": "--gin.TRAIN_STEPS=4 --gin.EVAL_PERIOD=2",
  "tpv train": "--gin.TRAIN_STEPS=4 --gin.EVAL_PERIOD=2",
  "tpv bank": "--gin.TRAIN_STEPS=4 --gin.EVAL_PERIOD=2",
  "tpv study": "--gin.TRAIN_STEPS=4 --gin.EVAL_PERIOD=2 --gin.INITIAL_SEEDS=[0,1]",
  "tpv moving": "--gin.TRAIN_STEPS=2 --gin.EVAL_PERIOD=2 --gin.INITIAL_SEEDS=[0,1]"
  " --gin.VARIANTS=[{'scale':1.0}] --gin.VALIDATION_EXAMPLES=8"
  " --gin.SEARCH_EXAMPLES=8 --gin.TEST_EXAMPLES=8",
  "tpv ablation": "--gin.TRAIN_STEPS=2 --gin.EVAL_PERIOD=1 --gin.INITIAL_SEEDS=[0,1]"
  " --gin.TASK_NAMES=['sentiment','topic'] --gin.TUNING_TASKS=['topic']"
  " --gin.PROMPT_LENGTHS=[]"
  " --gin.PLAIN_RATES=[1.0] --gin.DECOMPOSED_RATES=[(1.0,0.01)]",
  "tpv merging": "--gin.TRAIN_STEPS=2 --gin.EVAL_PERIOD=1 --gin.INITIAL_SEEDS=[0,1]"
  " --gin.RULES=['ties'] --gin.DATA_OPTIONS={} --gin.BUDGET=3 --gin.SEARCH_EXAMPLES=8",
  "tpv few-shot": "--gin.TRAIN_STEPS=2 --gin.EVAL_PERIOD=1 --gin.SOURCE_STEPS=2"
  " --gin.SOURCE_EVAL_PERIOD=1 --gin.INITIAL_SEEDS=[10,11] --gin.SHOTS=[0,5]"
  " --gin.VALIDATION_EXAMPLES=8 --gin.TEST_EXAMPLES=8",
}
"""Flags that make a command take seconds."""

CACHE = "cache"
"""The folder of the cache, in the folder in which a document is run."""

HOURS = re.compile(
  r"backbones/t5_|pretrain_embedded|runs/paper_|ablation\.gin|few_shot|merging_"
  r"|studies/moving"
)
"""Calls that are always made brief: as printed they take up to hours, or a real T5."""


def complete(module: str, *arguments: str) -> list[str]:
  """Returns the arguments of a call, `...` replaced and made brief where it must be."""
  called = f"tpv {arguments[0]}" if module == "tpv_jax" else module
  given = [argument for argument in arguments if argument != "..."]
  text = " ".join(given)
  if len(given) < len(arguments):
    bound = set(re.findall(r"--gin\.(\w+)=", text))
    if "backbones/" not in text and "_embedded" not in text:
      given.append("--gin_file=gin_configs/backbones/t5_1_0_base.gin")
    if called.endswith(("train", "bank")) and "prompts/" not in text:
      given.append("--gin_file=gin_configs/prompts/plain.gin")
    if "tasks/text_files.gin" in text:
      given.append("--gin_file=my_task.gin")
    model = "models/t5_1_1_base" if "t5_1_1" in text else "models/t5-base"
    for name in {"BACKBONE", "VOCABULARY_FILE"} - bound:
      given.append(f"--gin.{name}='{model}'")
  if "prompts/ept_llm" in text:  # In a narrow stand-in 20 tokens leave no rank.
    given.append("--gin.PROMPT_LENGTH=40")
  if os.environ.get("DOCUMENTS") == "brief" or HOURS.search(" ".join(given)):
    own = "TASK_FILES" in text
    given += [
      flag
      for flag in BRIEF.get(called, "").split()
      if not (own and re.search("TASK_NAMES|TUNING_TASKS", flag))
    ]
  return given


def parse(module: str, arguments: list[str]) -> int:
  """Reads a call's arguments as its command does, runs nothing, returns an exit code.

  A call in a sentence may leave out what it needs: `tpv export --to npz`.
  """
  import gin

  from tpv_jax import cli
  from tpv_jax.devices import processes

  if module.startswith(("t5x.", "tpv_jax.t5x.")):
    return _check_names(arguments)
  with unittest.mock.patch("tpv_jax.core.errors.ArgumentParser.error", _refuse):
    _, options = cli.parse(arguments)
  if not getattr(options, "gin_file", None) or "..." in options.gin_file:
    return 0
  with (
    unittest.mock.patch.object(
      gin, "get_configurable", return_value=lambda **bound: None
    ),
    unittest.mock.patch.object(processes, "use_devices"),
  ):
    return cli.main(arguments)


class Reached(Exception):
  """Everything was checked, and the work would begin."""


def begin(arguments: list[str]) -> int:
  """Runs a verb with gin files up to where its work begins; returns its exit code."""
  from tpv_jax import cli
  from tpv_jax.banks import bank
  from tpv_jax.evaluation import evaluation, searching
  from tpv_jax.training import training

  def work(*_, **__):
    raise Reached

  with contextlib.ExitStack() as patches:
    for owner, name in (
      (training.Run, "execute"),
      (bank, "Plan"),
      (searching, "best_of_each"),
      (evaluation.Evaluator, "evaluate_all"),
    ):
      patches.enter_context(unittest.mock.patch.object(owner, name, work))
    patches.enter_context(contextlib.suppress(Reached))
    return cli.main(arguments)
  return 0


def _refuse(parser, message):
  if "required" in message and os.environ.get("INCOMPLETE"):
    sys.exit(0)
  parser.exit(2, f"error: {message}\n")


def _check_names(arguments: list[str]) -> int:
  """Returns 0 if the gin files of a call exist and define the macros that it binds."""
  from tpv_jax.settings import gin_files

  texts, left = (
    [],
    [argument.split("=", 1)[1] for argument in arguments if "--gin_file=" in argument],
  )
  while left:
    name = left.pop()
    if name != "...":
      texts.append(gin_files.find(name).read_text())
      left += re.findall(r"^include '(.*)'", texts[-1], re.MULTILINE)
  known = set(re.findall(r"^([A-Z]\w*) = ", "\n".join(texts), re.MULTILINE))
  for name in re.findall(r"--gin\.([A-Z]\w*)=", " ".join(arguments)):
    if name not in known and "--gin_file=..." not in arguments:
      print(f"no gin file defines {name}", file=sys.stderr)
      return 2
  return 0


def copy_tracked(folder: pathlib.Path) -> None:
  """Copies what git tracks, as it stands here, into a folder."""
  tracked = subprocess.run(
    ["git", "ls-files", "-z"],
    cwd=REPOSITORY,
    capture_output=True,
    check=True,
    text=True,
  ).stdout.split("\0")
  for name in filter(None, tracked):
    if (REPOSITORY / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(REPOSITORY / name, folder / name)


def clone(folder: pathlib.Path) -> pathlib.Path:
  """Copies the repository, its T5 sizes made tiny; returns the folder."""
  copy_tracked(folder)
  for path in (folder / "gin_configs" / "backbones").glob("t5_1_*.gin"):
    numbers = hf_references.numbers("t5" if "t5_1_0" in path.name else "t5_1_1")
    text = re.sub(
      r"EMB_DIM = \d+", f"EMB_DIM = {numbers.pop('emb_dim')}", path.read_text()
    )
    for name, value in {**numbers, "vocab_size": vocabulary_size()}.items():
      text = re.sub(rf"^  {name} = .*", f"  {name} = {value!r}", text, flags=re.M)
    path.write_text(text)
  (folder / ".venv" / "bin").mkdir(parents=True)
  (folder / ".venv" / "bin" / "activate").touch()
  return folder


def make(folder: pathlib.Path, text: str, left_out: set[str]) -> None:
  """Makes what a document's text names, under the names that it has there."""
  if "..." in text:  # See `complete`.
    text += " models/t5-base models/t5_1_1_base my_task.gin"
  if re.search(r"smollm2|llm\.gin|_small\.gin", text):
    fetched(folder / CACHE)
  for name, write in FILES.items():
    if name not in left_out and re.search(
      rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text
    ):
      path = folder / name.split()[-1].replace("*", "0")
      if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)


def fetched(cache: pathlib.Path) -> None:
  """Has a tiny model in a cache, as if it were SmolLM2 that `tpv fetch` fetched."""
  import llm_stand_in

  from tpv_jax.backbones import fetching
  from tpv_jax.formats import packaged

  with unittest.mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(cache)}):
    folder = packaged.folder("smollm2")
    folder.mkdir(parents=True)
    gguf = llm_stand_in.write_gguf(cache / "tiny.gguf")
    fetching.write(gguf, packaged.MODELS["smollm2"], folder)


@functools.cache
def spiece() -> bytes:
  """A SentencePiece model with T5's special ids that knows every character and label."""
  from tpv_jax.data import registry

  rows = json.loads((REPOSITORY / "tpv_jax/data/example_rows.json").read_text())
  labels = [w for which in registry.DEFINITIONS.values() for w in which.words or ()]
  lines = [
    json.dumps(list(rows.values()), ensure_ascii=False),
    *sorted(set(labels)) * 20,
  ]
  code = (
    "import io, sys, sentencepiece; model = io.BytesIO();"
    "sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sys.stdin),"
    " model_writer=model, vocab_size=400, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,"
    " character_coverage=1.0, hard_vocab_limit=False, minloglevel=2);"
    "sys.stdout.buffer.write(model.getvalue())"
  )
  text = "\n".join(word for line in lines for word in line.split('"') if word.strip())
  done = subprocess.run(
    [sys.executable, "-c", code], input=text.encode(), capture_output=True, check=True
  )
  return done.stdout


@functools.cache
def vocabulary_size() -> int:
  from tpv_jax.data import vocabularies

  with tempfile.NamedTemporaryFile(suffix=".model") as file:
    file.write(spiece())
    file.flush()
    return vocabularies.load(file.name).vocab_size


def tiny_t5(family: str):
  """Returns a writer of a folder of Hugging Face with the tiny T5 of a family."""

  def write(path):
    hf_references.write_folder(path, family)

  return write


def tiny_llama(path):
  """Writes a GGUF file with a tiny LLaMA, its matrices in blocks of Q8_0."""
  content = llama_models.CONFIGS["llama tied"] | {"hidden_size": 32, "head_dim": 8}
  llama_models.write_gguf(path, content, kind="Q8_0")


def t5_with_vocabulary(family: str):
  """Returns a writer of such a folder with embeddings for `spiece`, which is in it."""

  def write(path):
    leaves = dict(hf_references.weights(family))
    rng = np.random.default_rng(0)
    for name in {"shared.weight", "lm_head.weight"} & set(leaves):
      shape = (vocabulary_size(), leaves[name].shape[1])
      leaves[name] = rng.normal(size=shape).astype(np.float32)
    hf_references.write_folder(path, family, leaves, vocab_size=vocabulary_size())
    (path / "spiece.model").write_bytes(spiece())

  return write


def checkpoint(family: str):
  """Returns a writer of such a backbone as a T5X checkpoint, or as a file of ours."""

  def write(path):
    from tpv_jax import cli

    source = path.parent / f".{family}"
    if not source.exists():
      t5_with_vocabulary(family)(source)
    with contextlib.redirect_stdout(io.StringIO()):
      assert cli.main(["convert", str(source), "-o", str(path)]) == 0

  return write


def pretraining(path):
  """Writes what a run has that trained the embedded backbone: its newest checkpoint."""
  from tpv_jax import cli

  newest = path / "checkpoints" / "checkpoint_4"
  newest.parent.mkdir(parents=True)
  with contextlib.redirect_stdout(io.StringIO()):
    assert cli.main(["convert", "embedded", "-o", str(newest)]) == 0


def reference(name: str):
  """Returns a writer of a copy of what lies under tests/references."""
  return lambda path: shutil.copytree(hf_references.FOLDER / name, path)


def lines(*texts: str):
  """Returns a writer of a text file."""
  return lambda path: path.write_text("".join(f"{text}\n" for text in texts))


def run(path):
  """Writes a run folder of the embedded backbone, which was never trained."""
  from tpv_jax.vectors import store

  path.mkdir()
  for name, item in prompts(path.name).items():
    store.write(path / f"{name}_prompt.safetensors", item.leaves, item.provenance)
  (path / "manifest.json").write_text(json.dumps({"status": "finished"}))


def whole_run(path):
  """Writes such a run, whose manifest states a task with the column 'text'."""
  from tpv_jax.embedded import suite
  from tpv_jax.runs import records

  run(path)
  subject = {
    "backbone": "embedded",
    "family": "t5",
    "vocabulary_file": None,
    "chat": None,
    "dtype": "float32",
    "quantize": None,
    "lengths": suite.LENGTHS,
    "recipe": suite.task("sentiment").recipe.to_json(),
  }
  manifest = {"format": records.FORMAT, "status": "finished", "settings": {}}
  manifest["subject"] = subject
  (path / "manifest.json").write_text(json.dumps(manifest))


def prompts(task: str):
  """Returns a run's prompts by name, of EPT if the task's name begins so.

  All have one initial prompt, but for the tasks 'far' and 'ept_far'.
  """
  import prompt_fixtures as small

  if task.startswith("ept_"):
    initial = small._ept_initial(
      5 * (task == "ept_far"), tokens=4, source=24, width=128
    )
    tune = small._ept_tuned
  else:
    initial, tune = small._initial(5 * (task == "far"), (8, 128)), small._tuned
  known = dataclasses.replace(
    initial.provenance, backbone_name="tpv_jax embedded", backbone_fingerprint=EMBEDDED
  )
  initial = dataclasses.replace(initial, provenance=known)
  tuned = tune(initial, task, sum(map(ord, task)))
  return {"initial": initial, "best": tuned, "last": tuned}


def vector(path):
  """Writes the vector of such a run, or the sum of two."""
  from tpv_jax.vectors import algebra, store

  tasks = ("sst2", "rte") if path.stem == "both" else (path.stem,)
  both = [prompts(task) for task in tasks]
  item = algebra.sum_vectors(
    [algebra.diff(one["best"], one["initial"]) for one in both]
  )
  store.write(path, item.leaves, item.provenance)


def initial_prompt(path):
  """Writes an initial prompt of another seed than the runs have."""
  import prompt_fixtures as small

  from tpv_jax.vectors import store

  item = small._initial(5, (8, 128), EMBEDDED)
  store.write(path, item.leaves, item.provenance)


def prompt_checkpoint(path):
  """Writes a prompt, or with 'ept' in its path EPT's parameters, as T5X checkpoints do."""
  import orbax.checkpoint as ocp
  import prompt_fixtures as small

  seed = int(path.name.rsplit("_", 1)[1])
  leaves = {"prompt": np.random.default_rng(seed).normal(size=(5, 16))}
  if "ept" in str(path):
    leaves = small._ept_leaves(np.random.default_rng(seed))
  leaves = {name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()}
  tree = {"target": {"prompt": leaves}, "state": {"step": np.int32(seed)}}
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    checkpointer.save((path / "state").absolute(), args=ocp.args.PyTreeSave(tree))


def dept(path):
  """Writes what the references have of DePT, by the names of DePT's code."""
  with np.load(hf_references.FOLDER / "peft.npz", allow_pickle=False) as file:
    np.savez(
      path,
      prompt_embeddings=file["dept/short_prompt"],
      lora_embedding_A=file["dept/low_rank_a"][:8],
      lora_embedding_B=file["dept/low_rank_b"],
    )


def pickled_adapter(path):
  """Writes a PEFT adapter whose weights are a pickle."""
  path.mkdir()
  shutil.copy(hf_references.FOLDER / "peft_tuned" / "adapter_config.json", path)
  (path / "adapter_model.bin").write_bytes(b"\x80\x02}q\x00.")


def data(path):
  """Writes the raw rows of the papers' tasks, as `tpv tasks prepare` downloads them."""
  from tpv_jax.data import registry, sources

  for which in registry.DEFINITIONS.values():
    if which.name == which.data != "dbpedia":  # Of which documents have a local copy.
      with tempfile.TemporaryDirectory() as own:
        local_copy(which.name)(pathlib.Path(own) / "rows")
        sources.prepare(which, path, pathlib.Path(own) / "rows", str)


def local_copy(task: str):
  """Returns a writer of a folder with invented rows of a task: SPLIT.jsonl."""

  def write(path):
    from tpv_jax.data import registry, sources
    from tpv_jax.data.papers import definition

    which = registry.definition(task)
    path.mkdir()
    for split in sources.needed_splits(which):
      rows = definition.example_rows(which) * 12
      group = (
        which.group
      )  # Of MultiRC's questions 43 to 66 the last becomes validation.
      text = which.columns[0]
      lines_of(
        {
          **row,
          **({group: 43 + number} if group is not None else {}),
          text: f"{row[text]} {split} {number}",
        }
        for number, row in enumerate(rows)
      )(path / f"{split}.jsonl")

  return write


def lines_of(rows):
  """Returns a writer of JSON lines."""
  return lines(*(json.dumps(row) for row in rows))


def own_task(path):
  """Writes the task from local files of docs/own_data.md, and the files."""
  text = (REPOSITORY / "docs/own_data.md").read_text()
  path.write_text(re.search(r"```gin\n(TASK_NAME.*?)```", text, re.S)[1])
  lines_of(REVIEWS)(path.with_name("train.jsonl"))
  lines_of(REVIEWS[8:16])(path.with_name("dev.jsonl"))


def own_tasks(path):
  """Writes what bank.gin's header says of my_tasks.gin, for two tasks."""
  lines_of(REVIEWS)(path.with_name("train.jsonl"))
  settings = "\n".join(
    f"""{name}/text_files.text_file_task:
  name = '{name}'
  paths = {{'train': 'train.jsonl', 'validation': 'train.jsonl', 'test': 'train.jsonl'}}
  template = 'sentence: {{sentence}}'
  target = 'label'
  labels = {{'0': 'negative', '1': 'positive'}}"""
    for name in ("one", "two")
  )
  path.write_text(
    "from __gin__ import dynamic_registration\n"
    "from tpv_jax.data import text_files\n"
    "TASKS = [@one/text_files.text_file_task(), @two/text_files.text_file_task()]\n"
    "LENGTHS = {'inputs': 64, 'targets': 8}\n" + settings + "\n"
  )


def own_table(name):
  """Returns a writer of a CSV file of a user's: reviews with stars, or news of sections."""

  def write(path):
    from tpv_jax.embedded import suite

    task = suite.task({"reviews": "sentiment", "news": "topic"}[name])
    stars = {"negative": 1, "positive": 5}
    columns = ["id", "text", "stars"] if name == "reviews" else ["headline", "section"]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
      rows = csv.writer(file, lineterminator="\r\n")
      rows.writerow(columns)
      for number, one in enumerate(task.examples("train")[:120]):
        text = one.inputs.replace(" and ", "\nand ", 1)
        row = [number, text, stars[one.targets]] if name == "reviews" else None
        rows.writerow(row or [one.inputs, one.targets])

  return write


def own_toml(name):
  """Returns a writer of the task file of such a file, and of the file."""

  def write(path):
    data = path.with_name(f"{name}.csv")
    if not data.exists():
      own_table(name)(data)
    labels = '{ 1 = "negative", 5 = "positive" }'
    path.write_text(
      f"""paths = "{name}.csv"
template = "{{{"text" if name == "reviews" else "headline"}}}"
target = "{"stars" if name == "reviews" else "section"}"
labels = {labels if name == "reviews" else '["business", "politics", "science", "sport"]'}
splits = {{ validation = 0.1, test = 0.1 }}
lengths = {{ inputs = 64, targets = 8 }}
"""
    )

  return write


def own_run(path):
  """Writes an untrained run whose prompts have the width of the tiny T5s."""
  import prompt_fixtures as small

  from tpv_jax.vectors import store

  path.mkdir()
  for name in ("initial", "best", "last"):
    item = small._initial(0, (5, 16), None)
    store.write(path / f"{name}_prompt.safetensors", item.leaves, item.provenance)


def published_prompts(path):
  """Writes 17 prompts under the names of those that examples/cosine_table.py reads."""
  kinds = re.search(
    r"^KINDS = {(.*?)^}",
    (REPOSITORY / "examples/cosine_table.py").read_text(),
    re.S | re.M,
  )[1]
  tasks = " ".join(re.findall(r': "(.*)"', kinds)).split()
  rng = np.random.default_rng(0)
  path.mkdir()
  np.savez(
    path / "thunlp_t5_base.npz",
    **{task: rng.normal(size=(3, 5)).astype(np.float32) for task in tasks},
  )


REVIEWS = [
  {"sentence": f"{word} film number {i}", "label": i % 2}
  for i in range(24)
  for word in [("dull", "fine")[i % 2]]
]


def study(name):
  """Returns what copies a finished study of docs/results."""
  source = REPOSITORY / "docs" / "results" / name
  return lambda path: shutil.copytree(source, path)


FILES = {
  "models/t5-base": t5_with_vocabulary("t5"),
  "models/t5_1_1_base": t5_with_vocabulary("t5_1_1"),
  "models/t5_1_1_base/checkpoint_1000000": checkpoint("t5_1_1"),
  "models/spiece.model": lambda path: path.write_bytes(spiece()),
  "spiece.model": lambda path: path.write_bytes(spiece()),
  "checkpoint_1100000": checkpoint("t5_1_1"),
  "tiny_t5": tiny_t5("t5_1_1"),
  "tiny_llama.gguf": tiny_llama,
  "model.gguf": tiny_llama,
  "t5_hf": tiny_t5("t5_1_1"),
  "initial": reference("peft_initial"),
  "tuned": reference("peft_tuned"),
  "adapter_initial": reference("peft_initial"),
  "adapter": reference("peft_tuned"),
  "bin_adapter": pickled_adapter,
  "dept.npz": dept,
  "train.jsonl": lines_of(REVIEWS),
  "dev.jsonl": lines_of(REVIEWS[8:16]),
  "--data-dir data": data,
  "--data-dir gs_copy": data,
  "downloads/dbpedia_14": local_copy("dbpedia"),
  "flan-t5-base": tiny_t5("flan_t5"),
  "mt5-small": tiny_t5("mt5"),
  "t5_base.safetensors": checkpoint("t5"),
  "t5x/checkpoint_0": prompt_checkpoint,
  "t5x/checkpoint_9000": prompt_checkpoint,
  "t5x/ept/checkpoint_9000": prompt_checkpoint,
  "peft_initial": reference("peft_initial"),
  "peft_adapter": reference("peft_tuned"),
  "sst2.npy": lambda path: np.save(path, prompts("sst2")["best"].leaves["prompt"]),
  "prompts.npz": lambda path: np.savez(
    path, **{task: prompts(task)["best"].leaves["prompt"] for task in ("SST2", "RTE")}
  ),
  "other_init.safetensors": initial_prompt,
  "my_task.gin": own_task,
  "my_tasks.gin": own_tasks,
  **{f"{name}.csv": own_table(name) for name in ("reviews", "news")},
  **{f"{name}.toml": own_toml(name) for name in ("reviews", "news")},
  "sentences.txt": lines("review: a fine film", "review: a dull film"),
  "compare plain": study("small"),
  "compare plain ept": study("small_ept"),
  "compare plain ept dept": study("small_ept"),
  "runs/ept_*": lambda path: run(path.with_name("ept_sst2")),
  "runs/mine": own_run,
  "runs/llm/sentiment": own_run,
  "runs/reviews-*": whole_run,
  "runs/reviews": whole_run,
  "new.csv": lines("id,text", "1,review: a fine film"),
  "runs/pretraining": pretraining,
  **{
    f"runs/{task}": run
    for task in ("sst2", "rte", "sentiment", "topic", "ept_sst2", "ept_rte", "ept_far")
  },
  **{
    f"{name}.safetensors": vector
    for name in (
      *("sst2", "rte", "imdb", "yelp", "trec", "both", "far", *"abv"),
      *("sentiment", "topic", "reviews", "news"),
    )
  },
  "FOLDER": published_prompts,
  "lines.txt": lines("a fine day", "some words here"),
}
"""What is made where a document names it."""
