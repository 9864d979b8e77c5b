"""The flow `curate`, for judges that wait for people, as two deployments: `push` asks them, and `collect` looks for answers.

Both run the stage rank, which pushes what is missing, collects what is there and says what it still awaits. That is no failure:
the flow run completes with it for its message. When rank is complete, an event that prefect.yaml waits for starts
`sample-and-train/ranked` on the same run directory.
"""

import os
import re
import sys
from glob import escape
from typing import Any

if __name__ != "__main__" and os.getcwd() in sys.path:  # Prefect puts it there, before all else, to load this file by its path
    sys.path.remove(os.getcwd())  # a stranger's folder may hold modules

from dpo_data.share import SHIPPED

sys.path.insert(0, str(SHIPPED))  # Prefect loads this file by its path, and would not find its neighbour

import httpx
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.events import Event
from prefect.states import Completed, Failed

from dpo_data import pipeline
from dpo_data.config import Recipe
from dpo_data.errors import DpoDataError, InUse, Unfinished
from dpo_data.rundir import RunDir, matching
from flows import gc
from flows.sample_and_train import read, resolve, stage

EVENT = "dpo-data.rank.complete"
"""What starts `sample-and-train/ranked`, with the paths of recipe and run directory. prefect.yaml expects it by this name."""

ANNOUNCED = "announced.json"
"""The event that was sent, at the top of the run directory."""

DATED = "????-??-??T????"
"""What {date} stands for, as a pattern of file names."""


@flow(name="curate", persist_result=False)
def push(recipe: Recipe | str, run: str = "runs/{name}") -> State[Any]:
    """Begin a run, or go on with it: sample, and ask people to rank. Completes as soon as they are asked.

    Args:
        recipe: The recipe itself, or the path of its TOML file.
        run: The run directory, or its URL. {name} is the recipe's name, {date} this flow run's scheduled time in UTC.
    """
    gc.claim()
    made = read(recipe)
    folder = RunDir(resolve(run, made))
    pipeline.ready(made, folder)
    stage.with_options(name="sample")("sample", made, folder)
    return _rank_all(made, [folder])


@flow(name="curate", persist_result=False)
def collect(recipe: Recipe | str, run: str = "runs/{name}") -> State[Any]:
    """Look for answers, in every run that was pushed under this name and does not have all it awaits. Begins none.

    Args:
        recipe: The recipe itself, or the path of its TOML file: as it was pushed, but for what decides no ranking.
        run: As it was pushed. {name} is the recipe's name; {date} stands for the time of every push.
    """
    gc.claim()
    made = read(recipe)
    pattern = escape(run.replace("{name}", made.name)).replace("{date}", DATED)
    waiting = [folder for folder in matching(pattern) if not _is_announced(folder) and folder.stage("sample").manifest]
    if not waiting:
        return Completed(message=f"No run at {run} awaits anything")
    return _rank_all(made, waiting)


def _rank_all(recipe: Recipe, runs: list[RunDir]) -> State[Any]:
    """Rank each run. Failed where one of them is, with its error; what the others await is said all the same."""
    said, failed = [], False
    for run in runs:
        try:
            awaited = None if run.stage("rank").manifest else rank(recipe, run)
            if awaited is None:
                _announce(run)
        except (DpoDataError, httpx.HTTPError) as error:
            awaited, failed = str(error), True
        said.append(f"{run}: {awaited or 'ranked'}")
    message = "\n".join(said)
    return Failed(message=message) if failed else Completed(message=message)


@task(name="rank", cache_policy=NO_CACHE, persist_result=False)
def rank(recipe: Recipe, run: RunDir) -> str | None:
    """Push and collect. Returns what is still awaited; None where every prompt is ranked. It is not tried again here: the next
    `collect` does it."""
    try:
        stage.fn("rank", recipe, run)
    except InUse:
        return "Another flow run is at it."
    except Unfinished as error:
        key = re.sub(r"[^a-z0-9]+", "-", f"awaited-{run.path.name}".lower())
        create_markdown_artifact(re.sub(r"https?://\S*[^\s.,;]", r"<\g<0>>", str(error)), key, f"What {run} awaits")
        return str(error)
    return None


def _is_announced(run: RunDir) -> bool:
    """Whether the event was sent, or nobody needs it, because somebody went on by hand."""
    return (run.path / ANNOUNCED).exists() or run.stage("pair").recipe is not None


def _announce(run: RunDir) -> None:
    """Send the event, unless it was sent. Raises httpx.HTTPError where the server does not take it.

    The note is written when the server has it: a kill in between ends in a second event, never in none, and what a second one
    starts finds the run finished.
    """
    if _is_announced(run):
        return
    name = run.path.resolve().name
    event = Event(
        event=EVENT,
        resource={"prefect.resource.id": f"dpo-data.run.{name}", "prefect.resource.name": name},
        payload={"recipe": f"{run.address}/recipe.toml", "run": run.address},
    )
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
    run.write(ANNOUNCED, event.model_dump_json(indent=2))
