"""People at Argilla's own web UI, in a real browser, and what the judge makes of what they did there."""

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from argilla_ui import Annotator, Shown, chromium
from desk import Desk, group, person
from playwright.sync_api import Browser

from dpo_data.argilla.access import credentials
from dpo_data.cli import parser
from dpo_data.config import parse
from dpo_data.rows import Ranking, Sample
from dpo_data.share import SHIPPED

PROMPTS = 6
BORDA = {1: 1.0, 2: 0.5, 3: 0.0}
"""The scores of three answers with no tie, by rank."""

PAGE = (SHIPPED / "docs" / "people.md").read_text(encoding="utf-8")

SignIn = Callable[[str], Annotator]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture
def sign_in(browser: Browser, desk: Desk) -> Iterator[SignIn]:
    """Signs somebody in whom the judge has made. Nobody's page may ask anybody but the server."""
    came: list[Annotator] = []

    def enter(name: str) -> Annotator:
        known = credentials(desk.home)
        assert known is not None
        came.append(Annotator(browser))
        came[-1].sign_in(desk.argilla.url, name, known["users"][name]["password"])
        return came[-1]

    yield enter
    for one in came:
        one.page.context.close()
    assert [url for one in came for url in one.outside] == []


def rivers(count: int = PROMPTS, **more: Any) -> list[Sample]:
    """Prompts with three answers each, no two texts alike."""
    return [group(f"p{at}", f"Elbe {at}", f"Oder {at}", f"ÄPFEL STRASSE {at}", **more) for at in range(count)]


def ids(shown: Shown, groups: list[Sample]) -> list[str]:
    """The completion ids of the answers on the page, in their order there: by their texts, which are all different."""
    known = {answer.text: answer.completion_id for one in groups for answer in one.completions}
    answers = sorted(title for title in shown.texts if title.startswith("Answer"))
    return [known[shown.texts[title]] for title in answers]


def prompt(shown: Shown, groups: list[Sample]) -> str:
    return ids(shown, groups)[0].partition(".")[0]


def scores(ranking: Ranking) -> dict[str, float | None]:
    return dict(zip(ranking.completion_ids, ranking.scores, strict=True))


def people(ranking: Ranking) -> list[dict[str, Any]]:
    return list(json.loads(ranking.transcript))


def on_the_page(annotator: Annotator) -> Shown:
    shown = annotator.record()
    assert shown is not None
    return shown


def test_what_is_done_in_the_browser_is_what_is_collected(desk: Desk, sign_in: SignIn) -> None:
    """An order that is not the options', ties, a discard and a draft. It fails where the order in which Argilla lists the
    options is taken for the ranking: that would make 1 > 2 > 3 of 3 > 1 > 2."""
    anna, groups = person(), rivers()
    assert not desk.run(groups, annotators=[anna], comment=True)[0]
    page = sign_in(anna)
    page.open(desk.argilla.url, desk.dataset()["id"])
    expected: dict[str, dict[str, float]] = {}
    for ranks, fair in (
        ([2, 3, 1], [BORDA[2], BORDA[3], BORDA[1]]),
        ([3, 1, 2], [BORDA[3], BORDA[1], BORDA[2]]),
        ([1, 1, 3], [0.75, 0.75, 0.0]),
        ([2, 2, 2], [0.5, 0.5, 0.5]),
    ):
        shown = on_the_page(page)
        assert page.ranks() == [None] * 3, "nothing is filled in beforehand"
        page.rank(ranks)
        assert page.ranks() == ranks
        page.comment(f"ranked {ranks}")
        page.submit()
        expected[prompt(shown, groups)] = dict(zip(ids(shown, groups), fair, strict=True))
    discarded = prompt(on_the_page(page), groups)
    page.discard()
    shown = on_the_page(page)
    draft, order = prompt(shown, groups), ids(shown, groups)
    page.rank([1, 3, 2])
    page.save_draft()

    found, waits = desk.run(groups, annotators=[anna], comment=True)
    assert waits.startswith("1 of 6 await annotation at ") and draft not in found
    assert found[discarded].abstained == "0 of 1 people answered, and 1 discarded it"
    assert [(one["status"], one["scores"]) for one in people(found[discarded])] == [("discarded", None)]
    assert {name: scores(row) for name, row in found.items() if name != discarded} == expected
    for row in (found[name] for name in expected):
        (said,) = people(row)
        assert (said["annotator"], said["status"], said["prefilled"]) == (anna, "submitted", None)
        ranks = json.loads(said["comment"].removeprefix("ranked "))
        assert said["scores"] == {id: 4 - rank for id, rank in zip(said["shown"], ranks, strict=True)}

    page.queue("draft")
    assert (prompt(on_the_page(page), groups), page.ranks()) == (draft, [1, 3, 2]), "a draft is still there"
    page.submit()
    found, waits = desk.run(groups, annotators=[anna], comment=True)
    assert not waits and scores(found[draft]) == dict(zip(order, [BORDA[1], BORDA[3], BORDA[2]], strict=True))


