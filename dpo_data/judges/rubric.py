"""A language model marks each answer by itself, on each aspect of a rubric.

A score is the weighted mean of the marks. An answer whose marks cannot be read is not judged; where fewer than two are, the
judge abstains.
"""

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import fsum
from typing import Annotated, Any, Literal

from pydantic import Field

from dpo_data.engines import EngineSettings
from dpo_data.errors import RecipeError, TemplateError
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
from dpo_data.templates import Template, conversation, fence, load_template, read_text, said, text_hash

VARIABLES = ("prompt", "answer", "rubric")
OPTIONAL = ("aspects", "scale", "reference", "constitution")


class Rubric(Settings):
    """`engine` is who judges; without it, the engine that sampled does. `rubric` is a Markdown file in which each `## name`
    begins an aspect: what it is, and what each mark from 1 to `scale` means. `weights` are the aspects' in the score; 1 for one
    that is not named.

    `reference` shows the prompt's reference answer, and the judge abstains where a prompt has none. `constitution` is a file of
    principles that are shown beside the rubric. `reason` is the most characters it may give its reason before the marks; 0 asks
    for the marks alone. `params` are the judge's own sampling parameters; `max_tokens` must leave room for reason and marks.
    """

    type: Literal["rubric"] = "rubric"
    engine: EngineSettings | None = None
    template: str = "prompts/judges/rubric.md"
    rubric: str = "prompts/rubrics/ultrafeedback.md"
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    scale: int = Field(5, ge=2, le=100)
    reference: bool = False
    constitution: str | None = None
    reason: int = Field(300, ge=0)
    params: dict[str, Any] = {"temperature": 0.0, "max_tokens": 512}

    def build(self, sampler: Settings, seed: int, engines: Engines) -> LanguageJudge:
        sheet = load_sheet(self)
        engine = engines(self.engine or sampler)
        name = f"rubric:{engine.model}"
        return LanguageJudge(name, engine, partial(inquiry, name=name, sheet=sheet), self.params, seed)

    def inputs(self) -> dict[str, Any]:
        """Content hashes of the files that decide the judge's marks, and its own model's revision."""
        sheet = load_sheet(self)
        return {
            "template": sheet.template.hash,
            "rubric": text_hash(sheet.rubric),
            "constitution": text_hash(sheet.constitution) if sheet.constitution else None,
            **engine_inputs(self.engine),
        }

    def calls(self, n: int) -> int:
        """How often the judge is asked at most for one prompt with n answers."""
        return n if n > 1 else 0


@dataclass(frozen=True)
class Sheet:
    """What is the same for every answer: `weights` by aspect in the rubric's order, and the texts that are shown."""

    template: Template
    rubric: str
    weights: dict[str, float]
    scale: int
    reference: bool
    constitution: str
    reason: int


def load_sheet(settings: Rubric) -> Sheet:
    """Read the files of a rubric judge. Raises TemplateError where one is missing or no rubric, and RecipeError where the
    weights name an aspect that the rubric has not, or are all 0."""
    shown = ("reference",) * settings.reference + ("constitution",) * bool(settings.constitution)
    template = load_template(settings.template, (*VARIABLES, *shown), OPTIONAL)
    rubric = read_text(settings.rubric, "rubric", "prompts/rubrics/*.md").strip()
    constitution = settings.constitution and read_text(settings.constitution, "constitution", "prompts/constitutions/*.md")
    weights = _weights(aspects(rubric, settings.rubric), settings.weights)
    return Sheet(template, rubric, weights, settings.scale, settings.reference, (constitution or "").strip(), settings.reason)


