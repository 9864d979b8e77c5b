"""What a recipe will ask of its models, in tokens, money and time, without asking any.

The judge itself is run, over a few of the prompts, on an engine that counts what it is asked and answers by dice; so whatever a
judge asks is in the count, retries and abstentions aside.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from dpo_data.config import Price, Recipe
from dpo_data.engines.echo import EchoEngine
from dpo_data.judges.cascade import Cascade
from dpo_data.judges.members import leaves
from dpo_data.ledger import CHARACTERS_A_TOKEN, MILLION, model_of
from dpo_data.rows import Completion, Message, Prompt, Sample, answered, content_id
from dpo_data.rundir import RunDir
from dpo_data.seams import Completed, Engine, Request, Sampling, Settings

FEW = 200
"""How many prompts are looked at."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Calls of one model, and their tokens: read, and written at most, of which an answer that is cut early needs fewer."""

    calls: float = 0
    read: float = 0
    written: float = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.calls + other.calls, self.read + other.read, self.written + other.written)

    def times(self, factor: float) -> "Tokens":
        return Tokens(self.calls * factor, self.read * factor, self.written * factor)

    def cost(self, price: Price) -> float:
        return (self.read * price.input + self.written * price.output) / MILLION


Use = dict[str, Tokens]
"""By model."""


def sampling(recipe: Recipe, prompts: Sequence[Prompt], of: int) -> Use:
    """What the engines of `[sample]` read and write at most for so many prompts, of which these are a few."""
    engine = recipe.sample.engine
    if engine.type == "given" or not prompts:
        return {}
    engines: list[Settings] = list(getattr(engine, "engines", [engine]))
    each = recipe.sample.n // len(engines)
    read = of / len(prompts) * sum(_tokens(prompt.prompt) for prompt in prompts)
    use: Use = {}
    for one in engines:
        _add(use, model_of(one), Tokens(of, read, of * each * recipe.sample.max_tokens))
    return use


def judging(recipe: Recipe, groups: Sequence[Sample], of: int) -> Use:
    """What the judge's engines read and write for so many prompts, of which these, with their answers, are a few."""
    use: Use = {}
    if groups:
        for _, judge in leaves(recipe.rank.judge, "judge"):
            if not judge.calls(2):
                continue  # a rule is not run
            engines: dict[str, _Counting] = {}

            def counting(table: Settings, engines: dict[str, _Counting] = engines) -> Engine:
                return engines.setdefault(model := model_of(table), _Counting(model))

            with closing(judge.build(recipe.sample.engine, recipe.seed, counting)) as asking:
                for _ in asking.rank(iter(groups)):
                    pass
            for model, engine in engines.items():
                _add(use, model, engine.counted.times(of / len(groups)))
    return use


def imagined(prompts: Iterable[Prompt], n: int, tokens: int) -> list[Sample]:
    """These prompts with n answers of so many tokens each, no two the same."""

    def answer(prompt: Prompt, index: int) -> Completion:
        text = f"{index} " + "and " * tokens
        return Completion(content_id([prompt.prompt_id, index]), index, text, "stop", tokens, None, "imagined")

    return [answered(one, [answer(one, at) for at in range(n)]) for one in prompts]


def speed(run: RunDir, stage: str, table: Mapping[str, Any]) -> tuple[float, str] | None:
    """Tokens a second of that stage (written by sample; read and written by rank) in the latest run beside this one that had
    the same engine or judge (`table`), and that run's name; None where there is none."""
    found: list[tuple[float, float, str]] = []
    for one in (run, *run.beside):
        other = one.stage(stage)
        manifest, begun = other.manifest, other.recipe
        if manifest and begun and manifest.get("tokens_here") and manifest["seconds"]:
            theirs = begun["settings"][stage].get("engine" if stage == "sample" else "judge")
            if theirs == table:
                when = other.file("manifest.json").stat().st_mtime
                found.append((when, manifest["tokens_here"] / manifest["seconds"], one.path.name))
    return max(found)[1:] if found else None


@dataclass(frozen=True, slots=True)
class People:
    """What a judge of this type, through which people answer, will show them: so many prompts at most, `calibration` of which
    are about so many of a random slice; and how many records these are, each of two answers or of all."""

    type: str
    prompts: int
    calibration: int
    records: int


def people(judge: Any, answers: Mapping[int, int], calibration: int = 0) -> Iterator[People]:
    """What is shown to people of so many prompts by their number of answers, at most, for each judge within this one that asks
    any."""
    if isinstance(judge, Cascade):
        yield from people(judge.first, {n: of for n, of in answers.items() if not judge.goes_whole(n)})
        slice = round(judge.calibration * sum(answers.values()))
        yield from people(judge.then, _sent_on(judge, answers, slice), slice)
    elif hasattr(judge, "records"):
        yield People(judge.type, sum(answers.values()), calibration, sum(of * judge.records(n) for n, of in answers.items()))
    else:
        for member in getattr(judge, "members", dict)().values():
            yield from people(member, answers)


def _sent_on(judge: Cascade, answers: Mapping[int, int], slice: int) -> dict[int, int]:
    """What goes on to a cascade's second judge at most: of a limited number, the prompts with the most answers."""
    sent: dict[int, int] = {}
    total = sum(answers.values())
    left = min(total, judge.most(total) + slice)
    for n, of in sorted(answers.items(), reverse=True):
        shown = min(n, 2 * judge.ends) if judge.route == "extremes" else n
        sent[shown] = sent.get(shown, 0) + min(of, left)
        left -= min(of, left)
    return sent


class _Counting:
    """An engine that counts, and answers as `echo` does."""

    def __init__(self, model: str):
        self.model, self.counted = model, Tokens()
        self._echo = EchoEngine()

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        def counted() -> Iterator[Request | None]:
            for request in requests:
                if request:
                    self.counted += Tokens(1, _tokens(request.messages), _longest(request.schema, sampling))
                yield request

        yield from self._echo.complete(counted(), {**sampling, "n": 1})

    def close(self) -> None: ...


def _add(use: Use, model: str, tokens: Tokens) -> None:
    use[model] = use.get(model, Tokens()) + tokens


def _tokens(messages: Iterable[Message]) -> float:
    return sum(len(turn["content"]) for turn in messages) / CHARACTERS_A_TOKEN


def _longest(schema: dict[str, Any] | None, sampling: Sampling) -> float:
    """How many tokens an answer has at most: what its schema leaves room for, and what the parameters do."""
    limit = float(sampling.get("max_tokens", 0))
    if not schema:
        return limit
    room = sum(part.get("maxLength", 0) for part in schema.get("properties", {}).values())
    names = json.dumps(list(schema.get("properties", {})))
    return float(min(limit, (len(names) + room) / CHARACTERS_A_TOKEN + 4 * len(schema.get("properties", {}))))
