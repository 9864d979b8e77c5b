"""The few row types, and the content ids that join them.

A row is a frozen dataclass in Python and a row of a Parquet file on disk; `tables` goes between the two. Rows are joined by id,
never by text or by position.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Message = dict[str, Any]
"""One turn of a conversation: {"role": "system" | "user" | "assistant" | "tool", "content": text}. An assistant's turn may also
hold `tool_calls`: [{"type": "function", "function": {"name": text, "arguments": object}}], as chat templates want them."""

Tools = list[dict[str, Any]]
"""The tools that a conversation may call: JSON schemas, as chat templates want them."""

TemplateKwargs = dict[str, Any]
"""A chat template's own variables, such as {"enable_thinking": False}; none is None, never an empty one."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that awaits an answer. `source` says where it came from, as `file:line` unless the file says more;
    `reference` is an answer that is known to be right, which is no part of the prompt."""

    prompt_id: str
    prompt: list[Message]
    source: str
    tools: Tools | None = None
    reference: str | None = None
    chat_template_kwargs: TemplateKwargs | None = None


@dataclass(frozen=True, slots=True)
class DroppedPrompt:
    """A prompt that is not sampled, with the filter that dropped it and the reason."""

    prompt_id: str
    prompt: list[Message]
    source: str
    filter: str
    reason: str
    tools: Tools | None = None
    reference: str | None = None
    chat_template_kwargs: TemplateKwargs | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer. `logprob` is the sum over its `n_tokens` tokens, in nats, under the model itself. An answer that calls tools
    holds `tool_calls`, as a Message does; `score` is the one it came with, where it was given and not generated. `token_ids`
    are those tokens as they were sampled, the end token among them and the prompt not; None where the engine does not tell."""

    completion_id: str
    index: int
    text: str
    finish_reason: str | None
    n_tokens: int | None
    logprob: float | None
    model: str
    tool_calls: list[dict[str, Any]] | None = None
    score: float | None = None
    token_ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and its N completions; or no completions and the `error` that prevented them."""

    prompt_id: str
    prompt: list[Message]
    source: str
    completions: list[Completion]
    error: str | None
    tools: Tools | None = None
    reference: str | None = None
    chat_template_kwargs: TemplateKwargs | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """What one judge makes of one prompt's completions.

    `scores[i]` belongs to `completion_ids[i]`: higher is better, equal is a tie, None is "not judged".
    `abstained` is None, or the reason why the judge could not decide; `transcript` is JSON: what was asked and answered.
    """

    prompt_id: str
    judge: str
    completion_ids: list[str]
    scores: list[float | None]
    abstained: str | None
    transcript: str


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A chosen and a rejected answer to one prompt, in TRL's explicit-prompt conversational format.

    `n_tokens_*` are None where nobody counted. `flags` say what a filter noticed without dropping the pair.
    """

    prompt_id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    chosen_id: str
    rejected_id: str
    score_chosen: float
    score_rejected: float
    margin: float
    n_tokens_chosen: int | None
    n_tokens_rejected: int | None
    judge: str
    model_chosen: str
    model_rejected: str
    source: str
    flags: list[str]
    tools: Tools | None = None
    chat_template_kwargs: TemplateKwargs | None = None


@dataclass(frozen=True, slots=True)
class DroppedPair:
    """A pair that was dropped, or a prompt that gave none, with the filter and the reason; what was never known is None."""

    prompt_id: str
    prompt: list[Message]
    chosen: list[Message] | None
    rejected: list[Message] | None
    chosen_id: str | None
    rejected_id: str | None
    score_chosen: float | None
    score_rejected: float | None
    margin: float | None
    n_tokens_chosen: int | None
    n_tokens_rejected: int | None
    judge: str | None
    model_chosen: str | None
    model_rejected: str | None
    source: str
    flags: list[str]
    filter: str
    reason: str
    tools: Tools | None = None
    chat_template_kwargs: TemplateKwargs | None = None


Row = TypeVar("Row")


def answered(prompt: Prompt, completions: list[Completion], error: str | None = None) -> Sample:
    """A prompt with its completions, or with the error that prevented them."""
    return Sample(
        prompt.prompt_id,
        prompt.prompt,
        prompt.source,
        completions,
        error,
        prompt.tools,
        prompt.reference,
        prompt.chat_template_kwargs,
    )


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def content_id(value: Any) -> str:
    """A 128-bit BLAKE2b hash, in hex, of any JSON value; the same for equal values on every machine."""
    text = _CANONICAL.encode(value)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def prompt_id(messages: list[Message], tools: Tools | None = None, chat_template_kwargs: TemplateKwargs | None = None) -> str:
    """A content hash of a conversation, of the tools that it may call, and of its chat template's variables."""
    turns = [[m["role"], m["content"], *([m["tool_calls"]] if m.get("tool_calls") else [])] for m in messages]
    if chat_template_kwargs:
        return content_id([turns, tools or [], chat_template_kwargs])
    return content_id([turns, tools] if tools else turns)


def completion_ids(prompt_id: str, model: str, sampling: Mapping[str, Any], n: int) -> list[str]:
    """The ids of a prompt's n completions: a hash of prompt, model, sampling settings (the seed among them) and index."""
    settings = content_id(sampling)
    return [content_id([prompt_id, model, settings, index]) for index in range(n)]


def in_share(prompt_id: str, share: float, salt: str) -> bool:
    """Whether a prompt falls into a random `share` (0–1) of all prompts: decided by its id, so it stays when others change."""
    digest = hashlib.blake2b(f"{salt}:{prompt_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def request_seed(seed: int, prompt_id: str) -> int:
    """The sampling seed of one prompt (0 ≤ seed < 2^31), from the run's seed and the prompt's id, never its position."""
    digest = hashlib.blake2b(f"{seed}:{prompt_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 33


def batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows in lists of `size`, the last one shorter."""
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
