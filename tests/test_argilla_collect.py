"""What people answered in a real Argilla comes back as they meant it: by ranks and ids, never by the order of options."""

import random
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from desk import Desk, group, order_of, people, person, prompt_of, ranked, scores
from hypothesis import given
from hypothesis import strategies as st

from dpo_data.argilla.access import Access
from dpo_data.argilla.client import Client
from dpo_data.argilla.dataset import Dataset, Layout
from dpo_data.argilla.exchange import read
from dpo_data.argilla.records import Record, records_of, scores_in, suggestion
from dpo_data.errors import ArgillaError, Unfinished
from dpo_data.formats.prompts import Prompts, read_given
from dpo_data.judges.cascade import Cascade
from dpo_data.judges.panel import Panel
from dpo_data.ledger import Ledger
from dpo_data.rows import Completion, Ranking, Sample, batched

THREE = group("p", "one", "two", "three")
RANKS = {"p.0": 3, "p.1": 1, "p.2": 2}
REAL = Path(__file__).parents[2] / "shared" / "data" / "dpo_en_demo.json"


def upside_down(ranks: dict[str, int]) -> dict[str, float]:
    return {id: float(len(ranks) + 1 - rank) for id, rank in ranks.items()}


class TestReading:
    def test_the_ranks_count_and_not_the_order_of_the_options(self) -> None:
        """3 > 1 > 2, and a tie, as the UI submits them: in the options' own order."""
        told = [{"value": "answer_1", "rank": 2}, {"value": "answer_2", "rank": 3}, {"value": "answer_3", "rank": 1}]
        assert scores_in({"ranking": told}, ["a", "b", "c"], "ranking") == {"a": 2, "b": 1, "c": 3}
        assert scores_in({"ranking": told[::-1]}, ["a", "b", "c"], "ranking") == {"a": 2, "b": 1, "c": 3}
        tied = [{"value": "answer_1", "rank": 2}, {"value": "answer_2", "rank": 1}, {"value": "answer_3", "rank": 2}]
        assert scores_in({"ranking": tied}, ["a", "b", "c"], "ranking") == {"a": 2, "b": 3, "c": 2}

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"ranking": None},
            {"ranking": []},
            {"ranking": [{"value": "answer_1", "rank": 1}]},
            {"ranking": [{"value": "answer_1", "rank": 1}, {"value": "answer_2", "rank": None}]},
            {"ranking": [{"value": "answer_1", "rank": 1}, {"value": "answer_9", "rank": 2}]},
        ],
    )
    def test_half_a_ranking_is_none(self, values: dict[str, Any]) -> None:
        assert scores_in(values, ["a", "b"], "ranking") is None

    def test_ratings_and_comparisons(self) -> None:
        assert scores_in({"rating_1": 5, "rating_2": 2}, ["a", "b"], "rating") == {"a": 5, "b": 2}
        assert scores_in({"rating_1": 5, "rating_2": None}, ["a", "b"], "rating") is None
        told = {"answer_1": {"a": 1, "b": 0}, "answer_2": {"a": 0, "b": 1}, "tie": {"a": 0.5, "b": 0.5}}
        for better, expected in [*told.items(), (None, None), ("answer_3", None)]:
            assert scores_in({"better": better}, ["a", "b"], "pairwise") == expected

    @given(st.lists(st.sampled_from([-1.5, 0.0, 0.25, 2.0, 7.0]), min_size=2, max_size=6), st.integers(0, 9))
    def test_a_suggestion_says_what_the_scores_say(self, given_scores: list[float], seed: int) -> None:
        (record,) = records_of(group("p", *"abcdef"[: len(given_scores)], scores=given_scores), "ranking", seed)
        read = scores_in(suggestion(record, "ranking"), record.order, "ranking")
        wanted = {f"p.{at}": score for at, score in enumerate(given_scores)}
        assert read and all(
            (read[one] > read[other]) == (wanted[one] > wanted[other]) for one, other in product(wanted, repeat=2)
        )
        ranks = [option["rank"] for option in suggestion(record, "ranking")["ranking"]]
        assert min(ranks) == 1 and max(ranks) <= len(ranks), "as Argilla wants them"

    def test_a_suggestion_of_another_kind(self) -> None:
        def of(question: Any, *given_scores: float | None) -> dict[str, Any]:
            one = group("p", *"abcd"[: len(given_scores)], scores=given_scores)
            return suggestion(Record("id", one), question)

        assert of("rating", 5, 1, 3) == {"rating_1": 5, "rating_2": 1, "rating_3": 3}
        assert of("rating", 0.5, 1, 3) == of("rating", 6, 1, 3) == of("rating", 1, None) == {}, "no rating is made up"
        assert of("pairwise", 1, 2) == {"better": "answer_2"} and of("pairwise", 2, 2) == {"better": "tie"}
        assert of("ranking", 1, None) == of("ranking", 1, float("nan")) == of("pairwise", None, None) == {}

    def test_a_page_that_holds_less_than_it_should_is_an_error(self) -> None:
        """As where somebody deletes records while they are read: a page is skipped, and nothing says so but the count."""
        items = [{"id": str(at), "external_id": str(at), "fields": {}, "metadata": None} for at in (1, 2, 2)]

        def answer(request: httpx.Request) -> httpx.Response:
            offset = int(request.url.params["offset"])
            return httpx.Response(200, json={"items": items[offset : offset + 2], "total": 3})

        layout = Layout("d-2", 2, "ranking", False, True, 1, "")
        with closing(Client(Access("http://argilla.example", "k"), httpx.MockTransport(answer))) as client:
            with pytest.raises(ArgillaError, match=r"2 of the 3 records of 'd-2' came"):
                read(client, Dataset("id", "url", layout, {}))
            items[2] = {**items[2], "id": "3", "external_id": "3"}
            assert read(client, Dataset("id", "url", layout, {})).keys() == {"1", "2", "3"}