def test_the_queue_shrinks_until_as_many_have_answered_as_it_takes(desk: Desk, sign_in: SignIn) -> None:
    """Of a record that two are to answer, each has it in a queue of their own, and a third does not get it any more."""
    anna, ben, cleo = (person() for _ in range(3))
    groups = rivers(2)
    asked: dict[str, Any] = {"annotators": [anna, ben, cleo], "min_submitted": 2}
    desk.run(groups, **asked)
    pages = {name: sign_in(name) for name in (anna, ben, cleo)}
    for name in (anna, ben):
        page = pages[name]
        page.open(desk.argilla.url, "d-3")
        assert page.total() == 2
        page.awaits_progress(0, "0.00%")
        page.search("Elbe 1")  # each has an order of their own, and both are to answer the same one
        page.rank([1, 2, 3])
        page.submit()
        page.open(desk.argilla.url, "d-3")
        assert page.total() == 1
        page.awaits_progress(1, "0.00%" if name == anna else "50.00%")
    found, waits = desk.run(groups, **asked)
    assert [*found] == ["p1"] and waits.startswith("1 of 2 await")
    pages[cleo].open(desk.argilla.url, "d-3")
    assert pages[cleo].total() == 1
    for name in (anna, ben):
        pages[name].rank([3, 2, 1])
        pages[name].submit()
        assert pages[name].record() is None and pages[name].total() == 0
    pages[cleo].open(desk.argilla.url, "d-3")
    assert pages[cleo].record() is None
    pages[cleo].awaits_progress(0, "100.00%")
    found, waits = desk.run(groups, **asked)
    assert len(found) == 2 and not waits
    assert sorted(one["annotator"] for row in found.values() for one in people(row)) == sorted([anna, anna, ben, ben])


def test_search_and_filters_find_what_they_should(desk: Desk, sign_in: SignIn) -> None:
    anna = person()
    groups = [*rivers(4), group("q", "one", "two", "three", source="other.jsonl:7")]
    desk.run(groups, annotators=[anna])
    page = sign_in(anna)
    page.open(desk.argilla.url, "d-3")
    assert page.total() == 5
    page.search("äpfel 2")
    assert page.total() == 1 and prompt(on_the_page(page), groups) == "p2", "letters of any alphabet, whatever their case"
    page.search("nobody wrote this")
    assert page.record() is None
    page.open(desk.argilla.url, "d-3")
    page.only("Source", "other.jsonl:7")
    assert page.total() == 1 and prompt(on_the_page(page), groups) == "q"
    page.open(desk.argilla.url, "d-3")
    first = on_the_page(page).id
    page.rank([1, 1, 2])
    page.submit()
    page.queue("submitted")
    assert page.total() == 1 and on_the_page(page).id == first and page.ranks() == [1, 1, 2]
    page.queue("discarded")
    assert page.record() is None
    page.queue("pending")
    assert page.total() == 4


def test_what_is_suggested_is_filled_in_and_told_apart(desk: Desk, sign_in: SignIn) -> None:
    anna, groups = person(), rivers(2, scores=[0.1, 0.9, 0.9])
    asked: dict[str, Any] = {"annotators": [anna], "suggest": True}
    desk.run(groups, **asked)
    page = sign_in(anna)
    page.open(desk.argilla.url, "d-3")
    merely, changed = on_the_page(page), None
    for one in (merely, changed):
        shown = one or on_the_page(page)
        assert page.ranks() == [3 if id.endswith(".0") else 1 for id in ids(shown, groups)]
        if one is None:
            page.rank([1, 2, 3])
        page.submit()
    found, waits = desk.run(groups, **asked)
    agreed = prompt(merely, groups)
    assert not waits and {name: people(row)[0]["prefilled"] for name, row in found.items()} == {
        f"p{at}": f"p{at}" == agreed for at in range(2)
    }
    assert scores(found[agreed]) == {f"{agreed}.0": 0.0, f"{agreed}.1": 0.75, f"{agreed}.2": 0.75}


