"""How a language model judges.

What is asked about one prompt's answers is a generator, an inquiry: it yields questions, gets the replies, yields the questions
that follow from them, and returns the ranking. The inquiries of all prompts share one stream of requests here, so that the
engine is never drained between prompts or rounds.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dpo_data import chat_template
from dpo_data.models import engine_revision
from dpo_data.rows import Message, Ranking, Sample, request_seed
from dpo_data.seams import Completed, Engine, Request, Sampling
from dpo_data.templates import ask, neutral, without_thinking


@dataclass(frozen=True, slots=True)
class Question:
    """One call. `id` tells it from the others about the same prompt. `schema` is the JSON schema to which the engine holds the
    answer. `read` makes a value of the JSON object that comes back, or raises ValueError, KeyError or TypeError."""

    id: str
    text: str
    schema: dict[str, Any]
    read: Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a question: its value; or None, and in `unread` why there is none. `text` is the answer as it was said."""

    value: Any
    unread: str | None
    text: str | None


Inquiry = Generator[list[Question], list[Reply], Ranking]


@dataclass
class LanguageJudge:
    """A language model that judges. An answer that cannot be read is asked for once more, and then is unread."""

    name: str
    engine: Engine
    inquire: Callable[[Sample], Inquiry]
    params: Sampling
    seed: int

    def rank(self, groups: Iterable[Sample]) -> Iterator[Ranking]:
        desk = _Desk(groups, self.inquire, self.seed)
        requests = desk.requests()
        while not desk.exhausted:
            for completed in self.engine.complete(requests, self.params):
                desk.take(completed)
                yield from desk.decided()
            yield from desk.decided()
            if desk.asked:  # the engine has ended and owes answers, so those groups await one
                return

    def close(self) -> None:
        self.engine.close()


def read_reply(completed: Completed, read: Callable[[dict[str, Any]], Any]) -> Reply:
    """The value of an answer; or why it cannot be read."""
    if completed.error or not completed.outputs:
        return Reply(None, completed.error or "no answer", None)
    output = completed.outputs[0]
    if output.finish_reason == "length":
        return Reply(None, "the answer was cut off", output.text)
    try:
        return Reply(read(json_object(output.text)), None, output.text)
    except (ValueError, KeyError, TypeError) as error:
        why = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        return Reply(None, why[:80], output.text)


def engine_inputs(engine: Any) -> dict[str, Any]:
    """What of a judge's own engine decides its answers, as content hashes: its model's revision, and its chat template where it
    names one."""
    template = chat_template.of(engine)
    return {"judge_model": engine_revision(engine), **({"judge_chat_template": template} if template else {})}


