"""Near-duplicates and contamination on Ray, for more texts than one machine holds; the results are those of one process.

The band keys of a text are made where it is read, and dealt out by their hash, so that all texts of one key meet in one task,
which tells which these are. The driver joins them to components. Texts of different components have no key in common, so they
are never compared: each component is decided by itself, by `near_duplicates`, as a stream of its own in the order of all.

The driver holds 20 bytes a text, and no text and no key. What one task makes for another is in Ray's object store, which goes
to disk where memory ends: 240 bytes a text for its keys, and the texts that share one. A task depends on its arguments alone,
so Ray does it again where a worker dies. A component is the smallest piece of work: texts from one template may all be one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, pairwise
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpo_data import ray_cluster
from dpo_data.dedup import near
from dpo_data.dedup.contamination import Contamination
from dpo_data.dedup.near import Batch, Part, Twins
from dpo_data.dedup.text import Texts
from dpo_data.errors import EngineError

Source: TypeAlias = Callable[[], Iterable[Batch]] | Any
"""Some texts: what a task calls to read them, the same ones each time; or a reference to a Batch in Ray's object store."""

Keys: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.uint32]]
"""Band keys, and of which text each is, by its number in the source."""

Chosen: TypeAlias = tuple[NDArray[np.int64], Part]
"""Some texts of a source: their numbers in it, and themselves."""

SIZE = 64 << 20
"""Bytes of text of which a stream makes a source."""


