"""The `pair` stage on many prompts: rows a second, and peak memory, each run in a fresh process.

    python benchmarks/pair.py [100000 1000000]

A prompt has 8 answers of some 365 bytes of random words, with a token id for each word and a score each, and every filter is on
that needs no model. A row is a prompt, as in distilabel, whose formatting step alone moved 1,764 rows a second (1.5.3, measured
elsewhere on such a machine).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from dpo_data.config import dump, parse
from dpo_data.rows import Ranking, Sample
from dpo_data.rundir import RunDir, Stage
from dpo_data.tables import MESSAGES, SCHEMAS, as_table

TIMES = 5
DISTILABEL = 1764
N, SHARD = 8, 256
RUN = """
import json, sys, time
from dpo_data import pair
from dpo_data.config import load
from dpo_data.rundir import RunDir
recipe, run = load(sys.argv[1]), RunDir(sys.argv[2])
began, cpu = time.perf_counter(), time.process_time()
made = pair.pair(recipe, run, lambda *_: None)
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak, "pairs": made["train"] + made["test"]}))
"""


def main(counts: list[int]) -> None:
    for count in counts or [100_000, 1_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            _make(Path(folder), count)
            told = [_run(Path(folder)) for _ in range(TIMES if count <= 100_000 else 1)]
            seconds, cpu, peak = (median(one[name] for one in told) for name in ("seconds", "cpu", "peak"))
            rate = count / seconds
            print(
                f"pair      {count:,} prompts × {N}: {seconds:.2f} s, {cpu:.2f} CPU-s, {rate:,.0f} rows/s, "
                f"{rate / DISTILABEL:.1f} × distilabel's formatting; peak {peak:.0f} MiB; {told[0]['pairs']:,} pairs",
                flush=True,
            )


def _run(folder: Path) -> dict[str, float]:
    """One run of the stage in a fresh process, from nothing."""
    stage = RunDir(folder / "run").stage("pair")
    for path in stage.path.glob("*"):
        path.unlink()
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder / "recipe.toml"), str(folder / "run")],
        check=True,
        capture_output=True,
        text=True,
    )
    told: dict[str, float] = json.loads(done.stdout)
    return told


def _make(folder: Path, count: int) -> None:
    """A run with finished `sample` and `rank`."""
    (folder / "prompts.jsonl").write_text('{"prompt": "?"}\n')
    recipe = parse(
        {
            "name": "bench",
            "prompts": {"path": str(folder / "prompts.jsonl")},
            "sample": {"n": N, "shard_size": SHARD, "engine": {"type": "echo"}},
            "rank": {"judge": {"type": "rule", "rule": "concise"}},
        }
    )
    (folder / "recipe.toml").write_text(dump(recipe))
    run, texts, chance = RunDir(folder / "run"), _Texts(), np.random.default_rng(0)
    sampled, ranked = (run.stage(name).open({}, {}) for name in ("sample", "rank"))
    for index, start in enumerate(range(0, count, SHARD)):
        _shard(sampled, ranked, index, range(start, min(start + SHARD, count)), texts, chance)
    sampled.finish(prompts=count, tools=False)
    ranked.finish(prompts=count, abstained=0)


def _shard(sampled: Stage, ranked: Stage, index: int, prompts: range, texts: "_Texts", chance: np.random.Generator) -> None:
    ids = [f"{chance.bytes(16).hex()}" for _ in prompts]
    many = len(ids) * N
    completion_ids = pa.array([chance.bytes(16).hex() for _ in range(many)])
    lengths = np.clip(chance.geometric(1 / 50, many), 5, 400)
    columns = {
        "completion_id": completion_ids,
        "index": pa.array(np.tile(np.arange(N, dtype=np.int32), len(ids))),
        "text": texts.slices(lengths, chance),
        "finish_reason": pa.repeat("stop", many),
        "n_tokens": pa.array(lengths, pa.int32()),
        "logprob": pa.array(-lengths.astype(float)),
        "model": pa.repeat("m", many),
        "token_ids": pa.ListArray.from_arrays(
            pa.array(np.append(0, np.cumsum(lengths)), pa.int32()),
            pa.array(np.random.default_rng(index).zipf(1.3, lengths.sum()) % 32_000, pa.int32()),
        ),
    }
    fields = list(SCHEMAS[Sample].field("completions").type.value_type)
    completions = pa.StructArray.from_arrays(
        [columns.get(field.name, pa.nulls(many, field.type)) for field in fields], fields=fields
    )
    bounds = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * N)
    asked = texts.slices(np.full(len(ids), 40), chance)
    turns = pa.StructArray.from_arrays(
        [pa.repeat("user", len(ids)), asked, pa.nulls(len(ids), pa.string())], fields=list(MESSAGES.value_type)
    )
    sample = {
        "prompt_id": pa.array(ids),
        "prompt": pa.ListArray.from_arrays(np.arange(len(ids) + 1, dtype=np.int32), turns, type=MESSAGES),
        "source": pa.repeat("bench", len(ids)),
        "completions": pa.ListArray.from_arrays(bounds, completions, type=SCHEMAS[Sample].field("completions").type),
    }
    sampled.write_table(f"{index:05d}.parquet", as_table(sample, SCHEMAS[Sample], len(ids)))
    ranking = {
        "prompt_id": pa.array(ids),
        "judge": pa.repeat("j", len(ids)),
        "completion_ids": pa.ListArray.from_arrays(bounds, completion_ids),
        "scores": pa.ListArray.from_arrays(bounds, pa.array(chance.normal(size=many).round(3))),
        "transcript": pa.repeat("[]", len(ids)),
    }
    ranked.write_table(f"{index:05d}.parquet", as_table(ranking, SCHEMAS[Ranking], len(ids)))


class _Texts:
    """A long text of random words, of which answers are cut."""

    def __init__(self) -> None:
        chance = np.random.default_rng(1)
        letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", np.uint8)
        odds = np.array([1 / (at + 3) for at in range(26)])
        vocabulary = [
            bytes(chance.choice(letters, size, p=odds / odds.sum())).decode() for size in chance.integers(2, 11, 20_000)
        ]
        self.words = np.array(vocabulary, object)[chance.zipf(1.3, 4_000_000) % 20_000]
        self.text = " ".join(self.words)
        self.starts = np.cumsum([0, *(len(word) + 1 for word in self.words)])

    def slices(self, lengths: np.ndarray, chance: np.random.Generator) -> pa.Array:
        """Texts of so many words."""
        first = chance.integers(0, len(self.words) - 500, len(lengths))
        bounds = zip(self.starts[first].tolist(), self.starts[first + lengths].tolist(), strict=True)
        return pa.array([self.text[start : end - 1] for start, end in bounds])


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]])
