"""From annotators' answers to one ranking: order means nothing, ties stay ties, and who is careless weighs little."""

import json
import math
import random
from itertools import combinations
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dpo_data.judges.borda import borda
from dpo_data.judges.people import PRIOR, Combine, Said, entry, together, weights_of
from dpo_data.rows import Completion, Ranking, Sample

BOTH = pytest.mark.parametrize("combine", ["borda", "bradley_terry"])


def group(ids: list[str]) -> Sample:
    completions = [Completion(id, at, id, "stop", 1, None, "m") for at, id in enumerate(ids)]
    return Sample("p", [{"role": "user", "content": "Why?"}], "s:1", completions, None)


def says(who: str, **scores: float) -> Said:
    return Said(who, "submitted", list(scores), dict(scores))


def discards(who: str, *shown: str) -> Said:
    return Said(who, "discarded", list(shown), None)


def scored(ids: str, said: list[Said], combine: Combine = "borda", weights: dict[str, float] | None = None) -> Any:
    """The scores by id; or the reason to abstain."""
    ranking = together(group(list(ids)), "j", said, combine, weights)
    return ranking.abstained or dict(zip(ranking.completion_ids, ranking.scores, strict=True))


@st.composite
def answered(draw: Any) -> tuple[list[str], list[Said]]:
    """Up to five answers, and up to five entries of up to three annotators, each about two or more of the answers."""
    ids = list("abcde")[: draw(st.integers(2, 5))]
    scores = st.dictionaries(st.sampled_from(ids), st.integers(1, 3).map(float), min_size=2)
    entries = draw(st.lists(st.tuples(st.sampled_from(["anna", "ben", "cleo"]), scores), min_size=1, max_size=5))
    return ids, [says(who, **of) for who, of in entries]


@st.composite
def whole(draw: Any) -> tuple[list[str], list[Said]]:
    """As `answered`, but each annotator ranks every answer, once."""
    ids = list("abcde")[: draw(st.integers(2, 5))]
    rankings = draw(st.lists(st.lists(st.integers(1, 3), min_size=len(ids), max_size=len(ids)), min_size=1, max_size=4))
    return ids, [
        says(f"annotator {at}", **dict(zip(ids, map(float, scores), strict=True))) for at, scores in enumerate(rankings)
    ]


# One ranking


def test_borda_by_hand() -> None:
    said = [says("anna", a=3, b=2, c=1), says("ben", a=2, b=2, c=1)]
    assert scored("abc", said) == {"a": 0.875, "b": 0.625, "c": 0.0}  # (1 + ¾)/2, (½ + ¾)/2
    assert scored("abcd", said) == {"a": 0.875, "b": 0.625, "c": 0.0, "d": None}  # nobody saw d
    assert scored("abc", said, weights={"anna": 1.0, "ben": 0.0}) == {"a": 1.0, "b": 0.5, "c": 0.0}
    assert scored("abc", said, weights={"anna": 3.0}) == {"a": 0.9375, "b": 0.5625, "c": 0.0}  # ben weighs 1


def test_bradley_terry_by_hand() -> None:
    """Two answers, won three to one, and a tie beside: the log-odds of 3 + ½ + ½ to 1 + ½ + ½."""
    said = [*(says(who, a=2, b=1) for who in "uvw"), says("x", a=1, b=2), says("y", a=1, b=1)]
    found = scored("ab", said, "bradley_terry")
    assert found["a"] - found["b"] == pytest.approx(math.log(4 / 2), abs=1e-8)
    weighted = scored("ab", said, "bradley_terry", {"x": 2.0, "y": 0.5})
    assert weighted["a"] - weighted["b"] == pytest.approx(math.log((3 + 0.25 + 0.5) / (2 + 0.25 + 0.5)), abs=1e-8)


@given(answered())
def test_borda_is_that_of_a_naive_count(both: tuple[list[str], list[Said]]) -> None:
    """The mean over annotators of the mean over the answers that each met: 1 for one beaten, ½ for a tie."""
    ids, said = both
    expected: dict[str, float | None] = {}
    for id in ids:
        shares = []
        for who in {one.annotator for one in said}:
            mine = [one.scores for one in said if one.annotator == who and one.scores and id in one.scores]
            points = [(of[id] > of[other]) + (of[id] == of[other]) / 2 for of in mine for other in of if other != id]
            if points:
                shares.append(sum(points) / len(points))
        expected[id] = sum(shares) / len(shares) if shares else None
    assert scored("".join(ids), said) == pytest.approx(expected)


