"""A reward model: a sequence classifier that reads a conversation with its answer, and whose one logit is the answer's score.

The logit itself, not its sigmoid: under the Bradley–Terry loss with which reward models are trained (Ouyang et al. 2022,
2203.02155), two logits' difference is the log-odds that one answer is preferred, and a sigmoid makes all good answers 1.0.
"""

import json
import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, model_validator

from dpo_data import chat_template
from dpo_data.engines.process import EngineProcess
from dpo_data.errors import RecipeError
from dpo_data.models import model_revision
from dpo_data.rows import Completion, Message, Ranking, Sample
from dpo_data.seams import Completed, Engine, Engines, Request, Sampling, Settings, abstention

Backend = Literal["auto", "vllm", "transformers"]

log = logging.getLogger(__name__)


class RewardModel(Settings):
    """`model` is any sequence classifier; where it has several labels, `label` says whose logit is the score, counted from 0.
    Conversations take the form of the model's own chat template, or of the Jinja file `template`.

    `backend`: `auto` is vLLM where it is installed and knows the model, else transformers. `args` are the named backend's own:
    vLLM's engine arguments, or those of from_pretrained. `batch_tokens` bounds a batch of transformers, its padding included;
    without it, 16,384 on a GPU and 1,024 on a CPU.
    """

    incidental = frozenset({"batch_tokens"})
    type: Literal["reward_model"] = "reward_model"
    model: str
    revision: str | None = None
    label: int | None = Field(None, ge=0)
    template: str | None = None
    backend: Backend = "auto"
    args: dict[str, Any] = {}
    batch_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _names_whose_args(self) -> "RewardModel":
        if self.args and self.backend == "auto":
            raise RecipeError(
                "The reward model's args are one backend's own, and backend = 'auto' may be either",
                "Set rank.judge.backend to 'vllm' or to 'transformers'.",
            )
        return self

    def build(self, sampler: Settings, seed: int, engines: Engines) -> "RewardJudge":
        shared = self.model_dump(exclude={"type", "template"})
        engine = engines(Scorer(**shared, chat_template=chat_template.read(self.template) if self.template else None))
        return RewardJudge(f"reward_model:{engine.model}", engine)

    def inputs(self) -> dict[str, Any]:
        """What exactly the weights are, and the template's content hash."""
        template = {"template": chat_template.digest(self.template)} if self.template else {}
        return {"judge_model": model_revision(self.model, self.revision), **template}

    def calls(self, n: int) -> int:
        """One for each answer."""
        return n


class Scorer(Settings):
    """The table of the engine behind the judge; `chat_template` is the template itself, None for the model's own."""

    incidental = frozenset({"batch_tokens"})
    type: Literal["scorer"] = "scorer"
    model: str
    revision: str | None
    label: int | None
    chat_template: str | None
    backend: Backend
    args: dict[str, Any]
    batch_tokens: int | None

    def build(self) -> "ScorerEngine":
        return ScorerEngine(self)


class ScorerEngine:
    """Owns one process with one reward model, started when it is made. See `reward_child` for the other side."""

    def __init__(self, settings: Scorer):
        self.model = settings.model
        self._process = EngineProcess("dpo_data.judges.reward_child:serve", "reward_model", settings)
        log.info("scoring with %s in %s", self.model, self._process.started["backend"])

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        """Scores whole conversations, the answer last: one Output each, with a `score` and no text."""
        return self._process.answers(requests, int(self._process.started["window"]))

    def close(self) -> None:
        self._process.close()


@dataclass
class _Open:
    """A group with what is known of its answers so far, by completion id."""

    group: Sample
    scores: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def waits(self) -> bool:
        return len(self.scores) + len(self.errors) < len(self.group.completions)


@dataclass
class RewardJudge:
    """Scores every answer by itself. The answers of all groups are one stream of requests."""

    name: str
    engine: Engine

    def rank(self, groups: Iterable[Sample]) -> Iterator[Ranking]:
        """As any judge. An answer that the model cannot read, or whose score is not finite, is not judged."""
        asked: dict[str, tuple[_Open, str]] = {}
        decided: deque[Ranking] = deque()
        exhausted = False

        def requests() -> Iterator[Request | None]:
            nonlocal exhausted
            for group in groups:
                if len(group.completions) < 2:
                    decided.append(abstention(group, self.name, "fewer than two answers"))
                    yield None  # so that it goes on its way
                    continue
                opened = _Open(group)
                for one in group.completions:
                    id = f"{group.prompt_id}/{one.completion_id}"
                    asked[id] = opened, one.completion_id
                    yield Request(id, [*group.prompt, _turn(one)], seed=0, tools=group.tools)
            exhausted = True

        source = requests()
        while not exhausted:
            for completed in self.engine.complete(source, {}):
                opened, completion_id = asked.pop(completed.id)
                _note(opened, completion_id, completed)
                if not opened.waits:
                    decided.append(_ranking(opened, self.name))
                yield from _drained(decided)
            yield from _drained(decided)
            if asked:  # the engine has ended and owes answers, so those groups await one
                return

    def close(self) -> None:
        self.engine.close()


def _drained(decided: deque[Ranking]) -> Iterator[Ranking]:
    while decided:
        yield decided.popleft()


def _turn(completion: Completion) -> Message:
    turn: Message = {"role": "assistant", "content": completion.text}
    return {**turn, "tool_calls": completion.tool_calls} if completion.tool_calls else turn


def _note(opened: _Open, completion_id: str, completed: Completed) -> None:
    score = completed.outputs[0].score if completed.outputs else None
    if completed.error or score is None:
        opened.errors[completion_id] = completed.error or "no score came back"
    elif not math.isfinite(score):
        opened.errors[completion_id] = f"the score is {score}"
    else:
        opened.scores[completion_id] = score


def _ranking(opened: _Open, name: str) -> Ranking:
    ids = [completion.completion_id for completion in opened.group.completions]
    kept = [{"kind": "error", "completion_id": id, "error": opened.errors[id]} for id in ids if id in opened.errors]
    transcript = json.dumps(kept, ensure_ascii=False)
    if len(opened.scores) < 2:
        why = f": {kept[0]['error']}" if kept else ""
        return abstention(opened.group, name, f"{len(opened.scores)} of {len(ids)} answers could be scored{why}", transcript)
    return Ranking(opened.group.prompt_id, name, ids, [opened.scores.get(id) for id in ids], None, transcript)
