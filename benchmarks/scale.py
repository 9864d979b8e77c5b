"""What docs/scale.md multiplies: near-duplicates in one process and on Ray, the admission of prompts, shards on disk, and
calls of judges.

    python benchmarks/scale.py [near] [prompts] [fill] [calls]

Each figure is of a fresh process. ROWS (default 1,000,000) is how many texts `near` compares; `prompts` admits a quarter of
that. WORKERS (default 2) is how many tasks Ray does at once. Memory is the most that a process had (VmHWM, in MiB), pages that
it shares with Ray's object store among it.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from dedup import corpus, read

from dpo_data import pipeline
from dpo_data.admission import admit
from dpo_data.config import parse
from dpo_data.dedup import Twins, near_duplicates, on_ray
from dpo_data.formats.prompts import Prompts, read_prompts
from dpo_data.provenance import file_hash
from dpo_data.ray_cluster import cluster
from dpo_data.rows import Prompt, Sample, prompt_id
from dpo_data.rundir import RunDir
from dpo_data.seams import Completed, Output, Request, Sampling, answer

ROWS = int(os.environ.get("ROWS", "1000000"))
WORKERS = int(os.environ.get("WORKERS", "2"))
FILE = 125_000
"""Texts in a file, of some 60 MB."""


def near(folder: Path) -> None:
    """Near-duplicates among ROWS texts of 470 bytes in files, 15 % of them planted: one process with two threads, and Ray."""
    write(folder)
    for side in ("near_local", "near_ray"):
        told = apart(side, folder)
        line(f"{side}, {ROWS:,} texts", told, ROWS)
    one, two = (np.load(folder / f"{side}.npz") for side in ("near_local", "near_ray"))
    same = all((one[name] == two[name]).all() for name in Twins._fields)
    print(f"near      the same result: {same}; {np.count_nonzero(one['of'] >= 0):,} dropped", flush=True)


def write(folder: Path) -> None:
    """The texts, in files. Each million is the first one with other letters in their places."""
    texts = pa.array(corpus(min(ROWS, 1_000_000))[0], pa.large_string())
    letters = np.arange(ord("a"), ord("z") + 1)
    _, offsets, data = texts.buffers()
    for million in range(-(-ROWS // 1_000_000)):
        table = np.arange(256, dtype=np.uint8)
        table[letters], table[letters - 32] = np.roll(letters, million), np.roll(letters - 32, million)
        turned = pa.LargeStringArray.from_buffers(len(texts), offsets, pa.py_buffer(table[np.frombuffer(data, np.uint8)]))
        for first in range(0, min(len(turned), ROWS - million * 1_000_000), FILE):
            name = f"{million * 1_000_000 + first:010}.parquet"
            pq.write_table(
                pa.table({"text": turned.slice(first, FILE)}), folder / name, compression="zstd", row_group_size=10_000
            )


def near_local(folder: Path) -> dict[str, float]:
    paths = sorted(folder.glob("*.parquet"))
    return timed(lambda: near_duplicates(lambda: (batch for path in paths for batch in read(path))), folder / "near_local.npz")


def near_ray(folder: Path) -> dict[str, float]:
    sources = [partial(texts_of, path) for path in sorted(folder.glob("*.parquet"))]
    with cluster() as ray:
        told = timed(lambda: on_ray.near_duplicates(ray, sources, WORKERS), folder / "near_ray.npz")
        return told | of_workers()


def texts_of(path: Path) -> Iterator[Any]:
    """In a task, which cannot import dedup.py."""
    return (batch.column(0) for batch in pq.ParquetFile(path).iter_batches(10_000, use_threads=False))


def timed(work: Callable[[], Twins], result: Path) -> dict[str, float]:
    started = time.perf_counter()
    found = work()
    told = {"seconds": time.perf_counter() - started}
    np.savez(result, **found._asdict())
    return told


def of_workers() -> dict[str, float]:
    """The CPU-seconds of Ray's workers, and the most memory that one had, in MiB."""
    found = [one for one in psutil.process_iter() if one.name().startswith("ray::") and one.uids().real == os.getuid()]
    return {"workers_cpu": sum(sum(one.cpu_times()[:2]) for one in found), "worker_mib": max(peak(one.pid) for one in found)}


def prompts(folder: Path) -> None:
    """Reading ROWS / 4 prompts from a JSONL file; and their admission, with an evaluation set, by one process and on Ray."""
    texts, exam = corpus(ROWS // 4)[0], corpus(2_000, seed=2)[0]
    for name, some in (("prompts", texts), ("exam", exam)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in some))
    for side in ("read_once", "admit_local", "admit_ray"):
        line(f"{side}, {len(texts):,} prompts", apart(side, folder), len(texts))


def read_once(folder: Path) -> dict[str, float]:
    started = time.perf_counter()
    assert sum(1 for _ in read_prompts(Prompts(path=str(folder / "prompts.jsonl")))) == ROWS // 4
    return {"seconds": time.perf_counter() - started}


