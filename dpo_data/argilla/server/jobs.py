"""The server's background jobs, in its own event loop: Argilla puts them into Redis, for a worker."""

import asyncio
import logging
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from argilla_server.api.handlers.v1 import jobs as handlers
from argilla_server.jobs import dataset_jobs, hub_jobs, webhook_jobs
from fastapi import HTTPException

_begun: dict[str, asyncio.Task[None]] = {}


def run_jobs_here() -> None:
    """Let `job.delay`, which async handlers call, begin the job at once, and let the API say how it goes."""
    handlers._get_job = _as_job
    for job in (
        dataset_jobs.update_dataset_records_status_job,
        hub_jobs.import_dataset_from_hub_job,
        hub_jobs.export_dataset_to_hub_job,
        webhook_jobs.notify_event_job,
    ):
        _run_here(job)


def _run_here(job: Any) -> None:
    def delay(*args: Any, **kwargs: Any) -> SimpleNamespace:
        ident = str(uuid4())
        _begun[ident] = asyncio.get_running_loop().create_task(_logged(job(*args, **kwargs)))
        return _as_job(ident)

    job.delay = delay


async def _logged(job: Coroutine[Any, Any, None]) -> None:
    try:
        await job
    except Exception:
        logging.getLogger("argilla").exception("a job has failed")
        raise


def _as_job(ident: str) -> SimpleNamespace:
    """What the server reads of a job of rq's."""
    if ident not in _begun:
        raise HTTPException(status_code=404, detail=f"Job with id `{ident}` not found")
    return SimpleNamespace(id=ident, get_status=lambda refresh=True: _state(_begun[ident]))


def _state(task: asyncio.Task[None]) -> str:
    if not task.done():
        return "started"
    return "failed" if task.cancelled() or task.exception() else "finished"
