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
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

if __name__ != "__main__" and os.getcwd() in sys.path:  # Prefect puts it there, before all else, to load this file by its path
    sys.path.remove(os.getcwd())  # a stranger's folder may hold modules

from dpo_data.share import SHIPPED

sys.path.insert(0, str(SHIPPED))  # run by its path, this file would not find its neighbours

import prefect
import uvicorn
from prefect import Task, flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import refresh_global_settings_context
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, get_current_settings
from prefect.utilities import engine

from dpo_data import errors, logs, pipeline
from dpo_data.child import Child, Parent
from dpo_data.config import Recipe, load
from dpo_data.functions import ALLOW
from dpo_data.progress import bars
from dpo_data.report import last_words
from dpo_data.report.rounds import rounds_words
from dpo_data.rounds import rounds
from dpo_data.rundir import RunDir
from dpo_data.seams import Progress
from dpo_data.stop import Interrupted, Stopped, listen, obeyed, over, spared
from dpo_data.store import is_url
from flows import gc, gpu
from flows.artifacts import show_report, shown

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
    errors.InUse,
    errors.OverBudget,
    errors.Unfinished,
)
"""What another attempt a moment later cannot mend: somebody has to act first."""

TERMINAL: ContextVar[Progress] = ContextVar("TERMINAL", default=lambda stage, done, total: None)
"""Who hears of progress besides the UI. Not a parameter of the flow, whose parameters are the form in the UI."""

log = logging.getLogger("dpo_data.flow")

# Prefect's handler raises wherever Python is, a garbage collection's finalizers and the import system's lock included: of 138
# runs that were asked to end by SIGTERM, three went on as if they were not, and one hung. Its listener for cancellations looks
# whether the handler is the one of this name, so another beside it would not do.
engine._prefect_sigterm_handler = spared(engine._prefect_sigterm_handler, TerminationSignal)  # type: ignore[assignment]


@flow(name="sample-and-train", persist_result=False)
def sample_and_train(recipe: Recipe | str, run: str = "runs/{name}") -> str:
    """Sample, rank, pair and, where the recipe asks for it, train, evaluate and publish, round after round. Returns the last
    words of the report.

    Args:
        recipe: The recipe itself, or the path of its TOML file.
        run: The run directory, or its URL. {name} is the recipe's name, {date} this flow run's scheduled time in UTC.
    """
    gc.claim()
    whole = read(recipe)
    top = RunDir(resolve(run, whole))
    words = ""
    with _hurried(), top.held():
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
            show_report(found, words, folder)
    return rounds_words(top) if top.rounds else words


@contextmanager
def _hurried() -> Iterator[None]:
    """Who was asked to end asks the server twice, not six times as Prefect's client does: where it is away that would take two
    and a half minutes. Only where the process ends: to somebody's notebook a Ctrl-C is another exception."""
    try:
        yield
    except (TerminationSignal, Stopped, Interrupted):
        get_current_settings().client.max_retries = 1
        raise


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
    with _logs_in_ui(), gpu.held(name, recipe), shown(run, TERMINAL.get()) as progress:
        pipeline.run_stage(name, recipe, run, progress)


def read(recipe: Recipe | str) -> Recipe:
    """A flow's recipe: itself, or by its path, or by the URL of a run's."""
    if isinstance(recipe, Recipe):
        return recipe
    run, _, name = recipe.rpartition("/")
    return load(RunDir(run).path / name if is_url(recipe) else recipe)


def resolve(run: str, recipe: Recipe) -> str:
    """The scheduled time does not change when a flow run is retried, so the retry finds its directory again."""
    scheduled = runtime.flow_run.scheduled_start_time
    return run.replace("{name}", recipe.name).replace("{date}", f"{scheduled:%Y-%m-%dT%H%M}")


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
    loggers = [logging.getLogger(name) for name in logs.LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def main(argv: list[str] | None = None) -> int:
    """Run the flow from a terminal. Returns the exit code: 0, an error's own, or 128 + N when stopped by signal N."""
    parser = argparse.ArgumentParser(prog="sample_and_train.py", description="Run every stage of a recipe as a Prefect flow.")
    parser.add_argument("recipe", metavar="RECIPE", help="a .toml file; the shipped ones are flows/recipes/*.toml")
    parser.add_argument("--run", metavar="DIR", default="runs/{name}", help="run directory, or its URL (default: %(default)s)")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a value, as sample.n=4")
    parser.add_argument("--allow-code", action="store_true", help="run what the recipe names as code: only if you know it")
    given = parser.parse_args(argv)
    _quieten()
    if given.allow_code:
        os.environ[ALLOW] = "1"
    try:
        recipe = load(given.recipe, given.set)
        if server := PREFECT_API_URL.value():
            gc.signed_in(server)
        else:
            start_server()
        with bars() as progress:
            TERMINAL.set(progress)
            words = sample_and_train(recipe, given.run)
        print(words)
    except BaseException as error:
        if number := obeyed(error):
            again = " ".join(["python", *sys.argv])
            logs.say(f"\nsample-and-train: stopped. What is finished is kept; go on with `{again}`")
            return 128 + number
        if not isinstance(error, errors.DpoDataError):
            raise
        logs.say(f"sample-and-train: error: {error}")
        return error.exit_code
    return 0


def script() -> Any:
    """The script in a process of its own, which SIGTERM and a closed terminal stop as Ctrl-C does."""
    listen()
    try:
        code = main()
    finally:
        over()
    sys.exit(code)


def start_server() -> str:
    """Start a temporary Prefect server in the place of Prefect's own, for this process. Returns its API's address.

    Prefect's own would end by the same Ctrl-C as this process, which then asks a dead server for minutes; and it outlives a
    kill -9. A Child does neither. It is closed at exit, after Prefect's threads have sent their last logs.
    """
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"PYTHONPATH": os.pathsep.join(paths), "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    env["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = "none"  # it has no pages, and is nothing to anybody's
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
    """Leave the terminal our own loggers' warnings: Prefect repeats every error with its traceback, and the UI has both. Its
    records are known by the file that they come from: the names of some are not Prefect's."""
    theirs = str(Path(prefect.__file__).parent)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.WARNING)
        handler.addFilter(lambda record: not record.pathname.startswith(theirs))
        if logs.as_json():
            handler.setFormatter(logs.JsonLines())


if __name__ == "__main__":
    script()