def admit_local(folder: Path, workers: int = 1) -> dict[str, float]:
    table = {
        "path": str(folder / "prompts.jsonl"),
        "decontaminate": {"against": [str(folder / "exam.jsonl")]},
        "workers": workers,
    }
    sample = {"n": 2, "engine": {"type": "echo"}}
    recipe = parse(
        {"name": "scale", "prompts": table, "sample": sample, "rank": {"judge": {"type": "rule", "rule": "concise"}}}
    )
    started = time.perf_counter()
    admit(recipe)
    return {"seconds": time.perf_counter() - started}


def admit_ray(folder: Path) -> dict[str, float]:
    with cluster():
        return admit_local(folder, WORKERS) | of_workers()


def fill(folder: Path) -> None:
    """From an engine's answers to shards of 256 prompts with 16 answers of 300 tokens: how fast, and how large they are."""
    line("fill, 4,096 prompts x 16", apart("filled", folder), 4_096)


class Ready:
    """An engine whose answers are there, so that what is measured is all that comes behind an engine."""

    model = "ready"

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        words = [" " + "".join(rng.choice(list("etaoinshrdlu"), rng.integers(1, 8))) for _ in range(30_000)]

        def output() -> Output:
            ids = np.minimum(rng.zipf(1.2, 300), len(words)) - 1
            return Output("".join(words[at] for at in ids), "stop", 300, -300 * rng.random(), token_ids=ids.tolist())

        self.outputs = [[output() for _ in range(16)] for _ in range(256)]

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        return (Completed(one.id, self.outputs[at % 256]) for at, one in enumerate(requests) if one)

    def close(self) -> None: ...


def filled(folder: Path) -> dict[str, float]:
    turns = [
        [{"role": "user", "content": f"{at} rivers of a land, their length, and who lives there? " * 8}] for at in range(4_096)
    ]
    asked, engine = [Prompt(prompt_id(one), one, "p.jsonl:1") for one in turns], Ready()
    stage = RunDir(folder / "run").stage("sample").open({}, {})
    started, cpu = time.perf_counter(), time.process_time()
    shards = ((at, asked[at * 256 : at * 256 + 256]) for at in range(16))
    stage.fill(shards, lambda prompts: answer(engine, prompts, {"n": 16}, 0), Sample)
    told = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    size, cpu = sum(path.stat().st_size for path in stage.shards()), time.process_time()
    for path in stage.shards():
        file_hash(path)
    told["hash_mib_a_cpu_second"] = size / 2**20 / (time.process_time() - cpu)
    return told | {"bytes_a_row": size / 4_096, "bytes_a_token": size / 4_096 / 16 / 300}


def calls(folder: Path) -> None:
    """What a call of a language judge costs beside its engine: CPU, and bytes in the ledger. 300 prompts x 16 answers."""
    for judge in ("called_listwise", "called_rubric"):
        line(judge, apart(judge, folder), 300)


def called(folder: Path, type: str) -> dict[str, float]:
    asked = [{"prompt": f"Question {at}: name {at + 2} rivers of the land, and who lives there"} for at in range(300)]
    (folder / "p.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    sample = {"n": 16, "max_tokens": 300, "engine": {"type": "echo"}}
    table: dict[str, Any] = {"prompts": {"path": str(folder / "p.jsonl"), "near_duplicates": 1}, "sample": sample}
    recipe, run = parse({"name": "scale", **table, "rank": {"judge": {"type": type}}}), RunDir(folder / type)
    pipeline.run_stage("sample", recipe, run, lambda *_: None)
    started, cpu = time.perf_counter(), time.process_time()
    pipeline.run_stage("rank", recipe, run, lambda *_: None)
    told, count = {"seconds": time.perf_counter() - started}, 300 * recipe.rank.judge.calls(16)
    told["ms_a_call"] = (time.process_time() - cpu) * 1000 / count
    rows = sum(path.stat().st_size for path in run.stage("rank").shards()) / 300
    return told | {"ledger_bytes_a_call": run.calls.stat().st_size / count, "bytes_a_row": rows}


def called_listwise(folder: Path) -> dict[str, float]:
    return called(folder, "listwise")


def called_rubric(folder: Path) -> dict[str, float]:
    return called(folder, "rubric")


def apart(name: str, folder: Path) -> dict[str, float]:
    """What a part measures in a process of its own, with that process's memory in MiB."""
    done = subprocess.run([sys.executable, __file__, name, str(folder)], check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def peak(pid: int) -> float:
    return next(int(line.split()[1]) / 1024 for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM"))


def line(what: str, told: dict[str, float], rows: int) -> None:
    rest = ", ".join(f"{name} {value:,.1f}" for name, value in told.items())
    print(f"{what}: {rows / told['seconds']:,.0f} a second; {rest}", flush=True)


PARTS = {one.__name__: one for one in (near, prompts, fill, calls)}
APART = {
    one.__name__: one
    for one in (near_local, near_ray, read_once, admit_local, admit_ray, filled, called_listwise, called_rubric)
}

if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in APART:
        told = APART[sys.argv[1]](Path(sys.argv[2]))
        own = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps(told | {"driver_cpu": own.ru_utime + own.ru_stime, "driver_mib": peak(os.getpid())}))
    else:
        for name in sys.argv[1:] or PARTS:
            with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
                PARTS[name](Path(made))
