"""Near-duplicates and contamination on a real Ray: what one process would say, however texts are cut and whatever dies."""

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dedup import FEW, SAMPLES, TEXTS, planted

from dpo_data import pipeline, ray_cluster
from dpo_data.config import Recipe
from dpo_data.dedup import Contamination, Twins, near_duplicates, on_ray
from dpo_data.dedup.kernels import components
from dpo_data.errors import EngineError, InputError
from dpo_data.ray_cluster import cluster
from dpo_data.rundir import RunDir

pytestmark = pytest.mark.slow
few = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with cluster() as ray:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which workers cannot import
        yield ray


def cut(rows: Any, places: list[int]) -> list[Any]:
    ends = [0, *sorted(min(place, len(rows)) for place in places), len(rows)]
    return [rows[begin:end] for begin, end in pairwise(ends)]


def same(found: Twins, wanted: Twins) -> bool:
    return bool((found.of == wanted.of).all() and (found.similarity == wanted.similarity).all())


def files(folder: Path, texts: list[str], places: list[int]) -> list[on_ray.Source]:
    """Parquet files that tasks read."""
    made: list[on_ray.Source] = []
    for at, part in enumerate(cut(texts, places)):
        pq.write_table(pa.table({"text": pa.array(part, pa.string())}), folder / f"{at}.parquet")
        made.append(partial(read, folder / f"{at}.parquet"))
    return made


def read(path: Path) -> Iterator[pa.Array]:
    return (batch.column(0) for batch in pq.ParquetFile(path).iter_batches(100))


def test_files_are_read_by_tasks(ray: Any, tmp_path: Path) -> None:
    texts, _ = planted(3000)
    texts += [*SAMPLES, *SAMPLES]
    wanted = near_duplicates(lambda: [texts])
    assert np.count_nonzero(wanted.of >= 0) > 400
    for places, workers in (([], 1), ([1000, 2500], 2), ([0, 0, 10], 3)):
        assert same(on_ray.near_duplicates(ray, files(tmp_path, texts, places), workers), wanted)


@st.composite
def corpora(draw: Callable[[Any], Any]) -> list[str]:
    """A few texts in any script, and more that are made from them: the same, louder, with a word more, two in one."""
    first = draw(st.lists(TEXTS | FEW, min_size=1, max_size=4))
    more = draw(
        st.lists(st.tuples(*[st.sampled_from(first)] * 2, st.sampled_from(["", "!", "cat", "文字", "both"])), max_size=12)
    )
    return [*first, *(f"{one} {other if word == 'both' else word}" for one, other, word in more)]


@few
@given(
    corpora(),
    st.lists(st.integers(0, 16), max_size=3),
    st.integers(1, 4),
    st.sampled_from([0.3, 0.6, 0.8, 1.0]),
    st.integers(1, 5),
    st.booleans(),
)
def test_any_texts_in_any_cut_by_any_number_of_workers(
    ray: Any, texts: list[str], places: list[int], workers: int, threshold: float, n: int, salted: bool
) -> None:
    salts = np.array([len(text) % 2 for text in texts], np.uint64) if salted else None
    batches: list[Any] = cut(texts, places)
    if salts is not None:
        batches = list(zip(batches, cut(salts, places), strict=True))
    sources = [ray.put(batch) for batch in batches]
    wanted = near_duplicates(lambda: batches, threshold, n, threads=1)
    assert same(on_ray.near_duplicates(ray, sources, workers, threshold, n), wanted)


@few
@given(st.integers(1, 12).flatmap(lambda rows: st.tuples(st.just(rows), st.lists(st.tuples(*[st.integers(0, rows - 1)] * 2)))))
def test_components_stay_whole_and_parts_are_even(links: tuple[int, list[tuple[int, int]]]) -> None:
    rows, pairs = links
    earlier, found = np.arange(rows), [{row} for row in range(rows)]
    for one, other in pairs:
        found[one] |= found[other]
        for row in found[one]:
            found[row] = found[one]
    components.join(earlier, *np.array(pairs, np.int64).reshape(-1, 2).T)
    parts = components.deal(earlier, 3)
    assert earlier.tolist() == [min(component) for component in found]
    assert [part < 0 for part in parts.tolist()] == [len(component) == 1 for component in found]
    assert all(len(set(parts[list(component)].tolist())) == 1 for component in found)
    together, largest = np.count_nonzero(parts >= 0), max(map(len, found))
    assert max(np.bincount(parts[parts >= 0], minlength=3)) <= together / 3 + largest and parts.max() < 3


def test_crowded_buckets_and_more_sources_than_groups(ray: Any) -> None:
    """Texts from one template: one component, of which each text has more neighbours than it is compared with."""
    chance = random.Random(2)
    start = " ".join(f"s{at}" for at in range(60))
    texts = [start + "".join(f" {chance.random():.9f}" for _ in range(30)) for _ in range(1000)]
    texts += [f"{text} end" for text in texts[:50]] + planted(1000)[0]
    wanted = near_duplicates(lambda: [texts])
    assert wanted.of[1000:1050].tolist() == list(range(50))
    sources = [ray.put(batch) for batch in cut(texts, list(range(0, 2050, 100)))]
    assert same(on_ray.near_duplicates(ray, sources, 2), wanted)


def test_no_texts_and_no_sources(ray: Any) -> None:
    for sources in ([], [ray.put([])], [ray.put([]), ray.put([""])]):
        assert (on_ray.near_duplicates(ray, sources, 2).of == -1).all()
    assert list(on_ray.stored(ray, [])) == []
    with pytest.raises(ValueError, match="threshold"):
        on_ray.near_duplicates(ray, [], 2, 0)


