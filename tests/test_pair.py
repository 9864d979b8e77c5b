"""A pair depends on texts and scores alone, and every prompt ends in train, in test, or dropped with a reason."""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_data import pipeline
from dpo_data.config import Pair, Recipe
from dpo_data.dedup import normalised
from dpo_data.errors import EmptyStage
from dpo_data.filters import FILTERS, empty, identical, tie
from dpo_data.pair import make_pair
from dpo_data.rows import Completion, DroppedPair, PreferencePair, Ranking, Sample
from dpo_data.rundir import RunDir

PROMPT = [{"role": "user", "content": "Why?"}]


def ranked(*answers: tuple[str, float | None, str]) -> tuple[Sample, Ranking]:
    """A prompt with (text, score, finish reason) answers, ids c0, c1, …"""
    completions = [Completion(f"c{at}", at, text, why, 1, -1.0, "m") for at, (text, _, why) in enumerate(answers)]
    ids = [completion.completion_id for completion in completions]
    return (
        Sample("p", PROMPT, "s", completions, None),
        Ranking("p", "judge", ids, [score for _, score, _ in answers], None, "[]"),
    )


def shuffled(sample: Sample, ranking: Ranking, chance: Any) -> tuple[Sample, Ranking]:
    """The same answers and scores, both lists in orders of their own."""
    completions, scores = list(sample.completions), list(zip(ranking.completion_ids, ranking.scores, strict=True))
    chance.shuffle(completions)
    chance.shuffle(scores)
    ids, values = zip(*scores, strict=True) if scores else ((), ())
    return replace(sample, completions=completions), replace(ranking, completion_ids=list(ids), scores=list(values))


texts = st.sampled_from(["yes", "Yes ", "no", "it is so", "", "  ", "né", "ne\u0301"])
scores = st.none() | st.sampled_from([0.0, 1.0, 0.1, 0.2, 0.3, 0.7]) | st.floats(-1e6, 1e6)
answers = st.lists(st.tuples(texts, scores, st.sampled_from(["stop", "stop", "length"])), max_size=7)
choices = st.builds(Pair, reject_truncated=st.booleans())


@given(answers, choices, st.randoms())
def test_the_order_of_the_answers_never_changes_the_pair(made: Any, choice: Pair, chance: Any) -> None:
    sample, ranking = ranked(*made)
    first, again = make_pair(sample, ranking, choice), make_pair(*shuffled(sample, ranking, chance), choice)
    assert {f.name: getattr(first, f.name) for f in fields(first)} == {f.name: getattr(again, f.name) for f in fields(again)}


@pytest.mark.parametrize(
    "made",
    [
        [("a", 0.0, "stop"), ("b", 0.0, "stop"), ("c", 1.0, "stop"), ("d", 1.0, "stop")],  # ties at both ends
        [
            ("a", 0.1, "stop"),
            ("A", 0.2, "stop"),
            ("a ", 0.3, "stop"),
            ("b", 0.6, "stop"),
            ("c", 0.0, "stop"),
        ],  # 0.1 + 0.2 + 0.3
    ],
    ids=["ties", "means"],
)
def test_all_orders_of_hard_cases_give_one_pair(made: Any) -> None:
    sample, ranking = ranked(*made)
    orders = (replace(sample, completions=list(order)) for order in permutations(sample.completions))
    assert len({repr(make_pair(order, ranking, Pair())) for order in orders}) == 1


@given(answers, choices)
def test_what_a_pair_promises(made: Any, choice: Pair) -> None:
    sample, ranking = ranked(*made)
    pair = make_pair(sample, ranking, choice)
    if isinstance(pair, DroppedPair):
        assert pair.filter and pair.reason
        return
    by_id = {completion.completion_id: completion for completion in sample.completions}
    chosen, rejected = by_id[pair.chosen_id], by_id[pair.rejected_id]
    assert (pair.chosen, pair.rejected) == ([_says(chosen)], [_says(rejected)])
    assert pair.score_chosen > pair.score_rejected and pair.margin > 0, "a tie is no pair"
    assert chosen.text.strip(), "an empty answer is never chosen"
    assert normalised(chosen.text) != normalised(rejected.text)
    assert chosen.finish_reason != "length", "a truncated answer is never chosen"
    assert rejected.finish_reason != "length" or choice.reject_truncated
    assert None not in (ranking.scores[int(pair.chosen_id[1])], ranking.scores[int(pair.rejected_id[1])])


