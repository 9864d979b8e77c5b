"""A person compares answers two by two in this terminal, with one key each.

To the ledger who is asked is an engine: each answer is on the disk as soon as its key is pressed, and is known again by what
was shown. So nobody is asked twice about the same two answers, neither after a kill nor in a fork.
"""

import getpass
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic import Field

from dpo_data.errors import RecipeError, Unfinished
from dpo_data.judges import screen
from dpo_data.judges.people import Said, together
from dpo_data.judges.schedules import SCHEDULES, Two, pick
from dpo_data.rows import Completion, Ranking, Sample, request_seed
from dpo_data.seams import Completed, Engine, Engines, Output, Request, Sampling, Settings, abstention
from dpo_data.templates import conversation, said

NAME = "terminal"
MENU = "   ".join(
    item.replace(" ", "\u00a0") for item in ("a  A is better", "b  B is better", "t  tie", "s  skip", "u  undo", "q  quit")
)
FIRST = {"a": 1.0, "b": 0.0, "t": 0.5, "s": None}
"""The points of the answer that is shown as A, by key."""
UNDO, QUIT, NOBODY = "u", "q", "nobody"


class Terminal(Settings):
    """`annotator` is who answers; without it, whoever is logged in, and an answer of somebody else counts as well. Up to four
    different answers all meet, of more those of a knock-out for the best and the worst."""

    type: Literal["terminal"] = "terminal"
    annotator: str | None = Field(None, min_length=1)

    def build(self, sampler: Settings, seed: int, engines: Engines) -> "TerminalJudge":
        return TerminalJudge(seed, self.annotator, engines)

    def inputs(self) -> dict[str, Any]:
        return {}

    def calls(self, n: int) -> int:
        """No model's. See `records`."""
        return 0

    def records(self, n: int) -> int:
        """How many comparisons a person is asked for at most, of one prompt with n answers."""
        _, comparisons = SCHEDULES[pick("auto", n)]
        return comparisons(n)


class Person(Settings):
    """Somebody who is asked as an engine is. `ask` shows a request and waits for the key."""

    takes_tokens: ClassVar[bool] = False
    type: Literal["person"] = "person"
    annotator: str | None
    ask: Callable[[Request], Completed] = Field(exclude=True)

    def build(self) -> Engine:
        return Asked(self.ask)


@dataclass
class Asked:
    """One request at a time. An answer is no tokens, and one that was not given is an error: the key that was pressed."""

    ask: Callable[[Request], Completed]
    model: str = "person"

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        yield from map(self.ask, (request for request in requests if request))

    def close(self) -> None: ...


@dataclass
class Sitting:
    """A prompt's answers as a person compares them: of those that say the same, one. `told` is what was said of each two."""

    group: Sample
    told: dict[Two, Said] = field(default_factory=dict)
    alike: dict[str, list[Completion]] = field(init=False)

    def __post_init__(self) -> None:
        self.alike = {}
        for one in sorted(self.group.completions, key=lambda one: one.completion_id):
            self.alike.setdefault(text_of(one), []).append(one)

    @property
    def distinct(self) -> list[Completion]:
        return [ones[0] for ones in self.alike.values()]

    def next(self) -> Two | None:
        """The two that are compared next, by what was said so far; None where nothing is left to ask."""
        n = len(self.alike)
        if n < 2:
            return None
        rounds, _ = SCHEDULES[pick("auto", n)]
        schedule = rounds(n)
        twos = next(schedule)
        while True:
            unasked = next((two for two in twos if two not in self.told), None)
            if unasked:
                return unasked
            try:
                twos = schedule.send([self._points(two) for two in twos])
            except StopIteration:
                return None

    def ranking(self) -> Ranking:
        """What follows from all that was said. Answers that say the same have the same score."""
        if len(self.alike) < 2:
            few = "all answers say the same" if len(self.group.completions) > 1 else "fewer than two answers"
            return abstention(self.group, NAME, few)
        found = together(replace(self.group, completions=self.distinct), NAME, list(self.told.values()), "bradley_terry")
        scores = dict(zip(found.completion_ids, found.scores, strict=True))
        of = {one.completion_id: scores[ones[0].completion_id] for ones in self.alike.values() for one in ones}
        ids = [one.completion_id for one in self.group.completions]
        return replace(found, completion_ids=ids, scores=[of[id] for id in ids])

    def _points(self, two: Two) -> float | None:
        a, b = (self.distinct[at].completion_id for at in two)
        scores = self.told[two].scores
        return None if scores is None else 0.5 + (scores[a] - scores[b]) / 2


@dataclass(frozen=True, slots=True)
class Question:
    """Two answers of the prompt `at` a place, and what a person is shown of them: `shown` are the ids of A and B."""

    at: int
    two: Two
    shown: tuple[str, str]
    request: Request