@BOTH
@given(answered(), st.randoms(use_true_random=False))
def test_order_means_nothing(combine: Combine, both: tuple[list[str], list[Said]], dice: random.Random) -> None:
    """Neither that of annotators, nor of the answers, nor of what each was shown first."""
    ids, said = both

    def mixed(values: Any) -> list[Any]:
        return dice.sample(list(values), len(values))

    turned = [says(one.annotator, **dict(mixed((one.scores or {}).items()))) for one in mixed(said)]
    assert scored("".join(ids), said, combine) == scored("".join(mixed(ids)), turned, combine)


@BOTH
@given(answered())
def test_mirrored_answers_give_mirrored_scores(combine: Combine, both: tuple[list[str], list[Said]]) -> None:
    ids, said = both
    whole = 1 if combine == "borda" else 0
    mirror = [says(one.annotator, **{id: -score for id, score in (one.scores or {}).items()}) for one in said]
    straight, turned = (scored("".join(ids), of, combine) for of in (said, mirror))
    assert turned == pytest.approx({id: score if score is None else whole - score for id, score in straight.items()}, abs=1e-8)


@BOTH
@given(st.lists(st.integers(1, 3), min_size=2, max_size=5), st.integers(1, 4))
def test_who_agree_are_followed(combine: Combine, scores: list[int], people: int) -> None:
    """Unanimity: the ranking is theirs, its ties among it."""
    ids = "abcde"[: len(scores)]
    said = [says(f"annotator {at}", **dict(zip(ids, map(float, scores), strict=True))) for at in range(people)]
    found = list(scored(ids, said, combine).values())
    for (one, is_one), (other, is_other) in combinations(zip(scores, found, strict=True), 2):
        assert (one > other) - (one < other) == (is_one > is_other) - (is_one < is_other)
    if combine == "borda":
        assert found == pytest.approx(borda(list(map(float, scores))))


@BOTH
@given(whole())
def test_a_scale_is_an_annotator_s_own(combine: Combine, both: tuple[list[str], list[Said]]) -> None:
    ids, said = both
    other = [says(one.annotator, **{id: 10 * score**3 for id, score in (one.scores or {}).items()}) for one in said]
    assert scored("".join(ids), said, combine) == scored("".join(ids), other, combine)


@BOTH
@given(whole())
def test_who_beats_each_by_majority_is_never_last(combine: Combine, both: tuple[list[str], list[Said]]) -> None:
    """A Condorcet winner may lose, but has more than half of all points; and equal points are equal strengths."""
    ids, said = both
    found = scored("".join(ids), said, combine)
    for id in ids:
        ahead = [sum((of[id] > of[other]) - (of[id] < of[other]) for one in said if (of := one.scores)) for other in ids]
        if sum(lead > 0 for lead in ahead) == len(ids) - 1:
            assert found[id] > min(found.values())
            assert combine == "bradley_terry" or found[id] > 0.5
    points = scored("".join(ids), said)
    for one, other in combinations(ids, 2):  # where all met all alike, the number of wins decides (Ford 1957)
        assert abs(points[one] - points[other]) < 1e-9 or (points[one] > points[other]) == (found[one] > found[other])


@BOTH
@given(whole())
def test_one_by_one_is_as_all_at_once(combine: Combine, both: tuple[list[str], list[Said]]) -> None:
    """The same verdicts, asked as twos of answers."""
    ids, said = both
    twos = [
        says(one.annotator, **{a: scores[a], b: scores[b]})
        for one in said
        if (scores := one.scores)
        for a, b in combinations(ids, 2)
    ]
    assert scored("".join(ids), twos, combine) == pytest.approx(scored("".join(ids), said, combine))


@BOTH
def test_nobody_s_answer_is_an_abstention(combine: Combine) -> None:
    assert scored("ab", [], combine) == "nobody answered"
    assert (
        scored("ab", [discards("anna", "a", "b"), discards("anna", "b", "a")], combine) == "nobody answered, and 1 discarded it"
    )
    assert scored("ab", [says("anna", a=1)], combine) == "nobody answered"  # one answer is no comparison
    assert scored("ab", [says("anna", x=1, y=2)], combine) == "nobody answered"  # answers of another prompt
    none = scored("ab", [says("anna", a=1, b=2)], combine, {"anna": 0.0})
    assert none == "1 answered, none of whom agrees with the others beyond chance"


def test_a_discard_is_left_out_and_kept_in_the_transcript() -> None:
    said = [
        says("anna", a=1, b=2),
        discards("ben", "b", "a"),
        Said("cleo", "submitted", ["a", "b"], {"a": 2, "b": 1}, True, 3.5),
    ]
    ranking = together(group(["a", "b"]), "argilla:x", said, "borda")
    assert ranking == Ranking("p", "argilla:x", ["a", "b"], [0.5, 0.5], None, ranking.transcript)
    assert json.loads(ranking.transcript) == [entry(one) for one in said]
    assert entry(said[2]) == {
        "kind": "person",
        "annotator": "cleo",
        "status": "submitted",
        "shown": ["a", "b"],
        "scores": {"a": 2, "b": 1},
        "prefilled": True,
        "seconds": 3.5,
        "at": None,
        "comment": None,
    }


