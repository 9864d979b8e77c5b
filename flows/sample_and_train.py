"""The flow `sample-and-train`: a Prefect task a stage and round, then the report. Also a script, with a RECIPE as its argument.

Prefect schedules, shows and retries; the truth about a run stays in its directory. So nothing of Prefect's own is kept between
attempts, and a retry, or a new flow run on the same directory, goes on from the shards that are on disk.
"""

import argparse
import atexit
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast
from uuid import UUID

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

import httpx
import uvicorn
from prefect import Task, flow, runtime, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import refresh_global_settings_context
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL

from dpo_data import errors, pipeline
from dpo_data.child import Child, Parent
from dpo_data.config import Recipe, load
from dpo_data.progress import bars
from dpo_data.report import LABELS, last_words
from dpo_data.report.rounds import rounds_words
from dpo_data.rounds import rounds
from dpo_data.rundir import RunDir
from dpo_data.seams import Progress

RETRY_DELAY = 10
"""Seconds between two attempts of a stage."""

LASTING = (
    errors.RecipeError,
    errors.InputError,
    errors.TemplateError,
    errors.StaleRun,
    errors.NotReady,
    errors.TooManyFailures,
    errors.EmptyStage,
    errors.GateClosed,
    errors.OutOfDisk,
    errors.OverBudget,
    errors.Unfinished,
)
"""What another attempt a moment later cannot mend: somebody has to act first."""

LOGGERS = ("dpo_data", "vllm", "train")

TERMINAL: ContextVar[Progress] = ContextVar("TERMINAL", default=lambda stage, done, total: None)
"""Who hears of progress besides the UI. Not a parameter of the flow, whose parameters are the form in the UI."""

log = logging.getLogger("dpo_data.flow")


@flow(name="sample-and-train", persist_result=False)
def sample_and_train(recipe: Recipe | str, run: str = "runs/{name}") -> str:
    """Sample, rank, pair and, where the recipe asks for it, train, evaluate and publish, round after round. Returns the last
    words of the report.

    Args:
        recipe: The recipe itself, or the path of its TOML file.
        run: The run directory. {name} is the recipe's name, {date} this flow run's scheduled time in UTC.
    """
    whole = load(recipe) if isinstance(recipe, str) else recipe
    top = RunDir(resolve(run, whole))
    words = ""
    for made, folder in rounds(whole, top):
        pipeline.ready(made, folder)
        closed = None
        try:
            for name in pipeline.stages_of(made):
                title = name if folder is top else f"{folder.path.name} {name}"
                stage.with_options(name=title, retry_delay_seconds=RETRY_DELAY)(name, made, folder)
        except errors.GateClosed as error:
            closed = error
        with _logs_in_ui():
            found = pipeline.conclude(whole, top, made, folder, closed)
            words = last_words(found, folder)
            log.info(words)
        _show(found, words, folder)
    return rounds_words(top) if top.rounds else words


