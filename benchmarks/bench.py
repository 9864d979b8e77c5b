"""`make bench`: speed and memory, each as a ratio or against its goal. RESULTS.md says what was measured, and where.

    python benchmarks/bench.py [help] [fixed] [memory]

What is compared is alternated and its median told, so that a machine that is busy for a while slows both sides.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from dpo_data.config import dump, parse

TIMES = 5
DISTILABEL = 5.9  # seconds, distilabel 1.5.3, the same 64 prompts × 8 without an engine; measured elsewhere
STAGE = """
import sys, time
sys.stderr.write("begins\\n")
began = time.perf_counter()
from dpo_data import pipeline
from dpo_data.config import load
from dpo_data.rundir import RunDir
name, recipe, run = sys.argv[1], load(sys.argv[2]), RunDir(sys.argv[3])
if name == "report":
    pipeline.report(recipe, run)
elif name != "nothing":
    pipeline.run_stage(name, recipe, run, lambda stage, done, total: None)
seconds = time.perf_counter() - began
# not ru_maxrss, which a process inherits from whoever started it
peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, peak)
"""


def main(names: list[str]) -> None:
    for name in names or list(BENCHMARKS):
        with tempfile.TemporaryDirectory() as folder:
            BENCHMARKS[name](Path(folder))


def help(folder: Path) -> None:
    """The wall time of `dpo-data --help`, and of a Python that does nothing."""
    walls: dict[str, list[float]] = {"dpo-data --help": [], "python -c pass": []}
    commands = [[str(Path(sys.executable).with_name("dpo-data")), "--help"], [sys.executable, "-c", "pass"]]
    for _ in range(2 * TIMES):
        for name, command in zip(walls, commands, strict=True):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            walls[name].append(time.perf_counter() - began)
    ours, bare = (median(times) for times in walls.values())
    line("help", f"{ours:.2f} s, of which a bare Python {bare:.2f} s", ours / 0.5, "of the 0.5 s allowed")


def fixed(folder: Path) -> None:
    """What sample, rank, pair and report cost beside the engine, each in a fresh process: 64 prompts × 8."""
    recipe, stages = _echo_recipe(folder, 64, 8), ("sample", "rank", "pair", "report")
    works: dict[str, list[float]] = {name: [] for name in stages}
    imports, wholes = [], []
    for at in range(TIMES):
        began = time.perf_counter()
        told = {name: _fresh(name, recipe, folder / f"run-{at}") for name in stages}
        wholes.append(time.perf_counter() - began)
        imports.append(sum(one["import"] for one in told.values()))
        for name, one in told.items():
            works[name].append(one["work"])
    parts = ", ".join(f"{name} {median(times):.2f}" for name, times in works.items())
    work = median(map(sum, zip(*works.values(), strict=True)))
    line("fixed", f"the stages {work:.2f} s ({parts})", work / 1.0, "of the 1.0 s allowed")
    whole = f"four processes with start and imports {median(wholes):.2f} s (imports {median(imports):.2f} s)"
    line("fixed", f"{whole}; distilabel 1.5.3 {DISTILABEL} s, measured elsewhere", median(wholes) / DISTILABEL, "of it")


def memory(folder: Path) -> None:
    """Peak memory of each stage in a fresh process, at 10,000 and 100,000 prompts × 4."""
    few, many = (_echo_recipe(folder, count, 4) for count in (10_000, 100_000))
    bare = _fresh("nothing", few, folder / "none")["peak"]
    print(f"{'memory':<9} the imports alone: {bare:.0f} MiB")
    for name in ("sample", "rank", "pair"):
        small, large = (_fresh(name, recipe, folder / f"run-{recipe.stem}")["peak"] for recipe in (few, many))
        line("memory", f"{name}: {small:.0f} MiB at 10,000 prompts, {large:.0f} MiB at 100,000", large / small, "of it")


BENCHMARKS: dict[str, Callable[[Path], None]] = {"help": help, "fixed": fixed, "memory": memory}


def line(name: str, what: str, ratio: float, of: str) -> None:
    print(f"{name:<9} {what}: {ratio:.2f} {of}".rstrip(), flush=True)


def _fresh(name: str, recipe: Path, run: Path) -> dict[str, float]:
    """One stage in a process of its own: seconds of work, and of imports, those that happen during work too; peak MiB."""
    command = [sys.executable, "-X", "importtime", "-c", STAGE, name, str(recipe), str(run)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told = re.findall(r"^import time: +(\d+) \|", done.stderr.split("begins\n")[1], re.MULTILINE)  # each module's own µs
    imports = sum(map(int, told)) / 1e6
    seconds, peak = map(float, done.stdout.split())
    return {"import": imports, "work": seconds - imports, "peak": peak}


def _prompts(folder: Path, count: int) -> str:
    path = folder / f"prompts-{count}.jsonl"
    with path.open("w") as file:
        for at in range(count):
            file.write(
                json.dumps({"prompt": f"Question {at}: which rivers have {at + 2} letters, and where do they rise?"}) + "\n"
            )
    return str(path)


def _echo_recipe(folder: Path, count: int, n: int) -> Path:
    path = folder / f"{count}.toml"
    table = {
        "name": "bench",
        "prompts": {"path": _prompts(folder, count)},
        "sample": {"n": n, "max_tokens": 64, "engine": {"type": "echo"}},
        "rank": {"judge": {"type": "rule", "rule": "concise"}},
    }
    path.write_text(dump(parse(table)))
    return path


if __name__ == "__main__":
    main(sys.argv[1:])
