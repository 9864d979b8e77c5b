"""What is logged as JSON: every line of a run that ends well or badly, in its file and on stderr."""

import json
import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pty_child import CLI

from dpo_data import cli, pipeline
from dpo_data.child import Child, Parent
from dpo_data.config import Recipe
from dpo_data.engines.echo import Echo, EchoEngine
from dpo_data.errors import EngineError
from dpo_data.logs import FORMAT, JsonLines, logged
from dpo_data.rundir import RunDir

FIELDS = {"time", "level", "logger", "message", "run", "stage", "round", "pid"}


def lines(text: str) -> list[dict[str, Any]]:
    """Each line as the object that it is; all of them have the same fields, and some an exception."""
    found = [json.loads(line) for line in text.splitlines()]
    for line in found:
        assert line.keys() - {"exception"} == FIELDS
        assert datetime.fromisoformat(line["time"]).utcoffset() is not None
    return found


def logs_of(run: Path) -> list[dict[str, Any]]:
    return lines((run / "logs" / "run.log").read_text(encoding="utf-8"))


class Talking(Echo):
    """An echo engine that begins, as vLLM does, with a child that prints; and dies where it is told to."""

    dies: bool = False

    def build(self) -> EchoEngine:
        child = Child("test_logs:talk", "vllm", {"PYTHONPATH": str(Path(__file__).parent)})
        child.receive()
        child.close()
        if self.dies:
            try:
                raise ValueError("Bearer canary-5f0c1e")
            except ValueError as error:
                raise EngineError("The engine died", "Feed it.") from error
        return EchoEngine()


def talk(parent: Parent) -> None:
    print('100 % of the "weights" are loaded')
    parent.send("done")


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORMAT, "json")


@pytest.mark.usefixtures("as_json")
def test_every_line_of_a_run(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    made = recipe()
    made = made.model_copy(update={"sample": made.sample.model_copy(update={"engine": Talking()})})
    pipeline.run(made, RunDir(tmp_path / "round-3"))
    found = logs_of(tmp_path / "round-3")
    assert {line["stage"] for line in found} == {"sample", "rank", "pair"}
    assert {(line["run"], line["round"], line["pid"]) for line in found} == {(str(tmp_path / "round-3"), 3, os.getpid())}
    (said,) = [line for line in found if line["logger"] == "vllm"]
    assert (said["message"], said["level"], said["stage"]) == ('100 % of the "weights" are loaded', "INFO", "sample")


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_stage_that_fails_says_so_last(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv(FORMAT, form)
    made = recipe()
    made = made.model_copy(update={"sample": made.sample.model_copy(update={"engine": Talking(dies=True)})})
    with pytest.raises(EngineError):
        pipeline.run(made, RunDir(tmp_path / "run"))
    text = (tmp_path / "run" / "logs" / "run.log").read_text()
    assert "canary" not in text, "what the error was made from is not told"
    if form == "json":
        last = lines(text)[-1]
        assert (last["level"], last["message"]) == ("ERROR", "sample: ended by EngineError: The engine died. Feed it.")
        assert last["exception"].startswith("Traceback (most recent call last):\n") and "in build" in last["exception"]
    else:
        assert "ERROR dpo_data.logs: sample: ended by EngineError: The engine died. Feed it.\nTraceback (most" in text


@pytest.fixture
def folder(tmp_path: Path, prompts: Callable[[int], str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe."""
    (tmp_path / "try.toml").write_text(
        f'name = "try"\n[prompts]\npath = "{prompts(30)}"\n[sample]\nn = 4\nmax_tokens = 8\n'
        '[sample.engine]\ntype = "echo"\n[rank.judge]\ntype = "rule"\nrule = "concise"\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [*CLI, "run", "try.toml", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=200)


@pytest.mark.slow
def test_the_flag_and_the_environment_ask_for_it(folder: Path) -> None:
    well = run("--log-format", "json")
    assert well.returncode == 0 and "runs/try/report.html" in well.stdout and lines(well.stderr) == []
    assert logs_of(folder / "runs" / "try")[-1]["message"].startswith("pair: complete")

    refused = '{type="server", base_url="http://127.0.0.1:9/v1", model="m", retries=0}'
    badly = run("--run", "bad", "--set", f"sample.engine={refused}", **{FORMAT: "json"})
    (told,) = lines(badly.stderr)
    assert badly.returncode == 4 and told["message"].startswith("dpo-data: error: No answer from http://127.0.0.1:9/v1")
    assert logs_of(folder / "bad")[-1]["message"].startswith("sample: ended by EngineError: No answer from")


def test_a_form_that_there_is_not(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(FORMAT, "xml")
    assert cli.main(["run", "try.toml"]) == 2
    assert capsys.readouterr().err == "dpo-data: error: DPO_DATA_LOG_FORMAT is 'xml'. Set it to text or json.\n"
    with pytest.raises(SystemExit):
        cli.main(["run", "try.toml", "--log-format", "xml"])


def test_a_bug_and_a_warning_of_python_are_lines_too(tmp_path: Path) -> None:
    program = "import warnings\nfrom dpo_data.logs import to_terminal\nto_terminal()\nwarnings.warn('old')\n1 / 0\n"
    done = subprocess.run([CLI[0], "-c", program], capture_output=True, text=True, env={**os.environ, FORMAT: "json"})
    warned, bug = lines(done.stderr)
    assert (warned["logger"], warned["level"]) == ("py.warnings", "WARNING") and "old" in warned["message"]
    assert (bug["level"], bug["message"]) == ("CRITICAL", "a bug: division by zero")
    assert bug["exception"].endswith("ZeroDivisionError: division by zero") and done.returncode == 1


@pytest.fixture
def terminal() -> Iterator[list[str]]:
    """What a terminal would be shown as JSON."""
    shown: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(handler.format(record))  # type: ignore[method-assign]
    handler.setFormatter(JsonLines())
    logging.getLogger().addHandler(handler)
    yield shown
    logging.getLogger().removeHandler(handler)


@pytest.mark.usefixtures("as_json")
def test_a_line_of_any_thread_tells_its_stage_within_the_block_alone(tmp_path: Path, terminal: list[str]) -> None:
    with logged(RunDir(tmp_path), "rank"):
        thread = threading.Thread(target=logging.getLogger("vllm").warning, args=("slow",))
        thread.start()
        thread.join()
    logging.getLogger("dpo_data").warning("over")
    within, after = lines("\n".join(terminal))
    assert (within["message"], within["stage"], within["run"]) == ("slow", "rank", str(tmp_path))
    assert (after["message"], after["stage"], after["run"]) == ("over", None, None)


@given(st.text(), st.none() | st.text())
@example("two\nlines\u2028\ud800", "\x00")
def test_any_message_is_one_line_that_says_it(message: str, cause: str | None) -> None:
    record = logging.LogRecord("vllm", logging.INFO, "", 0, message, None, None)
    if cause is not None:
        record.exc_info = (ValueError, ValueError(cause), None)
    line = JsonLines().format(record)
    assert len(line.splitlines()) == 1 and json.loads(line)["message"] == message
    assert ("exception" in json.loads(line)) == (cause is not None)