def _mendable(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether another attempt may succeed. Says so in the terminal, which is not shown Prefect's own words."""
    error = state.data
    if isinstance(error, LASTING):
        return False
    log.warning("%s: %s; trying again in %s s", task.name, error, RETRY_DELAY)
    return True


@task(retries=2, retry_condition_fn=_mendable, cache_policy=NO_CACHE, persist_result=False)
def stage(name: str, recipe: Recipe, run: RunDir) -> None:
    """One stage, resumed from what is on disk."""
    with _logs_in_ui():
        pipeline.run_stage(name, recipe, run, _Artifacts(TERMINAL.get()))


def resolve(run: str, recipe: Recipe) -> str:
    """The scheduled time does not change when a flow run is retried, so the retry finds its directory again."""
    scheduled = runtime.flow_run.scheduled_start_time
    return run.replace("{name}", recipe.name).replace("{date}", f"{scheduled:%Y-%m-%dT%H%M}")


class _Artifacts:
    """A Progress that keeps a progress artifact for each name it hears, at most one update a second."""

    def __init__(self, terminal: Progress):
        self._terminal = terminal
        self._ids: dict[str, UUID] = {}
        self._sent: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._terminal(stage, done, total)
        if done < total and time.monotonic() - self._sent.get(stage, -1.0) < 1:
            return
        self._sent[stage] = time.monotonic()
        # A server that is away for a moment is no reason to end hours of sampling.
        with suppress(httpx.HTTPError):
            self._send(stage, 100 * done / max(total, 1), f"{done:,} of {total:,}")

    def _send(self, stage: str, percent: float, text: str) -> None:
        if stage in self._ids:
            update_progress_artifact(self._ids[stage], percent, text)
        else:
            key = stage.replace(" ", "-").lower()
            self._ids[stage] = cast(UUID, create_progress_artifact(percent, key, text))


def _show(report: dict[str, Any], words: str, run: RunDir) -> None:
    """The funnel as a table, and the report's headline with the way to report.html."""
    funnel = [{"step": LABELS.get(step["name"], step["name"]), "prompts": step["count"]} for step in report["funnel"]]
    create_table_artifact(funnel, "funnel", "What became of the prompts")
    page = (run.path / "report.html").resolve()
    create_markdown_artifact(f"```\n{words}\n```\n\n[{page}]({page.as_uri()})", "report", "The report")


@contextmanager
def _logs_in_ui() -> Iterator[None]:
    """Send what our loggers say to the flow run in the UI.

    The ids are stamped on each record here: Prefect looks for them in the thread that logs, and the thread that forwards a
    child's lines knows of no flow run. PREFECT_LOGGING_EXTRA_LOGGERS would also come too late in a worker.
    """
    ids = {"flow_run_id": runtime.flow_run.id, "task_run_id": runtime.task_run.id}

    def stamp(record: logging.LogRecord) -> bool:
        record.__dict__.update(ids)
        return True

    handler = APILogHandler()
    handler.addFilter(stamp)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def main(argv: list[str] | None = None) -> int:
    """Run the flow from a terminal. Returns the exit code: 0, an error's own, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="sample_and_train.py", description="Run every stage of a recipe as a Prefect flow.")
    parser.add_argument("recipe", metavar="RECIPE", help="a .toml file; the shipped ones are flows/recipes/*.toml")
    parser.add_argument("--run", metavar="DIR", default="runs/{name}", help="the run directory (default: %(default)s)")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a value, as sample.n=4")
    given = parser.parse_args(argv)
    _quieten()
    try:
        recipe = load(given.recipe, given.set)
        if not PREFECT_API_URL.value():
            start_server()
        with bars() as progress:
            TERMINAL.set(progress)
            words = sample_and_train(recipe, given.run)
        print(words)
    except errors.DpoDataError as error:
        print(f"sample-and-train: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        again = " ".join(["python", *sys.argv])
        print(f"\nsample-and-train: stopped. What is finished is kept; go on with `{again}`", file=sys.stderr)
        return 130
    return 0


def start_server() -> str:
    """Start a temporary Prefect server in the place of Prefect's own, for this process. Returns its API's address.

    Prefect's own would end by the same Ctrl-C as this process, which then asks a dead server for minutes; and it outlives a
    kill -9. A Child does neither. It is closed at exit, after Prefect's threads have sent their last logs.
    """
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"PYTHONPATH": os.pathsep.join(paths), "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    child = Child("sample_and_train:serve", "prefect.temporary_server", env)
    atexit.register(child.close)
    url = os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{child.receive()}/api"
    refresh_global_settings_context()
    return url


def serve(parent: Parent) -> None:
    """Prefect's server on any free port of this machine, which the parent is told as soon as it answers."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                parent.send(listener.getsockname()[1])

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        Server(uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error")).run([listener])


def _quieten() -> None:
    """Leave the terminal our own loggers' warnings: Prefect repeats every error with its traceback, and the UI has both."""
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.WARNING)
        handler.addFilter(lambda record: not record.name.startswith("prefect"))


if __name__ == "__main__":
    sys.exit(main())
