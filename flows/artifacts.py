"""What a flow run shows in the UI: while a stage runs, its progress and a table of all stages; at the end the report."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import runtime
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId
from prefect.exceptions import PrefectException

from dpo_data.errors import DpoDataError
from dpo_data.report import LABELS
from dpo_data.rundir import RunDir
from dpo_data.seams import Progress
from dpo_data.status import stages_of
from dpo_data.store import is_url
from dpo_data.watch import cells, remark

EVERY = 5.0
"""Seconds between two updates: the server keeps an event of each."""

PATIENCE = 10.0
"""Seconds that the end of a stage waits for its last update, at most."""


@contextmanager
def shown(run: RunDir, terminal: Progress) -> Iterator[Progress]:
    """A Progress that passes on to the terminal, and is shown in the UI while the block runs: as a progress artifact for each
    name that it hears, and as the table `stages`. A thread sends, so that no row waits for the server."""
    heard: dict[str, tuple[int, int]] = {}
    artifacts = _Artifacts(run, heard)
    ended = threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        heard[stage] = done, total
        terminal(stage, done, total)

    def keep() -> None:
        artifacts.send()
        while not ended.wait(EVERY):
            artifacts.send()
        artifacts.send()

    knowing = copy_context().run  # of the flow run
    sender = threading.Thread(target=knowing, args=(keep,), name="artifacts", daemon=True)
    sender.start()
    try:
        yield progress
    finally:
        ended.set()
        sender.join(PATIENCE)


class _Artifacts:
    """What one stage has at the server."""

    def __init__(self, run: RunDir, heard: dict[str, tuple[int, int]]):
        self._run, self._heard = run, heard
        self._sent: dict[str, tuple[int, int]] = {}
        self._ids: dict[str, UUID] = {}
        self._table: UUID | None = None

    def send(self) -> None:
        """Update what has changed. A server or a store that is away for a moment is asked again the next time. Prefect's client
        raises AssertionError where, as it tries again, it learns that it need not (`_send_with_retry`)."""
        with suppress(httpx.HTTPError, PrefectException, DpoDataError, OSError, AssertionError):
            for stage, (done, total) in list(self._heard.items()):
                if self._sent.get(stage) != (done, total):
                    self._progress(stage, 100 * done / max(total, 1), f"{done:,} of {total:,}")
                    self._sent[stage] = done, total
            self._stages()

    def _progress(self, stage: str, percent: float, text: str) -> None:
        if stage in self._ids:
            update_progress_artifact(self._ids[stage], percent, text)
        else:
            self._ids[stage] = cast(UUID, create_progress_artifact(percent, stage.replace(" ", "-").lower(), text))

    def _stages(self) -> None:
        rows = [{**cells(stage), "remark": remark(stage)} for stage in stages_of(self._run, held=True)]
        title = f"How far {self._run} is"
        self._table = self._table or _table_of_this_run(title)
        if self._table:
            with get_client(sync_client=True) as client:
                client.update_artifact(self._table, ArtifactUpdate(data=json.dumps(rows)))
        else:
            self._table = cast(UUID, create_table_artifact(rows, "stages", title))


def _table_of_this_run(title: str) -> UUID | None:
    """The table `stages` that an earlier stage of this flow run has made."""
    key, run = ArtifactFilterKey(any_=["stages"]), FlowRunFilterId(any_=[UUID(runtime.flow_run.id)])
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=key), flow_run_filter=FlowRunFilter(id=run))
    return next((one.id for one in found if one.description == title), None)


def show_report(report: dict[str, Any], words: str, run: RunDir) -> None:
    """The funnel as a table, and the report's headline with the way to report.html."""
    funnel = [{"step": LABELS.get(step["name"], step["name"]), "prompts": step["count"]} for step in report["funnel"]]
    create_table_artifact(funnel, "funnel", "What became of the prompts")
    page = f"{run.address}/report.html"
    link = page if is_url(page) else Path(page).as_uri()
    create_markdown_artifact(f"```\n{words}\n```\n\n[{page}]({link})", "report", "The report")
