"""The child's side of the vLLM engine: one loop that adds what has arrived, steps the engine, and sends what has finished."""

import difflib
import gc
import inspect
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from dpo_data.child import Parent
from dpo_data.engines.adapters import weights
from dpo_data.errors import EngineError
from dpo_data.rows import content_id

BEAT = 1.0
"""Seconds between two signs of life to the parent, each after a step: none comes of an engine that hangs in one."""
GRACE = 30.0
"""Seconds in which vLLM says why its core died while it started, if it does."""


class Steps(Protocol):
    """What answers in a child: `live` requests, all at once. `started` is told to the parent when it is ready."""

    @property
    def live(self) -> int: ...
    @property
    def started(self) -> dict[str, Any]: ...

    def accept(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Take what the parent sent; returns what to answer at once, if anything."""
        ...

    def step(self) -> list[dict[str, Any]]:
        """Work for a moment; returns the answers that are finished."""
        ...


def serve(parent: Parent) -> None:
    """Start vLLM with the settings that come first, then answer requests for as long as the parent lives."""
    keep_answering(parent, _Engine)


def keep_answering(parent: Parent, make: Callable[[dict[str, Any]], Steps]) -> None:
    """Make what answers of the settings that come first, then answer requests for as long as the parent lives."""
    settings, started = parent.receive(), threading.Event()
    threading.Thread(target=_watch, args=[started], daemon=True).start()
    try:
        engine = make(settings)
    except EngineError as error:
        parent.send({"failed": error.what, "remedy": error.remedy})
        return
    except Exception as error:  # whatever an engine raises while it starts, the parent must hear it as one line
        traceback.print_exc()
        parent.send({"failed": line(error)})
        return
    gc.freeze()  # what the model's libraries have made stays, and a look through it takes half a second, again and again
    started.set()
    parent.send(engine.started)
    told = time.monotonic()
    while True:
        arrived = list(parent.received()) or ([] if engine.live else [parent.receive()])
        for message in arrived:
            answer = engine.accept(message)
            if answer:
                parent.send(answer)
        if engine.live:
            parent.send(*engine.step())
            if time.monotonic() - told >= BEAT:
                parent.send({"stepped": True})
                told = time.monotonic()


def _watch(started: threading.Event) -> None:
    """vLLM waits for ever for the answer of a core that was killed, as for its memory: go with it, so that the parent hears.
    Where it has not started yet, it may say better what its core died of, and is given the time."""
    cores: dict[Any, Any] = {}
    dead: list[Any] = []
    while not dead:
        whole = started.is_set()
        cores |= {one.sentinel: one for one in multiprocessing.active_children() if whole or one.name.startswith("EngineCore")}
        dead = connection.wait(list(cores), None if whole else BEAT)
    cores[dead[0]].join()
    started.wait(GRACE)
    print(f"RuntimeError: vLLM's engine core ended with exit code {cores[dead[0]].exitcode}", file=sys.stderr, flush=True)
    os._exit(1)


class _Engine:
    """vLLM's own engine, below `LLM.generate`, so that requests can join while others run."""

    def __init__(self, settings: dict[str, Any]):
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        tokenizer = {"tokenizer": settings["model"], "tokenizer_revision": settings["revision"]}
        with weights(settings) as (model, revision, adapter):
            args = {**_defaults(), **(_adapter_defaults(adapter) if adapter else {}), **tokenizer, **settings["args"]}
            args |= smaller(args) if settings.get("smaller") else {}
            llm = LLM(model, revision=revision, **args)
        self._engine = llm.llm_engine
        self._tokenizer, self._template = llm.get_tokenizer(), settings["chat_template"]
        if not (self._template or getattr(self._tokenizer, "chat_template", "one of another kind")):
            raise EngineError(
                f"{settings['model']} has no chat template, so its prompts have no form",
                "Name a Jinja file with chat_template in the engine's table, or use an instruct model.",
            )
        self._lora = LoRARequest("adapter", 1, adapter) if adapter else None
        self._sampling: dict[str, Any] = {}
        self.max_num_seqs = self._engine.vllm_config.scheduler_config.max_num_seqs
        self.live = 0

    @property
    def started(self) -> dict[str, Any]:
        return {"max_num_seqs": self.max_num_seqs, "policy": self._policy()}

    def accept(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Take new sampling parameters, or a request; returns what to answer at once, if anything."""
        if "sampling" in message:
            self._sampling = {name: _by_token(value) for name, value in message["sampling"].items()}
            try:
                self._params({"seed": 0, "schema": None})
            except Exception as error:  # TypeError, ValueError or one of its own, by version
                return {"refused": line(error), "remedy": self._nearest()}
            return None
        try:
            self._engine.add_request(message["id"], self._prompt(message), self._params(message), lora_request=self._lora)
        except (
            Exception
        ) as error:  # this prompt's own fault (too long, no template for it; the type differs by version): the others go on
            return {"id": message["id"], "outputs": [], "error": line(error)}
        self.live += 1
        return None

    def step(self) -> list[dict[str, Any]]:
        finished = [output for output in self._engine.step() if output.finished]
        self.live -= len(finished)
        return [_completed(output) for output in finished]

    def _prompt(self, message: dict[str, Any]) -> Any:
        ids = token_ids(self._tokenizer, message, add_generation_prompt=True, chat_template=self._template)
        return {"prompt_token_ids": ids}

    def _policy(self) -> dict[str, Any]:
        """What decides the log-probs beside the weights, as vLLM has really made it."""
        config = self._engine.vllm_config
        template = self._template or getattr(self._tokenizer, "chat_template", None)
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        rounded = [config.model_config.quantization, config.cache_config.cache_dtype]
        return {
            "dtype": dtype,
            "quantization": ", ".join(str(one) for one in rounded if one not in (None, "auto", dtype)) or None,
            "template": content_id(template) if template else None,
            "logprobs": str(config.model_config.logprobs_mode),
        }

    def _params(self, message: dict[str, Any]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        structured = {"structured_outputs": StructuredOutputsParams(json=message["schema"])} if message["schema"] else {}
        given = {"logprobs": 0, "seed": message["seed"], **structured, **self._sampling}
        return SamplingParams(**given, output_kind=RequestOutputKind.FINAL_ONLY)

    def _nearest(self) -> str:
        from vllm import SamplingParams

        known = list(inspect.signature(SamplingParams).parameters)
        unknown = [key for key in self._sampling if key not in known]
        near = difflib.get_close_matches(unknown[0], known, 1) if unknown else []
        return f"Did you mean {near[0]!r}?" if near else "See SamplingParams in vLLM's documentation."


def token_ids(
    tokenizer: Any, message: dict[str, Any], add_generation_prompt: bool, chat_template: str | None = None
) -> list[int]:
    """A request's conversation through the tokenizer's chat template, or the one given. Token ids, not text: rendering the
    template to text and tokenising that puts a second BOS in front. Raises ValueError where the template puts two there by
    itself."""
    given = {"tools": message.get("tools"), "chat_template": chat_template, **(message.get("chat_template_kwargs") or {})}
    ids = tokenizer.apply_chat_template(
        message["messages"],
        tokenize=True,
        add_generation_prompt=add_generation_prompt,
        return_dict=False,
        **{name: value for name, value in given.items() if value is not None},
    )
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise ValueError("the chat template puts two BOS tokens in front")
    return list(ids)


def _defaults() -> dict[str, Any]:
    """Engine arguments that a user may still override."""
    return {
        "logprobs_mode": "raw_logprobs",
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        **cpu_defaults(),
    }


def cpu_defaults() -> dict[str, Any]:
    """What of them a CPU needs; nothing on a GPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {}
    # The CPU build fails on a seeded request whose prefill is split over two steps ("CPU Generator does not use offset").
    return {"enforce_eager": True, "enable_chunked_prefill": False, "kv_cache_memory_bytes": 2**30}


def smaller(args: dict[str, Any]) -> dict[str, int]:
    """Half the batch that the arguments name; where they name none, one that is smaller than any default of vLLM's. A prompt
    that is read in one step must fit into it, so without chunked prefill its tokens stay as they are."""
    batch = {"max_num_seqs": 128, "max_num_batched_tokens": 4096 if args.get("enable_chunked_prefill", True) else None}
    return {name: max(1, args.get(name, most) // 2) for name, most in batch.items() if most}


def _adapter_defaults(adapter: str) -> dict[str, Any]:
    return {"enable_lora": True, "max_lora_rank": json.loads((Path(adapter) / "adapter_config.json").read_text())["r"]}


def _by_token(value: Any) -> Any:
    """A table's keys are text in TOML and JSON; vLLM wants numbers where they are token ids, as in `logit_bias`."""
    if not isinstance(value, dict):
        return value
    return {int(key) if key.isdigit() else key: inner for key, inner in value.items()}


def _completed(done: Any) -> dict[str, Any]:
    return {
        "id": done.request_id,
        "outputs": [_output(output) for output in done.outputs],
        "error": None,
        "n_prompt_tokens": len(done.prompt_token_ids),
        "n_cached_tokens": done.num_cached_tokens,
    }


def _output(output: Any) -> dict[str, Any]:
    return {
        "text": output.text,
        "finish_reason": output.finish_reason,
        "n_tokens": len(output.token_ids),
        "logprob": output.cumulative_logprob,
        "token_ids": list(output.token_ids),
    }


def line(error: Exception) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
