"""A language model judges real answers: how much of the time is not the engine's, and whether both ways to the model agree.

    python benchmarks/judge.py FILE [pairwise] [listwise] [rubric]

The file holds instructions with an `output` (Alpaca). Each gets four answers: the output, its first half, its second half, and
the output of the next instruction. The judge is a random Llama of 1.3 M parameters with a tokenizer learnt from the file, in
float32 and greedy, so that its verdicts are noise, but the same noise each time. Three slices of the prompts are each judged by
`LanguageJudge` through the ledger, and by one `LLM.generate` of the same requests, by turns, each on an engine of its own that
has seen no slice before. Then vLLM's OpenAI-compatible server, with the same model, judges all of them, by turns with a bare
client that sends the same requests as ready bytes and reads no answer.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from usage import free_port

from dpo_data.child import Child, Parent
from dpo_data.demo.model import build_tokenizer, tiny_llama
from dpo_data.engines.server import Server
from dpo_data.engines.vllm import ENVIRONMENT, Vllm, VllmEngine
from dpo_data.judges.listwise import Listwise
from dpo_data.judges.pairwise import Pairwise
from dpo_data.judges.rubric import Rubric
from dpo_data.ledger import Ledger
from dpo_data.rows import Completion, Ranking, Sample, content_id, prompt_id
from dpo_data.seams import Completed, Engine, Request, Sampling, Settings

ROUNDS, SEED = 3, 0
PARAMS = {"temperature": 0.0, "max_tokens": 64}
ARGS = {"dtype": "float32", "max_model_len": 4096}
JUDGES: dict[str, Any] = {
    "pairwise": Pairwise(reason=0, schedule="all", params=PARAMS),
    "listwise": Listwise(reason=0, params=PARAMS),
    "rubric": Rubric(reason=0, params=PARAMS),
}


def main(path: str, names: list[str]) -> None:
    groups = list(_groups(json.loads(Path(path).read_text(encoding="utf-8"))))
    with tempfile.TemporaryDirectory() as folder:
        model = _model(Path(folder), [turn["content"] for group in groups for turn in group.prompt] + _texts(groups))
        for name in names or list(JUDGES):
            ours, raw = VllmEngine(Vllm(model=model, args=ARGS)), _Raw(model)
            STARTED.append(ours)
            times, rows, spent = _by_turns(Path(folder) / name, name, groups, raw)
            ours.close()
            raw.close()
            share = median(ours / raw for ours, raw in times)
            calls, cached = spent.calls, (spent.cached_tokens or 0) / spent.prompt_tokens
            unread = sum("unread" in entry and bool(entry["unread"]) for row in rows for entry in json.loads(row.transcript))
            print(
                f"{name}: {len(rows)} prompts × 4, {calls:,} calls, {spent.tokens:,} tokens, {cached:.0%} of prompts cached; "
                f"{unread} unread; {sum(ours for ours, _ in times):.1f} s against {sum(raw for _, raw in times):.1f} s raw, "
                f"median ratio {share:.3f} ({', '.join(f'{ours / raw:.3f}' for ours, raw in times)})",
                flush=True,
            )
            with _serving(model) as url:
                times, served = _served(Path(folder) / f"{name}-served", name, groups, url)
            shares = [ours / bare for ours, bare in times]
            print(
                f"{name} by server: {sum(ours for ours, _ in times):.1f} s, {sum(bare for _, bare in times):.1f} s by a bare "
                f"client, median ratio {median(shares):.3f} ({', '.join(f'{share:.3f}' for share in shares)}); "
                f"{_same(rows, served)} of {len(rows)} rankings are the same",
                flush=True,
            )


def _by_turns(folder: Path, name: str, groups: list[Sample], raw: "_Raw") -> Any:
    """Seconds of (ours, raw) by slice, all rankings, and what was spent."""
    times, rows = [], []
    ledger = Ledger(folder / "calls.sqlite", "rank")
    for at in range(ROUNDS):
        part = groups[at::ROUNDS]
        requests = _requests(name, part)
        took: dict[str, float] = {}
        for who in ("ours", "raw") if at % 2 else ("raw", "ours"):
            began = time.perf_counter()
            if who == "ours":
                judge = JUDGES[name].build(_Started(), SEED, ledger.engine)
                rows += list(judge.rank(part))
                took[who] = time.perf_counter() - began
            else:
                took[who] = raw.seconds(requests)
        times.append((took["ours"], took["raw"]))
    spent = ledger.spent()
    ledger.close()
    return times, rows, spent


STARTED: list[Engine] = []


def _served(folder: Path, name: str, groups: list[Sample], url: str) -> tuple[list[tuple[float, float]], list[Ranking]]:
    """Seconds of (ours, a bare client) by slice, and all rankings. A salt each, so that neither reads the other's cache."""
    times, rows = [], []
    ledger = Ledger(folder / "calls.sqlite", "rank")
    table = Server(base_url=url, model="tiny", logprobs=False)
    settings = JUDGES[name].model_copy(update={"params": {**PARAMS, "cache_salt": "ours"}})
    for at in range(ROUNDS):
        part = groups[at::ROUNDS]
        bodies = [_body(one) for one in _requests(name, part)]
        took: dict[str, float] = {}
        for who in ("ours", "bare") if at % 2 else ("bare", "ours"):
            began = time.perf_counter()
            if who == "ours":
                rows += list(settings.build(table, SEED, ledger.engine).rank(part))
            else:
                _post(url, bodies, table.concurrency)
            took[who] = time.perf_counter() - began
        times.append((took["ours"], took["bare"]))
    ledger.close()
    return times, rows


