"""Speed, memory, recall and precision of dpo_data.dedup, each as a ratio to what else does the same.

    python benchmarks/dedup.py [near] [exact] [contamination] [within]

What it is compared with is found by import, in the folder PEERS too (default .venv/peers, which `make bench` makes), and named
where it is absent. What is compared is alternated in one process and its median told, seconds of CPU beside wall; both may use
all cores. A peer that is slow gets fewer of the same rows: its rows a second do not rise with more of them.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpo_data.dedup import Contamination, near_duplicates, repeats, repetition, similarity, within

sys.path.append(os.environ.get("PEERS", ".venv/peers"))

TIMES = int(os.environ.get("TIMES", "5"))
ROWS = int(os.environ.get("ROWS", "1000000"))
NEAR = """
import sys
import pyarrow.parquet as pq
from dpo_data.dedup import near_duplicates
near_duplicates(lambda: (batch.column(0) for batch in pq.ParquetFile(sys.argv[1]).iter_batches(10_000)))
print(next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def main(names: list[str]) -> None:
    for name in names or list(BENCHMARKS):
        with tempfile.TemporaryDirectory() as folder:
            BENCHMARKS[name](Path(folder))


def near(folder: Path) -> None:
    """Near-duplicates among ROWS texts of 470 bytes: 15 % planted at Jaccard 0.8-1.0, 15 % hard negatives at 0.3-0.75."""
    path = folder / "texts.parquet"
    texts, origin = corpus(ROWS)
    write(path, texts)
    found, sides = [], {"ours": (ROWS, lambda: found.append(near_duplicates(lambda: read(path))))}
    for name, (share, work) in PEERS.items():
        if missing(name):
            continue
        rows = max(1000, int(ROWS * share))
        part = folder / f"{name}.parquet"
        write(part, texts[:rows])
        sides[name] = (rows, lambda work=work, part=part, rows=rows: work(part, texts[:rows]))
    rates = compare("near", sides)
    for name in set(rates) - {"ours"}:
        (wall, cpu), (our_wall, our_cpu) = rates[name], rates["ours"]
        line("near", f"ours to {name}: {our_cpu / cpu:.2f} by CPU, by wall", our_wall / wall, f"of {name}")
    accuracy(found[-1].of, texts, origin)
    done = subprocess.run([sys.executable, "-c", NEAR, str(path)], check=True, capture_output=True, text=True)
    line("near", f"peak memory {float(done.stdout):.0f} MiB", float(done.stdout) / 2048, "of the 2048 MiB allowed")


def accuracy(of: np.ndarray, texts: list[str], origin: dict[int, int]) -> None:
    """Recall of the planted pairs whose first text was kept, and precision, in plain Python on 50,000 of each."""
    rng = random.Random(1)
    due = [(row, first) for row, first in origin.items() if of[first] < 0]
    due = [pair for pair in rng.sample(due, min(50_000, len(due))) if jaccard(*(texts[at] for at in pair)) >= 0.8]
    found = sum(of[row] >= 0 for row, _ in due)
    line("near", f"recall: {found} of {len(due)} planted pairs", found / len(due), "found")
    dropped = np.flatnonzero(of >= 0).tolist()
    dropped = rng.sample(dropped, min(50_000, len(dropped)))
    right = sum(jaccard(texts[row], texts[of[row]]) >= 0.8 for row in dropped)
    line("near", f"precision: {right} of {len(dropped)} dropped", right / len(dropped), "at Jaccard 0.8 or more")


def jaccard(a: str, b: str) -> float:
    one, other = (
        {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))} for words in (a.lower().split(), b.lower().split())
    )
    return len(one & other) / len(one | other)


