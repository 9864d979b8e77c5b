"""People judge in a real Argilla: what is pushed, what is collected, and how the one is mapped back to the other."""

import json
import logging
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from desk import Desk, group, order_of, person, ranked

from dpo_data.argilla.access import credentials
from dpo_data.argilla.records import records_of
from dpo_data.errors import ArgillaError, InputError, TemplateError
from dpo_data.judges.argilla import Argilla
from dpo_data.rows import Sample, content_id

RANKS = {"p.0": 3, "p.1": 1, "p.2": 2}
THREE = group("p", "one", "two", "three")


class TestDataset:
    def test_it_is_as_agreed(self, desk: Desk) -> None:
        asked = [group("p", "one", "two", "three", scores=[0.5, 2, 1]), group("q", "one", "two", reference="right")]
        ranked, waits = desk.run(asked, min_submitted=2, comment=True)
        assert not ranked
        pages = sorted(f"{desk.argilla.url}/dataset/{desk.dataset(f'd-{n}')['id']}/annotation-mode" for n in (2, 3))
        assert waits == f"2 of 2 await annotation at {' and '.join(pages)}"
        path = f"datasets/{desk.dataset()['id']}"
        assert desk.dataset()["distribution"]["min_submitted"] == 2
        assert desk.dataset()["guidelines"] == Path("prompts/guidelines.md").read_text().strip()
        shown = {one["name"]: (one["settings"]["type"], one["required"]) for one in desk.ask("GET", f"{path}/fields")["items"]}
        answers = {f"answer_{at}": ("text", True) for at in (1, 2, 3)}
        assert shown == {"prompt": ("chat", True), "reference": ("text", False), **answers}
        one, comment = desk.ask("GET", f"{path}/questions")["items"]
        assert [option["value"] for option in one["settings"]["options"]] == ["answer_1", "answer_2", "answer_3"]
        assert (one["name"], one["required"], comment["name"], comment["required"]) == ("ranking", True, "comment", False)
        record = desk.record("p")
        assert record["external_id"] == content_id(["p", ["p.0", "p.1", "p.2"], "ranking"])
        assert record["fields"]["prompt"] == [{"role": "user", "content": "What of p?"}]
        texts = dict(zip(("p.0", "p.1", "p.2"), ("one", "two", "three"), strict=True))
        assert [record["fields"][f"answer_{at}"] for at in (1, 2, 3)] == [texts[id] for id in order_of(record)]
        told = {name: value for name, value in record["metadata"].items() if name != "answers"}
        models = [f"model-{at}" for at in range(3)]
        about = {"prompt_id": "p", "source": "p.jsonl:1", "model": models}
        assert told == {**about, "margin": 1.5, "shortest": 3, "longest": 5}
        assert desk.record("q", "d-2")["fields"]["reference"] == "right" and "margin" not in desk.record("q", "d-2")["metadata"]

    def test_annotators_see_the_source_alone(self, desk: Desk) -> None:
        anna = person()
        desk.run([THREE], annotators=[anna])
        path = f"me/datasets/{desk.dataset()['id']}"
        seen = [one["name"] for one in desk.ask("GET", f"{path}/metadata-properties", desk.key(anna))["items"]]
        assert seen == ["source"]
        (item,) = desk.ask("POST", f"{path}/records/search", desk.key(anna), json={})["items"]
        assert item["record"]["metadata"] == {"source": "p.jsonl:1"}

    def test_people_are_made_and_their_passwords_kept(self, desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
        anna, ben = person(), person()
        with caplog.at_level(logging.INFO, "dpo_data"):
            desk.run([THREE], annotators=[anna])
            desk.run([THREE], annotators=[anna, ben])
        path = desk.home / "credentials.json"
        users = json.loads(path.read_text())["users"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [line for line in caplog.messages if "made user" in line] == [
            f"argilla: made user {who}, whose password is in {path}" for who in (anna, ben)
        ]
        assert not any(users[who][secret] in caplog.text for who in (anna, ben) for secret in ("password", "api_key"))
        members = {one["username"]: one["role"] for one in desk.ask("GET", f"workspaces/{desk.workspace_id}/users")["items"]}
        assert members == {anna: "annotator", ben: "annotator"}
        form = {"username": anna, "password": users[anna]["password"]}
        assert desk.ask("POST", "token", data=form)["access_token"]

    def test_passwords_of_an_argilla_elsewhere_lie_apart(
        self, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        anna, home = person(), tmp_path / "home"
        monkeypatch.setenv("ARGILLA_API_URL", desk.argilla.url)
        monkeypatch.setenv("ARGILLA_API_KEY", f" {desk.argilla.key}\n")
        desk.run([THREE], annotators=[anna], home=str(home))
        (path,) = home.glob("*.json")
        assert path.name == f"users-{desk.argilla.url.removeprefix('http://').replace(':', '-')}.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(home.stat().st_mode) == 0o700
        form = {"username": anna, "password": json.loads(path.read_text())["users"][anna]["password"]}
        assert desk.ask("POST", "token", data=form)["access_token"]
        assert credentials(home) is None, "no server of this machine's own has its home there"

    @pytest.mark.parametrize(
        ("first", "then", "told"),
        [
            ({}, {"question": "rating"}, "question 'rating_1' is not there in it, and of type rating with 1, 2, 3, 4, 5"),
            ({"comment": True}, {}, "question 'comment' is of type text in it, and not there by the recipe"),
            ({"min_submitted": 2}, {"min_submitted": 1}, "min_submitted is 2 in it, and 1 by the recipe"),
            (
                {"markdown": False},
                {},
                "field 'prompt' is of type chat, as it is in it, and of type chat, as Markdown by the recipe",
            ),
        ],
    )
    def test_a_dataset_that_asks_something_else_is_refused(
        self, desk: Desk, first: dict[str, Any], then: dict[str, Any], told: str
    ) -> None:
        desk.run([THREE], **first)
        with pytest.raises(ArgillaError) as error:
            desk.run([THREE], **then)
        assert told in error.value.what and "Name another dataset" in error.value.remedy

    def test_one_that_was_left_half_made_is_finished(self, desk: Desk) -> None:
        path = desk.ask("POST", "workspaces", json={"name": desk.workspace})["id"]
        half = desk.ask("POST", "datasets", json={"name": "d-3", "workspace_id": path})
        field = {"name": "prompt", "title": "Prompt", "required": True, "settings": {"type": "chat"}}
        desk.ask("POST", f"datasets/{half['id']}/fields", json=field)
        assert desk.run([THREE])[1].startswith("1 of 1 await") and desk.dataset()["id"] == half["id"]

    def test_other_guidelines_are_said(self, desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        desk.run([THREE])
        (tmp_path / "g.md").write_text("Rank.")
        with caplog.at_level(logging.WARNING, "dpo_data"):
            desk.run([THREE], guidelines=str(tmp_path / "g.md"))
        assert "other guidelines" in caplog.text

    def test_guidelines_that_cannot_be_shown(self, tmp_path: Path) -> None:
        (tmp_path / "g.md").write_text("x" * 10_001)
        with pytest.raises(TemplateError, match="10,001 characters"):
            Argilla(dataset="d", guidelines=str(tmp_path / "g.md")).inputs()
        with pytest.raises(TemplateError, match="No guidelines"):
            Argilla(dataset="d", guidelines=str(tmp_path / "none.md")).inputs()


class TestPush:
    def test_again_and_again_sends_nothing_twice(self, desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
        few, all = [group(f"p{at}", "a", "b", "c") for at in range(3)], [group(f"p{at}", "a", "b", "c") for at in range(7)]
        with caplog.at_level(logging.INFO, "dpo_data"):
            desk.run(few)
            before = desk.records()
            desk.run(few)
            desk.run(few, seed=5)
            desk.run(reversed(few))
        assert [line for line in caplog.messages if "pushed" in line] == [
            "argilla: pushed 3 records to d-3, where 0 were before"
        ]
        desk.run(all)
        after = {one["id"]: one for one in desk.records()}
        assert len(after) == 7 and all_in(before, after)

    def test_in_batches(self, desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setattr("dpo_data.argilla.exchange.BATCH", 4)
        monkeypatch.setattr("dpo_data.argilla.exchange.BATCH_BYTES", 3_000)
        monkeypatch.setattr("dpo_data.argilla.exchange.PAGE", 3)
        small, large = [group(f"s{at}", "a", "b", "c") for at in range(9)], group("l", "a" * 5_000, "b" * 5_000, "c")
        with caplog.at_level(logging.INFO, "dpo_data"):
            desk.run([*small, large])
        sent = [int(line.split()[2]) for line in caplog.messages if "pushed" in line]
        assert sent == [4, 8, 9, 10]
        desk.rank(None, "s4", {"s4.0": 1, "s4.1": 2, "s4.2": 3})
        given, waits = desk.run([*small, large])
        assert set(given) == {"s4"} and waits.startswith("9 of 10"), "it is read in pages"

    def test_a_text_that_changed_is_sent_anew_unless_somebody_answered_it(self, desk: Desk) -> None:
        desk.run([THREE, group("q", "a", "b", "c")])
        desk.run([group("p", "one", "two", "other"), group("q", "a", "b", "c")])
        record = desk.record("p")
        assert len(desk.records()) == 2 and "other" in record["fields"].values()
        assert (
            dict(zip(order_of(record), [record["fields"][f"answer_{at}"] for at in (1, 2, 3)], strict=True))["p.2"] == "other"
        )
        for status in ("draft", "submitted"):
            if status == "draft":
                response = desk.answer(None, record, {"ranking": ranked(record, RANKS)}, "draft")
            else:
                values = {"ranking": {"value": ranked(record, RANKS)}}
                desk.ask("PUT", f"responses/{response['id']}", json={"status": status, "values": values})
            with pytest.raises(ArgillaError, match=r"texts of prompt p \(p.jsonl:1\) have changed since people answered it"):
                desk.run([THREE])
            assert desk.record("p")["fields"] == record["fields"]

    def test_a_record_that_lost_which_answers_it_shows(self, desk: Desk) -> None:
        """As one whose metadata somebody's own program wiped: mended while nobody has answered it, and never guessed."""
        desk.run([THREE])
        before = desk.record("p")
        path = f"datasets/{before['dataset_id']}/records/bulk"
        wiped = {"external_id": before["external_id"], "fields": before["fields"], "metadata": {}}
        desk.ask("PUT", path, json={"items": [wiped]})
        desk.run([THREE])
        assert desk.record("p")["metadata"] == before["metadata"]
        desk.rank(None, "p", RANKS)
        desk.ask("PUT", path, json={"items": [wiped]})
        with pytest.raises(ArgillaError, match=r"The ids of the answers of prompt p \(p.jsonl:1\) have changed"):
            desk.run([THREE])

    def test_orders_differ_and_hang_on_the_seed_and_the_record_alone(self) -> None:
        groups = [group(f"p{at}", "a", "b", "c") for at in range(60)]

        def orders(seed: int, groups: list[Sample]) -> dict[str, list[str]]:
            return {one.group.prompt_id: one.order for each in groups for one in records_of(each, "ranking", seed)}

        first = orders(0, groups)
        assert len({tuple(id[-1] for id in order) for order in first.values()}) == 6
        turned = [replace(one, completions=one.completions[::-1]) for one in reversed(groups)]
        assert orders(0, turned) == first != orders(1, groups)


def all_in(before: list[dict[str, Any]], after: dict[str, dict[str, Any]]) -> bool:
    return all(after[one["id"]] == one for one in before)


SURROGATE = "\ud83d"


class TestLimits:
    @pytest.mark.parametrize(
        ("bad", "settings", "told"),
        [
            (group("x", *"ab" * 26), {}, "52 answers, and Argilla shows 50 at most"),
            (group("x", *"abcde"), {"question": "pairwise"}, "5 answers, and each two of 4"),
            (replace(THREE, prompt=[{"role": "user", "content": "x" * 20_001}]), {}, "20,001 characters, and 20,000"),
            (replace(THREE, prompt=[{"role": "user", "content": "x"}] * 501), {}, "501 turns, and 500"),
            (replace(THREE, prompt=[{"role": "u" * 21, "content": "x"}]), {}, "role is"),
            (replace(THREE, prompt=[]), {}, "conversation is empty"),
            (group("x", "a\0b", "c"), {}, "NUL"),
            (group("x", f"a{SURROGATE}", "c"), {}, "surrogate"),
            (group("x", "a", "c", reference="\0"), {}, "NUL"),
            (group("x", "a", "c", source="s" * 40_000), {}, "source is longer"),
        ],
    )
    def test_what_argilla_cannot_take_is_refused_before_anything_is_sent(
        self, desk: Desk, bad: Sample, settings: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(InputError) as error:
            desk.run([group("fine", "a", "b"), bad], **settings)
        assert told in error.value.what and f"Prompt {bad.prompt_id} (" in error.value.what and error.value.remedy
        assert desk.workspace not in {one["name"] for one in desk.ask("GET", "me/workspaces")["items"]}

    def test_what_it_can_just_take_is_taken(self, desk: Desk) -> None:
        chat = [{"role": "r" * 20, "content": "x" * 20_000}, *[{"role": "user", "content": ""}] * 499]
        call = {"type": "function", "function": {"name": "look", "arguments": {"at": 3}}}
        many = group("m", *[f"answer {at} 🦀 ü" for at in range(50)])
        called = replace(THREE, completions=[*THREE.completions[:2], replace(THREE.completions[2], text="", tool_calls=[call])])
        asked = [many, replace(called, prompt=chat, prompt_id="c"), group("e", "", "\x01\x7f\u202e")]
        assert desk.run(asked)[1].startswith("3 of 3 await")
        shown = desk.record("c")["fields"]
        assert '[calls look({"at": 3})]' in shown.values() and shown["prompt"][1]["content"] == "(empty)"
        before = desk.records("d-50")
        desk.run(asked)
        assert desk.records("d-50") == before

    def test_one_answer_cannot_be_compared(self, desk: Desk) -> None:
        given, waits = desk.run([group("p", "alone")])
        assert not waits and given["p"].abstained == "fewer than two answers came, so there is nothing to compare"
        assert desk.workspace not in {one["name"] for one in desk.ask("GET", "me/workspaces")["items"]}