def near_duplicates(ray: Any, sources: Sequence[Source], workers: int, threshold: float = 0.8, n: int = 5) -> Twins:
    """`near.near_duplicates` of all texts of the sources, in their order, by at most so many tasks at once.

    Sources are best of some 100,000 texts each: their keys make as many pieces as a quarter of the square of their number, and
    Ray keeps pieces below 100 KB in the driver. Raises EngineError where Ray gives a task up or ends, ValueError where a source
    has another number of texts when it is read again, and what a source raises.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold} is not above 0 and at most 1")
    count = max(2, workers, len(sources) // 4)
    signed = _in_order(_done(ray, _signed, ((source, n, count) for source in sources), workers, 1 + count))
    starts = np.cumsum([0, *(_get(ray, size) for size, *_ in signed)])
    groups = _groups(ray, starts, [keys for _, *keys in signed], workers)
    del signed  # with the keys in the object store
    mine = [groups[begin:end] for begin, end in pairwise(starts)]
    dealt = _in_order(_done(ray, _dealt, ((*one, count) for one in zip(sources, mine, strict=True)), workers, count))
    calls = ((starts, threshold, n, *chosen) for chosen in zip(*dealt, strict=True))
    of, alike = np.full(starts[-1], -1, np.int64), np.zeros(starts[-1])
    for _, [decided] in _done(ray, _decided, calls, workers):
        rows, twins, similarity = _get(ray, decided)
        of[rows], alike[rows] = twins, similarity
    return Twins(of, alike)


def stored(ray: Any, batches: Iterable[Batch]) -> Iterator[Source]:
    """The texts of a stream as sources in Ray's object store. Only the one that is being made is held here. Raises
    EngineError."""
    held: list[Part] = []
    for part in near.parts(batches):
        held.append(part)
        if sum(texts.nbytes for texts, _ in held) >= SIZE:
            yield _put(ray, _one(held))
            held.clear()
    if held:
        yield _put(ray, _one(held))


def overlaps(
    ray: Any, contamination: Contamination, batches: Iterable[Texts], workers: int
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float64]]]:
    """`contamination.overlaps` of the texts of a stream, some SIZE bytes at a time, in their order. Raises EngineError."""
    held, ready, due = _put(ray, contamination), {}, 0
    for at, [found] in _done(ray, _overlapped, ((held, source) for source in stored(ray, batches)), workers):
        ready[at] = _get(ray, found)
        while due in ready:
            yield ready.pop(due)
            due += 1


def _groups(ray: Any, starts: NDArray[np.int64], keys: list[list[Any]], workers: int) -> NDArray[np.int32]:
    """For each text the group of components in which it is decided, -1 where no other has a key of it. `keys`: of each source
    the references of its pieces, of which there are as many as there are to be groups."""
    from dpo_data.dedup.kernels import components

    earlier = np.arange(starts[-1])
    for _, [met] in _done(ray, _met, ((starts, *pieces) for pieces in zip(*keys, strict=True)), workers):
        components.join(earlier, *_get(ray, met))
    made: NDArray[np.int32] = components.deal(earlier, len(keys[0]) if keys else 1)
    return made


def _done(
    ray: Any, task: Callable[..., Any], calls: Iterable[Sequence[Any]], workers: int, returns: int = 1
) -> Iterator[tuple[int, list[Any]]]:
    """Have Ray do a task for each call's arguments, at most so many at once: a call's number and the references of what it
    returned, as soon as it has ended."""
    remote = ray.remote(task).options(num_cpus=1, num_returns=returns)
    running: dict[Any, tuple[int, list[Any]]] = {}
    waiting = enumerate(calls)
    while True:
        for at, arguments in islice(waiting, workers - len(running)):
            with _told(ray):
                made = remote.remote(*arguments)
            made = made if returns > 1 else [made]
            running[made[0]] = at, made
        if not running:
            return
        yield running.pop(_first(ray, list(running), fetch_local=False))


def _in_order(done: Iterator[tuple[int, list[Any]]]) -> list[list[Any]]:
    return [made for _, made in sorted(done, key=lambda one: one[0])]


def _put(ray: Any, made: Any) -> Any:
    """A reference to what was put into the object store. Raises EngineError."""
    with _told(ray):
        return ray.put(made)


def _get(ray: Any, reference: Any) -> Any:
    """What a task returned. Raises what it raised, and EngineError where Ray has given it up."""
    with _told(ray):
        return ray.get(_first(ray, [reference]))


def _first(ray: Any, references: list[Any], fetch_local: bool = True) -> Any:
    """The first of the references that is there. Raises EngineError where our own Ray has ended, and none will ever be."""
    while True:
        with _told(ray):
            ended, _ = ray.wait(references, num_returns=1, timeout=1, fetch_local=fetch_local)
        if ended:
            return ended[0]
        ray_cluster.require()


@contextmanager
def _told(ray: Any) -> Iterator[None]:
    """What Ray raises in the block is told as what a task raised, or as EngineError."""
    try:
        yield
    except (ray.exceptions.RayError, OSError) as error:  # OSError: its processes are gone
        cause = getattr(error, "cause", None)
        if isinstance(cause, Exception) and not isinstance(cause, ray.exceptions.RayError):
            raise cause from None
        ray_cluster.require()
        raise EngineError(
            f"Ray gave up a task that looks for duplicates: {str(error).splitlines()[0]}",
            "Run again; where memory ran out, with fewer prompts.workers, or on machines that have more.",
        ) from None


def _read(source: Any) -> Iterator[Part]:
    """In a task, where a reference has come to be its Batch."""
    return near.parts(source() if callable(source) else [source])


def _one(held: list[Part]) -> Part:
    """The same texts in one piece."""
    salts = [one for _, one in held if one is not None]
    texts = pa.concat_arrays([pa.array([], pa.large_string()), *(texts for texts, _ in held)])
    return texts, np.concatenate(salts) if salts else None


def _places(numbers: NDArray[Any], count: int) -> list[NDArray[np.int64]]:
    """Where each number from 0 to count - 1 stands."""
    order = np.argsort(numbers, kind="stable")
    ends = np.searchsorted(numbers[order], np.arange(count + 1))
    return [order[begin:end] for begin, end in pairwise(ends)]


def _signed(source: Any, n: int, count: int) -> list[int | Keys]:
    """How many texts a source has; and `count` times some of their keys: equal ones are in the same of these everywhere."""
    from dpo_data.dedup.kernels.text import BANDS

    made = [near.band_keys(part, n) for part in _read(source)]
    keys = np.concatenate([np.zeros((BANDS, 0), np.uint64), *made], axis=1)
    rows = np.tile(np.arange(keys.shape[1], dtype=np.uint32), BANDS)
    size, keys = keys.shape[1], keys.ravel()
    dealt = ((keys >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.int16)
    dealt[keys == 0] = -1  # of a text that is like no other
    return [size, *((keys[places], rows[places]) for places in _places(dealt, count))]


def _met(starts: NDArray[np.int64], *pieces: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each two texts, one after the other, that have one of these keys in common."""
    from dpo_data.dedup.kernels import text as kernels

    rows = np.concatenate([start + some for start, (_, some) in zip(starts, pieces, strict=False)])
    numbers, _ = kernels.buckets(np.concatenate([keys for keys, _ in pieces]))
    shared = np.flatnonzero(numbers >= 0)
    order = shared[np.argsort(numbers[shared], kind="stable")]
    same = numbers[order[1:]] == numbers[order[:-1]]
    return rows[order[:-1][same]], rows[order[1:][same]]


def _dealt(source: Any, groups: NDArray[np.int32], count: int) -> list[Chosen]:
    """The texts of a source, by their group."""
    texts, salts = _one(list(_read(source)))
    if len(texts) != len(groups):
        raise ValueError(f"{len(groups)} texts were read at first, {len(texts)} the second time")
    return [
        (places, (texts.take(pa.array(places)), None if salts is None else salts[places])) for places in _places(groups, count)
    ]


def _decided(
    starts: NDArray[np.int64], threshold: float, n: int, *chosen: Chosen
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Which texts of a group are dropped, which kept text each is like, and how much. `chosen`: of every source its texts."""
    rows = np.concatenate([start + places for start, (places, _) in zip(starts, chosen, strict=False)])
    twins = near.near_duplicates(lambda: [part for _, part in chosen], threshold, n, threads=1)
    dropped = np.flatnonzero(twins.of >= 0)
    return rows[dropped], rows[twins.of[dropped]], twins.similarity[dropped]


def _overlapped(contamination: Contamination, source: Part) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    return contamination.overlaps(source[0])
