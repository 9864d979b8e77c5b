"""Sampling, ours against raw vLLM, against N seeds and against distilabel's client: tokens a second, by turns.

    python benchmarks/sample.py [N…]

A Llama of random weights answers made-up prompts, n times each. Prompts are log-normal in length; a bias on the end token
(`logit_bias`, the same for every way) makes answers geometric in length, so that some are many times longer than others. Every
way keeps its engine, which is idle while another one works; starting is not timed. A round has prompts that no engine has
seen, the same for all ways, and begins with another way each time; told are medians of rounds, after one that warms up.
distilabel is found by import, in the folder PEERS too (default .venv/peers, which `make bench` makes); else it is left out.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

from made_up import SEED, Job, Setting, make_job, make_model
from raw_vllm import Raw, serving
from usage import count, cpu_seconds, hardware, watching

from dpo_data.config import Recipe, parse
from dpo_data.pipeline import run_stage
from dpo_data.rows import Sample, request_seed
from dpo_data.rundir import RunDir

sys.path.append(os.environ.get("PEERS", ".venv/peers"))

WAYS = {
    "raw": "one `LLM.generate` of texts, seeded, with log-probs",
    "ids": "one `LLM.generate` of token ids, the same",
    "plain": "one `LLM.generate`, neither",
    "seeds": "n × `LLM.generate` with n = 1, another seed each",
    "pipeline": "**the sample stage**",
    "server": "**the sample stage**, by vLLM's server, 256 prompts at a time",
    "distilabel": "distilabel's client, by that server, 50 prompts at a time as it comes",
    "distilabel-all": "distilabel's client, by that server, all prompts at once",
}


LLAMA = {"hidden_size": 128, "intermediate_size": 336, "num_hidden_layers": 2, "num_attention_heads": 4}
ARGS = {"dtype": "float32", "max_model_len": 4096, "max_num_seqs": 256}
SETTING = Setting(LLAMA, vocabulary=2000, prompt=60, answer=40, max_tokens=256, answers=2400, args=ARGS)


@dataclass(frozen=True)
class Told:
    """Of one way in one round: seconds; tokens by answer, or by prompt where more is not told; texts by prompt_id; seconds to
    the first shard; CPU-seconds; the GPU's utilisation in percent, look by look."""

    seconds: float
    tokens: list[int]
    texts: dict[str, list[str]] = field(default_factory=dict)
    first: float | None = None
    cpu: float = 1.0
    used: list[int] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return sum(self.tokens) / self.seconds

    @property
    def rate_by_cpu(self) -> float:
        return sum(self.tokens) / self.cpu


Way = Callable[[Job], Told]

SPIN = 2.0
"""Seconds to wait before each way: a worker of vLLM's that has nothing more to do spins for one (busy_loop_s in its
shm_broadcast.py), and would take a core from the way that comes next."""


