"""The dataset in Argilla that people answer: its workspace, its fields and questions, all made where they are missing."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dpo_data.argilla.client import Client
from dpo_data.errors import ArgillaError

log = logging.getLogger(__name__)

Question = Literal["ranking", "rating", "pairwise"]

MOST_ANSWERS = 50
"""How many options a ranking question of Argilla's may have."""
METADATA = {
    "prompt_id": "terms",
    "answers": "terms",
    "source": "terms",
    "model": "terms",
    "margin": "float",
    "shortest": "integer",
    "longest": "integer",
}
"""What a record says beside its fields. `answers`: completion ids in the order shown. Annotators see `source` alone."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a dataset is to be like. `n`: how many answers a record shows."""

    name: str
    n: int
    question: Question
    comment: bool
    markdown: bool
    min_submitted: int
    guidelines: str

    @property
    def slots(self) -> list[str]:
        """The fields that hold a record's answers."""
        return [f"answer_{at}" for at in range(1, self.n + 1)]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as it is in Argilla. `questions`: their ids by name; `url`: its page, where people answer."""

    id: str
    url: str
    layout: Layout
    questions: dict[str, str]


def open_workspace(client: Client, name: str) -> str:
    """The id of the workspace; it is made where there is none."""
    known = {one["name"]: one["id"] for one in client.get("me/workspaces")["items"]}
    return str(known.get(name) or client.post("workspaces", {"name": name})["id"])


def open_dataset(client: Client, workspace: str, layout: Layout) -> Dataset:
    """The dataset of this layout's name; it is made where there is none, or was left half made. Raises ArgillaError where there
    is one that asks people something else."""
    known = client.get("me/datasets", workspace_id=workspace, name=layout.name)["items"]
    found = [dataset for dataset in known if dataset["name"] == layout.name]
    one = found[0] if found else client.post("datasets", _dataset(layout, workspace))
    path = f"datasets/{one['id']}"
    if one["status"] == "draft":
        for kind, parts in (
            ("fields", _fields(layout)),
            ("questions", _questions(layout)),
            ("metadata-properties", _metadata()),
        ):
            known = {part["name"] for part in client.get(f"{'me/' if kind[0] == 'm' else ''}{path}/{kind}")["items"]}
            for part in parts:
                if part["name"] not in known:
                    client.post(f"{path}/{kind}", part)
        client.put(f"{path}/publish")
        log.info("argilla: made the dataset %s", layout.name)
    there = client.get(f"{path}/fields")["items"], client.get(f"{path}/questions")["items"]
    _compare(layout, _asks(*there, one["distribution"]["min_submitted"]))
    if (one["guidelines"] or "") != layout.guidelines:
        log.warning("argilla: people see other guidelines for %s than this recipe's: they are left as they are", layout.name)
    ids = {question["name"]: question["id"] for question in there[1]}
    return Dataset(one["id"], f"{client.url}/dataset/{one['id']}/annotation-mode", layout, ids)


def _dataset(layout: Layout, workspace: str) -> dict[str, Any]:
    return {
        "name": layout.name,
        "workspace_id": workspace,
        "guidelines": layout.guidelines,
        "allow_extra_metadata": False,
        "distribution": {"strategy": "overlap", "min_submitted": layout.min_submitted},
    }


def _fields(layout: Layout) -> Iterator[dict[str, Any]]:
    kinds = {"prompt": "chat", "reference": "text", **dict.fromkeys(layout.slots, "text")}
    for name, kind in kinds.items():
        settings = {"type": kind, "use_markdown": layout.markdown}
        yield {"name": name, "title": _title(name), "required": name != "reference", "settings": settings}


def _questions(layout: Layout) -> Iterator[dict[str, Any]]:
    """As many rating questions as there are answers, or one question of another kind; and perhaps the comment."""
    options = [{"value": slot, "text": _title(slot)} for slot in layout.slots]
    if layout.question == "ranking":
        yield _question("ranking", "Rank the answers, the best first", {"type": "ranking", "options": options})
    elif layout.question == "pairwise":
        either = [*options, {"value": "tie", "text": "Equally good"}]
        yield _question("better", "Which answer is better?", {"type": "label_selection", "options": either})
    else:
        marks = [{"value": mark} for mark in range(1, 6)]
        for at in range(1, layout.n + 1):
            title = f"How good is answer {at}? 5 is best"
            yield _question(f"rating_{at}", title, {"type": "rating", "options": marks})
    if layout.comment:
        yield _question("comment", "Comment", {"type": "text"}, required=False)


def _question(name: str, title: str, settings: dict[str, Any], required: bool = True) -> dict[str, Any]:
    return {"name": name, "title": title, "required": required, "settings": settings}


def _metadata() -> Iterator[dict[str, Any]]:
    for name, kind in METADATA.items():
        visible = name == "source"
        yield {"name": name, "title": _title(name), "settings": {"type": kind}, "visible_for_annotators": visible}


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


Asks = dict[str, Any]
"""What decides a dataset's answers: what is shown and asked, by name, without titles."""


def _asks(fields: list[dict[str, Any]], questions: list[dict[str, Any]], min_submitted: int) -> Asks:
    shown = {
        f"field {one['name']!r}": f"of type {one['settings']['type']}, {_LOOKS[bool(one['settings'].get('use_markdown'))]}"
        for one in fields
    }
    asked = {f"question {one['name']!r}": _kind(one) for one in questions}
    return {**shown, **asked, "min_submitted": min_submitted}


_LOOKS = ("as it is", "as Markdown")


def _kind(question: dict[str, Any]) -> str:
    options = [str(option["value"]) for option in question["settings"].get("options", [])]
    return f"of type {question['settings']['type']}" + (f" with {', '.join(options)}" if options else "")


def _compare(layout: Layout, found: Asks) -> None:
    wanted = _asks(list(_fields(layout)), list(_questions(layout)), layout.min_submitted)
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        if found.get(name) != wanted.get(name):
            raise ArgillaError(
                f"Argilla's dataset {layout.name!r} is another one: {name} is {found.get(name, 'not there')} in it, "
                f"and {wanted.get(name, 'not there')} by the recipe",
                "Name another dataset under rank.judge, or delete that one in Argilla's UI.",
            )
