"""People at a real Argilla, for the tests of its judge: a workspace of their own, groups to ask about, and answers by REST."""

import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from argilla_server import LocalArgilla

from dpo_data.argilla.access import credentials
from dpo_data.errors import Unfinished
from dpo_data.judges.argilla import Argilla, ArgillaJudge
from dpo_data.rows import Completion, Ranking, Sample
from dpo_data.seams import Engines


def no_engines(settings: Any) -> Any:
    raise AssertionError("people need no engine")


def group(name: str, *texts: str, scores: Iterable[float | None] = (), source: str = "p.jsonl:1", **more: Any) -> Sample:
    """A prompt with these answers, whose ids are `name.0`, `name.1`, …"""
    given = [*scores] or [None] * len(texts)
    answers = [
        Completion(f"{name}.{at}", at, text, "stop", 3, None, f"model-{at}", None, score)
        for at, (text, score) in enumerate(zip(texts, given, strict=True))
    ]
    return Sample(name, [{"role": "user", "content": f"What of {name}?"}], source, answers, None, **more)


def scores(ranking: Ranking) -> dict[str, float | None]:
    """By completion id."""
    return dict(zip(ranking.completion_ids, ranking.scores, strict=True))


def people(ranking: Ranking) -> list[dict[str, Any]]:
    """What they said, by the transcript."""
    return list(json.loads(ranking.transcript))


class Desk:
    """A workspace in which nobody else works. `home` is the server's."""

    def __init__(self, argilla: LocalArgilla, home: Path | None = None):
        self.argilla, self.home, self.workspace = argilla, home or argilla.home, f"w-{uuid.uuid4().hex[:8]}"

    def settings(self, **more: Any) -> Argilla:
        return Argilla(**{"dataset": "d", "workspace": self.workspace, "home": str(self.home), **more})

    def judge(self, seed: int = 0, engines: Engines = no_engines, **more: Any) -> ArgillaJudge:
        settings = self.settings(**more)
        return settings.build(settings, seed, engines)

    def run(self, groups: Iterable[Sample], judge: ArgillaJudge | None = None, **more: Any) -> tuple[dict[str, Ranking], str]:
        """The rankings by prompt, and what the judge says where some await an answer."""
        given: dict[str, Ranking] = {}
        try:
            for ranking in (judge or self.judge(**more)).rank(groups):
                assert ranking.prompt_id not in given
                given[ranking.prompt_id] = ranking
        except Unfinished as waits:
            return given, waits.what
        return given, ""

    def ask(self, method: str, path: str, key: str | None = None, **more: Any) -> Any:
        return self.argilla.ask(method, path, key, **more)

    @property
    def workspace_id(self) -> str:
        return next(one["id"] for one in self.ask("GET", "me/workspaces")["items"] if one["name"] == self.workspace)

    def dataset(self, name: str = "d-3") -> dict[str, Any]:
        found = self.ask("GET", "me/datasets", params={"workspace_id": self.workspace_id})["items"]
        return next(one for one in found if one["name"] == name)

    def records(self, dataset: str = "d-3", **params: Any) -> list[dict[str, Any]]:
        """The records of a dataset with all that is known of them."""
        params = {"include": "responses,suggestions", "limit": 1000, **params}
        return list(self.ask("GET", f"datasets/{self.dataset(dataset)['id']}/records", params=params)["items"])

    def record(self, prompt: str, dataset: str = "d-3") -> dict[str, Any]:
        (found,) = (one for one in self.records(dataset) if prompt_of(one) == prompt)
        return found

    def key(self, who: str) -> str:
        known = credentials(self.home)
        assert known is not None
        return str(known["users"][who]["api_key"])

    def user_id(self, who: str) -> str:
        return next(one["id"] for one in self.ask("GET", "users")["items"] if one["username"] == who)

    def answer(
        self, who: str | None, record: dict[str, Any], values: dict[str, Any] | None, status: str = "submitted"
    ) -> dict[str, Any]:
        """Answer as somebody, or as the owner."""
        given = {"status": status, "values": values and {name: {"value": value} for name, value in values.items()}}
        made: dict[str, Any] = self.ask("POST", f"records/{record['id']}/responses", self.key(who) if who else None, json=given)
        return made

    def rank(self, who: str | None, prompt: str, ranks: dict[str, int], dataset: str = "d-3", **comment: str) -> dict[str, Any]:
        """Rank a prompt's answers by their ids, as the UI does it: the options in their own order, each with its rank."""
        record = self.record(prompt, dataset)
        return self.answer(who, record, {"ranking": ranked(record, ranks), **comment})


def prompt_of(record: dict[str, Any]) -> str | None:
    """The prompt that a record is about; None of one that somebody made by hand."""
    return (record["metadata"] or {}).get("prompt_id")


def order_of(record: dict[str, Any]) -> list[str]:
    return str(record["metadata"]["answers"]).split(",")


def ranked(record: dict[str, Any], ranks: dict[str, int]) -> list[dict[str, Any]]:
    return [{"value": f"answer_{at}", "rank": ranks[id]} for at, id in enumerate(order_of(record), 1)]


def person() -> str:
    """A user's name that no other test has."""
    return f"u{uuid.uuid4().hex[:8]}"
