"""vLLM without us, for benchmarks to compare with: its own `LLM` in a child process, and its own server."""

import json
import os
import runpy
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from usage import free_port

from dpo_data.child import Child, Parent
from dpo_data.engines.vllm import ENVIRONMENT
from dpo_data.engines.vllm_child import _by_token, _defaults

Prompts = list[str] | list[list[int]]
"""Texts with all their special tokens, or token ids."""
Generated = tuple[float, list[int], list[list[str]]]
"""Seconds; tokens, by answer; texts, by prompt."""


class Raw:
    """A child that holds an `LLM` with the engine arguments given, and our defaults beside them."""

    def __init__(self, model: str, args: dict[str, Any]):
        self._child = _child("answer", "raw")
        self._child.send({"model": model, "args": args})
        self._child.receive()

    def generate(self, prompts: Prompts, seeds: list[list[int | None]], sampling: dict[str, Any]) -> Generated:
        """`LLM.generate` of all prompts, once for each list of seeds, in which every prompt has one. Each call begins with an
        empty prefix cache, as a process of its own would; the texts are those of the last."""
        self._child.send({"prompts": prompts, "seeds": seeds, "sampling": sampling})
        told = self._child.receive()
        return told["seconds"], told["tokens"], told["texts"]

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: Any) -> None:
        self._child.close()


def answer(parent: Parent) -> None:
    """The child. What it is timed for begins with the prompts and ends with vLLM's own answers."""
    from vllm import LLM, SamplingParams

    settings = parent.receive()
    llm = LLM(settings["model"], **{**_defaults(), **settings["args"]})
    parent.send("ready")
    while True:
        job = parent.receive()
        given = job["prompts"]
        prompts: Any = [{"prompt" if isinstance(one, str) else "prompt_token_ids": one} for one in given]
        own = {"tokenization_kwargs": {"add_special_tokens": False}} if isinstance(given[0], str) else {}
        sampling = {name: _by_token(value) for name, value in job["sampling"].items()}
        seconds, tokens, done = 0.0, [], []
        for seeds in job["seeds"]:
            params = [SamplingParams(seed=seed, **sampling) for seed in seeds]
            llm.reset_prefix_cache()
            began = time.perf_counter()
            done = llm.generate(prompts, params, use_tqdm=False, **own)
            seconds += time.perf_counter() - began
            tokens += [len(one.token_ids) for group in done for one in group.outputs]
        texts = [[one.text for one in group.outputs] for group in done]
        parent.send({"seconds": seconds, "tokens": tokens, "texts": texts})


@contextmanager
def serving(model: str, args: dict[str, Any]) -> Iterator[str]:
    """vLLM's OpenAI-compatible server with the same engine arguments, while the block runs; its base_url. Raises EngineError
    where it does not start."""
    port = free_port()
    with closing(_child("serve", "server")) as child:
        child.send(["--model", model, "--host", "127.0.0.1", "--port", str(port), *_flags({**_defaults(), **args})])
        while not _is_up(port):
            with suppress(TimeoutError):  # it has nothing to say, unless it ends
                child.receive(0.5)
        yield f"http://127.0.0.1:{port}/v1"


def serve(parent: Parent) -> None:
    """The child: the server, as `python -m` runs it."""
    sys.argv[1:] = parent.receive()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


def _child(function: str, who: str) -> Child:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    return Child(f"raw_vllm:{function}", logger=who, env={**ENVIRONMENT, "PYTHONPATH": path})


def _is_up(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
    except OSError:
        return False
    return True


def _flags(args: dict[str, Any]) -> Iterator[str]:
    """Engine arguments as the server's command line takes them."""
    for name, value in args.items():
        yield f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
        if not isinstance(value, bool):
            yield value if isinstance(value, str) else json.dumps(value)
