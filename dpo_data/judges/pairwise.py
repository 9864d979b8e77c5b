"""A language model compares answers two by two, each two in both orders.

A verdict that flips with the order is a tie, and is counted. A verdict that cannot be read decides nothing. An answer's score
is its Bradley–Terry strength over the comparisons that were decided; where nothing was decided, the judge abstains.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from pydantic import Field

from dpo_data.engines import EngineSettings
from dpo_data.judges import asking
from dpo_data.judges.asking import Inquiry, LanguageJudge, Question, Reply
from dpo_data.judges.bradley_terry import bradley_terry
from dpo_data.judges.schedules import SCHEDULES, Two, pick
from dpo_data.rows import Ranking, Sample
from dpo_data.seams import Engines, Settings, abstention
from dpo_data.templates import Template, conversation, fence, load_template, said

MIRRORED = {"A": "B", "B": "A", "tie": "tie"}
POINTS = {"A": 1.0, "tie": 0.5, "B": 0.0}
VARIABLES = ("prompt", "answer_a", "answer_b")


class Pairwise(Settings):
    """`engine` is who judges; without it, the engine that sampled does. `schedule` says which answers meet: `all`; `knockout`,
    about 1.5 comparisons an answer, for the best and the worst alone; `swiss`, for a whole ranking; `auto` is all for up to 4
    answers and knockout for more. `reason` is the most characters it may give its reason before the verdict; 0 asks for the
    verdict alone. `params` are the judge's own sampling parameters; `max_tokens` must leave room for the reason."""

    type: Literal["pairwise"] = "pairwise"
    engine: EngineSettings | None = None
    template: str = "prompts/judges/pairwise.md"
    schedule: Literal["auto", "all", "knockout", "swiss"] = "auto"
    reason: int = Field(300, ge=0)
    params: dict[str, Any] = {"temperature": 0.0, "max_tokens": 256}

    def build(self, sampler: Settings, seed: int, engines: Engines) -> LanguageJudge:
        template = load_template(self.template, VARIABLES)
        engine = engines(self.engine or sampler)
        inquire = partial(inquiry, name=f"pairwise:{engine.model}", settings=self, template=template)
        return LanguageJudge(f"pairwise:{engine.model}", engine, inquire, self.params, seed)

    def inputs(self) -> dict[str, Any]:
        """Content hashes of the files that decide the judge's verdicts, and its own model's revision."""
        return {"template": load_template(self.template, VARIABLES).hash, **asking.engine_inputs(self.engine)}

    def calls(self, n: int) -> int:
        """How often the judge is asked at most for one prompt with n answers."""
        _, comparisons = SCHEDULES[pick(self.schedule, n)]
        return 2 * comparisons(n)


def schema(reason: int) -> dict[str, Any]:
    """The JSON schema of a verdict, after a reason of at most so many characters, or none for 0."""
    return asking.schema(reason, winner={"type": "string", "enum": list(POINTS)})


def read(verdict: dict[str, Any]) -> Literal["A", "B", "tie"]:
    """The winner that a verdict names."""
    winner: Any = verdict["winner"]
    if winner not in ("A", "B", "tie"):
        raise ValueError(f"no such verdict: {winner!r}")
    return winner  # type: ignore[no-any-return]


def inquiry(group: Sample, name: str, settings: Pairwise, template: Template) -> Inquiry:
    """Everything that is asked about one prompt's answers, round by round, and the ranking."""
    group = _by_id(group)
    texts = [said(one.text, one.tool_calls) for one in group.completions]
    if len(texts) < 2:
        return abstention(group, name, "fewer than two answers")
    rounds, _ = SCHEDULES[pick(settings.schedule, len(texts))]
    schedule = rounds(len(texts))
    told: dict[Two, dict[str, Any]] = {}
    twos = next(schedule)
    while True:
        replies = yield from _both_orders(group, texts, twos, settings, template)
        told |= {two: _compare(*replies[two]) if two in replies else _SAME for two in twos}
        try:
            twos = schedule.send([_points(told[two]) for two in twos])
        except StopIteration:
            return _ranking(group, name, told, template)


def _both_orders(
    group: Sample, texts: Sequence[str], twos: list[Two], settings: Pairwise, template: Template
) -> Any:  # a generator: yields questions, returns the replies (straight, swapped) by two
    """Ask about each two in both orders, but for answers that say the same. What begins alike is asked one after the other, so
    that a cache of prefixes serves it."""
    orders = sorted((order for a, b in twos if texts[a] != texts[b] for order in ((a, b), (b, a))))
    if not orders:
        return {}
    prompt = fence("conversation", conversation(group.prompt))
    shape = schema(settings.reason)
    questions = [
        Question(
            f"{first}/{second}",
            template.render(prompt=prompt, answer_a=fence("answer A", texts[first]), answer_b=fence("answer B", texts[second])),
            shape,
            read,
        )
        for first, second in orders
    ]
    replies = dict(zip(orders, (yield questions), strict=True))
    return {(a, b): (replies[a, b], replies[b, a]) for a, b in twos if (a, b) in replies}


def _by_id(group: Sample) -> Sample:
    """The answers in the order of their ids, so that who meets whom knows nothing of the order in which they come."""
    return replace(group, completions=sorted(group.completions, key=lambda completion: completion.completion_id))


_SAME: dict[str, Any] = {"verdicts": [None, None], "outcome": "tie", "flipped": False, "unread": None, "answers": [None, None]}
"""Two answers that say the same: a tie, and nobody is asked."""


def _compare(straight: Reply, swapped: Reply) -> dict[str, Any]:
    """The outcome of both orders, seen from the first answer: A, B, tie, or None where one cannot be read; and what to keep."""
    verdicts = [straight.value, swapped.value]
    unread = straight.unread or swapped.unread
    mirrored = None if unread else MIRRORED[swapped.value]
    return {
        "verdicts": verdicts,
        "outcome": None if unread else straight.value if straight.value == mirrored else "tie",
        "flipped": not unread and straight.value != mirrored,
        "unread": unread,
        "answers": [straight.text, swapped.text],
    }


def _points(told: dict[str, Any]) -> float | None:
    return None if told["outcome"] is None else POINTS[told["outcome"]]


def _ranking(group: Sample, name: str, told: dict[Two, dict[str, Any]], template: Template) -> Ranking:
    ids = [completion.completion_id for completion in group.completions]
    kept = [
        {"kind": "comparison", "a": ids[a], "b": ids[b], "template": template.hash[:12], **of} for (a, b), of in told.items()
    ]
    transcript = json.dumps(kept, ensure_ascii=False)
    decided = [(a, b, points) for (a, b), of in told.items() if (points := _points(of)) is not None]
    if not decided:
        why = next(of["unread"] for of in told.values() if of["unread"])
        return abstention(group, name, f"no comparison was decided: {why}", transcript)
    strengths, _ = bradley_terry(len(ids), decided)
    met = {player for a, b, _ in decided for player in (a, b)}
    scores = [strength if at in met else None for at, strength in enumerate(strengths)]
    return Ranking(group.prompt_id, name, ids, scores, None, transcript)