def main(ns: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        compare(SETTING, ns or [1, 8, 32], list(WAYS), Path(folder))


def compare(setting: Setting, ns: list[int], names: list[str], folder: Path) -> None:
    """Print a table of what each way does in a second at each n, as Markdown."""
    if not find_spec("distilabel"):
        print("distilabel is not installed: left out")
        names = [name for name in names if not name.startswith("distilabel")]
    model = str(make_model(setting, folder / "model"))
    with ExitStack() as stack:
        ways = start(setting, model, names, stack)
        print(f"{hardware()}\n", flush=True)
        for n in ns:
            run_all(ways, make_job(setting, model, folder / f"{n}-warm", n, max(1, setting.answers // 8 // n)), 0)
            jobs = [make_job(setting, model, folder / f"{n}-{at}", n, setting.answers // n) for at in range(setting.rounds)]
            show(n, jobs, [run_all(ways, job, at) for at, job in enumerate(jobs)])


def run_all(ways: dict[str, Way], job: Job, first: int) -> dict[str, Told]:
    """Every way once, beginning with the one at `first`."""
    names = list(ways)
    told = {}
    for name in names[first % len(names) :] + names[: first % len(names)]:
        time.sleep(SPIN)
        before = cpu_seconds()
        with watching() as used:
            done = ways[name](job)
        told[name] = replace(done, cpu=cpu_seconds() - before, used=used)
        made = f"{sum(done.tokens):,} tokens in {done.seconds:.1f} s"
        print(
            f"n = {job.n}, {name}: {made}, {done.rate:,.0f} a second, {told[name].rate_by_cpu:,.0f} a CPU-second",
            file=sys.stderr,
        )
    return {name: told[name] for name in names}


def show(n: int, jobs: list[Job], rounds: list[dict[str, Told]]) -> None:
    prompts = _spread([len(ids) for job in jobs for ids in job.ids.values()])
    print(f"n = {n}: {len(jobs[0].ids)} prompts a round, tokens of a prompt {prompts}", flush=True)
    if "raw" in rounds[0]:
        print(f"tokens of an answer {_spread([tokens for told in rounds for tokens in told['raw'].tokens])}")
    if {"raw", "pipeline"} <= rounds[0].keys():
        same = sum(told["raw"].texts[id] == texts for told in rounds for id, texts in told["pipeline"].texts.items())
        print(f"{same} of {sum(len(job.ids) for job in jobs)} groups of answers are the same by the sample stage and raw")
    print("\n| n | way | tokens/s | of raw (rounds) | by CPU | first shard | GPU idle |\n|---|---|---|---|---|---|---|")
    for name in rounds[0]:
        row = cells([told[name] for told in rounds], [told.get("raw") for told in rounds])
        print(f"| {n} | {WAYS[name]} | {' | '.join(row)} |")
    print(flush=True)


def cells(told: list[Told], raws: list[Told | None]) -> list[str]:
    """What stands in a way's row: medians of rounds, and its ratios to raw in the same round."""
    pairs = [(one, raw) for one, raw in zip(told, raws, strict=True) if raw]
    ratios = [one.rate / raw.rate for one, raw in pairs]
    firsts = [one.first for one in told if one.first is not None]
    used = [percent for one in told for percent in one.used]
    return [
        f"{median(one.rate for one in told):,.0f}",
        f"{median(ratios):.3f} ({', '.join(f'{ratio:.3f}' for ratio in ratios)})" if ratios else "–",
        f"{median(one.rate_by_cpu / raw.rate_by_cpu for one, raw in pairs):.2f}" if pairs else "–",
        f"{median(firsts):.1f} of {median(one.seconds for one in told):.1f} s" if firsts else "–",
        f"{used.count(0) / len(used):.1%}, {sum(used) / len(used):.0f} % used" if used else "–",
    ]


def start(setting: Setting, model: str, names: list[str], stack: ExitStack) -> dict[str, Way]:
    """Start the engines that the ways need. Returns the ways."""
    ways: dict[str, Way] = {}
    if {"raw", "ids", "plain", "seeds"} & set(names):
        with starting("`LLM`"):
            raw = stack.enter_context(Raw(model, setting.args))
        ways |= {"raw": _raw(raw, "texts"), "ids": _raw(raw, "ids"), "plain": _plain(raw), "seeds": _seeds(raw)}
    if "pipeline" in names:
        part = min(1, count() / setting.workers)
        several = {"args": _part(setting.args, part), "workers": setting.workers, "gpus_per_worker": part}
        with starting("the sample stage's engine"):
            ways["pipeline"] = _stage({"type": "vllm", "model": model, **several}, stack)
    if {"server", "distilabel", "distilabel-all"} & set(names):
        with starting("vLLM's server"):
            url = stack.enter_context(serving(model, setting.args))
        ways["server"] = _stage({"type": "server", "base_url": url, "model": model, "concurrency": 256}, stack)
        batches = {"distilabel": 50, "distilabel-all": 10**9}
        ways |= {name: _distilabel(url, model, batch, stack) for name, batch in batches.items() if name in names}
    return {name: ways[name] for name in WAYS if name in names}


@contextmanager
def starting(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{what} started in {time.perf_counter() - began:.0f} s", flush=True)


def _part(args: dict[str, Any], part: float) -> dict[str, Any]:
    """Of the memory that the arguments name, a worker's part of a GPU: those that share one have together what others have."""
    shared = {"gpu_memory_utilization": float, "kv_cache_memory_bytes": int} if 0 < part < 1 else {}
    return {**args, **{name: kind(args[name] * part) for name, kind in shared.items() if name in args}}


def _raw(raw: Raw, form: str) -> Way:
    def way(job: Job) -> Told:
        seeds = [request_seed(SEED, id) for id in job.ids]
        seconds, tokens, texts = raw.generate([*getattr(job, form).values()], [seeds], {**job.sampling, "logprobs": 0})
        return Told(seconds, tokens, dict(zip(job.ids, texts, strict=True)))

    return way


def _plain(raw: Raw) -> Way:
    return lambda job: Told(*raw.generate([*job.texts.values()], [[None] * len(job.ids)], job.sampling)[:2])


def _seeds(raw: Raw) -> Way:
    """As SimPO's on_policy_data_gen/decode.py is run: a process a seed, in which each prompt has one answer. There the prompts
    share the seed; with logits as flat as these their answers would all end at the same token, so here each has its own."""

    def way(job: Job) -> Told:
        seeds: list[list[int | None]] = [[request_seed(seed, id) for id in job.ids] for seed in range(job.n)]
        return Told(*raw.generate([*job.texts.values()], seeds, {**job.sampling, "n": 1})[:2])

    return way


def _stage(engine: dict[str, Any], stack: ExitStack) -> Way:
    """The sample stage, with an engine that is started once."""
    settings = parse(_table(Path("none"), engine)).sample.engine
    built: Any = settings.build()
    stack.callback(built.close)
    shared = patch.object(built, "close", lambda: None)
    own = patch.object(type(settings), "build", lambda self: built)

    def way(job: Job) -> Told:
        recipe, run = _recipe(job, engine), RunDir(job.path.parent / engine["type"])
        began, clock = time.perf_counter(), time.time()
        with shared, own:
            run_stage("sample", recipe, run, lambda *_: None)
        seconds = time.perf_counter() - began
        stage = run.stage("sample")
        rows = list(stage.rows(Sample))
        texts = {row.prompt_id: [one.text for one in row.completions] for row in rows}
        first = min(shard.stat().st_mtime for shard in stage.shards()) - clock
        return Told(seconds, [one.n_tokens or 0 for row in rows for one in row.completions], texts, first)

    return way


def _distilabel(url: str, model: str, batch: int, stack: ExitStack) -> Way:
    """Its client alone: what its pipeline does around it is not there. It sends no seed, and asks for no log-probs."""
    from distilabel.models.llms import OpenAILLM

    llm = OpenAILLM(model=model, base_url=url, api_key="none")
    llm.load()
    stack.callback(lambda: llm.event_loop.run_until_complete(llm._aclient.close()))

    def way(job: Job) -> Told:
        given = {name: job.sampling[name] for name in ("temperature", "top_p")}
        more = {name: job.sampling[name] for name in ("top_k", "logit_bias")} | {"cache_salt": f"distilabel-{batch}"}
        inputs, outputs = list(job.messages.values()), list[Any]()
        began = time.perf_counter()
        for at in range(0, len(inputs), batch):
            outputs += llm.generate_outputs(
                inputs=inputs[at : at + batch],
                num_generations=job.n,
                max_new_tokens=job.sampling["max_tokens"],
                extra_body=more,
                **given,
            )
        seconds = time.perf_counter() - began
        return Told(seconds, [tokens for one in outputs for tokens in one["statistics"]["output_tokens"]])

    return way


def _recipe(job: Job, engine: dict[str, Any]) -> Recipe:
    """`n` goes by way of the engine's parameters, since a recipe asks for two at least. The salt keeps those apart that share a
    server's prefix cache."""
    named = ("temperature", "top_k", "top_p", "max_tokens")
    params = {"n": job.n, "logit_bias": job.sampling["logit_bias"]}
    if engine["type"] == "server":
        params["cache_salt"] = "ours"
    table = {name: job.sampling[name] for name in named} | {"params": params, "shard_size": job.shard_size}
    return parse(_table(job.path, engine, **table))


def _table(path: Path, engine: dict[str, Any], **sample: Any) -> dict[str, Any]:
    return {
        "name": "bench",
        "seed": SEED,
        "prompts": {"path": str(path)},
        "sample": {**sample, "engine": engine},
        "rank": {"judge": {"type": "rule", "rule": "concise"}},
    }


def _spread(numbers: list[int]) -> str:
    low, middle, high = (quantiles(numbers, n=100)[at] for at in (9, 49, 89)) if len(numbers) > 1 else numbers * 3
    return f"{low:.0f} at 10 %, {middle:.0f} at 50 %, {high:.0f} at 90 %, {max(numbers)} at most"


if __name__ == "__main__":
    main([int(n) for n in sys.argv[1:]])