def exact(folder: Path) -> None:
    """Exact duplicates among ROWS texts, against the decoding of the same Parquet column alone."""
    path = folder / "texts.parquet"
    write(path, corpus(ROWS)[0])
    sides: dict[str, Any] = {
        "decode": (ROWS, lambda: sum(len(batch) for batch in read(path))),
        "ours, 1 thread": (ROWS, lambda: sum(int(one.sum()) for one in repeats(read(path), threads=1))),
        "ours, 2 threads": (ROWS, lambda: sum(int(one.sum()) for one in repeats(read(path), threads=2))),
    }
    if not missing("polars"):
        sides["polars, unfolded"] = (ROWS, lambda: polars_exact(path))
    rates = compare("exact", sides)
    wall, cpu = rates["decode"]
    for name in sides.keys() - {"decode"}:
        line("exact", f"{name}: {rates[name][1] / cpu:.2f} by CPU, by wall", rates[name][0] / wall, "of decoding alone")


def contamination(folder: Path) -> None:
    """ROWS / 5 texts against 20,000 evaluation texts, of which 1 % of the texts hold one."""
    texts = corpus(ROWS // 5)[0]
    tests = corpus(20_000, seed=2)[0]
    rng = random.Random(1)
    for row in rng.sample(range(len(texts)), len(texts) // 100):
        texts[row] = f"answer this {rng.choice(tests)} please"
    array, ready = pa.array(texts), Contamination(tests)
    rates = compare(
        "contam.",
        {"build, 20,000 tests": (20_000, lambda: Contamination(tests)), "scan": (len(texts), lambda: ready.overlaps(array))},
    )
    line(
        "contam.",
        f"{int((ready.overlaps(array)[0] >= 0).sum())} contaminated",
        rates["scan"][1] / 300_000,
        "of 300,000 rows/CPU-s",
    )


def within_(folder: Path) -> None:
    """Completions, 8 to a prompt, of which a quarter are like another one; chosen beside rejected; repetition."""
    texts, rng = corpus(80_000, seed=3)[0], random.Random(1)
    for row in range(0, len(texts), 8):
        texts[row + 5], texts[row + 7] = texts[row + 1] + " indeed", texts[row].replace(" ", "  ", rng.randrange(3))
    array, offsets = pa.array(texts), np.arange(0, len(texts) + 1, 8)
    sides: dict[str, Any] = {
        "within": (len(texts), lambda: within(array, offsets)),
        "similarity": (len(texts) // 2, lambda: similarity(array[: len(texts) // 2], array[len(texts) // 2 :])),
        "repetition": (len(texts), lambda: repetition(array)),
    }
    if not missing("rapidfuzz"):
        sides["rapidfuzz"] = (8_000, lambda: rapidfuzz_within(texts[:8_000]))
    rates = compare("within", sides)
    line("within", "completions", rates["within"][1] / 60_000, "of 60,000 a CPU-second")
    if "rapidfuzz" in rates:
        line("within", "by CPU", rates["within"][1] / rates["rapidfuzz"][1], "of rapidfuzz's ratio")


BENCHMARKS: dict[str, Callable[[Path], None]] = {
    "near": near,
    "exact": exact,
    "contamination": contamination,
    "within": within_,
}


def line(name: str, what: str, ratio: float, of: str) -> None:
    print(f"{name:<9} {what}: {ratio:.2f} {of}".rstrip(), flush=True)


def compare(name: str, sides: dict[str, tuple[int, Callable[[], Any]]]) -> dict[str, tuple[float, float]]:
    """Median rows a second, of wall and of CPU, of each side; the first round warms up and is not counted."""
    walls: dict[str, list[float]] = {side: [] for side in sides}
    cpus: dict[str, list[float]] = {side: [] for side in sides}
    for at in range(TIMES + 1):
        for side, (rows, work) in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            if at:
                walls[side].append(rows / (time.perf_counter() - wall))
                cpus[side].append(rows / (time.process_time() - cpu))
    told = {side: (median(walls[side]), median(cpus[side])) for side in sides}
    for side, (wall, cpu) in told.items():
        print(f"{name:<9} {side}: {wall:,.0f} rows/s, {cpu:,.0f} rows/CPU-s ({sides[side][0]:,} rows)", flush=True)
    return told


def missing(peer: str) -> bool:
    if find_spec(peer) is None:
        print(f"{peer} is not installed")
    return find_spec(peer) is None


def corpus(count: int, seed: int = 1) -> tuple[list[str], dict[int, int]]:
    """Texts of 60 to 90 words, and which are made from which: 15 % with 0-2 words replaced, 15 % with 3-8, all at random."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = np.unique(["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(30_000)]).astype(object)
    texts: list[str] = []
    origin: dict[int, int] = {}
    rows: list[Any] = []
    for at in range(count):
        kind = rng.random()
        if at > 100 and kind < 0.3:
            first = int(rng.integers(at))
            first = origin.get(first, first)
            words = rows[first].copy()
            changed = rng.integers(0, len(words), rng.integers(0, 3) if kind < 0.15 else rng.integers(3, 9))
            words[changed] = rng.integers(0, len(vocabulary), len(changed))
            origin[at] = first
        else:
            words = rng.integers(0, len(vocabulary), rng.integers(60, 91), np.int16)
        rows.append(words)
        texts.append(" ".join(vocabulary[words]).capitalize())
    return [text.lower() if at % 2 else text for at, text in enumerate(texts)], origin


def write(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", compression_level=3, row_group_size=10_000)


def read(path: Path) -> Any:
    return (batch.column(0) for batch in pq.ParquetFile(path).iter_batches(10_000, use_threads=False))


def grams(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))]


def components(signatures: np.ndarray) -> np.ndarray:
    """Connected by a band of five hashes: what is left to do once signatures (rows, 100) are there."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = []
    for band in range(20):
        key = np.zeros(len(signatures), np.uint64)
        for column in range(band * 5, band * 5 + 5):
            key = (key ^ signatures[:, column].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            key ^= key >> np.uint64(29)
        order = np.argsort(key)
        same = np.flatnonzero(key[order][1:] == key[order][:-1])
        links.append((order[same], order[same + 1]))
    a, b = (np.concatenate(side) for side in zip(*links, strict=True))
    return connected_components(coo_array((np.ones(len(a), np.int8), (a, b)), shape=(len(signatures),) * 2), directed=False)[1]


def daft_near(path: Path, texts: list[str]) -> None:
    import daft
    from daft.functions import minhash, normalize

    text = normalize(daft.col("text"), lowercase=True, white_space=True)
    made = daft.read_parquet(str(path)).select(
        minhash(text, num_hashes=100, ngram_size=5, hash_function="xxhash3_64").alias("m")
    )
    column = made.to_arrow()["m"].combine_chunks()
    components(np.asarray(column.flatten()).reshape(-1, 100))


def datasketch_near(path: Path, texts: list[str]) -> None:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=100, params=(20, 5))
    for at, text in enumerate(texts):
        made = MinHash(num_perm=100)
        made.update_batch([gram.encode() for gram in grams(text)])
        if not index.query(made):
            index.insert(at, made)


def rensa_near(path: Path, texts: list[str]) -> None:
    from rensa import RMinHash

    components(np.array(RMinHash.digests_from_token_sets([grams(text) for text in texts], 100, 42), np.uint32))


def gaoya_near(path: Path, texts: list[str]) -> None:
    from gaoya.minhash import MinHashStringIndex

    index = MinHashStringIndex(32, 0.8, 20, 5, analyzer="word", lowercase=True, ngram_range=(5, 5))
    index.par_bulk_insert_docs(list(range(len(texts))), texts)
    index.par_bulk_query(texts)


PEERS: dict[str, tuple[float, Callable[[Path, list[str]], None]]] = {
    "daft": (1, daft_near),
    "rensa": (0.05, rensa_near),
    "gaoya": (0.05, gaoya_near),
    "datasketch": (0.01, datasketch_near),
}
"""What share of the rows each one gets, and how it finds near-duplicates."""


def polars_exact(path: Path) -> None:
    import polars as pl

    pl.scan_parquet(path).select(pl.col("text").hash().n_unique()).collect(engine="streaming")


def rapidfuzz_within(texts: list[str]) -> None:
    from rapidfuzz import fuzz, process

    for first in range(0, len(texts), 8):
        process.cdist(texts[first : first + 8], texts[first : first + 8], scorer=fuzz.ratio)


if __name__ == "__main__":
    main(sys.argv[1:])
