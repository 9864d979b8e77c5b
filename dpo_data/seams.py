"""The three seams, where users and later releases plug in: Engine, Judge, Filter; and the base of every recipe table.

A new engine or judge is one file: its `Settings`, with a `type` literal and a `build` that imports what is heavy, and what it
builds. Its name then goes into the union in the package's `__init__`. Nothing else changes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from dpo_data.rows import (
    Completion,
    Message,
    PreferencePair,
    Prompt,
    Ranking,
    Sample,
    TemplateKwargs,
    Tools,
    answered,
    completion_ids,
    request_seed,
)

Filter = Callable[[PreferencePair], str | None]
"""A filter returns the reason to drop a pair, or None."""

Progress = Callable[[str, int, int], None]
"""Called as (stage, rows done, rows in all) while a stage runs."""

Sampling = Mapping[str, Any]
"""Sampling parameters by the engine's own names; passed on as they are."""


DECIDING = "deciding"


class Settings(BaseModel):
    """The base of every table of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    incidental: ClassVar[frozenset[str]] = frozenset()
    """Keys that decide no row, so that a run may go on after they have changed."""

    def deciding(self, *tables: str) -> dict[str, Any]:
        """Those tables as JSON values, without what is incidental at any depth."""
        return self.model_dump(mode="json", include=set(tables), context=DECIDING)

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        table: dict[str, Any] = handler(self)
        return {key: value for key, value in table.items() if info.context != DECIDING or key not in self.incidental}


@dataclass(frozen=True, slots=True)
class Request:
    """A conversation to answer. `id` comes back with the answer; `schema` is a JSON schema that the answer must meet; `tools`
    are shown to the model by its chat template, whose own variables are `chat_template_kwargs`."""

    id: str
    messages: list[Message]
    seed: int
    schema: dict[str, Any] | None = None
    tools: Tools | None = None
    chat_template_kwargs: TemplateKwargs | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One answer. `logprob`: sum over its tokens in nats; None where the engine does not tell. `model`: who answered, where
    that is not the engine's one model. `tool_calls`: as in a Message. `score`: of an answer that was given with one.
    `token_ids`: as in a Completion."""

    text: str
    finish_reason: str | None
    n_tokens: int | None = None
    logprob: float | None = None
    model: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    score: float | None = None
    token_ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Completed:
    """All answers to one request; or none, and the `error` that prevented them. `n_prompt_tokens`: how many were read, and
    `n_cached_tokens`: how many of them the engine had read before; None where it does not tell."""

    id: str
    outputs: list[Output]
    error: str | None = None
    n_prompt_tokens: int | None = None
    n_cached_tokens: int | None = None


class Engine(Protocol):
    """Generates text. `model` names what answered; `close` gives back processes and memory."""

    model: str

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        """Answer requests, each as it finishes, in any order; pull further requests while others run.

        A None among the requests says that none is ready: the next one hangs on an answer. So the engine pulls again after it
        has given one, and ends, with the requests not exhausted, where it has none left to give.
        """
        ...

    def close(self) -> None: ...


class Judge(Protocol):
    """Ranks completions. `name` stands in every row; `close` gives back what it holds."""

    name: str

    def rank(self, groups: Iterable[Sample]) -> Iterator[Ranking]:
        """Rank each group as it finishes, in any order. May yield fewer than it was given: those await an answer."""
        ...

    def close(self) -> None: ...


Engines = Callable[[Settings], Engine]
"""Makes an engine of an engine's table. What a judge is built with makes engines whose answers are kept and counted."""


def once(engines: Engines, key: str, decide: Callable[[], Any], lasting: bool = False) -> Any:
    """What `decide` says, a JSON value: the same again in a run that goes on, where what makes the engines keeps decisions. One
    that is not `lasting` is made anew as long as no row that stands on it is written.

    For a choice over all prompts, of which a run that goes on sees those alone that are not finished.
    """
    keep: Callable[[str, Callable[[], Any], bool], Any] | None = getattr(engines, "once", None)
    return keep(key, decide, lasting) if keep else decide()


def answer(engine: Engine, prompts: Iterable[Prompt], sampling: Sampling, seed: int, first: int = 0) -> Iterator[Sample]:
    """Prompts through an engine, one stream in and one out. Each request is seeded by the run's seed and the prompt's id.

    `first` is the index of a prompt's first completion: above 0 where another engine has answered before.
    """
    asked: dict[str, Prompt] = {}

    def requests() -> Iterator[Request]:
        for prompt in prompts:
            asked[prompt.prompt_id] = prompt
            key = f"{prompt.prompt_id}/{first}" if first else prompt.prompt_id
            yield Request(
                prompt.prompt_id,
                prompt.prompt,
                request_seed(seed, key),
                tools=prompt.tools,
                chat_template_kwargs=prompt.chat_template_kwargs,
            )

    settings = {**sampling, "seed": seed}
    for completed in engine.complete(requests(), sampling):
        yield _sampled(asked.pop(completed.id), completed, engine.model, settings, first)


def _sampled(prompt: Prompt, completed: Completed, model: str, sampling: Sampling, first: int) -> Sample:
    """A prompt with its completions. Fewer than were asked for is a failure that says so; without `n`, any number will do."""
    came, error = len(completed.outputs), completed.error
    if error is None and came != sampling.get("n", came):
        error = f"{came} of {sampling['n']} completions came back"
    if error is not None:
        return answered(prompt, [], error)
    models = [out.model or model for out in completed.outputs]
    ids = {who: completion_ids(prompt.prompt_id, who, sampling, first + came) for who in dict.fromkeys(models)}
    completions = [
        Completion(
            ids[who][index],
            index,
            out.text,
            out.finish_reason,
            out.n_tokens,
            out.logprob,
            who,
            out.tool_calls,
            out.score,
            out.token_ids,
        )
        for index, (who, out) in enumerate(zip(models, completed.outputs, strict=True), first)
    ]
    return answered(prompt, completions)


def ready(requests: Iterator[Request | None], most: int) -> Iterator[Request]:
    """At most so many of the requests that are ready now."""
    return (request for request in takewhile(lambda request: request is not None, islice(requests, most)) if request)


def abstention(group: Sample, judge: str, reason: str, transcript: str = "[]") -> Ranking:
    """The ranking of a judge that cannot decide: no scores, and the reason."""
    ids = [completion.completion_id for completion in group.completions]
    return Ranking(group.prompt_id, judge, ids, [None] * len(ids), reason, transcript)
