"""The `sample` stage with several workers: rows a second, the driver's memory, and the time to the first shard.

    python benchmarks/workers.py [100000]

The engine is `echo`, without a model. `0 ms` is what dealing out costs: nothing else is done. `2 ms` is what an answer may
take on a GPU; there two workers should be twice as fast as one. Each run is a fresh process, which starts a Ray of its own
where there are two workers; that is part of its time. All must make the same bytes.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dpo_data.config import dump, parse

N = 4
RUN = """
import json, sys, time
from dpo_data import pipeline
from dpo_data.config import load
from dpo_data.rundir import RunDir
recipe, run = load(sys.argv[1]), RunDir(sys.argv[2])
began, first = time.perf_counter(), []
def progress(stage, done, total):
    if not first and run.stage("sample").shards():
        first.append(time.perf_counter() - began)
made = pipeline.run_stage("sample", recipe, run, progress)
seconds = time.perf_counter() - began
first = first or [seconds]
peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "first": first[0], "peak": peak, "digest": made["digest"], "failed": made["failed"]}))
"""


def main(count: int = 100_000) -> None:
    """Print a line a run."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        with prompts.open("w") as file:
            file.writelines(
                json.dumps({"prompt": f"Question {at}: name {at + 2} rivers of the world"}) + "\n" for at in range(count)
            )
        digests = set()
        for delay in (0.0, 0.002):
            for workers in (1, 2):
                told = _run(Path(folder), f"{workers}-{delay}", prompts, {"type": "echo", "workers": workers, "delay": delay})
                digests.add(told["digest"])
                print(
                    f"workers   {count:,} prompts × {N}, {1000 * delay:g} ms an answer, {workers} of them: "
                    f"{told['seconds']:.1f} s, {count / told['seconds']:,.0f} rows/s; first shard after {told['first']:.1f} s; "
                    f"driver {told['peak']:.0f} MiB at most",
                    flush=True,
                )
    assert len(digests) == 1, "the shards differ"


def _run(folder: Path, name: str, prompts: Path, engine: dict[str, Any]) -> dict[str, Any]:
    """One run of the stage in a fresh process, from nothing."""
    recipe = folder / f"{name}.toml"
    table = {
        "name": "workers",
        "prompts": {"path": str(prompts)},
        "sample": {"n": N, "max_tokens": 16, "engine": engine},
        "rank": {"judge": {"type": "rule", "rule": "concise"}},
    }
    recipe.write_text(dump(parse(table)))
    script = [sys.executable, "-c", RUN, str(recipe), str(folder / name)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert not told["failed"]
    return told


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