class TestCollecting:
    def test_a_ranking(self, desk: Desk) -> None:
        anna = person()
        asked = [THREE, group("q", "a", "b", "c"), group("r", "a", "b", "c")]
        desk.run(asked, annotators=[anna], comment=True)
        desk.rank(anna, "p", RANKS, comment="the second is right")
        desk.rank(anna, "q", {"q.0": 2, "q.1": 1, "q.2": 2})
        given, waits = desk.run(asked, comment=True)
        assert waits.startswith("1 of 3 await annotation at ") and given.keys() == {"p", "q"}
        assert scores(given["p"]) == {"p.1": 1, "p.2": 0.5, "p.0": 0}, "Borda: the share of the others that each beats"
        assert scores(given["q"]) == {"q.1": 1, "q.0": 0.25, "q.2": 0.25}
        (told,) = people(given["p"])
        at = told.pop("at")
        record = desk.record("p")
        assert at == f"{record['responses'][0]['updated_at']}Z"
        assert told == {
            "kind": "person",
            "annotator": anna,
            "status": "submitted",
            "shown": order_of(record),
            "scores": upside_down(RANKS),
            "prefilled": None,
            "seconds": None,
            "comment": "the second is right",
        }
        (second,) = people(given["q"])
        between = datetime.fromisoformat(second["at"]) - datetime.fromisoformat(at)
        assert second["seconds"] == between.total_seconds() > 0 and second["comment"] is None

    def test_any_ranking_of_any_order_comes_back(self, desk: Desk) -> None:
        chance = random.Random(0)
        asked = [group(f"p{at}", *"abcd") for at in range(30)]
        desk.run(asked)
        wanted = {one.prompt_id: {c.completion_id: chance.randint(1, 4) for c in one.completions} for one in asked}
        for record in desk.records("d-4"):
            desk.answer(None, record, {"ranking": ranked(record, wanted[record["metadata"]["prompt_id"]])})
        given, waits = desk.run(asked, seed=9)
        assert not waits
        assert {id: people(ranking)[0]["scores"] for id, ranking in given.items()} == {
            id: upside_down(ranks) for id, ranks in wanted.items()
        }

    def test_ratings(self, desk: Desk) -> None:
        desk.run([THREE], question="rating")
        record = desk.record("p")
        desk.answer(None, record, {f"rating_{at}": mark for at, mark in enumerate((5, 2, 2), 1)})
        (ranking,) = desk.run([THREE], question="rating")[0].values()
        best, *others = order_of(record)
        assert people(ranking)[0]["scores"] == {best: 5, **dict.fromkeys(others, 2)}
        assert scores(ranking) == {best: 1, **dict.fromkeys(others, 0.25)}

    def test_two_by_two(self, desk: Desk) -> None:
        settings = {"question": "pairwise", "combine": "bradley_terry"}
        assert desk.run([THREE], **settings)[1].startswith("1 of 1 await")
        records = desk.records("d-2")
        assert len(records) == 3
        for record in records[:2]:
            one, other = order_of(record)
            desk.answer(None, record, {"better": "answer_1" if one < other else "answer_2"})
        assert desk.run([THREE], **settings)[0] == {}, "a prompt is done when all its records are"
        desk.answer(None, records[2], {"better": "tie"})
        (ranking,) = desk.run([THREE], **settings)[0].values()
        said = people(ranking)
        assert len(said) == 3 and all(len(one["shown"]) == 2 for one in said)
        assert sorted(tuple(sorted(one["scores"].items())) for one in said) == sorted(
            tuple(sorted(zip(sorted(ids), values, strict=True)))
            for ids, values in zip((order_of(record) for record in records), ((1, 0), (1, 0), (0.5, 0.5)), strict=True)
        )
        assert ranking.abstained is None and None not in ranking.scores

    def test_as_many_as_it_takes_and_one_more(self, desk: Desk) -> None:
        team = [person() for _ in range(3)]
        run = {"min_submitted": 2, "annotators": team}
        desk.run([THREE], **run)
        desk.rank(team[0], "p", RANKS)
        assert desk.run([THREE], **run)[0] == {}
        desk.rank(team[1], "p", RANKS)
        assert people(desk.run([THREE], **run)[0]["p"])[1]["annotator"] == team[1]
        desk.rank(team[2], "p", {"p.0": 1, "p.1": 2, "p.2": 2})
        (ranking,) = desk.run([THREE], **run)[0].values()
        assert {one["annotator"] for one in people(ranking)} == set(team), "a third answer counts too"

    def test_who_discards_has_answered(self, desk: Desk) -> None:
        team = [person(), person()]
        run = {"min_submitted": 2, "annotators": team}
        desk.run([THREE], **run)
        desk.answer(team[0], desk.record("p"), None, "discarded")
        desk.rank(team[1], "p", RANKS)
        (ranking,) = desk.run([THREE], **run)[0].values()
        assert ranking.abstained == "1 of 2 people answered, and 1 discarded it", "nobody is left to ask"
        assert {(one["annotator"], one["status"]): one["scores"] for one in people(ranking)} == {
            (team[0], "discarded"): None,
            (team[1], "submitted"): upside_down(RANKS),
        }
        assert desk.run([THREE], min_submitted=2, annotators=[person()])[0] == {}, "somebody new may be asked"

    def test_one_curator_alone_discards(self, desk: Desk) -> None:
        asked = [THREE, group("q", "a", "b", "c")]
        desk.run(asked)
        desk.answer(None, desk.record("p"), None, "discarded")
        given, waits = desk.run(asked)
        assert given["p"].abstained == "0 of 1 people answered, and 1 discarded it" and waits.startswith("1 of 2")

    def test_drafts_are_no_answers_yet(self, desk: Desk) -> None:
        desk.run([THREE])
        record = desk.record("p")
        draft = desk.answer(None, record, {"ranking": [{"value": "answer_1"}]}, "draft")
        assert desk.run([THREE])[0] == {}
        values = {"ranking": {"value": ranked(record, RANKS)}}
        desk.ask("PUT", f"responses/{draft['id']}", json={"status": "submitted", "values": values})
        assert people(desk.run([THREE])[0]["p"])[0]["scores"] == upside_down(RANKS)

    def test_a_record_that_is_opened_again(self, desk: Desk) -> None:
        desk.run([THREE])
        response = desk.rank(None, "p", RANKS)
        desk.ask("PUT", f"responses/{response['id']}", json={"status": "draft", "values": response["values"]})
        assert desk.run([THREE])[0] == {}
        better = {"ranking": {"value": ranked(desk.record("p"), {"p.0": 1, "p.1": 1, "p.2": 3})}}
        desk.ask("PUT", f"responses/{response['id']}", json={"status": "submitted", "values": better})
        assert scores(desk.run([THREE])[0]["p"]) == {"p.0": 0.75, "p.1": 0.75, "p.2": 0}
        desk.ask("DELETE", f"responses/{response['id']}")
        assert desk.run([THREE])[0] == {}

    def test_an_annotator_who_is_renamed_or_has_left(self, desk: Desk) -> None:
        anna, ben, renamed = person(), person(), person()
        run = {"min_submitted": 2}
        desk.run([THREE], annotators=[anna, ben], **run)
        for who in (anna, ben):
            desk.rank(who, "p", RANKS)
        desk.ask("PATCH", f"users/{desk.user_id(anna)}", json={"username": renamed})
        assert {one["annotator"] for one in people(desk.run([THREE], **run)[0]["p"])} == {renamed, ben}
        desk.ask("DELETE", f"workspaces/{desk.workspace_id}/users/{desk.user_id(ben)}")
        assert {one["annotator"] for one in people(desk.run([THREE], **run)[0]["p"])} == {renamed, ben}, "they left the team"
        desk.ask("DELETE", f"users/{desk.user_id(ben)}")
        given, waits = desk.run([THREE], **run)
        assert not given and waits.startswith("1 of 1 await"), "with a user, Argilla deletes what they said"

    def test_what_is_not_of_this_run_is_left_alone(self, desk: Desk) -> None:
        others = [group(f"o{at}", "a", "b", "c") for at in range(3)]
        desk.run(others)
        desk.rank(None, "o1", {"o1.0": 1, "o1.1": 2, "o1.2": 3})
        fields = {"prompt": [{"role": "user", "content": "?"}], **{f"answer_{at}": "x" for at in (1, 2, 3)}}
        path = f"datasets/{desk.dataset()['id']}/records/bulk"
        desk.ask("POST", path, json={"items": [{"fields": fields}, {"fields": fields, "external_id": "by hand"}]})
        for record in desk.records()[-2:]:
            values = {"ranking": [{"value": f"answer_{at}", "rank": 1} for at in (1, 2, 3)]}
            desk.answer(None, record, values)
        before = desk.records()
        assert desk.run([THREE]) == (
            {},
            f"1 of 1 await annotation at {desk.argilla.url}/dataset/{desk.dataset()['id']}/annotation-mode",
        )
        assert [one for one in desk.records() if prompt_of(one) != "p"] == before
        desk.rank(None, "p", RANKS)
        assert desk.run([THREE])[0].keys() == {"p"} and desk.run(others)[0].keys() == {"o1"}

    def test_a_dataset_that_is_deleted_is_made_anew(self, desk: Desk, tmp_path: Path) -> None:
        with closing(Ledger(tmp_path / "calls.sqlite", "rank")) as ledger:
            desk.run([THREE], engines=ledger)
            old = desk.dataset()["id"]
            desk.ask("DELETE", f"datasets/{old}")
            assert desk.run([THREE], engines=ledger)[1].startswith("1 of 1 await")
            assert desk.dataset()["id"] != old and len(desk.records()) == 1
            desk.ask("DELETE", f"datasets/{desk.dataset()['id']}/records", params={"ids": desk.record("p")["id"]})
            assert desk.run([THREE], engines=ledger)[1] and len(desk.records()) == 1, "and so is a record"

    def test_one_that_is_deleted_while_it_is_read(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        from dpo_data.judges import argilla as judge

        desk.run([THREE])
        desk.rank(None, "p", RANKS)

        def deleted_first(client: Any, dataset: Any) -> Any:
            desk.ask("DELETE", f"datasets/{dataset.id}")
            return read(client, dataset)

        monkeypatch.setattr(judge, "read", deleted_first)
        with pytest.raises(ArgillaError, match=r"does not have .* run again: what is missing is made anew"):
            desk.run([THREE])
        monkeypatch.undo()
        assert desk.run([THREE])[1].startswith("1 of 1 await")


class TestSuggestions:
    SCORED = group("p", "one", "two", "three", scores=[0.5, 2, 0.5])

    def test_they_are_filled_in_and_an_answer_that_equals_one_is_told(self, desk: Desk) -> None:
        anna = person()
        asked = [self.SCORED, group("q", "a", "b", "c", scores=[1, 2, 3]), group("r", "a", "b", "c", scores=[1, None, 3])]
        desk.run(asked, suggest=True, annotators=[anna])
        path, include = f"me/datasets/{desk.dataset()['id']}/records/search", {"include": "suggestions"}
        seen = desk.ask("POST", path, desk.key(anna), json={}, params=include)["items"]
        by_answers = {one["record"]["external_id"]: one["record"]["suggestions"] for one in seen}
        record = desk.record("p")
        (filled,) = by_answers[record["external_id"]]
        assert filled["value"] == ranked(record, {"p.0": 2, "p.1": 1, "p.2": 2}) and filled["agent"] == "dpo-data"
        assert by_answers[desk.record("r")["external_id"]] == [], "where not all have a score"
        desk.answer(anna, record, {"ranking": filled["value"][::-1]})
        desk.rank(anna, "q", {"q.0": 1, "q.1": 2, "q.2": 3})
        desk.rank(anna, "r", {"r.0": 1, "r.1": 2, "r.2": 3})
        given, _ = desk.run(asked)
        assert {id: people(ranking)[0]["prefilled"] for id, ranking in given.items()} == {"p": True, "q": False, "r": None}

    @pytest.mark.parametrize("question", ["rating", "pairwise"])
    def test_for_the_other_questions(self, desk: Desk, question: str) -> None:
        asked = [group(name, "a", "b", scores=[1, 5]) for name in "pq"]
        desk.run(asked, suggest=True, question=question)
        for name in "pq":
            record = desk.record(name, "d-2")
            names = {one["id"]: one["name"] for one in desk.ask("GET", f"datasets/{record['dataset_id']}/questions")["items"]}
            values = {names[one["question_id"]]: one["value"] for one in record["suggestions"]}
            assert values
            turned = {"rating_1": 3, "rating_2": 3} if question == "rating" else {"better": "tie"}
            desk.answer(None, record, values if name == "p" else turned)
        given, _ = desk.run(asked, question=question)
        assert {id: people(ranking)[0]["prefilled"] for id, ranking in given.items()} == {"p": True, "q": False}
        assert people(given["p"])[0]["scores"]["p.1"] > people(given["p"])[0]["scores"]["p.0"]

    def test_they_follow_while_nobody_has_answered(self, desk: Desk) -> None:
        desk.run([THREE])
        assert not desk.record("p")["suggestions"]
        desk.run([self.SCORED], suggest=True)
        assert desk.record("p")["suggestions"] and desk.record("p")["metadata"]["margin"] == 1.5
        desk.run([self.SCORED])
        assert not desk.record("p")["suggestions"], "switched off"
        desk.run([self.SCORED], suggest=True)
        other = group("p", "one", "another", "three", scores=[0.5, None, 0.5])
        desk.run([other], suggest=True)
        assert not desk.record("p")["suggestions"], "those of a text that is gone"


class TestWhenItIsOver:
    ASKED = [group(f"p{at}", "a", "b", "c") for at in range(4)]

    def ranks(self, desk: Desk, *prompts: str, who: str | None = None) -> None:
        for prompt in prompts:
            desk.rank(who, prompt, {f"{prompt}.0": 1, f"{prompt}.1": 2, f"{prompt}.2": 3})

    def test_enough_leaves_the_others_undecided(self, desk: Desk) -> None:
        desk.run(self.ASKED, enough=0.5)
        self.ranks(desk, "p0")
        given, waits = desk.run(self.ASKED, enough=0.5)
        assert given.keys() == {"p0"} and waits.startswith("3 of 4")
        self.ranks(desk, "p2")
        given, waits = desk.run(self.ASKED, enough=0.5)
        assert not waits and {id: one.abstained for id, one in given.items()} == {
            "p0": None,
            "p1": "0 of 1 people answered",
            "p2": None,
            "p3": "0 of 1 people answered",
        }

    def test_enough_is_a_share_of_all_prompts_also_of_those_that_are_ranked_already(self, desk: Desk, tmp_path: Path) -> None:
        with closing(Ledger(tmp_path / "calls.sqlite", "rank")) as ledger:
            desk.run(self.ASKED, enough=0.75, engines=ledger)
            self.ranks(desk, "p0", "p1")
            assert desk.run(self.ASKED[2:], enough=0.75, engines=ledger)[1].startswith("2 of 4 await")
            self.ranks(desk, "p3")
            given, waits = desk.run(self.ASKED[2:], enough=0.75, engines=ledger)
            assert not waits and given["p2"].abstained and not given["p3"].abstained

    def test_enough_is_enough_whatever_the_rounding(self, desk: Desk) -> None:
        """0.07 × 100 is 7.000000000000001."""
        asked = [group(f"p{at}", "a", "b", "c") for at in range(100)]
        desk.run(asked, enough=0.07)
        self.ranks(desk, *(f"p{at}" for at in range(7)))
        assert desk.run(asked, enough=0.07)[1] == ""

    def test_the_deadline(self, desk: Desk) -> None:
        soon, over = (datetime.now(UTC) + timedelta(hours=hours) for hours in (1, -1))
        run = {"min_submitted": 2, "annotators": [person(), person()]}
        assert desk.run(self.ASKED, deadline=soon, **run)[1].startswith("4 of 4")
        self.ranks(desk, "p1")
        given, waits = desk.run(self.ASKED, deadline=over, **run)
        assert not waits and [one.abstained for one in given.values()] == [f"{n} of 2 people answered" for n in (0, 1, 0, 0)]
        assert people(given["p1"])[0]["annotator"] == "argilla", "what was said is in the transcript all the same"

    def test_weights_wait_for_all_and_are_kept(self, desk: Desk, tmp_path: Path) -> None:
        anna, ben, carl = team = [person() for _ in range(3)]
        run = {"min_submitted": 3, "weights": "agreement", "annotators": team}
        with closing(Ledger(tmp_path / "calls.sqlite", "rank")) as ledger:
            desk.run(self.ASKED, engines=ledger, **run)
            for prompt in ("p0", "p1", "p2"):
                for who in (anna, ben):
                    self.ranks(desk, prompt, who=who)
                desk.rank(carl, prompt, {f"{prompt}.0": 3, f"{prompt}.1": 2, f"{prompt}.2": 1})
            assert desk.run(self.ASKED, engines=ledger, **run)[0] == {}, "three are done, and none is given"
            for who in team:
                self.ranks(desk, "p3", who=who)
            given, waits = desk.run(self.ASKED, engines=ledger, **run)
            assert not waits and len(given) == 4
            alone, _ = desk.run(self.ASKED[:1], engines=ledger, **run)
            assert alone["p0"] == given["p0"], "a run that goes on weighs as before, with fewer prompts before it"
        equal, _ = desk.run(self.ASKED, **{**run, "weights": "equal"})
        best = {name: scores(rankings["p0"])["p0.0"] for name, rankings in (("agreement", given), ("equal", equal))}
        assert best["agreement"] > best["equal"] == pytest.approx(2 / 3), "who contradicts the others weighs less"  # type: ignore[operator]

    def test_a_look_at_what_nobody_answered_reads_no_record(
        self, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> Any:
            raise AssertionError("it reads")

        with closing(Ledger(tmp_path / "calls.sqlite", "rank")) as ledger:
            desk.run(self.ASKED, engines=ledger)
            with monkeypatch.context() as patched:
                patched.setattr("dpo_data.judges.argilla.read", refuse)
                assert desk.run(self.ASKED, engines=ledger)[1].startswith("4 of 4")
                with pytest.raises(AssertionError):
                    desk.run(self.ASKED[:2], engines=ledger)
            self.ranks(desk, "p1")
            assert desk.run(self.ASKED, engines=ledger)[0].keys() == {"p1"}


class TestAmongOtherJudges:
    ASKED = [group(f"p{at}", "a", "b " * (at + 1), "c " * 9 if at else "c", scores=[1, 2, 3]) for at in range(3)]

    def collected(self, settings: Any, engines: Callable[..., Any]) -> dict[str, Ranking]:
        with closing(settings.build(settings, 0, engines)) as judge:
            given: dict[str, Ranking] = {}
            with pytest.raises(Unfinished, match="await annotation at http"):
                for ranking in judge.rank(self.ASKED):
                    given[ranking.prompt_id] = ranking
        return given

    def test_in_a_cascade(self, desk: Desk, tmp_path: Path) -> None:
        settings = Cascade(first={"type": "rule", "rule": "concise"}, then=desk.settings())  # type: ignore[arg-type]
        with closing(Ledger(tmp_path / "calls.sqlite", "rank")) as ledger:
            given = self.collected(settings, ledger)
            assert given.keys() == {"p1", "p2"} and [one["metadata"]["prompt_id"] for one in desk.records()] == ["p0"]
            desk.rank(None, "p0", {"p0.0": 3, "p0.1": 1, "p0.2": 2})
            with closing(settings.build(settings, 0, ledger)) as judge:
                given = {ranking.prompt_id: ranking for ranking in judge.rank(self.ASKED)}
        assert scores(given["p0"]) == {"p0.1": 1, "p0.2": 0.5, "p0.0": 0} and len(given) == 3
        assert people(given["p0"])[-1]["transcript"][0]["kind"] == "person"

    def test_in_a_panel(self, desk: Desk, tmp_path: Path) -> None:
        settings = Panel(judges=[{"type": "given"}, desk.settings()], quorum=1)  # type: ignore[list-item]
        with closing(Ledger(tmp_path / "calls.sqlite", "rank")) as ledger:
            assert self.collected(settings, ledger) == {}
            desk.rank(None, "p1", {"p1.0": 3, "p1.1": 1, "p1.2": 2})
            assert self.collected(settings, ledger).keys() == {"p1"}


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
def test_real_pairs_come_back_unchanged(desk: Desk) -> None:
    asked, chosen = [], {}
    for prompt, answers in read_given(Prompts(path=str(REAL))):
        for pair, (good, bad) in enumerate(batched(answers, 2)):  # of some prompts there are several pairs
            assert (good.score, bad.score) == (1, 0)
            id = f"{prompt.prompt_id}-{pair}"
            texts_of = enumerate((bad.text, good.text))
            given = [Completion(f"{id}.{at}", at, text, None, None, None, "m") for at, text in texts_of]
            asked.append(Sample(id, prompt.prompt, prompt.source, given, None))
            chosen[id] = f"{id}.1"
    assert len(asked) == 300
    assert desk.run(asked)[1].startswith("300 of 300 await")
    records, texts = desk.records("d-2"), {c.completion_id: c.text for one in asked for c in one.completions}
    assert {id: one["fields"][f"answer_{at}"] for one in records for at, id in enumerate(order_of(one), 1)} == texts
    turns = {one.prompt_id: [(turn["role"], turn["content"]) for turn in one.prompt] for one in asked}
    assert {
        one["metadata"]["prompt_id"]: [(turn["role"], turn["content"]) for turn in one["fields"]["prompt"]] for one in records
    } == turns
    first = sum(order_of(one)[0] == chosen[one["metadata"]["prompt_id"]] for one in records)
    assert 110 < first < 190, "the better one stands first about as often as not"
    items = [
        {
            "record_id": one["id"],
            "status": "submitted",
            "values": {
                "ranking": {
                    "value": ranked(one, {id: 2 - (id == chosen[one["metadata"]["prompt_id"]]) for id in order_of(one)})
                }
            },
        }
        for one in records
    ]
    for at in range(0, 300, 100):
        desk.ask("POST", "me/responses/bulk", json={"items": items[at : at + 100]})
    given_back, waits = desk.run(asked)
    assert not waits
    best = {id: max(scores(one), key=lambda id: scores(one)[id] or 0.0) for id, one in given_back.items()}
    assert best == chosen and {tuple(sorted(one.scores)) for one in given_back.values()} == {(0.0, 1.0)}


def test_the_sdk_opens_our_datasets_and_loses_the_ranks(desk: Desk) -> None:
    """Which is why it is not what collects: it gives the options in their own order, whatever the ranks."""
    import argilla as rg

    desk.run([THREE], comment=True)
    desk.rank(None, "p", RANKS)
    client = rg.Argilla(api_url=desk.argilla.url, api_key=desk.argilla.key)
    dataset = client.datasets(name="d-3", workspace=desk.workspace)
    assert [one.name for one in dataset.settings.questions] == ["ranking", "comment"]
    (record,) = list(dataset.records(with_responses=True))
    assert record.fields["prompt"][0].content == "What of p?" and record.metadata["prompt_id"] == "p"
    options = ["answer_1", "answer_2", "answer_3"]
    assert next(iter(record.responses["ranking"])).value == options
    by_rank = sorted(options, key=lambda slot: RANKS[order_of(desk.record("p"))[options.index(slot)]])
    assert by_rank != options, "the ranking was another"