def aspects(rubric: str, path: str) -> list[str]:
    """The names of a rubric's aspects: its headings of the second level. Raises TemplateError where there is none, or one comes
    twice, is called `reason`, or is not described."""
    names: list[str] = []
    for section in re.split(r"^##[ \t]+", rubric, flags=re.MULTILINE)[1:]:
        heading, _, description = section.partition("\n")
        name = heading.strip().rstrip("#").rstrip()
        if not description.strip():
            raise TemplateError(
                f"{path} does not describe the aspect {name!r}", "Write below its heading what each mark means."
            )
        if name in {*names, "", "reason"}:
            raise TemplateError(f"{path} has no room for an aspect called {name!r}", "Give each aspect a name of its own.")
        names.append(name)
    if not names:
        raise TemplateError(f"{path} has no aspect", "Begin each with a heading of the second level, such as `## honesty`.")
    return names


def inquiry(group: Sample, name: str, sheet: Sheet) -> Inquiry:
    """What is asked about one prompt's answers, and the ranking. Answers that say the same are asked about once."""
    texts = {one.completion_id: said(one.text, one.tool_calls) for one in group.completions}
    if len(texts) < 2:
        return abstention(group, name, "fewer than two answers")
    if sheet.reference and not (group.reference or "").strip():
        return abstention(group, name, "the prompt has no reference")
    ids = sorted(texts)
    distinct = list(dict.fromkeys(texts[id] for id in ids))
    replies = dict(zip(distinct, (yield [_question(group, text, sheet) for text in distinct]), strict=True))
    told = {id: replies[texts[id]] for id in ids}
    transcript = json.dumps([_told(id, reply, sheet) for id, reply in told.items()], ensure_ascii=False)
    scores = [_score(reply.value, sheet) for reply in told.values()]
    judged = sum(score is not None for score in scores)
    if judged < 2:
        why = next(reply.unread for reply in told.values() if reply.unread)
        return abstention(group, name, f"{judged} of {len(ids)} answers could be judged: {why}", transcript)
    return Ranking(group.prompt_id, name, ids, scores, None, transcript)


def read(answer: dict[str, Any], names: Sequence[str], scale: int) -> dict[str, int]:
    """The mark of each aspect. What else the object holds is not looked at."""
    return {name: read_number(answer, name, scale) for name in names}


def _question(group: Sample, answer: str, sheet: Sheet) -> Question:
    """The answer stands last in the shipped template, so that a cache of prefixes serves a prompt's other answers."""
    names = list(sheet.weights)
    text = sheet.template.render(
        prompt=fence("conversation", conversation(group.prompt)),
        answer=fence("answer", answer),
        rubric=sheet.rubric,
        aspects=", ".join(json.dumps(name, ensure_ascii=False) for name in names),
        scale=sheet.scale,
        reference=fence("reference", group.reference or "") if sheet.reference else "",
        constitution=sheet.constitution,
    )
    shape = schema(sheet.reason, **{name: whole_numbers(sheet.scale) for name in names})
    return Question(content_id(answer), text, shape, partial(read, names=names, scale=sheet.scale))


def _told(id: str, reply: Reply, sheet: Sheet) -> dict[str, Any]:
    return {
        "kind": "marks",
        "completion_id": id,
        "marks": reply.value,
        "top": sheet.scale,
        "unread": reply.unread,
        "answer": reply.text,
        "template": sheet.template.hash[:12],
    }


def _score(marks: dict[str, int] | None, sheet: Sheet) -> float | None:
    """Rounded to nine digits, so that what is equal by arithmetic is equal."""
    if marks is None:
        return None
    return round(fsum(weight * marks[name] for name, weight in sheet.weights.items()) / fsum(sheet.weights.values()), 9)


def _weights(names: Sequence[str], given: dict[str, float]) -> dict[str, float]:
    for unknown in [name for name in given if name not in names]:
        near = difflib.get_close_matches(unknown, names, 1, cutoff=0.5)
        remedy = f"Did you mean {near[0]!r}?" if near else f"The rubric's aspects: {', '.join(names)}."
        raise RecipeError(f"Unknown aspect {unknown!r} in the weights of the judge 'rubric'", remedy)
    weights = {name: given.get(name, 1.0) for name in names}
    if not any(weights.values()):
        raise RecipeError("The weights of the judge 'rubric' are all 0", "Give one of them another.")
    return weights
