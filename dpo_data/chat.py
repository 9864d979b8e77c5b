"""A client for OpenAI-compatible chat servers: many requests in flight, retries with backoff, structured output.

Everything of `sampling` goes into the request's body as it is, so a server's own parameters (`top_k`, `min_p`) need no release
of ours.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import count
from queue import SimpleQueue
from threading import Thread
from typing import Any

from dpo_data.errors import EngineError
from dpo_data.rows import Message
from dpo_data.seams import Completed, Output, Request, Sampling, ready
from dpo_data.wire import FAILURES, Answer, Wire


class ChatClient:
    """Answers requests through one server. A request that the server refuses as bad is an answer with its error;
    a server that cannot be reached, or knows neither key nor model, ends the run with EngineError."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_env: str,
        concurrency: int,
        retries: int,
        timeout: float,
        logprobs: bool,
        structured: bool,
    ):
        self.base_url, self.model = base_url, model
        self._key_env, self._concurrency, self._logprobs, self._structured = key_env, concurrency, logprobs, structured
        self._key = os.environ.get(key_env, "").strip()
        if not re.fullmatch("[!-~]*", self._key):
            raise EngineError(f"{key_env} cannot be a key: it holds blanks, line ends or letters beyond ASCII", "Set it anew.")
        headers = {"Authorization": f"Bearer {self._key or 'none'}", "User-Agent": "dpo-data"}
        self._wire = partial(Wire, f"{base_url.rstrip('/')}/chat/completions", headers, retries, timeout)
        try:
            self._wire()  # and so in every thread
        except (ValueError, OSError) as error:
            raise EngineError(
                f"{base_url} cannot be asked: {error}", "Mend base_url in the recipe, or SSL_CERT_FILE."
            ) from None

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        """Keeps `concurrency` requests on the way, and yields each as it is answered."""
        asked: SimpleQueue[Request | None] = SimpleQueue()
        answered: SimpleQueue[Completed | Exception] = SimpleQueue()

        def work() -> None:
            with closing(self._wire()) as wire:
                while (request := asked.get()) is not None:
                    try:
                        answered.put(self._ask(wire, request, sampling))
                    except Exception as error:  # raised below, where the run can end with it
                        answered.put(error)

        for _ in range(self._concurrency):  # daemons: neither an error nor Ctrl-C waits for answers that are on their way
            Thread(target=work, daemon=True).start()
        waiting, live = iter(requests), 0
        try:
            while True:
                for request in ready(waiting, self._concurrency - live):
                    asked.put(request)
                    live += 1
                if not live:
                    return
                answer = answered.get()
                live -= 1
                if isinstance(answer, Exception):
                    raise answer
                yield answer
        finally:
            for _ in range(self._concurrency):
                asked.put(None)

    def close(self) -> None: ...

    def _ask(self, wire: Wire, request: Request, sampling: Sampling) -> Completed:
        try:
            answer = wire.post(self._body(request, sampling))
        except FAILURES as error:
            raise EngineError(
                f"No answer from {self.base_url}: {error or type(error).__name__}",
                "Start the server, or mend base_url in the recipe.",
            ) from None
        if answer.status != 200:
            return Completed(request.id, [], self._refusal(answer))
        try:
            told = json.loads(answer.body)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise EngineError(f"{self.base_url} answers, and not as OpenAI's API does", "Mend base_url in the recipe.")
        usage = told.get("usage") or {}
        tokens = usage.get("completion_tokens") if int(sampling.get("n", 1)) == 1 else None
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        outputs = [_output(choice, tokens) for choice in told.get("choices") or []]
        return Completed(request.id, outputs, None, usage.get("prompt_tokens"), cached)

    def _body(self, request: Request, sampling: Sampling) -> bytes:
        body: dict[str, Any] = {"model": self.model, "messages": on_the_wire(request.messages), "seed": request.seed}
        if self._logprobs:
            body["logprobs"] = True
        body |= sampling
        if request.schema and self._structured:
            named = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        if request.tools:
            body["tools"] = request.tools
        if request.chat_template_kwargs:
            body["chat_template_kwargs"] = request.chat_template_kwargs
        return json.dumps(body).encode()

    def _refusal(self, answer: Answer) -> str:
        """Why the server refuses this request. Raises EngineError where it would refuse every one."""
        said = self._without_key(answer.body.decode("utf-8", "replace"))[:400]
        if answer.status in (401, 403):
            raise EngineError(f"{self.base_url} refuses the key: {said}", f"Set {self._key_env} in the environment.")
        if answer.status == 404 or answer.location:
            where = f"; it points to {self._without_key(answer.location)}" if answer.location else ""
            raise EngineError(
                f"{self.base_url} does not know this model or address: {said}{where}", "Mend model or base_url in the recipe."
            )
        if answer.status == 429:  # of no prompt's making, and after all retries
            raise EngineError(
                f"{self.base_url} takes no more requests: {said}",
                "Lower concurrency, or run again later: what was answered is kept.",
            )
        return f"status {answer.status}: {said}"

    def _without_key(self, said: str) -> str:
        """What a server says, which may repeat what it was sent."""
        return said.replace(self._key, "…") if self._key else said


def on_the_wire(messages: list[Message]) -> list[Message]:
    """Messages as OpenAI's API takes them: a call's arguments as JSON text, and an id that ties each tool's turn to the call it
    answers, in their order. Nine letters and digits, as Mistral's chat templates insist."""
    ids = (f"call{at:05d}" for at in count(1))
    open_calls: list[str] = []
    sent: list[Message] = []
    for message in messages:
        if message.get("tool_calls"):
            open_calls = [next(ids) for _ in message["tool_calls"]]
            calls = [
                {"id": id, **call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}}
                for id, call in zip(open_calls, message["tool_calls"], strict=True)
            ]
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool":
            message = {**message, "tool_call_id": open_calls.pop(0) if open_calls else next(ids)}
        sent.append(message)
    return sent


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _calls(message: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tool calls of an answer as a Message holds them; arguments that are not JSON stay the text that they are."""
    calls = [call["function"] for call in message.get("tool_calls") or []]
    return [
        {"type": "function", "function": {"name": _whole(call["name"]), "arguments": _arguments(call["arguments"])}}
        for call in calls
    ] or None


def _arguments(text: str) -> Any:
    try:
        return json.loads(_whole(json.dumps(json.loads(text), ensure_ascii=False)))
    except ValueError:
        return _whole(text)


def _whole(text: str) -> str:
    """A text without halves of surrogate pairs, which are no characters."""
    return text.encode("utf-8", "replace").decode()


def _output(choice: Mapping[str, Any], tokens: int | None) -> Output:
    """With log-probs the tokens are counted one by one; without, the server only tells their sum over all n answers."""
    message = choice["message"]
    counted = (choice.get("logprobs") or {}).get("content")
    return Output(
        _whole(message.get("content") or ""),
        choice.get("finish_reason"),
        len(counted) if counted is not None else tokens,
        sum(token["logprob"] for token in counted) if counted is not None else None,
        tool_calls=_calls(message),
    )