class TerminalJudge:
    """Asks about one prompt after the other. A prompt's ranking is given when the next one's first answer has come: up to then
    its last answer can be taken back."""

    name = NAME

    def __init__(self, seed: int, annotator: str | None, engines: Engines):
        self._seed, self._annotator = seed, annotator
        self._engine = engines(Person(annotator=annotator, ask=self._ask))
        self._progress = ""
        self._sat = False

    def rank(self, groups: Iterable[Sample]) -> Iterator[Ranking]:
        """As any judge. Raises Unfinished where the person quits, or where there is none, after what is done was given."""
        sittings = [Sitting(group) for group in groups]
        given, undoable = 0, list[Question]()
        while True:
            at = next((at for at in range(given, len(sittings)) if sittings[at].next()), len(sittings))
            question = self._question(sittings, at)
            answer = self._answer(question) if question else self._last_word(undoable)
            if question and isinstance(answer, Said):
                sittings[at].told[question.two] = answer
                undoable = [*(one for one in undoable if one.at == at), question]
            elif answer == UNDO:
                if undoable:
                    self._take_back(sittings, undoable.pop())
                continue
            yield from (one.ranking() for one in sittings[given:at])
            given = at
            if not question:
                return
            if not isinstance(answer, Said):
                left = sum(one.next() is not None for one in sittings[at:])
                nobody = ", and nobody is at a terminal to give it" if answer == NOBODY else ""
                raise Unfinished(f"{left} of {len(sittings)} prompts await an answer{nobody}", "Run again in a terminal.")

    def close(self) -> None:
        self._engine.close()

    def _question(self, sittings: list[Sitting], at: int) -> Question | None:
        """What is asked next about a prompt. Which of two answers is A is drawn by the run's seed and their ids."""
        two = sittings[at].next() if at < len(sittings) else None
        if two is None:
            return None
        sitting = sittings[at]
        both = [sitting.distinct[place] for place in two]
        ids = "/".join([sitting.group.prompt_id, *(one.completion_id for one in both)])
        seed = request_seed(self._seed, ids)
        a, b = both if seed % 2 else reversed(both)
        of = sitting.group
        texts = {"Prompt": conversation(of.prompt), "Reference": of.reference, "A": text_of(a), "B": text_of(b)}
        page = [[heading, text] for heading, text in texts.items() if text is not None]
        content = json.dumps(page, ensure_ascii=False)
        self._progress = f"{at + 1} of {len(sittings)}"
        return Question(at, two, (a.completion_id, b.completion_id), Request(ids, [{"role": "user", "content": content}], seed))

    def _answer(self, question: Question) -> Said | str:
        """What the person says, or said when they were asked before; the key, where that is no answer."""
        (completed,) = self._engine.complete([question.request], {})
        if completed.error:
            return completed.error
        told = json.loads(completed.outputs[0].text)
        points = FIRST[told["key"]]
        scores = None if points is None else dict(zip(question.shown, (points, 1 - points), strict=True))
        status: Literal["submitted", "discarded"] = "discarded" if scores is None else "submitted"
        return Said(
            annotator=told["annotator"],
            status=status,
            shown=list(question.shown),
            scores=scores,
            prefilled=None,
            seconds=told["seconds"],
            at=told["at"],
            comment=None,
        )

    def _ask(self, request: Request) -> Completed:
        """As an engine's answer: the key, who pressed it, when, and after how long."""
        if not screen.watched():
            return Completed(request.id, [], NOBODY)
        self._sat = True
        page = [(heading, text) for heading, text in json.loads(request.messages[0]["content"])]
        began = time.monotonic()
        key = _press([(self._progress, ""), *page], MENU, [*FIRST, UNDO, QUIT])
        if key not in FIRST:
            return Completed(request.id, [], key)
        at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        told = {"key": key, "annotator": self._annotator or login(), "seconds": round(time.monotonic() - began, 1), "at": at}
        return Completed(request.id, [Output(json.dumps(told), "stop", 0)], n_prompt_tokens=0)

    def _last_word(self, undoable: list[Question]) -> str:
        """The last chance to take back the last answer, for a person who has just given it."""
        if not (undoable and self._sat and screen.watched()):
            return QUIT
        return _press([("That was the last one.", "")], "u  undo   Enter  done", [UNDO, QUIT, "\n"])

    def _take_back(self, sittings: list[Sitting], question: Question) -> None:
        del sittings[question.at].told[question.two]
        forget: Callable[[Request, Sampling], None] | None = getattr(self._engine, "forget", None)
        if forget:  # an engine that keeps its answers
            forget(question.request, {})


def text_of(completion: Completion) -> str:
    return said(completion.text, completion.tool_calls)


def login() -> str:
    """Who is logged in. Raises RecipeError where this machine does not know."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise RecipeError("Nobody knows who is logged in", "Set annotator in the table of the judge 'terminal'.") from None


def _press(page: screen.Page, menu: str, keys: list[str]) -> str:
    """A terminal that is gone is one that was left."""
    try:
        return screen.press(page, menu, keys)
    except EOFError:
        return QUIT