def test_ratings(desk: Desk, sign_in: SignIn) -> None:
    anna, groups = person(), rivers(1)
    desk.run(groups, annotators=[anna], question="rating")
    page = sign_in(anna)
    page.open(desk.argilla.url, "d-3")
    shown = ids(on_the_page(page), groups)
    page.rate([2, 5, 2])
    page.submit()
    found, _ = desk.run(groups, annotators=[anna], question="rating")
    assert people(found["p0"])[0]["scores"] == dict(zip(shown, (2, 5, 2), strict=True))
    assert scores(found["p0"]) == dict(zip(shown, (0.25, 1.0, 0.25), strict=True))


def test_two_by_two(desk: Desk, sign_in: SignIn) -> None:
    """Three answers make three records; Elbe beats both others, which are a tie."""
    anna, groups = person(), rivers(1)
    desk.run(groups, annotators=[anna], question="pairwise")
    page = sign_in(anna)
    page.open(desk.argilla.url, "d-2")
    for _ in range(3):
        shown = ids(on_the_page(page), groups)
        page.prefer(f"Answer {shown.index('p0.0') + 1}" if "p0.0" in shown else "Equally good")
        page.submit()
    found, waits = desk.run(groups, annotators=[anna], question="pairwise")
    told = [one["scores"] for one in people(found["p0"])]
    assert not waits and sorted(told, key=sorted) == [
        {"p0.0": 1, "p0.1": 0},
        {"p0.0": 1, "p0.2": 0},
        {"p0.1": 0.5, "p0.2": 0.5},
    ]
    assert scores(found["p0"]) == {"p0.0": 1.0, "p0.1": 0.25, "p0.2": 0.25}


@pytest.mark.parametrize("markdown", [True, False])
def test_an_answer_runs_and_loads_nothing_in_the_browser(desk: Desk, sign_in: SignIn, markdown: bool) -> None:
    anna = person()
    script = "document.title = 'taken over'"
    texts = (
        f'<img src="x" onerror="{script}">image',
        f"<script>{script}</script>script & co",
        "**bold** ![seen](http://198.51.100.7/seen.png)",
    )
    desk.run([group("p", *texts)], annotators=[anna], markdown=markdown)
    page = sign_in(anna)
    page.open(desk.argilla.url, "d-3")
    shown = on_the_page(page)
    seen = ("image", "script & co", "bold") if markdown else texts
    assert sorted(shown.texts[f"Answer {at}"].strip() for at in (1, 2, 3)) == sorted(seen)
    page.rank([1, 2, 3])
    page.submit()
    assert "taken over" not in page.page.title()


@pytest.mark.parametrize("block", re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
def test_every_recipe_of_the_page_is_one(block: str) -> None:
    base = {"name": "t", "prompts": {"path": "p"}, "sample": {"engine": {"type": "echo"}}}
    told = tomllib.loads(block)
    made = parse({**base, **told})
    assert made.rank.judge.type == told["rank"]["judge"]["type"]


def test_every_command_of_the_page_is_one() -> None:
    """Each is taken by the command line, and by prefect.yaml where it is a deployment."""
    said = re.findall(
        r"^(?:\$ )?dpo-data (.*?)(?: *#.*)?$|`dpo-data ([^`]*)`", PAGE.replace("`dpo-data\n", "`dpo-data "), re.MULTILINE
    )
    commands = [first or second for first, second in said if not (first or second).startswith("error")]
    assert {"argilla up", "run mine.toml", "argilla down", "argilla user add emil", "deploy"} <= set(commands)
    for command in commands:
        words = command.split()
        parser().parse_args([*words, "recipe.toml"] if words == ["run"] or words == ["plan"] else words)
    deployments = re.findall(r"\bcurate/(\w+)", PAGE)
    known = re.findall(r"^  - name: (\w+)$", (SHIPPED / "prefect.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    assert deployments and set(deployments) <= set(known)


def test_every_picture_of_the_page_is_there() -> None:
    pictures = re.findall(r"^!\[[^\]]+\]\((.*?)\)$", PAGE, re.MULTILINE)
    assert len(pictures) == 4 and all((SHIPPED / "docs" / name).stat().st_size < 300_000 for name in pictures)