# Weights


def crowd(prompts: int, errs: dict[str, float], seed: int = 0) -> list[list[Said]]:
    """Four answers a prompt; each annotator gives its true order, and with that probability any order at all."""
    dice = random.Random(seed)

    def order(share: float) -> dict[str, float]:
        return dict(zip("abcd", dice.sample([1.0, 2, 3, 4], 4) if dice.random() < share else [4.0, 3, 2, 1], strict=True))

    return [[says(who, **order(share)) for who, share in errs.items()] for _ in range(prompts)]


def test_weights_by_hand() -> None:
    """Anna and Ben order both twos alike, Cleo hers oppositely to Anna's and, tied by Ben, not his."""
    said = [[says("anna", a=2, b=1, c=1), says("ben", a=2, b=1, c=1), says("cleo", b=3, a=1)], [says("dora", a=1, b=2)]]
    assert weights_of(said) == {
        "anna": (1 + 1 - 1 + PRIOR)
        / (3 + PRIOR),  # a over b and a over c with Ben, a over b against Cleo; b and c tie for both
        "ben": (1 + 1 - 1 + PRIOR) / (3 + PRIOR),
        "cleo": (-1 - 1 + PRIOR) / (2 + PRIOR),
        "dora": 1.0,  # nobody beside her
    }


def test_one_annotator_alone_weighs_one() -> None:
    assert weights_of(crowd(50, {"anna": 0.3})) == {"anna": 1.0}
    assert weights_of([[discards("anna", "a", "b")]]) == {"anna": 1.0} and weights_of([]) == {}


def test_who_is_careless_weighs_little_and_who_is_contrary_nothing() -> None:
    said = crowd(300, {"anna": 0.1, "ben": 0.2, "cleo": 0.5, "dice": 1.0})
    weights = weights_of(said)
    assert weights["anna"] > weights["ben"] > weights["cleo"] > weights["dice"] and weights["dice"] < 0.1
    turned = [[*of, says("contrary", a=1, b=2, c=3, d=4)] for of in said]
    assert weights_of(turned)["contrary"] == 0.0


def test_ties_alone_weigh_little() -> None:
    said = [[*of, says("lazy", a=1, b=1, c=1, d=1)] for of in crowd(100, {"anna": 0.1, "ben": 0.1})]
    assert weights_of(said)["lazy"] < 0.01 < 0.3 < weights_of(said)["anna"]


def test_weights_mend_what_dice_spoil() -> None:
    """Two who throw dice beside two who mostly know: with weights, the best answer is found more often."""
    said = crowd(300, {"anna": 0.2, "ben": 0.2, "dice": 1.0, "more dice": 1.0}, seed=3)
    weights = weights_of(said)

    def right(of: dict[str, float] | None) -> int:
        found = [scored("abcd", one, "borda", of) for one in said]
        return sum(scores["a"] == max(scores.values()) > scores["b"] > scores["c"] > scores["d"] for scores in found)

    assert right(weights) > right(None) + 30


@given(st.lists(answered().map(lambda both: both[1]), max_size=4), st.randoms(use_true_random=False))
def test_weights_are_bounded_and_know_no_order(said_by_prompt: list[list[Said]], dice: random.Random) -> None:
    singles = [list({one.annotator: one for one in said}.values()) for said in said_by_prompt]  # no two about the same answers
    weights = weights_of(singles)
    assert all(0 <= weight <= 1 for weight in weights.values())
    assert weights == weights_of([dice.sample(said, len(said)) for said in dice.sample(singles, len(singles))])
    assert weights.keys() == {one.annotator for said in singles for one in said}


@BOTH
@given(whole(), st.sampled_from([2.0, 0.5]))
def test_weights_are_shares(combine: Combine, both: tuple[list[str], list[Said]], factor: float) -> None:
    """An annotator of weight 2 is two annotators; and, of Borda, equal weights are none."""
    ids, said = both
    assume(len(said) > 1)
    first = said[0]
    double = says("double", **(first.scores or {}))

    def found(said: list[Said], weights: dict[str, float] | None) -> Any:
        return scored("".join(ids), said, combine, weights)

    assert found(said, {first.annotator: 2.0}) == pytest.approx(found([*said, double], None), abs=1e-8)
    if combine == "borda":
        assert found(said, {one.annotator: factor for one in said}) == pytest.approx(found(said, None))
