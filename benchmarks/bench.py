"""`make bench`: speed and memory, each as a ratio or against its goal. RESULTS.md says what was measured, and where.

    python benchmarks/bench.py [help] [fixed] [memory] [sampling]

What is compared is alternated and its median told, so that a machine that is busy for a while slows both sides.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

from dpo_data.config import Recipe, dump, parse
from dpo_data.formats.prompts import read_prompts
from dpo_data.rows import Sample, request_seed
from dpo_data.rundir import RunDir

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


def sampling(folder: Path) -> None:
    """Tokens a second through the sample stage, against one raw `LLM.generate` of the same prompts with the same seeds.

    The model is random, and a bias makes its end token likely, so that lengths are geometric: some answers are many times
    longer than others. Each side keeps its engine and leaves it idle while the other one works; starting is not timed, and
    neither is the raw side's chat template.
    """
    from dpo_data.engines.vllm import Vllm

    model = _model_that_ends(folder)
    recipe = _vllm_recipe(folder, model)
    raw = _raw(recipe)
    engine = recipe.sample.engine.build()
    close, engine.close = engine.close, lambda: None
    Vllm.build = lambda self: engine  # type: ignore[method-assign, assignment, return-value]
    rates: dict[str, list[float]] = {"raw": [], "ours": []}
    for at in range(TIMES + 1):
        tokens, texts = timed(raw, rates["raw"])
        rows = timed(lambda at=at: _ours(recipe, RunDir(folder / f"run-{at}")), rates["ours"])[1]
    close()
    for process in psutil.Process().children(recursive=True):  # the raw engine takes minutes to end by itself
        process.kill()
    same = sum(texts[id] == rows[id] for id in texts)
    for side in rates.values():
        del side[0]  # the first round warms both up
    low, middle, high = (quantiles(tokens, n=100)[at] for at in (9, 49, 89))
    lengths = f"tokens an answer: {low:.0f} at 10 %, {middle:.0f} at 50 %, {high:.0f} at 90 %, {max(tokens)} at most"
    line("sampling", f"{len(texts)} prompts × {recipe.sample.n}, {sum(tokens)} tokens; {lengths}", same / len(texts), "same")
    ours, theirs = median(rates["ours"]), median(rates["raw"])
    line("sampling", f"the sample stage {ours:.0f} tokens/s, raw LLM.generate {theirs:.0f}", ours / theirs, "of raw")
    rounds = [a / b for a, b in zip(rates["ours"], rates["raw"], strict=True)]
    line("sampling", f"round by round {', '.join(f'{ratio:.2f}' for ratio in rounds)}", median(rounds), "median")


BENCHMARKS: dict[str, Callable[[Path], None]] = {"help": help, "fixed": fixed, "memory": memory, "sampling": sampling}


def line(name: str, what: str, ratio: float, of: str) -> None:
    print(f"{name:<9} {what}: {ratio:.2f} {of}".rstrip(), flush=True)


def timed(work: Callable[[], tuple[list[int], Any]], rates: list[float]) -> tuple[list[int], Any]:
    """Run, and note tokens a second."""
    began = time.perf_counter()
    tokens, made = work()
    rates.append(sum(tokens) / (time.perf_counter() - began))
    return tokens, made


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


def _vllm_recipe(folder: Path, model: str) -> Recipe:
    from transformers import AutoTokenizer

    end = AutoTokenizer.from_pretrained(model).eos_token_id
    sample = {"n": 8, "temperature": 1.0, "max_tokens": 256, "shard_size": 16, "params": {"logit_bias": {str(end): 0.7}}}
    table = {
        "name": "bench",
        "prompts": {"path": _prompts(folder, 300)},
        "sample": {**sample, "engine": {"type": "vllm", "model": model}},
        "rank": {"judge": {"type": "rule", "rule": "concise"}},
    }
    return parse(table)


def _model_that_ends(folder: Path) -> str:
    """A Llama of 0.46M parameters with random weights."""
    import torch

    from dpo_data.demo.model import build_tokenizer, tiny_llama
    from dpo_data.demo.questions import questions

    torch.manual_seed(0)
    tokenizer = build_tokenizer([f"{q.prompt} {q.answer}" for q in questions()])
    tiny_llama(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


def _raw(recipe: Recipe) -> Callable[[], tuple[list[int], dict[str, list[str]]]]:
    """A raw engine with the same arguments, and prompts that are token ids already."""
    from dpo_data.engines.vllm import ENVIRONMENT

    os.environ.update(ENVIRONMENT, VLLM_LOGGING_LEVEL="ERROR")
    from vllm import LLM, SamplingParams

    from dpo_data.engines.vllm_child import _defaults

    llm = LLM(recipe.sample.engine.model, **_defaults())  # type: ignore[union-attr]
    tokenizer = llm.get_tokenizer()
    prompts = list(read_prompts(recipe.prompts))
    ids = [tokenizer.apply_chat_template(prompt.prompt, add_generation_prompt=True, return_dict=False) for prompt in prompts]
    given = recipe.sample.sampling
    given["logit_bias"] = {int(id): bias for id, bias in given["logit_bias"].items()}
    params = [SamplingParams(seed=request_seed(recipe.seed, prompt.prompt_id), logprobs=0, **given) for prompt in prompts]

    def generate() -> tuple[list[int], dict[str, list[str]]]:
        done = llm.generate([{"prompt_token_ids": row} for row in ids], params, use_tqdm=False)
        texts = {prompt.prompt_id: [o.text for o in one.outputs] for prompt, one in zip(prompts, done, strict=True)}
        return [len(o.token_ids) for one in done for o in one.outputs], texts

    return generate


def _ours(recipe: Recipe, run: RunDir) -> tuple[list[int], dict[str, list[str]]]:
    """The sample stage into a fresh run directory. Reading it back is part of the time."""
    from dpo_data.pipeline import run_stage

    run_stage("sample", recipe, run, lambda stage, done, total: None)
    rows = list(run.stage("sample").rows(Sample))
    texts = {row.prompt_id: [c.text for c in row.completions] for row in rows}
    return [c.n_tokens or 0 for row in rows for c in row.completions], texts


if __name__ == "__main__":
    main(sys.argv[1:])
