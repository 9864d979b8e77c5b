"""What several workers do about each kind of death, on a Ray that is made up: it does at once what it is asked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from dpo_data import ray_cluster
from dpo_data.engines.echo import Echo
from dpo_data.engines.worker import Told
from dpo_data.engines.workers import DEATHS, TRIALS, Workers
from dpo_data.errors import EngineError, OutOfDisk, OutOfMemory
from dpo_data.seams import Completed, Request


class RayError(Exception):
    actor_init_failed = False


class ActorDiedError(RayError): ...


@dataclass(eq=False)
class Asked:
    """A call of a method of an actor's, done when it is got."""

    does: Callable[..., Any]
    given: tuple[Any, ...]


@dataclass(eq=False)
class Method:
    does: Callable[..., Any]

    def remote(self, *given: Any) -> Asked:
        return Asked(self.does, given)


@dataclass
class MadeUp:
    """As much of Ray as workers use. Each worker tells of its start what comes next of `starts`, and dies of the requests in
    `poison`."""

    starts: list[Told | Exception] = field(default_factory=list)
    poison: set[str] = field(default_factory=set)
    gpus: float = 0.0
    began: int = 0
    exceptions: ClassVar[Any] = SimpleNamespace(RayError=RayError)

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        actor = SimpleNamespace(start=Method(self._start), exchange=Method(self._exchange), close=Method(lambda: None))
        return lambda kind: SimpleNamespace(remote=lambda *given: actor)

    def _start(self) -> Told:
        self.began += 1
        told = self.starts.pop(0) if self.starts else Told(model="glass")
        if isinstance(told, Exception):
            raise told
        return told

    def _exchange(self, call: int, sampling: dict[str, Any], requests: list[Request], low: int) -> Told:
        if self.poison & {request.id for request in requests}:
            raise ActorDiedError
        return Told([Completed(request.id, []) for request in requests])

    def wait(self, asked: list[Asked], num_returns: int, timeout: float) -> tuple[list[Asked], list[Asked]]:
        return asked, []

    def get(self, asked: Asked) -> Any:
        return asked.does(*asked.given)

    def kill(self, actor: Any) -> None: ...

    def cluster_resources(self) -> dict[str, float]:
        return {"GPU": self.gpus}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    made = MadeUp()

    @contextmanager
    def cluster() -> Iterator[MadeUp]:
        yield made

    monkeypatch.setattr(ray_cluster, "cluster", cluster)
    monkeypatch.setattr(ray_cluster, "require", lambda: None)
    return made


def workers(count: int = 2, each: float = 0) -> Workers:
    return Workers(Echo(workers=count, gpus_per_worker=each))


def asks(number: int) -> list[Request]:
    return [Request(str(at), [], at) for at in range(number)]


@pytest.mark.parametrize("poison", [{"0", "1"}, {"0", "1", "2"}, {"97", "98", "99"}, {str(at) for at in range(40, 46)}])
@pytest.mark.parametrize("count", [1, 2])
def test_prompts_that_kill_side_by_side_do_not_end_the_run(ray: MadeUp, poison: set[str], count: int) -> None:
    ray.poison = poison
    came = list(workers(count).complete(iter(asks(100)), {}))
    assert sorted(one.id for one in came) == sorted(str(at) for at in range(100))
    assert {one.id for one in came if one.error} == poison


def test_what_kills_and_stands_alone_does_not_end_the_run(ray: MadeUp) -> None:
    """Each request hangs on the answer before."""
    ray.poison, came = {"1", "2", "3"}, list[Completed]()

    def source() -> Iterator[Request | None]:
        for at, request in enumerate(asks(5)):
            while len(came) < at:
                yield None
            yield request

    for one in workers().complete(source(), {}):
        came.append(one)
    assert [one.id for one in came if one.error] == ["1", "2", "3"]


def test_one_that_dies_of_everything_ends_the_run(ray: MadeUp) -> None:
    ray.poison = {str(at) for at in range(1000)}
    with pytest.raises(EngineError, match=f"died {TRIALS} times in a row and answered nothing in between: its process ended"):
        list(workers().complete(iter(asks(1000)), {}))


def test_a_death_before_any_is_ready_is_made_good_up_to_a_limit(ray: MadeUp) -> None:
    ray.starts = [ActorDiedError(), ActorDiedError()]
    assert workers().model == "glass"
    ray.starts, ray.began = [ActorDiedError() for _ in range(100)], 0
    with pytest.raises(EngineError, match=f"died {DEATHS} times in a row"):
        workers(1)
    assert ray.began == DEATHS


@pytest.mark.parametrize("kind", [OutOfMemory, OutOfDisk])
def test_what_another_worker_would_say_too_ends_the_run_at_once(ray: MadeUp, kind: type[OutOfMemory | OutOfDisk]) -> None:
    ray.starts = [Told(model="glass"), Told(error=kind("it is full", "Give it more."))]
    with pytest.raises(kind, match=r"^it is full\. Give it more\.$"):
        list(workers().complete(iter(asks(100)), {}))
    assert ray.began == 2


def test_a_machine_that_cannot_make_a_worker_is_told_with_the_remedy(ray: MadeUp) -> None:
    failed = ActorDiedError("long " * 100 + "\nModuleNotFoundError: No module named 'dpo_data'")
    failed.actor_init_failed = True
    ray.starts = [failed]
    with pytest.raises(EngineError, match=r"cannot be made: .*No module named 'dpo_data'\. Install the same dpo-data on every"):
        workers()


@pytest.mark.parametrize(
    ("gpus", "count", "each", "told"),
    [
        (2, 3, 0.6, "3 workers with 0.6 GPUs each want 1.8, and there are 2, where 2 have room"),
        (2, 7, 0.3, "7 workers with 0.3 GPUs each want 2.1, and there are 2. Lower"),
        (3, 2, 2, "2 workers with 2 GPUs each want 4, and there are 3. Lower"),
        (2, 6, 1 / 3, ""),
        (2, 2, 1, ""),
        (0, 9, 0, ""),
    ],
)
def test_room_for_workers(
    ray: MadeUp, monkeypatch: pytest.MonkeyPatch, gpus: float, count: int, each: float, told: str
) -> None:
    monkeypatch.setattr(ray_cluster, "is_own", lambda: True)
    ray.gpus = gpus
    try:
        workers(count, each)
    except EngineError as error:
        assert told and told in str(error)
    else:
        assert not told
