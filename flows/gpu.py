"""Who may use the GPUs: Prefect's global concurrency limit, a slot a GPU, taken by stages that hold a model on this machine.

A stage waits for its slots and gives them back when it ends, in whatever way: what was killed stops renewing its lease, and
LEASE seconds later the server gives the slots to the next. A machine without a GPU has one slot, for its memory and cores hold
one model at a time too. Only flow runs of a deployment take slots. Whoever starts a run by hand knows what else runs, and the
temporary server that a script starts for itself could lend to nobody else.
"""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from dpo_data.config import Recipe
from dpo_data.errors import DpoDataError
from dpo_data.evaluation import sides
from dpo_data.judges.members import leaves
from dpo_data.nvidia import smi

VARIABLE = "DPO_DATA_GPU_LIMIT"
"""The variable of the environment with the limit's name: a server knows limits, not machines, so each machine with a worker has
its own. Empty where nobody else can reach the GPUs, as in a Kubernetes job."""

LEASE = 180
"""Seconds that a slot is held without a word from its holder. It is renewed after three quarters of them, so that a server may
restart meanwhile."""

PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")

log = logging.getLogger("dpo_data.flow")


def limit() -> str:
    """The name of this machine's limit."""
    return os.environ.get(VARIABLE, "gpu")


def on_this_machine() -> int:
    """How many GPUs this machine has."""
    with suppress(OSError):
        return sum(line.startswith("GPU ") for line in smi("--list-gpus", limit=60).splitlines())
    return 0


def slots() -> int:
    """How many slots this machine's limit has."""
    return max(1, on_this_machine())


def wanted(stage: str, recipe: Recipe) -> int:
    """How many GPUs of this machine a stage holds: 0 where all of its models are elsewhere, or it has none."""
    engine = recipe.sample.engine
    asked = [getattr(judge, "engine", judge) or engine for _, judge in leaves(recipe.rank.judge, "rank.judge")]
    sampler, judges = _held(engine), max(map(_held, asked))
    of = {"sample": sampler, "rank": judges, "evaluate": max(sampler, judges), "train": 0}
    if recipe.train:
        of["train"] = recipe.train.processes
    if recipe.train and stage == "evaluate":  # by a vLLM of this machine, whoever sampled
        answering = _held(sides.engine(recipe, recipe.policy()))
        of["evaluate"] = max(answering, judges, int(recipe.evaluate.perplexity is not None))
    return of.get(stage, 0)


def _held(settings: Any) -> int:
    """The GPUs of an engine or a judge: of one that holds engines, those of the largest, for they take turns."""
    inner = [*getattr(settings, "engines", []), *filter(None, [getattr(settings, "engine", None)])]
    if inner:
        return max(map(_held, inner))
    if settings.type not in ("vllm", "reward_model"):
        return 0
    workers = getattr(settings, "workers", 1)
    if workers > 1:  # a Ray cluster lends its GPUs itself
        return 0 if os.environ.get("RAY_ADDRESS") else max(1, math.ceil(workers * settings.gpus_per_worker))
    return math.prod(int(settings.args.get(name, 1)) for name in PARALLEL)


@contextmanager
def held(stage: str, recipe: Recipe) -> Iterator[None]:
    """Hold the GPUs that a stage needs for as long as the block runs; who has them is waited for. Raises DpoDataError where the
    server has no such limit, or one that is too low."""
    count, name = wanted(stage, recipe), limit()
    if not (count and name and runtime.deployment.id):
        yield
        return
    count = count if on_this_machine() else 1
    holder = ConcurrencyLeaseHolder(type="flow_run", id=UUID(runtime.flow_run.id))
    log.info("%s: asks for %d of the concurrency limit %r", stage, count, name)
    with ExitStack() as stack:
        try:
            stack.enter_context(concurrency(name, occupy=count, lease_duration=LEASE, strict=True, holder=holder))
        except ConcurrencySlotAcquisitionError as error:
            raise DpoDataError(
                f"{stage} needs {count} of the concurrency limit {name!r}, and the server has no such limit or a lower one",
                f"Make it by `prefect gcl create {name} --limit N`, N being this machine's GPUs; or raise it by `gcl update`.",
            ) from error
        log.info("%s: has them", stage)
        yield