def schema(reason: int, **parts: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of an object with these parts, all of them required, after a reason of at most so many characters, or
    none for 0: an engine that holds an answer to it lets the model say why before it decides."""
    properties = {"reason": {"type": "string", "maxLength": reason}, **parts} if reason else parts
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def whole_numbers(most: int) -> dict[str, Any]:
    """The JSON schema of a whole number from 1 to most: as a list, which every engine knows how to hold an answer to."""
    return {"type": "integer", "enum": list(range(1, most + 1))}


def read_number(answer: dict[str, Any], name: str, most: int) -> int:
    """What an answer gives for a name, by the schema of `whole_numbers`. Nothing else is read, such as "4", "4/5" or 1.0: the
    scale on which it was meant would be a guess. Raises ValueError or KeyError."""
    value: Any = answer[name]
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most}, not {value!r}")
    return value


def json_object(text: str) -> dict[str, Any]:
    """The one JSON object of a judge's answer: all of it, or what it begins or ends with beside a rationale, after the
    judge's thoughts. Markdown fences do not count.

    Raises ValueError where there is none, or where another could be meant: where several differ, where one says a thing twice,
    where there is text before it and after it, and where a brace begins anything else. For a judge may quote, in JSON that is
    broken or in prose, the verdict that an answer asks it for.
    """
    said = _after_thought(text)
    first, end, found = said.find("{"), 0, list[dict[str, Any]]()
    while (at := said.find("{", end)) >= 0:
        try:
            value, end = _JSON.raw_decode(said, at)
        except (ValueError, RecursionError):
            raise ValueError("not the JSON that was asked for") from None
        found.append(value)
    if not found:
        raise ValueError("not the JSON that was asked for")
    if any(value != found[0] for value in found):
        raise ValueError("several JSON objects that differ")
    if all(_FENCE.sub("", around).strip() for around in (said[:first], said[end:])):
        raise ValueError("text before the JSON object and after it")
    return found[0]


def _after_thought(text: str) -> str:
    """What follows the thoughts with which an answer begins; nothing, where one has not ended. Stricter than
    `without_thinking`: a mark that the judge quotes must hide nothing that it says itself."""
    return _THOUGHTS.sub("", text, count=1)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of an object as a dict. Of a name that comes twice, JSON does not say which value holds."""
    if len(pairs) > len(table := dict(pairs)):
        raise ValueError("a name that comes twice")
    return table


_JSON = json.JSONDecoder(strict=False, object_pairs_hook=_once)
"""A constrained engine may leave a bare line end in a text."""
_FENCE = re.compile(r"```\w*")
_THOUGHTS = re.compile(r"\A(?:\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z))*", re.DOTALL)


@dataclass
class _Open:
    """An inquiry that waits for replies to its last questions."""

    inquiry: Inquiry
    questions: list[Question]
    replies: dict[int, Reply] = field(default_factory=dict)


@dataclass
class _Asked:
    """A request on its way: whose it is, and which question of those it asks."""

    prompt_id: str
    at: int
    messages: list[Message]
    again: bool


class _Desk:
    """Inquiries under way. What follows from a reply is asked before a further prompt is begun."""

    def __init__(self, groups: Iterable[Sample], inquire: Callable[[Sample], Inquiry], seed: int):
        self.asked: dict[str, _Asked] = {}
        self.exhausted = False
        self._groups, self._inquire, self._seed = iter(groups), inquire, seed
        self._open: dict[str, _Open] = {}
        self._waiting: deque[Request] = deque()
        self._decided: deque[Ranking] = deque()

    def requests(self) -> Iterator[Request | None]:
        """All requests there are, None where none is ready; and now and then, so that what is decided goes on its way."""
        for group in self._groups:
            self._go_on(group.prompt_id, self._inquire(group), None)
            yield from self._ready()
        while self._open:
            yield None
            yield from self._ready()
        self.exhausted = True

    def decided(self) -> Iterator[Ranking]:
        while self._decided:
            yield self._decided.popleft()

    def take(self, completed: Completed) -> None:
        asked = self.asked.pop(completed.id)
        of = self._open[asked.prompt_id]
        question = of.questions[asked.at]
        reply = read_reply(completed, question.read)
        if reply.unread and reply.text is not None and not asked.again:
            said = {"role": "assistant", "content": neutral(without_thinking(reply.text))}
            why = neutral(reply.unread)
            mend = f"This cannot be used: {why}. Reply again, briefly, with the JSON object that was asked for alone."
            self._ask(asked.prompt_id, asked.at, question, [*asked.messages, said, *ask(mend)], again=True)
            return
        of.replies[asked.at] = reply
        if len(of.replies) == len(of.questions):
            del self._open[asked.prompt_id]
            self._go_on(asked.prompt_id, of.inquiry, [of.replies[at] for at in range(len(of.questions))])

    def _ready(self) -> Iterator[Request | None]:
        while self._waiting:
            yield self._waiting.popleft()
        if len(self._decided) >= 64:
            yield None

    def _go_on(self, prompt_id: str, inquiry: Inquiry, replies: list[Reply] | None) -> None:
        try:
            questions = next(inquiry) if replies is None else inquiry.send(replies)
            while not questions:
                questions = inquiry.send([])
        except StopIteration as decided:
            self._decided.append(decided.value)
            return
        self._open[prompt_id] = _Open(inquiry, questions)
        for at, question in enumerate(questions):
            self._ask(prompt_id, at, question, ask(question.text), again=False)

    def _ask(self, prompt_id: str, at: int, question: Question, messages: list[Message], again: bool) -> None:
        id = f"{prompt_id}/{question.id}{'/again' if again else ''}"
        self.asked[id] = _Asked(prompt_id, at, messages, again)
        self._waiting.append(Request(id, messages, request_seed(self._seed, id), question.schema))
