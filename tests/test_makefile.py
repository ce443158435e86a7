"""The Makefile: which Python it takes, and what it says; pip and Python are stand-ins."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

REPOSITORY = pathlib.Path(__file__).parents[1]

# Like a Python of VERSION: runs code, makes environments, and writes down the rest.
INTERPRETER = """#!/bin/sh
case "$1 $2" in
  "-c "*) exec "{python}" -c "import sys; sys.version_info = ({version}, 0)
sys.modules |= {lacks}; exec(sys.argv.pop(1))" "$2" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && : > "$3/pyvenv.cfg" ;;
  "-m pip") echo "$*" >> "{calls}"; [ "$3" != install ] || {install} ;;
  *) echo "$*" >> "{calls}" ;;
esac
"""
# What pyenv puts on the PATH for a version that is not selected.
SHIM = "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n"


@pytest.fixture
def project(tmp_path):
  """A folder with the Makefile, and a PATH where only stand-ins of Python are."""
  return Project(tmp_path)


class Project:
  def __init__(self, folder):
    self.folder, self.path, self.calls = folder, folder / "path", folder / "calls"
    self.path.mkdir()
    for tool in (
      "cat",
      "cp",
      "ls",
      "make",
      "mkdir",
      "realpath",
      "rm",
      "sed",
      "sh",
      "touch",
    ):
      (self.path / tool).symlink_to(shutil.which(tool))
    shutil.copy(REPOSITORY / "Makefile", folder)
    for name in ("setup.py", "pyproject.toml"):
      (folder / name).touch()

  def add(self, name, version=None, lacks=(), install="true"):
    """Puts a stand-in of `version`, or else a shim that fails, on the PATH."""
    text = SHIM
    if version is not None:
      text = INTERPRETER.format(
        python=sys.executable,
        version=version.replace(".", ", "),
        lacks=dict.fromkeys(lacks),
        calls=self.calls,
        install=install,
      )
    (self.path / name).write_text(text)
    (self.path / name).chmod(0o755)

  def make(self, *arguments, code=0):
    result = subprocess.run(
      ["make", *arguments],
      cwd=self.folder,
      env={"PATH": str(self.path)},
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result

  def refused(self, *arguments):
    """Returns the one line that says why `make` did not go on."""
    errors = self.make(*arguments, code=2).stderr
    assert "Traceback" not in errors
    (line,) = re.findall("^error: .*", errors, re.MULTILINE)
    return line

  def environment(self, folder=".venv"):
    """Returns the version of the Python that made an environment."""
    text = (self.folder / folder / "bin" / "python").read_text()
    return ".".join(re.search(r"version_info = \((\d), (\d+)", text).groups())


def test_the_newest_python_that_runs_and_makes_environments_is_taken(project):
  project.add("python3.13")
  project.add("python3.12", "3.12", lacks=["ensurepip"])
  project.add("python3.11", "3.11")
  project.add("python3", "3.14")
  assert "with python3.11 (Python 3.11)" in project.make("demo").stdout
  project.make("clean")
  project.add("python3.12", "3.12")
  assert "with python3.12 (Python 3.12)" in project.make("demo").stdout
  project.make("clean")
  project.add("python3.13", "3.13")
  assert "with python3.13 (Python 3.13)" in project.make("demo").stdout


def test_the_pythons_of_the_rule_are_those_that_the_package_names():
  rule = re.search("for python in (.*);", (REPOSITORY / "Makefile").read_text())[1]
  project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
  named = [line.split(" :: ")[-1] for line in project["classifiers"]]
  assert rule.split() == [f"python{each}" for each in reversed(named)]


def test_another_python3_is_taken_where_it_is_the_only_one(project):
  project.add("python3", "3.14")
  project.make("demo")
  assert project.environment() == "3.14"


def test_an_environment_is_kept_when_a_newer_python_appears(project):
  project.add("python3.11", "3.11")
  project.make("demo")
  project.add("python3.13", "3.13")
  assert "environment" not in project.make("demo").stdout
  assert project.environment() == "3.11"


def test_a_python_that_is_named_makes_the_environment_or_says_who_made_it(project):
  project.add("python3.13", "3.13")
  project.add("python3.12", "3.12")
  project.make("demo", "PYTHON=python3.12")
  project.make("demo", "PYTHON=python3.12")
  assert project.environment() == "3.12"
  line = project.refused("demo", "PYTHON=python3.13")
  advice = "make PYTHON=python3.13 VENV=.venv-3.13"
  assert line == (
    f"error: .venv holds Python 3.12, and 'python3.13' is 3.13. To keep both: {advice}"
  )
  project.make("demo", *advice.split()[1:])
  assert (project.environment(), project.environment(".venv-3.13")) == ("3.12", "3.13")


@pytest.mark.parametrize(
  ("stand_in", "why"),
  [
    ({}, "'python3' does not run, and"),
    ({"version": "3.9"}, "'python3' is Python 3.9, and tpv_jax needs 3.11 or newer. N"),
    (
      {"version": "3.13", "lacks": ["ensurepip"]},
      "'python3' (Python 3.13) makes no environments. On Debian: apt-get install "
      "python3.13-venv",
    ),
  ],
)
def test_where_no_python_serves_one_line_says_why(project, stand_in, why):
  project.add("python3", **stand_in)
  assert why in project.refused("demo")
  assert why in project.refused("demo", "PYTHON=python3")
  assert not (project.folder / ".venv").exists()
  project.add("python3.12", "3.12")
  project.make("demo", f"PYTHON={project.path}/python3.12")


def test_where_pip_fails_another_python_is_advised(project):
  project.add("python3.13", "3.13", install="exit 1")
  project.add("python3.12", "3.12")
  line = project.refused("test")
  advice = line.split("Another Python may do: make ")[1].split()
  assert not list(project.folder.glob(".venv/.installed*"))
  project.make("test", *advice)
  assert project.environment(".venv-3.12") == "3.12"


def test_an_environment_that_a_kill_left_without_pip_gets_it(project):
  project.add("python3.13", "3.13")
  python = project.folder / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  shutil.copy(project.path / "python3.13", python)
  has_pip = project.folder / "has_pip"
  python.write_text(
    python.read_text().replace(
      '  "-m pip")',
      f'  "-m ensurepip") : > {has_pip} ;;\n  "-m pip") [ -e {has_pip} ] || exit 1;',
    )
  )
  project.make("demo")
  assert has_pip.exists()


def test_the_fast_tests_need_no_tensorflow(project):
  project.add("python3", "3.13")
  project.make("test-fast", "JOBS=2")
  *_, install, tests = project.calls.read_text().splitlines()
  assert install == "-m pip install -e .[test,gcs]"
  assert tests == "tests/fast.py -n 2 --dist worksteal"
  project.make("test")
  assert "installing" not in project.make("test-fast").stdout


def test_the_hooks_of_pre_commit_run_what_lint_runs(project):
  project.add("python3", "3.13")
  project.make("lint")
  lint = [line for line in project.calls.read_text().splitlines() if "pip" not in line]
  (local,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())[
    "repos"
  ]
  assert local["repo"] == "local"
  python = ".venv/bin/python "
  assert [hook["entry"] for hook in local["hooks"]] == [python + line for line in lint]
  for hook in local["hooks"]:
    assert (hook["language"], hook["pass_filenames"]) == ("system", False)


@pytest.mark.parametrize(
  ("taken", "other"), [("3.11", "3.13"), ("3.12", "3.13"), ("3.13", "3.11")]
)
@pytest.mark.parametrize("failing", ["nothing", "make test ", "make test-fast "])
def test_before_a_change_lands_the_fast_tests_run_on_another_python_too(
  project, taken, other, failing
):
  script = project.folder / ".ci" / "run"
  script.parent.mkdir()
  shutil.copy(REPOSITORY / ".ci" / "run", script)
  for tool in ("bash", "dirname", "env"):
    (project.path / tool).symlink_to(shutil.which(tool))
  project.add("python3", taken)
  python = project.folder / ".ci-venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  shutil.copy(project.path / "python3", python)
  (project.path / "make").unlink()
  (project.path / "make").write_text(
    f'#!/bin/sh\necho "make $* $PYENV_VERSION" >> {project.calls}\n'
    f'case "make $* " in "{failing}"*) exit 3; esac\n'
  )
  (project.path / "make").chmod(0o755)
  done = subprocess.run(
    [script], env={"PATH": str(project.path)}, capture_output=True, check=False
  )
  commands = [
    "make test VENV=.ci-venv ",
    f"make test-fast VENV=.ci-venv-{other} PYTHON=python{other} {other}",
  ]
  called = project.calls.read_text().splitlines()
  assert called == commands[: 1 if failing == "make test " else 2], done.stderr
  assert done.returncode == (0 if failing == "nothing" else 3)


def test_the_environments_of_tests_and_demo_are_installed_once(project):
  project.add("python3", "3.13")
  for target in ("demo", "test", "demo"):
    project.make(target)
  installs = [line for line in project.calls.read_text().splitlines() if " -e " in line]
  assert installs == ["-m pip install -e .", "-m pip install -e .[test,data,hf]"]


@pytest.mark.parametrize("extras", ["cuda13", "cuda13,gcs", "cuda13 gcs"])
def test_extras_of_an_accelerator_are_added_to_those_of_every_target(project, extras):
  project.add("python3", "3.13")
  (project.folder / "llm_out").mkdir()
  (project.folder / "llm_out/answers.jsonl").touch()
  project.make("demo")
  for target in ("demo", "llm", "test", "demo", "llm", "test"):
    project.make(target, f"EXTRAS={extras}")
  installs = [line for line in project.calls.read_text().splitlines() if " -e " in line]
  joined = extras.replace(" ", ",")
  assert installs == [
    "-m pip install -e .",
    *(
      f"-m pip install -e .[{needed}{joined}]"
      for needed in ("", "llm,", "test,data,hf,")
    ),
  ]


def test_the_language_model_is_fetched_tuned_added_scored_and_asked(project):
  project.add("python3", "3.13")
  (project.folder / "llm_out").mkdir()
  (project.folder / "llm_out/answers.jsonl").write_text("the answers\n")
  assert project.make("llm").stdout.endswith("the answers\n")
  calls = project.calls.read_text().splitlines()
  assert "-m pip install -e .[llm]" in calls
  verbs = re.findall(r"-m tpv_jax (\w+)", "\n".join(calls))
  assert verbs == [
    *("fetch", "prompts", "infer", "bank", "diff", "diff", "sum", "eval", "infer")
  ]


def test_cleaning_and_failing_remove_environments_only(project):
  precious = project.folder / "home" / "thesis.txt"
  precious.parent.mkdir()
  precious.touch()
  project.make("clean", "VENV=home")
  (project.path / "python3").write_text(
    f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" "$@"; exit 1\n'
  )
  (project.path / "python3").chmod(0o755)
  assert "could not make an environment in home" in project.refused("demo", "VENV=home")
  assert precious.exists()


def test_help_names_every_target_that_is_for_users(project):
  text = (REPOSITORY / "Makefile").read_text()
  targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
  shown = project.make("help").stdout
  for target in set(targets) - {"help", "lint", "same-python"}:
    assert f"make {target} " in shown.replace(
      "make test-all runs", "make test-all runs "
    )
  assert "PYTHON=" in shown
  assert "TESTS=" in shown


def test_t5x_is_given_by_its_folder_to_the_tests_and_to_the_documents(project):
  project.add("python3.11", "3.11")
  (project.folder / "my t5x").mkdir()
  for target, command in (
    ("t5x-test", "-m pytest --no-skips tests/t5x"),
    ("t5x-check", "tests/t5x_check.py --output docs/t5x-check.md"),
  ):
    told = project.make(target, "T5X=my t5x").stdout
    assert 'PYTHONPATH="$(realpath "my t5x")"' in told
    assert project.calls.read_text().splitlines()[-1] == command
