"""What a format for other programs is: how a row becomes records, and which rows it cannot hold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dpo_data.rows import PreferencePair, Ranking, Sample


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with its answers and what the judge made of them; `ranking` is None where there was nothing to rank."""

    sample: Sample
    ranking: Ranking | None

    def scores(self) -> dict[str, float]:
        """The score of each judged completion, by its id."""
        if self.ranking is None or self.ranking.abstained:
            return {}
        scored = zip(self.ranking.completion_ids, self.ranking.scores, strict=True)
        return {id: score for id, score in scored if score is not None}


@dataclass(frozen=True, slots=True)
class Format:
    """`of`: a record's source is a PreferencePair or a Group. `unfit`: why a row cannot be held, or None; only then may
    `records` be asked for it. `suffix`: a JSON Lines file, a Parquet file of `columns`, or a folder with a text file for each
    record. `beside`: further JSON files, by name, given the names of the files that hold records."""

    of: type[PreferencePair] | type[Group]
    records: Callable[[Any], list[Any]]
    unfit: Callable[[Any], str | None] = lambda row: None
    suffix: str = ".jsonl"
    columns: tuple[str, ...] = ()
    beside: Callable[[list[str]], dict[str, Any]] = lambda files: {}


def calls_tools(pair: PreferencePair) -> bool:
    """Whether a pair has tools, or a turn that calls one."""
    return bool(pair.tools) or any(turn.get("tool_calls") for turn in [*pair.prompt, *pair.chosen, *pair.rejected])


def no_tools(pair: PreferencePair) -> str | None:
    """Why a format without a place for tools cannot hold a pair."""
    return "the format has no place for tools" if calls_tools(pair) else None


def no_template_kwargs(pair: PreferencePair) -> str | None:
    """Why a format whose trainer renders every prompt alike cannot hold a pair. A format that holds what was said, and no
    template's prompt, leaves them away."""
    return "the format has no place for chat_template_kwargs" if pair.chat_template_kwargs else None


def odd_role(pair: PreferencePair, *known: str) -> str | None:
    """Why a format that knows these roles alone cannot hold a pair."""
    odd = next((turn["role"] for turn in [*pair.prompt, *pair.chosen, *pair.rejected] if turn["role"] not in known), None)
    return None if odd is None else f"the format has no place for a turn of the {odd}"
