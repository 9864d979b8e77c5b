"""A cascade: what the first judge leaves open goes to the second, and nothing else does."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from argilla_server import LocalArgilla
from chat_server import Reply, said, serving
from desk import Desk, order_of, prompt_of, ranked
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted as Speaker
from scripted import answers_of
from test_panel import NAMES, RULES, Diary, asks, by_text, group, nobody, stage
from test_rundir import files

from dpo_data.config import Recipe, dump, load, parse
from dpo_data.engines.echo import Echo
from dpo_data.errors import RecipeError, Unfinished
from dpo_data.judges.cascade import Cascade, descend, extremes
from dpo_data.judges.doubt import Doubt, Why, doubt
from dpo_data.judges.pairwise import Pairwise
from dpo_data.judges.panel import Panel
from dpo_data.ledger import Ledger
from dpo_data.rows import Ranking, Sample, in_share
from dpo_data.rundir import RunDir
from dpo_data.seams import Request, abstention

FIRST, SECOND, THIRD = RULES
NAME = f"cascade({NAMES[0]}, {NAMES[1]})"


def cascade(**more: Any) -> Cascade:
    return Cascade(**{"first": FIRST, "then": SECOND, **more})


def rank(settings: Cascade, **prompts: str) -> dict[str, Ranking]:
    """Rankings by prompt id. Answers are given as `3 1, 2 2`."""
    groups = [group(*texts.split(", "), prompt_id=id) for id, texts in prompts.items()]
    with closing(settings.build(Echo(), 0, nobody)) as judge:
        return {row.prompt_id: row for row in judge.rank(groups)}


def told_by(judge: str, scores: dict[str, float], *entries: dict[str, Any]) -> Ranking:
    """The ranking of a judge that says so, with these entries in its transcript."""
    return Ranking("p", judge, list(scores), list(scores.values()), None if scores else "cannot tell", json.dumps(entries))


def routes(found: dict[str, Ranking]) -> dict[str, str]:
    """Why the second was asked, by the prompts that it was asked of."""
    told = {id: json.loads(row.transcript) for id, row in found.items()}
    assert all(entries[0]["route"] is None for entries in told.values())
    return {id: entries[1]["route"] for id, entries in told.items() if len(entries) == 2}


def members(ranking: Ranking) -> list[tuple[str, list[str]]]:
    """Who ranked, and which answers."""
    return [
        (told["judge"], [id.removeprefix("id of ") for id in told["completion_ids"]]) for told in json.loads(ranking.transcript)
    ]


class TestUnsure:
    def test_what_the_first_is_sure_of_stands_and_the_rest_goes_to_the_second(self) -> None:
        found = rank(
            cascade(),
            sure="1 5, 2 5, 2 5.0, 3 5",
            best_is_a_tie="1 9, 3 8, 3 7",
            worst_is_a_tie="1 7, 1 8, 3 9",
            nothing_told="? 1, ? 2, 3 3",
        )
        assert by_text(found["sure"]) == {"1 5": 1, "2 5": 2, "2 5.0": 2, "3 5": 3}, "a tie between best and worst is no matter"
        assert by_text(found["best_is_a_tie"]) == {"1 9": 9, "3 8": 8, "3 7": 7}
        assert by_text(found["worst_is_a_tie"]) == {"1 7": 7, "1 8": 8, "3 9": 9}
        assert by_text(found["nothing_told"]) == {"? 1": 1, "? 2": 2, "3 3": 3}, "the second judges all, whoever else could not"
        assert {row.judge for row in found.values()} == {NAME} and not any(row.abstained for row in found.values())
        assert members(found["sure"]) == [(NAMES[0], ["1 5", "2 5", "2 5.0", "3 5"])]
        assert [who for who, _ in members(found["nothing_told"])] == [NAMES[0], NAMES[1]]

    def test_the_margin_is_the_least_spread_that_is_sure(self) -> None:
        found = rank(cascade(margin=2.0), narrow="1 9, 2 8, 3 7", wide="1 9, 2 8, 3.1 7")
        assert found["narrow"].scores == [9, 8, 7] and found["wide"].scores == [1, 2, 3.1]

    def test_where_the_second_abstains_so_does_the_cascade(self) -> None:
        found = rank(cascade(), tie="2 ?, 2.0 ?, 1 4", neither="? ?, ? ?", sure="1 ?, 2 ?")
        assert found["tie"].scores == [None] * 3
        assert found["tie"].abstained == f"{NAMES[1]} could not decide: 1 of 3 answers could be scored"
        assert found["neither"].abstained == "; ".join(
            f"{name} could not decide: 0 of 2 answers could be scored" for name in NAMES[:2]
        )
        assert found["sure"].scores == [1, 2], "nobody asks the second"

    def test_what_the_first_is_sure_of_is_given_at_once(self) -> None:
        seen: list[str] = []

        def groups() -> Any:
            for at in range(200):
                seen.append(f"p{at}")
                yield group("1 5", "2 5", prompt_id=f"p{at}")

        with closing(cascade().build(Echo(), 0, nobody)) as judge:
            next(judge.rank(groups()))
        assert len(seen) < 50

    def test_the_second_is_asked_for_what_is_open_alone_and_after_the_first(self) -> None:
        diary = Diary()
        settings = Cascade(first=FIRST, then=asks("dear"))
        groups = [group("1", "1.0", prompt_id=f"tie{at}") for at in range(4)]
        groups += [group("1", "2", prompt_id=f"sure{at}") for at in range(4)]
        with closing(settings.build(Echo(), 0, diary)) as judge:
            rows = list(judge.rank(groups))
        assert [row.prompt_id for row in rows[:4]] == [f"sure{at}" for at in range(4)] and len(rows) == 8
        assert [prompt for _, prompt in diary.asked] == [f"tie{at}" for at in range(4) for _ in range(2)]
        assert diary.events == [("starts", "dear"), ("ends", "dear")]

    def test_two_models_are_never_there_at_once(self) -> None:
        diary = Diary(silent={"p2": "cheap", "p4": "dear"})
        settings = Cascade(first=asks("cheap"), then=asks("dear"), margin=100.0)
        with closing(settings.build(Echo(), 0, diary)) as judge:
            rows = list(judge.rank(group("1", "2", prompt_id=f"p{at}") for at in range(6)))
        assert diary.events == [(what, model) for model in ("cheap", "dear") for what in ("starts", "ends")]
        assert {row.prompt_id for row in rows} == {"p0", "p1", "p3", "p5"}, "who awaits an answer is left out"
        assert ("dear", "p2") not in diary.asked

    @given(st.lists(st.integers(-4, 4), max_size=6), st.integers(0, 5))
    def test_unsure_is_what_it_says(self, scores: list[int], margin: int) -> None:
        texts = [f"{at}" for at in range(len(scores))]
        told = {f"id of {text}": float(score) for text, score in zip(texts, scores, strict=True)}
        best_and_worst = len(scores) > 1 and scores.count(max(scores)) == 1 == scores.count(min(scores))
        sure = best_and_worst and max(scores) - min(scores) > margin
        assert (doubt(group(*texts), told_by("first", told), margin) is None) == sure

    def test_answers_that_say_the_same_leave_nothing_open(self) -> None:
        """The second could not tell them apart either."""
        of = group("long", "short", "long ", "short ")
        same = replace(of, completions=[replace(one, text=one.text.strip()) for one in of.completions])
        told = {one.completion_id: float(len(one.text)) for one in same.completions}
        assert doubt(same, told_by("first", told), 0) is None
        assert doubt(of, told_by("first", told), 0) == Doubt(Why.TIE, 1.0, "p")
        assert doubt(same, told_by("first", dict.fromkeys(told, 1.0)), 0) == Doubt(Why.TIE, 0.0, "p")


class TestExtremes:
    def test_both_ends_by_the_first_are_ranked_by_the_second(self) -> None:
        (found,) = rank(cascade(route="extremes"), p="1 10, 2 90, 3 30, 4 40, 5 20, 6 60").values()
        assert by_text(found) == {"1 10": 10, "2 90": 90, "3 30": None, "4 40": None, "5 20": 20, "6 60": 60}
        assert members(found) == [
            (NAMES[0], ["1 10", "2 90", "3 30", "4 40", "5 20", "6 60"]),
            (NAMES[1], ["1 10", "2 90", "5 20", "6 60"]),
        ]
        (found,) = rank(cascade(route="extremes", ends=1), p="1 10, 2 90, 3 30").values()
        assert by_text(found) == {"1 10": 10, "2 90": None, "3 30": 30}

    def test_ties_at_the_cut_are_broken_by_id(self) -> None:
        (found,) = rank(cascade(route="extremes", ends=1), p="5 3, 5 1, 5 2, 1 9, 1 8").values()
        assert by_text(found) == {"5 1": 1, "5 2": None, "5 3": None, "1 8": None, "1 9": 9}

    def test_few_answers_go_on_whole_and_the_first_is_not_asked(self) -> None:
        found = rank(cascade(route="extremes"), few="9 1, ? 2, 7 3, 6 4", lone="1 1")
        assert found["few"].scores == [1, 2, 3, 4]
        assert [who for who, _ in members(found["few"])] == [NAMES[1]]
        assert found["lone"].abstained == f"{NAMES[1]} could not decide: 1 of 1 answers could be scored"

    def test_what_the_first_could_not_judge_is_at_no_end(self) -> None:
        found = rank(cascade(route="extremes", ends=1), some="? 9, 1 2, 2 3, 3 4, ? 1", none="? 1, ? 2, ? 3")
        assert by_text(found["some"]) == {"? 9": None, "1 2": 2, "2 3": None, "3 4": 4, "? 1": None}
        assert found["none"].abstained == f"{NAMES[0]} could not decide: 0 of 3 answers could be scored"
        assert [who for who, _ in members(found["none"])] == [NAMES[0]]

    def test_where_the_second_abstains_so_does_the_cascade(self) -> None:
        (found,) = rank(cascade(route="extremes", ends=1), p="1 ?, 2 5, 3 ?").values()
        assert found.scores == [None] * 3 and found.abstained == f"{NAMES[1]} could not decide: 0 of 2 answers could be scored"

    @given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 4), st.randoms(use_true_random=False))
    def test_the_ends_are_the_ends_in_whatever_order(self, scores: list[int], ends: int, chance: Any) -> None:
        texts = [f"{at}" for at in range(len(scores))]
        told = {f"id of {text}": float(score) for text, score in zip(texts, scores, strict=True)}
        before = extremes(group(*texts), told, ends)
        shuffled = dict(chance.sample(sorted(told.items()), len(told)))
        after = extremes(group(*chance.sample(texts, len(texts))), shuffled, ends)
        kept = {one.completion_id for one in before.completions}
        assert kept == {one.completion_id for one in after.completions} and len(kept) == min(len(scores), 2 * ends)
        left = [told[id] for id in told.keys() - kept]
        order = sorted((told[id] for id in kept), reverse=True)
        if left:
            assert order[ends - 1] >= max(left) and order[ends] <= min(left)


class TestDoubt:
    """What counts as not being sure, and what of it is graver."""

    def of(self, *texts: str, entries: Iterable[dict[str, Any]] = (), margin: float = 0) -> Why | None:
        told = {f"id of {text}": float(text.split()[0]) for text in texts}
        found = doubt(group(*texts), told_by("first", told, *entries), margin)
        return found.why if found else None

    @pytest.mark.parametrize(
        ("a", "b", "flipped", "why"),
        [
            ("3", "2", True, Why.CONTRADICTED),
            ("2", "1", True, Why.CONTRADICTED),
            ("2", "2.5", True, None),
            ("3", "1", False, None),
        ],
        ids=["of the best", "of the worst", "between the two", "none"],
    )
    def test_a_verdict_on_the_best_or_the_worst_that_flipped(self, a: str, b: str, flipped: bool, why: Why | None) -> None:
        entry = {"kind": "comparison", "a": f"id of {a}", "b": f"id of {b}", "flipped": flipped}
        assert self.of("1", "2", "2.5", "3", entries=[entry]) == why

    @pytest.mark.parametrize(
        ("others", "why"),
        [
            ([1.0, 3.0, 9.0], None),
            ([9.0, 3.0, 1.0], Why.CONTRADICTED),
            ([3.0, 1.0, 9.0], Why.CONTRADICTED),
            ([1.0, 9.0, 9.0], None),
            ([None, 1.0, 2.0], Why.CONTRADICTED),
            ([None, None, None], None),
        ],
        ids=["agrees", "turned", "another worst", "a tie that holds the best", "another worst of fewer", "abstained"],
    )
    def test_members_that_do_not_agree_on_the_best_or_the_worst(self, others: list[float | None], why: Why | None) -> None:
        ids = ["id of 1", "id of 2", "id of 3"]
        abstained = None if any(others) else "cannot tell"
        entries = [
            {"kind": "member", "completion_ids": ids, "scores": scores, "abstained": told}
            for scores, told in (([1.0, 2.0, 3.0], None), (others, abstained))
        ]
        assert self.of("1", "2", "3", entries=entries) == why

    @pytest.mark.parametrize(("biased", "why"), [("24", Why.CONTRADICTED), ("23", None)], ids=["with the best", "between"])
    def test_what_pairwise_writes_is_read(self, biased: str, why: Why | None) -> None:
        """Of these two answers it calls the first one better in either order; of all others, the greater one."""

        def say(request: Request) -> str:
            a, b = (text for _, text in sorted(answers_of(request).items()))
            return json.dumps({"winner": "A" if a + b in (biased, biased[::-1]) or a > b else "B"})

        with closing(Pairwise(reason=0).build(Echo(), 0, lambda table: Speaker(say))) as judge:
            of = group("1", "2", "3", "4")
            (ranking,) = judge.rank([of])
        found = doubt(of, ranking, 0)
        assert (found.why if found else None) == why

    @pytest.mark.parametrize(("third", "why"), [("3 3", None), ("3 0", Why.CONTRADICTED)])
    def test_what_a_panel_writes_is_read(self, third: str, why: Why | None) -> None:
        of = group("1 1", "2 2", third)
        with closing(Panel(judges=RULES[:2]).build(Echo(), 0, nobody)) as judge:
            (ranking,) = judge.rank([of])
        found = doubt(of, ranking, 0)
        assert (found.why if found else None) == why

    def test_the_gravest_reason_is_told(self) -> None:
        flip = {"kind": "comparison", "a": "id of 1", "b": "id of 3", "flipped": True}
        assert self.of() == Why.ABSTAINED
        assert self.of("1", "3", "3 too", entries=[flip], margin=9) == Why.TIE
        assert self.of("1", "3", entries=[flip], margin=9) == Why.CONTRADICTED
        assert self.of("1", "3", margin=2) == Why.NARROW and self.of("1", "3", margin=1) is None

    @given(st.lists(st.tuples(st.sampled_from(Why), st.floats(0, 9), st.text(max_size=2)), unique=True), st.randoms())
    def test_the_least_sure_come_first_in_whatever_order_they_came(self, found: Any, chance: random.Random) -> None:
        doubts = [Doubt(*one) for one in found]
        shuffled = chance.sample(doubts, len(doubts))
        assert sorted(shuffled) == sorted(doubts)
        for one, next_one in zip(sorted(doubts), sorted(doubts)[1:], strict=False):
            assert one.why < next_one.why or (
                one.why == next_one.why and (one.spread, one[2]) <= (next_one.spread, next_one[2])
            )


OPEN = {
    "abstains": "? 1, ? 2",
    "tie": "5 1, 5 2",
    "narrow": "5 1, 5.5 2",
    "less_narrow": "5 1, 5.75 2",
    "sure": "1 2, 9 1",
    "sure_too": "1 2, 8 1",
}
"""Prompts, the least sure first."""


class TestLimits:
    @pytest.mark.parametrize(
        ("limit", "asked"),
        [({"budget": at}, at) for at in (0, 1, 3, 4, 99)] + [({"share": 0.5}, 3), ({"share": 0.49}, 2), ({"share": 1}, 4)],
    )
    def test_the_least_sure_go_on_and_no_more_than_that(self, limit: dict[str, Any], asked: int) -> None:
        found = rank(cascade(margin=1.0, **limit), **OPEN)
        chosen = list(OPEN)[: min(asked, 4)]
        assert routes(found) == dict.fromkeys(chosen, "unsure")
        assert all(set(by_text(found[id]).values()) == {1, 2} for id in chosen), "the second's scores"

    def test_those_left_out_keep_what_the_first_said(self) -> None:
        found = rank(cascade(margin=1.0, budget=0), **OPEN)
        assert found["tie"].scores == [5, 5] and found["narrow"].scores == [5, 5.5] and found["sure"].scores == [1, 9]
        assert found["abstains"].abstained == f"{NAMES[0]} could not decide: 0 of 2 answers could be scored"

    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20), st.integers(0, 9), st.randoms())
    def test_the_choice_hangs_on_no_order(self, marks: list[tuple[int, int]], budget: int, chance: random.Random) -> None:
        """Many ties are broken by id."""
        groups = [group(f"{a} a", f"{b} b", prompt_id=f"p{at}") for at, (a, b) in enumerate(marks)]

        def chosen(groups: list[Sample]) -> set[str]:
            first, then = Says(), Says()
            settings = cascade(margin=1.0, budget=budget)
            rows = descend(groups, "c", lambda: first, lambda: then, settings, 0, nobody)
            assert {row.prompt_id for row in rows} == {of.prompt_id for of in groups}
            return set(then.seen)

        assert chosen(groups) == chosen(chance.sample(groups, len(groups)))
        assert len(chosen(groups)) == min(budget, sum(abs(a - b) <= 1 for a, b in marks))

    def test_where_the_first_owes_a_ranking_nothing_is_chosen(self) -> None:
        groups = [group("1", "1.0", prompt_id=f"p{at}") for at in range(4)]
        first, then = Says(owes={"p2"}), Says()
        assert not list(descend(groups, "c", lambda: first, lambda: then, cascade(budget=1), 0, nobody))
        assert then.seen == {}

    def test_nothing_is_given_before_the_choice_is_kept(self, tmp_path: Path) -> None:
        """Else a run that is killed would choose anew, among the prompts that are left."""
        groups = [group("1", "1.0" if at % 2 else "2", prompt_id=f"p{at}") for at in range(8)]
        ledger = Ledger(tmp_path / "calls", "rank")
        rows = descend(groups, "c", Says, Says, cascade(budget=2), 0, ledger)
        next(rows)
        assert ledger.once("cascade", lambda: "too late") == ["p1", "p3"]


class Says:
    """A judge that says the number with which an answer begins. It owes some prompts, and at `stops` it awaits people."""

    name = "says"

    def __init__(self, owes: Iterable[str] = (), stops: str | None = None):
        self.seen: dict[str, Sample] = {}
        self._owes, self._stops = set(owes), stops

    def rank(self, groups: Iterable[Sample]) -> Iterator[Ranking]:
        for of in groups:
            self.seen[of.prompt_id] = of
            if of.prompt_id == self._stops:
                raise Unfinished("1 of 2 await annotation at URL", "Run again to collect.")
            if of.prompt_id not in self._owes:
                ids = [one.completion_id for one in of.completions]
                scores: list[float | None] = [float(one.text.split()[0]) for one in of.completions]
                yield Ranking(of.prompt_id, self.name, ids, scores, None, "[]")

    def close(self) -> None: ...


class TestCalibration:
    PROMPTS = {f"p{at}": "1 2, 9 1" if at % 2 else "5 1, 5 2" for at in range(60)}

    def test_a_random_slice_goes_on_whatever_the_first_thinks(self) -> None:
        found = rank(cascade(calibration=0.3, budget=5), **self.PROMPTS)
        slice = {id for id in self.PROMPTS if in_share(id, 0.3, "calibration:0")}
        told = routes(found)
        assert {id for id, why in told.items() if why == "calibration"} == slice and 8 <= len(slice) <= 28
        unsure = [id for id in sorted(self.PROMPTS) if self.PROMPTS[id] == "5 1, 5 2" and id not in slice]
        assert {id for id, why in told.items() if why == "unsure"} == set(unsure[:5]), "the slice uses up no budget"
        assert all(set(found[id].scores) == {1, 2} for id in told), "the second's word holds"

    def test_the_slice_is_drawn_by_id_and_seed_alone(self) -> None:
        every = rank(cascade(calibration=0.3), **self.PROMPTS)
        few = rank(cascade(calibration=0.3, margin=50.0), **dict(list(self.PROMPTS.items())[::3]))
        slice = {id for id, why in routes(every).items() if why == "calibration"}
        assert {id for id, why in routes(few).items() if why == "calibration"} == slice & few.keys()

    def test_where_the_second_abstains_there_the_first_s_ranking_stands(self) -> None:
        found = rank(cascade(calibration=1.0), sure="1 ?, 2 ?", tie="3 ?, 3.0 ?", neither="? ?, ?? ?")
        assert found["sure"].scores == [1, 2] and found["tie"].scores == [3, 3]
        assert set(routes(found).values()) == {"calibration"}
        assert found["neither"].abstained == "; ".join(
            f"{name} could not decide: 0 of 2 answers could be scored" for name in NAMES[:2]
        )

    def test_the_second_sees_the_first_s_scores_and_not_why_it_is_asked(self) -> None:
        groups = [group("1", "2" if at % 2 else "1.0", prompt_id=f"p{at}") for at in range(40)]
        seen: dict[float, dict[str, Sample]] = {}
        for share in (0.0, 0.5, 1.0):
            then = Says()
            list(descend(groups, "c", Says, lambda then=then: then, cascade(calibration=share), 0, nobody))  # type: ignore[misc]
            seen[share] = then.seen
        assert len(seen[0.0]) == 20 < len(seen[0.5]) < 40 == len(seen[1.0])
        assert all(seen[1.0][id] == of for share in seen for id, of in seen[share].items()), "the same, whyever it is shown"
        assert [list(seen[0.5]), sorted(seen[0.5], key=lambda id: int(id[1:]))] == [list(seen[0.5])] * 2, (
            "in the order they came"
        )
        assert [one.score for one in seen[1.0]["p1"].completions] == [1, 2]

    def test_the_first_s_scores_take_the_place_of_those_that_came_with_the_answers(self) -> None:
        of = group("1", "1.0")
        of = replace(of, completions=[replace(one, score=9.0) for one in of.completions])
        for first, scores in ((Says(), [1, 1]), (Abstains(), [None, None])):
            then = Says()
            list(descend([of], "c", lambda first=first: first, lambda then=then: then, cascade(), 0, nobody))  # type: ignore[misc]
            assert [one.score for one in then.seen["p"].completions] == scores


class Abstains:
    """A judge that never can tell."""

    name = "abstains"

    def __init__(self) -> None:
        self.seen: dict[str, Sample] = {}

    def rank(self, groups: Iterable[Sample]) -> Iterator[Ranking]:
        for of in groups:
            self.seen[of.prompt_id] = of
            yield abstention(of, self.name, "cannot tell")

    def close(self) -> None: ...


class TestPeople:
    @pytest.mark.parametrize("limit", [{}, {"budget": 3}, {"share": 0.5}])
    def test_what_is_settled_is_given_before_the_second_says_that_it_waits(self, limit: dict[str, Any]) -> None:
        """Of p0 to p5 the first leaves p0, p2 and p4 open, and people have yet to answer p4."""
        groups = [group("1", "2" if at % 2 else "1.0", prompt_id=f"p{at}") for at in range(6)]
        given, then = [], Says(stops="p4")
        with pytest.raises(Unfinished, match="await annotation"):
            for row in descend(groups, "c", Says, lambda: then, cascade(**limit), 0, nobody):
                given.append(row.prompt_id)
        assert list(then.seen) == ["p0", "p2", "p4"] and given == ["p1", "p3", "p5", "p0", "p2"]

    def test_a_stage_keeps_what_the_first_settled(self, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
        """Nobody sits at the terminal of a test."""
        judge = {"type": "cascade", "first": {"type": "rule", "rule": "concise"}, "then": {"type": "terminal"}}
        made = recipe(40, rank={"judge": judge})
        made = made.model_copy(update={"sample": made.sample.model_copy(update={"shard_size": 1})})
        run = RunDir(tmp_path / "run")
        stage("sample", made, run)
        with pytest.raises(Unfinished, match=r"\d+ of \d+ prompts await an answer, and nobody is at a terminal"):
            stage("rank", made, run)
        rows = list(run.stage("rank").rows(Ranking))
        assert 0 < len(rows) < 40 and all(len(json.loads(row.transcript)) == 1 for row in rows)

    def test_in_argilla_people_see_the_least_sure_and_the_slice_and_nothing_tells_which(
        self, recipe: Callable[..., Recipe], tmp_path: Path, argilla: LocalArgilla
    ) -> None:
        desk = Desk(argilla)
        then = desk.settings(suggest=True).model_dump(mode="json", exclude_none=True)
        judge = {"type": "cascade", "first": {"type": "rule", "rule": "concise"}, "then": then, "margin": 1e9}
        made = recipe(30, rank={"judge": {**judge, "budget": 4, "calibration": 0.2}})
        run = RunDir(tmp_path / "run")
        stage("sample", made, run)
        with pytest.raises(Unfinished, match="await annotation at http"):
            stage("rank", made, run)
        records = desk.records("d-4")
        slice = {row.prompt_id for row in run.stage("sample").rows(Sample) if in_share(row.prompt_id, 0.2, "calibration:0")}
        asked = {prompt_of(record): record for record in records}
        assert slice and slice < asked.keys() and len(asked) == len(slice) + 4
        for looks in (
            lambda record: sorted(record["metadata"]),
            lambda record: sorted(record["fields"]),
            lambda record: len(record["suggestions"]),
        ):
            assert len({str(looks(record)) for record in records}) == 1
        for record in records:
            desk.answer(None, record, {"ranking": ranked(record, {id: at for at, id in enumerate(order_of(record), 1)})})
        assert stage("rank", made, run)["prompts"] == 30
        rows = {row.prompt_id: row for row in run.stage("rank").rows(Ranking)}
        assert routes(rows) == {str(id): "calibration" if id in slice else "unsure" for id in asked}
        for id in asked:
            scores = dict(zip(rows[str(id)].completion_ids, rows[str(id)].scores, strict=True))
            shown = order_of(asked[id])
            assert [scores[one] for one in shown] == sorted(scores.values(), reverse=True), "people's word holds"  # type: ignore[type-var]


SLOW = 0.02


def winner(text: str, before: int) -> Reply:
    """Says slowly which answer has the greater first letter."""
    time.sleep(SLOW)
    first, second = (text.partition(f"<answer {name}>\n")[2].partition(f"\n</answer {name}>")[0] for name in "AB")
    return said(json.dumps({"winner": "A" if first > second else "B"}))


@pytest.mark.parametrize("limit", [{"share": 0.3}, {"budget": 12, "calibration": 0.1}], ids=["share", "budget"])
def test_killed_while_shards_are_written_the_choice_is_the_same(
    recipe: Callable[..., Recipe], tmp_path: Path, limit: dict[str, Any]
) -> None:
    """The prompts of finished shards are not seen again; what was chosen among all of them still holds, and the shards are
    those of a run that nobody killed, byte for byte."""
    with serving(winner) as (_, url):
        engine = {"type": "server", "base_url": url, "model": "m", "concurrency": 1}
        then = {"type": "pairwise", "reason": 0, "engine": engine}
        judge = {"type": "cascade", "first": {"type": "rule", "rule": "concise"}, "then": then, "margin": 1e9, **limit}
        made = recipe(40, rank={"judge": judge})
        made = made.model_copy(update={"sample": made.sample.model_copy(update={"shard_size": 2})})
        whole, killed = RunDir(tmp_path / "whole"), RunDir(tmp_path / "killed")
        for run in (whole, killed):
            stage("sample", made, run)
        stage("rank", made, whole)
        (tmp_path / "recipe.toml").write_text(dump(made))
        command = [sys.executable, "-m", "dpo_data.cli", "rank", str(tmp_path / "recipe.toml"), "--run", str(killed.path)]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(killed.stage("rank").shards()) < 14:
            assert child.poll() is None
            time.sleep(0.002)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        done = {row.prompt_id for row in killed.stage("rank").rows(Ranking)}
        assert 14 <= len(killed.stage("rank").shards()) < 20
        left = [row for row in killed.stage("sample").rows(Sample) if row.prompt_id not in done]
        anew = Abstains()
        settings: Any = made.rank.judge
        list(descend(left, "c", lambda: settings.first.build(Echo(), 0, nobody), lambda: anew, settings, made.seed, nobody))
        stage("rank", made, killed)
    rows = {row.prompt_id: row for row in whole.stage("rank").rows(Ranking)}
    assert rows == {row.prompt_id: row for row in killed.stage("rank").rows(Ranking)}
    assert files(killed.stage("rank").path) == files(whole.stage("rank").path)
    unsure = [id for id, why in routes(rows).items() if why == "unsure"]
    assert len(unsure) == 12
    went_on = set(routes(rows))
    assert went_on - done and went_on & done and set(anew.seen) != went_on - done, "among what is left others would be chosen"


class TestThenAPanel:
    def test_a_rule_and_then_a_panel(self) -> None:
        panel = Panel(judges=[SECOND, THIRD])
        found = rank(Cascade(first=FIRST, then=panel), sure="1 0 0, 2 0 0", open="1 1 3, 1 2 5, 1 3 1")
        assert found["sure"].scores == [1, 2]
        each = 1.224744871  # √1.5, of three scores that are evenly apart; 3, 5, 1 have mean 3
        assert found["open"].scores == pytest.approx([-each / 2, each / 2, 0.0], abs=2e-9)
        assert found["open"].judge == f"cascade({NAMES[0]}, panel({NAMES[1]}, {NAMES[2]}))"
        first, then = json.loads(found["open"].transcript)
        assert then["judge"] == f"panel({NAMES[1]}, {NAMES[2]})"
        assert [told["judge"] for told in then["transcript"]] == NAMES[1:] and first["transcript"] == []

    def test_all_three_models_take_turns(self) -> None:
        diary = Diary()
        settings = Cascade(first=asks("a"), then=Panel(judges=[asks("b"), asks("c")]), margin=100.0)
        with closing(settings.build(Echo(), 0, diary)) as judge:
            rows = list(judge.rank(group("1", "2", prompt_id=f"p{at}") for at in range(5)))
        assert len(rows) == 5 and judge.name == "cascade(pairwise:a, panel(pairwise:b, pairwise:c))"
        assert diary.events == [(what, model) for model in ("a", "b", "c") for what in ("starts", "ends")]

    def test_a_cascade_that_is_closed_in_the_middle_ends_whose_turn_it_is(self) -> None:
        diary = Diary()
        settings = Cascade(first=asks("a"), then=Panel(judges=[asks("b"), asks("c")]), margin=100.0)
        judge = settings.build(Echo(), 0, diary)
        next(judge.rank(group("1", "2", prompt_id=f"p{at}") for at in range(5)))
        judge.close()
        assert diary.events[-2:] == [("starts", "c"), ("ends", "c")]

    def test_a_whole_stage(self, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
        judges = [{"type": "pairwise"}, {"type": "rule", "rule": "detailed"}]
        judge = {"type": "cascade", "first": {"type": "rule", "rule": "concise"}, "then": {"type": "panel", "judges": judges}}
        made, run = recipe(40, rank={"judge": judge}), RunDir(tmp_path / "run")
        stage("sample", made, run)
        assert stage("rank", made, run)["judge"] == "cascade(rule:concise, panel(pairwise:echo, rule:detailed))"
        rows = list(run.stage("rank").rows(Ranking))
        went_on = sum(len(json.loads(row.transcript)) == 2 for row in rows)
        assert len(rows) == 40 and 0 < went_on < 40
        stage("pair", made, run)


class TestRecipe:
    def test_its_cost_is_the_most_that_may_be_asked(self) -> None:
        cheap, dear = Pairwise(schedule="knockout", reason=0), Pairwise(schedule="all")
        both = Cascade(first=cheap, then=dear)
        assert both.calls(8) == cheap.calls(8) + dear.calls(8)
        ends = Cascade(first=cheap, then=dear, route="extremes", ends=3)
        assert [ends.calls(n) for n in (4, 6)] == [dear.calls(4), dear.calls(6)], "the first has nothing to decide"
        assert ends.calls(8) == cheap.calls(8) + dear.calls(6)

    def test_its_inputs_are_those_of_both(self) -> None:
        found = Cascade(first=FIRST, then=Panel(judges=[Pairwise(), SECOND])).inputs()
        assert set(found) == {"first.rule", "then.judges.0.template", "then.judges.0.judge_model", "then.judges.1.rule"}

    @pytest.mark.parametrize(
        ("judge", "told"),
        [
            (
                {"first": {"type": "rule", "rule": "concise"}, "then": {"type": "pairwise", "schedul": "all"}},
                "Unknown key 'rank.judge.then.schedul' in the recipe. Did you mean 'schedule'?",
            ),
            (
                {
                    "first": {"type": "rule", "rule": "concise"},
                    "then": {"type": "panel", "judges": [{"type": "pairwise"}, {"type": "rule", "rul": "concise"}]},
                },
                "Unknown key 'rank.judge.then.judges.1.rul' in the recipe. Did you mean 'rule'?",
            ),
            ({"first": {"type": "rule", "rule": "concise"}}, "the recipe lacks 'rank.judge.then'. Add it."),
            (
                {"first": {"type": "rule", "rule": "concise"}, "then": {"type": "rule", "rule": "concise"}},
                "The cascade's second judge is its first, of type 'rule', again. Name another judge, or other settings, under",
            ),
            (
                {"first": {"type": "rule", "rule": "concise"}, "then": {"type": "panel", "judges": [{"type": "given"}] * 2}},
                "The panel names a judge of type 'given' twice.",
            ),
            (
                {"first": {"type": "pairwise"}, "then": {"type": "panel", "judges": [{"type": "given"}, {"type": "listwise"}]}},
                "The judge 'given' comes second in a cascade, where an answer's score is the first judge's. Name 'given' under",
            ),
            (
                {"first": {"type": "pairwise"}, "then": {"type": "listwise"}, "share": 0.1, "budget": 3},
                "The cascade has both a share and a budget. Keep one of them.",
            ),
            (
                {"first": {"type": "pairwise"}, "then": {"type": "listwise"}, "calibration": 0.1, "route": "extremes"},
                "share, budget and calibration choose prompts, and the cascade's route 'extremes' takes all. Leave them out",
            ),
            (
                {"first": {"type": "cascade"}, "then": {"type": "pairwise"}},
                "'rank.judge.first.type' in the recipe is 'cascade'. Use one of 'pairwise'",
            ),
            (
                {"first": {"type": "given"}, "then": {"type": "pairwise"}},
                "The judge 'given' takes the scores that came with given answers, and 'echo' generates them. "
                'Set sample.engine.type = "given", or name another judge at rank.judge.first.',
            ),
        ],
    )
    def test_a_cascade_that_cannot_be_is_refused(self, judge: dict[str, Any], told: str) -> None:
        table = {"name": "t", "prompts": {"path": "p"}, "sample": {"engine": {"type": "echo"}}}
        with pytest.raises(RecipeError) as error:
            parse({**table, "rank": {"judge": {"type": "cascade", **judge}}})
        assert str(error.value).startswith(told)

    def test_the_shipped_panel_can_be_set_to_a_cascade(self) -> None:
        change = 'rank.judge={type="cascade", first={type="rule", rule="concise"}, then={type="pairwise"}, route="extremes"}'
        assert load("flows/recipes/panel.toml", [change]).rank.judge.type == "cascade"