def _says(completion: Completion) -> dict[str, str]:
    return {"role": "assistant", "content": completion.text}


@given(st.permutations(["one", "two", "three", "four"]), st.lists(st.integers(-99, 99), min_size=4, max_size=4, unique=True))
def test_swapping_two_scores_swaps_chosen_and_rejected(said: list[str], values: list[int]) -> None:
    before = make_pair(*ranked(*((text, float(value), "stop") for text, value in zip(said, values, strict=True))), Pair())
    best, worst = values.index(max(values)), values.index(min(values))
    values[best], values[worst] = values[worst], values[best]
    after = make_pair(*ranked(*((text, float(value), "stop") for text, value in zip(said, values, strict=True))), Pair())
    assert isinstance(before, PreferencePair) and isinstance(after, PreferencePair)
    assert (after.chosen_id, after.rejected_id) == (before.rejected_id, before.chosen_id)
    assert (before.chosen_id, before.rejected_id) == (f"c{best}", f"c{worst}")


@given(st.lists(st.text(), min_size=2, max_size=6, unique_by=normalised), st.floats(-1e6, 1e6))
def test_equal_scores_never_give_a_pair(said: list[str], score: float) -> None:
    pair = make_pair(*ranked(*((text, score, "stop") for text in said)), Pair())
    assert isinstance(pair, DroppedPair)
    assert pair.filter == "tie" and pair.reason.startswith("both score")
    assert pair.chosen and pair.rejected, "what would have been the pair is kept to look at"


def test_equal_texts_share_their_mean_score() -> None:
    pair = make_pair(*ranked(("Yes", 1.0, "stop"), ("yes ", 0.0, "stop"), ("no", 0.75, "stop")), Pair())
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen_id, pair.rejected_id, pair.margin) == ("c2", "c0", 0.25)


