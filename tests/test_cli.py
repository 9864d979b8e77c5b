"""The commands: what they print, and that every error is one line with its remedy."""

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from usage import free_port

from dpo_data import cli, errors
from dpo_data.errors import DpoDataError
from dpo_data.rundir import RunDir

RECIPE = """name = "try"
[prompts]
path = "prompts.jsonl"
[sample]
n = 4
shard_size = 8
engine = { type = "echo" }
[rank.judge]
type = "rule"
rule = "concise"
"""
HEAVY = {"pydantic", "pyarrow", "torch", "vllm", "trl", "transformers", "datasets", "prefect", "argilla", "pandas", "openai"}
COMMANDS = list(cli.parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe and its prompts."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Name {at} rivers"}) + "\n" for at in range(30)))
    (tmp_path / "try.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


Say = Callable[..., str]


@pytest.fixture
def say(folder: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command that ends well, and returns what it printed."""

    def run(*argv: str) -> str:
        assert cli.main(list(argv)) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, dpo_data.cli as c; c.parser().format_help(); print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "dpo_data" in loaded and not HEAVY & set(loaded)


@pytest.mark.parametrize(
    "command", [[], *([name] for name in COMMANDS if name != "deploy")], ids=lambda command: "".join(command) or "-"
)
def test_every_command_helps(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == 0
    assert f"usage: {' '.join(['dpo-data', *command])}" in capsys.readouterr().out


def test_every_command_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if not re.search(rf"(dpo-data |`){name}\b", readme)]


def test_a_run_from_its_plan_to_its_report(say: Say, folder: Path) -> None:
    planned = say("plan", "try.toml")
    assert re.search(r"prompts +30 \(0 .*held out, 0 rep", planned) and re.search(r"completions +120 ", planned)
    assert "finished     nothing yet" in planned and not (folder / "runs").exists(), "a plan does nothing"
    assert "runs/try/report.html" in say("run", "try.toml")
    assert "finished     sample, rank, pair\n  to do        nothing" in say("plan", "try.toml")
    assert [line.split()[:2] for line in say("status", "runs/try").splitlines()[2:]] == [
        ["sample", "complete"],
        ["rank", "complete"],
        ["pair", "complete"],
    ]
    (folder / "runs" / "try" / "report.html").unlink()
    assert "report.html" in say("report", "runs/try")
    assert (folder / "runs" / "try" / "report.html").exists()


def test_stage_by_stage(say: Say) -> None:
    for name in ("sample", "rank", "pair"):
        assert say(name, "try.toml", "--run", "mine").startswith(f"{name}: complete in mine/")
    assert say("status", "mine").count("complete") == 3


def test_fork_goes_on_with_what_holds(say: Say) -> None:
    say("sample", "try.toml")
    told = say("fork", "runs/try", "try.toml", "--run", "other", "--set", "rank.judge.rule=detailed")
    assert told == "other keeps sample of runs/try. Go on: dpo-data run try.toml --run other\n"
    say("run", "try.toml", "--run", "other", "--set", "rank.judge.rule=detailed")
    assert RunDir("other").stage("pair").manifest


ERRORS: dict[str, tuple[list[str], int, str]] = {
    "no recipe": (["run", "none.toml"], 2, "No recipe at none.toml. Name a .toml file"),
    "unknown key": (
        ["run", "try.toml", "--set", "sample.tempratur=1"],
        2,
        "Unknown key 'sample.tempratur' in try.toml. Did you mean 'temperature'?",
    ),
    "wrong type": (
        ["run", "try.toml", "--set", "sample.n=many"],
        2,
        "'sample.n' in try.toml is 'many': Input should be a valid integer",
    ),
    "no such engine": (
        ["run", "try.toml", "--set", "sample.engine.type=vlm"],
        2,
        "'sample.engine.type' in try.toml is 'vlm'. Use one of 'vllm'",
    ),
    "missing prompts": (["run", "try.toml", "--set", "prompts.path=none.jsonl"], 2, "No prompts at none.jsonl. Name a .jsonl"),
    "plan without prompts": (
        ["plan", "try.toml", "--set", "prompts.path=none.jsonl"],
        2,
        "No prompts at none.jsonl. Name a .jsonl",
    ),
    "no rule": (["run", "try.toml", "--set", "rank.judge.rule=consise"], 2, "No built-in rule 'consise'. Use one of concise"),
    "no model": (
        ["run", "try.toml", "--set", 'sample.engine={type="vllm", model="models/none"}'],
        4,
        "No model at 'models/none': no such folder here, and the Hub says LocalEntryNotFoundError. Check the name",
    ),
    "server refused": (
        [
            "run",
            "try.toml",
            "--set",
            'sample.engine={type="server", base_url="http://127.0.0.1:PORT/v1", model="m", retries=0}',
        ],
        4,
        "No answer from http://127.0.0.1:PORT/v1: .*[Cc]onnection.* Start the server, or mend base_url",
    ),
    "stage too early": (["pair", "try.toml"], 3, "runs/try/1-sample is not complete, .* Run `dpo-data sample RECIPE` first"),
    "no training asked": (["train", "try.toml"], 1, "The recipe asks for no stage 'train'. Give it"),
    "no run": (["status", "runs/none"], 2, "No run at runs/none. Name a run directory"),
    "nothing to report": (["report", "runs/none"], 2, "No run with a finished stage at runs/none. Name a run directory"),
    "nothing to fork": (["fork", "runs/none", "try.toml"], 2, "No run at runs/none. Name a run directory"),
    "shipped recipe": (
        ["run", "flows/recipes/demo.toml", "--set", "sampel.n=1"],
        2,
        "Unknown key 'sampel' in flows/recipes/demo.toml. Did you",
    ),
}


@pytest.mark.parametrize("why", ERRORS)
def test_an_error_is_one_line_with_its_remedy(folder: Path, why: str, capfd: pytest.CaptureFixture[str]) -> None:
    argv, code, told = ERRORS[why]
    port = str(free_port())
    argv, told = [part.replace("PORT", port) for part in argv], told.replace("PORT", port)
    assert cli.main(argv) == code
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert re.match(f"dpo-data: error: {re.sub(r'[?()]', '.', told)}", err)
    for debug in (["--debug", *argv], [*argv, "--debug"]):
        with pytest.raises(DpoDataError):
            cli.main(debug)


def test_an_old_run_refuses_a_changed_recipe(say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    say("run", "try.toml")
    assert cli.main(["run", "try.toml", "--set", "sample.n=5"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "dpo-data: error: runs/try/1-sample was made with another recipe: sample.n was 4, is 5. "
        "Begin a new run that keeps what still holds with `dpo-data fork runs/try RECIPE --run NEW`, "
        "or delete runs/try/1-sample and the stages after it to redo them."
    )


@pytest.mark.parametrize("argv", [[], ["runn"], ["run"], ["run", "a.toml", "--no-such"], ["fork", "old"]], ids=" ".join)
def test_a_wrong_command_line_shows_the_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("usage: dpo-data")


def test_the_traceback_is_shown_when_asked_for_alone(folder: Path) -> None:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "dpo_data.cli", *argv], capture_output=True, text=True, check=False)

    plain, debug = run("status", "none"), run("status", "none", "--debug")
    assert (plain.returncode, plain.stderr.count("\n"), plain.stdout) == (2, 1, "")
    assert debug.returncode != 0 and debug.stderr.startswith("Traceback (most recent call last)")
    assert debug.stderr.strip().endswith(plain.stderr.removeprefix("dpo-data: error: ").strip())


def test_a_bug_is_no_users_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpo_data.rundir.RunDir.exists", property(lambda run: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        cli.main(["status", "none"])


def test_every_error_says_what_and_what_to_do() -> None:
    def kinds(of: type[DpoDataError]) -> list[type[DpoDataError]]:
        return [of, *(kind for sub in of.__subclasses__() for kind in kinds(sub))]

    for kind in kinds(DpoDataError):
        error = kind("It\nbroke.", "Mend\n it.")
        assert str(error) == "It broke. Mend it." and kind.exit_code > 0
        assert str(pickle.loads(pickle.dumps(error))) == str(error), "it crosses a process border"
        if kind.__module__ == errors.__name__ and kind is not DpoDataError:
            assert re.search(rf"{kind.__name__} .* exit {kind.exit_code}\n", errors.__doc__ or "")
    assert str(DpoDataError("It broke.")) == "It broke."