def _body(request: dict[str, Any]) -> bytes:
    """A request as our client sends it."""
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": request["schema"], "strict": True}}
    plain = {"model": "tiny", "messages": request["messages"], "seed": SEED, "response_format": schema, "cache_salt": "bare"}
    return json.dumps({**plain, **PARAMS}).encode()


def _post(url: str, bodies: list[bytes], concurrency: int) -> None:
    """The least that a client can do: ready bytes out over kept connections, and bytes back that nobody reads."""
    place, local = urlsplit(url), threading.local()

    def post(body: bytes) -> None:
        if not hasattr(local, "connection"):
            local.connection = HTTPConnection(place.netloc)
        local.connection.request("POST", f"{place.path}/chat/completions", body, {"Content-Type": "application/json"})
        answer = local.connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.reason

    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(post, bodies))


class _Started(Settings):
    """The table of the engine that runs already."""

    type: str = "started"
    model: str = "started"

    def build(self) -> Engine:
        return STARTED[-1]


def _requests(name: str, groups: list[Sample]) -> list[dict[str, Any]]:
    """Every request that the judge makes, each once."""
    seen: dict[str, dict[str, Any]] = {}

    class Listening:
        model = "listening"

        def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
            for request in requests:
                if request is None:
                    return
                key = content_id(request.messages)
                seen[key] = {"messages": request.messages, "schema": request.schema}
                yield Completed(request.id, [], "only listening")

        def close(self) -> None: ...

    list(JUDGES[name].build(_Started(), SEED, lambda table: Listening()).rank(groups))
    return list(seen.values())


class _Raw:
    """A child with vLLM's own `LLM`."""

    def __init__(self, model: str):
        self._child = Child("judge:raw", logger="raw", env={**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parent)})
        self._child.send({"model": model})
        assert self._child.receive() == "ready"

    def seconds(self, requests: list[dict[str, Any]]) -> float:
        self._child.send(requests)
        return float(self._child.receive())

    def close(self) -> None:
        self._child.close()


def raw(parent: Parent) -> None:
    """The child: one `LLM.generate` for each list of requests, and how long it took."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from dpo_data.engines.vllm_child import _defaults as defaults

    llm = LLM(parent.receive()["model"], **{**defaults(), **ARGS})
    tokenizer = llm.get_tokenizer()
    parent.send("ready")
    while True:
        requests = parent.receive()
        began = time.perf_counter()
        prompts: Any = [
            {
                "prompt_token_ids": tokenizer.apply_chat_template(
                    one["messages"], tokenize=True, add_generation_prompt=True, return_dict=False
                )
            }
            for one in requests
        ]
        params = [
            SamplingParams(seed=SEED, structured_outputs=StructuredOutputsParams(json=one["schema"]), logprobs=0, **PARAMS)
            for one in requests
        ]
        llm.generate(prompts, params, use_tqdm=False)
        parent.send(time.perf_counter() - began)


def _groups(records: list[dict[str, Any]]) -> Iterator[Sample]:
    seen: set[str] = set()
    for at, record in enumerate(records):
        output, other = record["output"], records[(at + 1) % len(records)]["output"]
        half = len(output) // 2
        messages = [{"role": "user", "content": "\n".join(filter(None, (record["instruction"], record.get("input"))))}]
        id = prompt_id(messages)
        if id in seen:  # as a run drops repeated prompts
            continue
        seen.add(id)
        completions = [
            Completion(content_id([id, index]), index, text, "stop", None, None, "given")
            for index, text in enumerate((output, output[:half], output[half:], other))
        ]
        yield Sample(id, messages, f"{at}", completions, None)


def _texts(groups: list[Sample]) -> list[str]:
    return [completion.text for group in groups for completion in group.completions[:1]]


def _model(folder: Path, texts: list[str]) -> str:
    import torch

    torch.manual_seed(0)
    tokenizer = build_tokenizer(texts, vocabulary=8000)
    tiny_llama(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


def _same(ours: list[Ranking], theirs: list[Ranking]) -> int:
    other = {row.prompt_id: row for row in theirs}
    return sum(row.scores == other[row.prompt_id].scores and row.abstained is None for row in ours)


@contextmanager
def _serving(model: str) -> Iterator[str]:
    """vLLM's own server, while the block runs; its base_url."""
    port = free_port()
    flags = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"]
    flags += ["--no-enable-chunked-prefill", "--max-model-len", "4096", "--kv-cache-memory-bytes", str(2**30)]
    flags += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *flags]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True, env={**os.environ, **ENVIRONMENT})
    try:
        while True:
            assert server.poll() is None, "vLLM's server ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
