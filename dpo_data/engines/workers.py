"""Several workers behind one engine: each holds the engine of the same table in a process of its own, on any machine of a Ray
cluster. Requests are dealt out as they are wanted, and answers come as they finish."""

import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from dpo_data import ray_cluster
from dpo_data.engines.deal import Deal
from dpo_data.engines.worker import Told, Worker
from dpo_data.errors import EngineError, OutOfDisk, OutOfMemory, RecipeError
from dpo_data.seams import Completed, Request, Sampling

PIECE = 32
"""The least backlog of a worker, in requests. New ones come in pieces of at least half of it, all one after the other, for what
stands side by side may share a prefix; one that answers fast gets twice what it has answered since it was last asked."""
DEATHS = 3
"""Deaths of a worker in a row while it had no request, after which the run ends: they start in vain."""
TRIALS = 12
"""Deaths of a worker in a row while it had requests, without an answer in between, after which the run ends. Each but the last
narrows down what kills, or sets it aside: it takes five to find one request among thousands, and one more for each that
stands beside it."""
PATIENCE = 30.0
"""Seconds without any answer, after which those who wait take over from those who work."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Slot:
    """A worker's place: the Ray actor that now holds it, what was last asked of that and not heard yet, for which `call` of
    `complete` that was, and how the worker fares. `deaths` are those since its last answer, `vain` those since it last had a
    request."""

    number: int
    actor: Any
    asked: Any
    call: int = 0
    ready: bool = False
    backlog: int = 0
    target: int = PIECE
    deaths: int = 0
    vain: int = 0


class Workers:
    """An engine of the engines of `settings.workers` workers, with `settings.gpus_per_worker` each. They start when it is made,
    and the first that is ready begins. `model` and `policy` are as of one of them."""

    def __init__(self, settings: Any):
        self._settings = settings.model_copy(update={"workers": 1})
        self._calls = 0
        self._slots: list[Slot] = []
        self.model = ""
        self.policy: dict[str, Any] | None = None
        with ExitStack() as undo:
            self._ray = undo.enter_context(ray_cluster.cluster())
            undo.callback(self._end)
            self._room(settings.workers)
            self._slots = [Slot(number, *self._started()) for number in range(1, settings.workers + 1)]
            log.info("starting %d workers with %s GPUs each", settings.workers, settings.gpus_per_worker)
            while not any(slot.ready for slot in self._slots):
                for slot in self._heard():
                    told = self._listen(slot)
                    if told.error:
                        self._replace(slot, told, 0)
            self._undo = undo.pop_all()

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        """Keeps every worker fed, replaces those that die, and yields each answer as it comes, once."""
        self._calls += 1
        deal, last = Deal(requests), time.monotonic()
        while True:
            for slot in self._slots:
                if not slot.asked:
                    self._ask(slot, deal, sampling, time.monotonic() - last > PATIENCE)
            if deal.over:
                return
            for slot in self._heard():
                told = self._listen(slot)
                answers = deal.answered(told.answers if slot.call == self._calls else [])
                if told.error:
                    held = deal.held(slot.number)
                    answers += deal.died(slot.number, told.error.what)
                    self._replace(slot, told, held)
                if answers:
                    last = time.monotonic()
                yield from answers

    def close(self) -> None:
        self._undo.close()

    def _ask(self, slot: Slot, deal: Deal, sampling: Sampling, late: bool) -> None:
        """Give a worker what it wants, where there is any, and ask for what it has."""
        backlog = slot.backlog if deal.held(slot.number) else 0  # what others have answered meanwhile counts for nothing
        wanted = slot.target - backlog if backlog <= slot.target // 2 else 0
        requests = deal.give(slot.number, wanted)
        if late and not (requests or deal.held(slot.number)):
            requests = deal.double(slot.number)
        if requests or deal.held(slot.number):
            low = slot.target // 2 if requests or not wanted else -1
            slot.call = self._calls
            slot.asked = slot.actor.exchange.remote(slot.call, dict(sampling), requests, low)

    def _heard(self) -> list[Slot]:
        """The places that have something to tell; waits for the first, for a second at most."""
        asked = {slot.asked: slot for slot in self._slots if slot.asked}
        self._ray.wait(list(asked), num_returns=1, timeout=1)
        told, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)
        if not told:
            ray_cluster.require()
        return [asked[one] for one in told]

    def _listen(self, slot: Slot) -> Told:
        """What a worker tells; one whose `error` is set is dead. Raises EngineError where its machine cannot make a worker."""
        try:
            told: Told = self._ray.get(slot.asked)
        except self._ray.exceptions.RayError as error:
            log.debug("worker %d: %s", slot.number, error)
            if getattr(error, "actor_init_failed", False):
                raise EngineError(
                    f"Worker {slot.number} cannot be made: … {' '.join(str(error).split())[-400:]}",
                    "Install the same dpo-data on every machine of the cluster.",
                ) from None
            told = Told(error=EngineError(_cause(error)), lost=True)
        slot.asked = None
        for name, level, text in told.log:
            logging.getLogger(name).log(level, "worker %d: %s", slot.number, text)
        if told.answers:
            slot.deaths = slot.vain = 0
        if not slot.ready and not told.error:
            self._join(slot, told)
        else:
            slot.backlog, slot.target = told.backlog, max(PIECE, 2 * len(told.answers))
        return told

    def _join(self, slot: Slot, told: Told) -> None:
        """A worker is ready. Raises EngineError where its answers would not be those of the others."""
        if self.model and told.policy != self.policy:
            raise EngineError(
                f"Worker {slot.number} has another model than the others: {told.policy}, not {self.policy}",
                "Give every machine of the cluster the same revision and versions, or name the revision in the engine's table.",
            )
        self.model, self.policy, slot.ready = told.model, told.policy, True
        log.info("worker %d is ready", slot.number)

    def _replace(self, slot: Slot, told: Told, held: int) -> None:
        """Start another worker in the place of one that died with so many requests. Raises its error where this helps no
        more: where its engine says what another one would say too, as none has ever started; and after too many deaths."""
        error = told.error
        assert error
        ray_cluster.require()
        self._ray.kill(slot.actor)
        if isinstance(error, RecipeError | OutOfMemory | OutOfDisk) or not (self.model or told.lost):
            raise error
        slot.deaths, slot.vain = slot.deaths + 1, 0 if held else slot.vain + 1
        if slot.vain >= DEATHS or slot.deaths >= TRIALS:
            times = slot.vain if slot.vain >= DEATHS else slot.deaths
            raise type(error)(
                f"Worker {slot.number} died {times} times in a row and answered nothing in between: {error.what}",
                error.remedy or "Mend the cause and run again to go on: finished shards are kept.",
            )
        log.warning("worker %d died and is replaced; what it had is redone: %s", slot.number, error.what)
        slot.actor, slot.asked = self._started()
        slot.ready, slot.backlog, slot.target = False, 0, PIECE

    def _started(self) -> tuple[Any, Any]:
        """A new Ray actor with a worker in it, and what is asked of it: to start."""
        options = {"num_cpus": 0, "num_gpus": self._settings.gpus_per_worker, "scheduling_strategy": "SPREAD"}
        actor = self._ray.remote(**options)(Worker).remote(self._settings, os.getcwd())
        return actor, actor.start.remote()

    def _room(self, workers: int) -> None:
        """Raises EngineError where this machine has not the GPUs. A cluster may grow, and those wait that have no room yet."""
        each, there = self._settings.gpus_per_worker, self._ray.cluster_resources().get("GPU", 0)
        wanted = workers * each
        if ray_cluster.is_own() and workers > _places(each, there):
            apart = "" if wanted > there else f", where {_places(each, there)} have room: what is left of two makes no third"
            raise EngineError(
                f"{workers} workers with {each:g} GPUs each want {wanted:g}, and there are {there:g}{apart}",
                "Lower workers or gpus_per_worker (0 on a CPU), or name a larger cluster in RAY_ADDRESS.",
            )
        if wanted > there:
            log.warning("the cluster has %g GPUs of the %g that its workers want: some of them wait", there, wanted)

    def _end(self) -> None:
        """End the workers; those that are ready give back first what their engines hold."""
        closed = [slot.actor.close.remote() for slot in self._slots if slot.ready]
        if closed:
            self._ray.wait(closed, num_returns=len(closed), timeout=20)
        for slot in self._slots:
            self._ray.kill(slot.actor)


def _places(each: float, there: float) -> float:
    """How many workers with so many GPUs each have room on so many: one that wants less than a GPU has it of a single one."""
    if not each:
        return math.inf
    return int(there) * int(1 / each + 1e-9) if each < 1 else there // each


def _cause(error: Exception) -> str:
    """Why a worker could not be asked, in one line that says the same each time."""
    if type(error).__name__ in ("ActorDiedError", "ActorUnavailableError"):
        return "its process ended"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