def mortal(path: Path, texts: list[str], dies: set[int]) -> list[list[str]]:
    """A source that kills its process when it is read the first, second, … time."""
    with path.open("a") as file:
        file.write("read\n")
    if len(path.read_text().splitlines()) in dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return [texts]


def test_a_worker_that_is_killed_is_replaced(ray: Any, tmp_path: Path) -> None:
    texts, _ = planted(1500)
    halves, log = cut(texts, [700]), tmp_path / "reads"
    sources = [partial(mortal, log, halves[0], {1, 3}), ray.put(halves[1])]  # for its keys, and for what shares one
    assert same(on_ray.near_duplicates(ray, sources, 2), near_duplicates(lambda: halves))
    assert len(log.read_text().splitlines()) == 4


def test_what_kills_every_worker_is_told_in_a_line(ray: Any, tmp_path: Path) -> None:
    sources = [partial(mortal, tmp_path / "reads", ["a"], set(range(100)))]
    with pytest.raises(EngineError, match=r"Ray gave up a task that looks for duplicates: .*\. Run again"):
        on_ray.near_duplicates(ray, sources, 2)


class Gone:
    """A Ray whose tasks have begun, and which answers nobody any more. `does`: what becomes of what it is given to hold."""

    exceptions = SimpleNamespace(RayError=LookupError)

    def __init__(self, does: Callable[[Any], Any] = id):
        self.put = self.get = does

    def remote(self, task: Any) -> Any:
        return SimpleNamespace(options=lambda **keys: SimpleNamespace(remote=lambda *given: range(keys["num_returns"])))

    def wait(self, references: list[Any], *, timeout: float, **keys: Any) -> tuple[list[Any], list[Any]]:
        return [], references


def test_ray_that_ends_is_an_error_and_no_endless_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def require() -> None:
        raise EngineError("Ray has ended on this machine")

    def lost(made: Any) -> Any:
        raise LookupError("no store")

    with pytest.raises(EngineError, match="Ray gave up a task that looks for duplicates: no store"):
        list(on_ray.stored(Gone(lost), [["a"]]))
    monkeypatch.setattr(ray_cluster, "require", require)
    for waits in (
        lambda: on_ray.near_duplicates(Gone(), [0], 2),
        lambda: list(on_ray.overlaps(Gone(), Contamination(["a b"], 2), [["a"]], 2)),
        lambda: list(on_ray.stored(Gone(lost), [["a"]])),
        lambda: on_ray._get(Gone(), 0),
    ):
        with pytest.raises(EngineError, match="Ray has ended"):
            waits()


def broken(path: Path) -> Any:
    raise InputError(f"{path} is gone", "Put it back.")


def test_what_a_source_raises_is_raised(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\. Put it back"):
        on_ray.near_duplicates(ray, [partial(broken, tmp_path)], 2)
    (tmp_path / "texts").write_text("a b c")
    with pytest.raises(ValueError, match="1 texts were read at first, 0 the second time"):
        on_ray.near_duplicates(ray, [partial(once, tmp_path / "texts"), ray.put(["a b c"])], 2)


def once(path: Path) -> list[list[str]]:
    text = path.read_text()
    path.write_text("")
    return [[text]] if text else []


@few
@given(st.lists(FEW, max_size=6), st.lists(FEW, max_size=12), st.lists(st.integers(0, 12), max_size=3), st.integers(1, 3))
def test_contamination(ray: Any, tests: list[str], texts: list[str], places: list[int], workers: int) -> None:
    contamination = Contamination(tests, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_ray, "SIZE", 1)
        found = list(on_ray.overlaps(ray, contamination, cut(texts, places), workers))
    of, held = contamination.overlaps(texts)
    assert [at for some, _ in found for at in some.tolist()] == of.tolist()
    assert [share for _, some in found for share in some.tolist()] == held.tolist()


def asked(folder: Path) -> dict[str, Any]:
    """Prompts of which some come twice, some are like another one, and some hold a question of an exam."""
    texts, _ = planted(400)
    exam = [" ".join(text.split()[:12]) for text in planted(20, seed=9)[0]]
    texts += [*texts[:10], *(f"Please answer {question}" for question in exam), *SAMPLES]
    random.Random(4).shuffle(texts)
    systems = [[{"role": "system", "content": "Be brief."}], []]
    turns = [[*systems[at % 3 > 0], {"role": "user", "content": text}] for at, text in enumerate(texts) if text.strip()]
    (folder / "p.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    (folder / "exam.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in exam))
    against = {"against": [str(folder / "exam.jsonl")]}
    return {"path": str(folder / "p.jsonl"), "holdout": 0.1, "decontaminate": against}


def test_a_run_is_the_same_for_one_worker_and_for_two(
    ray: Any, tmp_path: Path, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "SIZE", 20_000)  # several sources
    prompts = asked(tmp_path)
    runs = [RunDir(tmp_path / "one"), RunDir(tmp_path / "two")]
    for workers, run in enumerate(runs, 1):
        made = recipe(prompts={**prompts, "workers": workers})
        for stage in ("sample", "rank", "pair"):
            pipeline.run_stage(stage, made, run, lambda stage, done, total: None)
    counts = runs[1].stage("sample").require()
    assert min(counts[fate] for fate in ("duplicates", "near_duplicates", "contaminated", "held_out")) >= 10
    for name in ("sample", "pair"):
        one, two = ({path.name: path.read_bytes() for path in run.stage(name).path.glob("*.parquet")} for run in runs)
        assert one == two and len(one) >= 3
    again = recipe(prompts={**prompts, "workers": 3})  # which decides no row
    assert pipeline.run_stage("sample", again, runs[1], lambda stage, done, total: None) == counts
