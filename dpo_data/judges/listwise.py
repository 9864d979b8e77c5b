"""A language model ranks all answers at once, each time in another order.

A score is the mean over the shuffles of (N − rank)/(N − 1), where a tie shares the mean of its ranks: 1 is always the best, 0
always the worst. A shuffle that cannot be read is left out; where none can be read, the judge abstains.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from math import factorial, fsum
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import Field

from dpo_data.engines import EngineSettings
from dpo_data.judges.asking import (
    Inquiry,
    LanguageJudge,
    Question,
    Reply,
    engine_inputs,
    read_number,
    schema,
    whole_numbers,
)
from dpo_data.rows import Ranking, Sample, content_id
from dpo_data.seams import Engines, Settings, abstention
from dpo_data.templates import Template, conversation, fence, load_template, said

VARIABLES = ("prompt", "answers")
OPTIONAL = ("labels", "n")


class Listwise(Settings):
    """`engine` is who judges; without it, the engine that sampled does. `shuffles` is in how many orders the answers are shown:
    each second one is the one before reversed, so that what hangs on the place cancels out; no order comes twice, so there are
    at most N!. Answers that say the same are shown once and tie.

    `reason` is the most characters it may give its reason before the ranks; 0 asks for the ranks alone. `params` are the
    judge's own sampling parameters; `max_tokens` must leave room for the reason and the ranks, as these 512 do for 16 answers.
    """

    type: Literal["listwise"] = "listwise"
    engine: EngineSettings | None = None
    template: str = "prompts/judges/listwise.md"
    shuffles: int = Field(2, ge=1)
    reason: int = Field(300, ge=0)
    params: dict[str, Any] = {"temperature": 0.0, "max_tokens": 512}

    def build(self, sampler: Settings, seed: int, engines: Engines) -> LanguageJudge:
        template = load_template(self.template, VARIABLES, OPTIONAL)
        engine = engines(self.engine or sampler)
        name = f"listwise:{engine.model}"
        inquire = partial(inquiry, name=name, settings=self, template=template, seed=seed)
        return LanguageJudge(name, engine, inquire, self.params, seed)

    def inputs(self) -> dict[str, Any]:
        """Content hashes of the files that decide the judge's ranks, and its own model's revision."""
        template = load_template(self.template, VARIABLES, OPTIONAL)
        return {"template": template.hash, **engine_inputs(self.engine)}

    def calls(self, n: int) -> int:
        """How often the judge is asked at most for one prompt with n answers."""
        return min(self.shuffles, factorial(n)) if n > 1 else 0


def inquiry(group: Sample, name: str, settings: Listwise, template: Template, seed: int) -> Inquiry:
    """What is asked about one prompt's answers, and the ranking."""
    texts = {one.completion_id: said(one.text, one.tool_calls) for one in group.completions}
    if len(texts) < 2:
        return abstention(group, name, "fewer than two answers")
    stands_for = {text: id for id, text in sorted(texts.items(), reverse=True)}  # of answers that say the same, the least id
    distinct = list(stands_for.values())
    orders = shuffled(distinct, settings.shuffles, seed, group.prompt_id) if len(distinct) > 1 else []
    replies = yield [_question(group, at, order, texts, settings, template) for at, order in enumerate(orders)]
    transcript = json.dumps([_told(*one, template) for one in zip(orders, replies, strict=True)], ensure_ascii=False)
    read = [dict(zip(order, reply.value, strict=True)) for order, reply in zip(orders, replies, strict=True) if reply.value]
    if orders and not read:
        return abstention(group, name, f"no shuffle could be read: {replies[0].unread}", transcript)
    places = [scores({id: ranks[stands_for[text]] for id, text in texts.items()}) for ranks in read]
    ids = sorted(texts)
    means: list[float | None] = [round(fsum(place[id] for place in places) / len(places), 9) if places else 0.5 for id in ids]
    return Ranking(group.prompt_id, name, ids, means, None, transcript)


def shuffled(ids: Sequence[str], most: int, seed: int, prompt_id: str) -> list[list[str]]:
    """At most so many orders of two or more ids, no two the same, each second one the one before reversed. They hang on the
    seed, the prompt and the ids alone, never on the order in which these come."""
    orders: list[list[str]] = []
    wanted = min(most, factorial(len(ids)))
    for at in count():
        if len(orders) >= wanted:
            break
        order = sorted(ids, key=lambda id: content_id([seed, prompt_id, at, id]))
        if order not in orders:
            orders += [order, order[::-1]]
    return orders[:wanted]


def label(at: int) -> str:
    """The letters by which the judge knows an answer: A to Z, then AA, AB and on."""
    return (label(at // 26 - 1) if at >= 26 else "") + ascii_uppercase[at % 26]


def read(answer: dict[str, Any], n: int) -> list[int]:
    """The rank of each of n answers, in the order shown; equal is a tie. What else the object holds is not looked at."""
    return [read_number(answer, label(at), n) for at in range(n)]


def scores(ranks: Mapping[str, int]) -> dict[str, float]:
    """(N − rank)/(N − 1) of N answers by their ranks, of which only the order counts: those that tie share the mean of their
    places."""
    n, given = len(ranks), list(ranks.values())
    place = {rank: sum(other < rank for other in given) + (given.count(rank) + 1) / 2 for rank in set(given)}
    return {id: (n - place[rank]) / (n - 1) for id, rank in ranks.items()}


def _question(
    group: Sample, at: int, order: list[str], texts: Mapping[str, str], settings: Listwise, template: Template
) -> Question:
    n = len(order)
    labels = [label(place) for place in range(n)]
    text = template.render(
        prompt=fence("conversation", conversation(group.prompt)),
        answers="\n\n".join(fence(f"answer {name}", texts[id]) for name, id in zip(labels, order, strict=True)),
        labels=", ".join(f'"{name}"' for name in labels),
        n=n,
    )
    shape = schema(settings.reason, **{name: whole_numbers(n) for name in labels})
    return Question(str(at), text, shape, partial(read, n=n))


def _told(order: list[str], reply: Reply, template: Template) -> dict[str, Any]:
    return {
        "kind": "list",
        "shown": order,
        "ranks": reply.value,
        "unread": reply.unread,
        "answer": reply.text,
        "template": template.hash[:12],
    }