EXAMPLES: dict[str, tuple[tuple[tuple[str, float | None, str], ...], Pair, str]] = {
    "tie": ((("a", 1.0, "stop"), ("b", 1.0, "stop")), Pair(), "both score 1"),
    "empty": ((("", 1.0, "stop"), ("b", 0.0, "stop")), Pair(), "the chosen answer is empty"),
    "identical": ((("a", 1.0, "stop"), (" A", 0.0, "stop")), Pair(), "all judged answers are the same text"),
    "truncated": ((("a", 1.0, "length"), ("b", 0.0, "stop")), Pair(), "fewer than two answers are whole"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_drop_by_example(name: str) -> None:
    made, choice, reason = EXAMPLES[name]
    drop = make_pair(*ranked(*made), choice)
    assert isinstance(drop, DroppedPair)
    assert (drop.filter, drop.reason) == (name, reason)


def test_a_truncated_answer_is_rejected_only_where_the_recipe_says_so() -> None:
    made = ranked(("a", 1.0, "stop"), ("b", 0.5, "stop"), ("c", 0.0, "length"))
    plain, allowed = make_pair(*made, Pair()), make_pair(*made, Pair(reject_truncated=True))
    assert isinstance(plain, PreferencePair) and isinstance(allowed, PreferencePair)
    assert (plain.rejected_id, allowed.rejected_id) == ("c1", "c2")


def test_a_truncated_answer_that_scores_best_is_no_tie() -> None:
    drop = make_pair(*ranked(("a", 0.0, "stop"), ("b", 1.0, "length")), Pair(reject_truncated=True))
    assert isinstance(drop, DroppedPair)
    assert (drop.filter, drop.reason) == ("truncated", "fewer than two answers are whole")


def test_what_was_never_judged_is_dropped_with_its_own_reason() -> None:
    sample, ranking = ranked(("a", 1.0, "stop"), ("b", 0.0, "stop"))
    failed = replace(sample, completions=[], error="too long for the model")
    cases = {
        ("unsampled", "too long for the model"): (failed, None),
        ("unranked", "the judge gave no ranking"): (sample, None),
        ("abstained", "it is in Welsh"): (sample, replace(ranking, abstained="it is in Welsh", scores=[None, None])),
        ("identical", "all judged answers are the same text"): (sample, replace(ranking, scores=[1.0, None])),
    }
    for (name, reason), (row, judged) in cases.items():
        drop = make_pair(row, judged, Pair())
        assert isinstance(drop, DroppedPair)
        assert (drop.filter, drop.reason, drop.chosen) == (name, reason, None)


def a_pair(chosen: str = "a", rejected: str = "b", margin: float = 1.0) -> PreferencePair:
    said = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return PreferencePair("p", PROMPT, *said, "c0", "c1", margin, 0.0, margin, None, None, "j", "m", "m", "s", [])


def test_each_filter_by_example() -> None:
    assert [reason(a_pair()) for reason in FILTERS.values()] == [None] * len(FILTERS)
    assert tie(a_pair(margin=0.0)) == "both score 0"
    assert tie(a_pair(margin=float("nan"))), "infinity less infinity is no preference"
    assert tie(a_pair(margin=1e-300)) is None
    assert identical(a_pair("Straße  1", "\tSTRASSE 1\n")) == "chosen and rejected are the same text"
    assert identical(a_pair("re\u0301sume\u0301", "résumé"))
    assert empty(a_pair(" \n")) == "the chosen answer is empty"
    assert empty(a_pair(rejected="")) is None


def run_all(recipe: Recipe, run: RunDir) -> None:
    """Every stage, without the report."""
    for name in pipeline.stages_of(recipe):
        pipeline.run_stage(name, recipe, run, lambda *_: None)


@pytest.fixture
def paired(tmp_path: Path, recipe: Callable[..., Recipe]) -> Callable[..., RunDir]:
    """Runs a recipe to its pairs."""

    def run(name: str = "run", **tables: Any) -> RunDir:
        made = RunDir(tmp_path / name)
        run_all(recipe(120, pair={"test": 0.25}, **tables), made)
        return made

    return run


def test_every_prompt_is_in_exactly_one_file(paired: Callable[..., RunDir]) -> None:
    run = paired()
    stage = run.stage("pair")
    train, test = (list(stage.rows(PreferencePair, f"{name}.parquet")) for name in ("train", "test"))
    dropped = list(stage.rows(DroppedPair, "dropped.parquet"))
    found = [row.prompt_id for row in [*train, *test, *dropped]]
    assert sorted(found) == sorted(row.prompt_id for row in run.stage("sample").rows(Sample))
    assert len(set(found)) == len(found) == 120
    assert train and test and dropped
    manifest = stage.manifest
    assert manifest and (manifest["train"], manifest["test"]) == (len(train), len(test))
    assert sum(manifest["dropped"].values()) == len(dropped)
    assert all(row.filter and row.reason for row in dropped)


def test_the_split_is_by_prompt_and_knows_no_judge(paired: Callable[..., RunDir]) -> None:
    def prompts(run: RunDir, name: str) -> set[str]:
        return {row.prompt_id for row in run.stage("pair").rows(PreferencePair, name)}

    one, two = paired("one"), paired("two", rank={"judge": {"type": "rule", "rule": "detailed"}})
    assert not prompts(one, "test.parquet") & prompts(two, "train.parquet"), "what one run tests on, the other never trains on"
    assert prompts(one, "test.parquet") & prompts(two, "test.parquet")


def test_a_run_with_no_pair_ends_with_what_dropped_them(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    made = RunDir(tmp_path / "run")
    with pytest.raises(EmptyStage, match=r"No pair is left of 20 prompts \(18 tie, 2 truncated\)"):
        run_all(recipe(20, rank={"judge": {"type": "rule", "rule": "valid_json"}}), made)
    assert not made.stage("pair").manifest
    assert not list(made.stage("pair").path.glob("*.parquet"))
