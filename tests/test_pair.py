"""A pair depends on texts and scores alone, and every prompt ends in train, in test, or dropped with a reason."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_data import pipeline
from dpo_data.candidates import SAMPLE_COLUMNS, form
from dpo_data.config import Pair, Recipe
from dpo_data.dedup import normalised
from dpo_data.errors import EmptyStage
from dpo_data.files import read_table
from dpo_data.rows import Completion, DroppedPair, PreferencePair, Ranking, Sample
from dpo_data.rundir import RunDir
from dpo_data.strategies import STRATEGIES, Candidates
from dpo_data.tables import from_table, schema_of, to_table

PROMPT = [{"role": "user", "content": "Why?"}]
PAIRS = schema_of(PreferencePair)


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
choices = st.builds(
    Pair,
    strategy=st.sampled_from(sorted(STRATEGIES)),
    reject_truncated=st.booleans(),
    max_pairs=st.integers(1, 30),
    chosen_from=st.sampled_from([0.0, 0.3, 0.7]),
    rejected_to=st.sampled_from([-1.0, 0.1, 0.3]),
)


def made_of(sample: Sample, ranking: Ranking | None, choice: Pair, **columns: bool) -> list[PreferencePair | DroppedPair]:
    """The pairs of one prompt, or why there is none."""
    rankings = to_table([ranking] if ranking else [], Ranking)
    formed = form(to_table([sample], Sample), rankings, choice, schema_of(PreferencePair, **columns))
    pairs, drops = list(from_table(formed.pairs, PreferencePair)), list(from_table(formed.drops, DroppedPair))
    assert (len(drops) == 1) == (not pairs), "a prompt has pairs, or one reason why it has none"
    return [*pairs, *drops]


def only(sample: Sample, ranking: Ranking | None, choice: Pair = Pair()) -> Any:  # noqa: B008, it is frozen
    (row,) = made_of(sample, ranking, choice)
    return row


@given(answers, choices, st.randoms())
def test_the_order_of_the_answers_never_changes_the_pairs(made: Any, choice: Pair, chance: Any) -> None:
    sample, ranking = ranked(*made)
    assert made_of(sample, ranking, choice) == made_of(*shuffled(sample, ranking, chance), choice)


@pytest.mark.parametrize("strategy", STRATEGIES)
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
def test_all_orders_of_hard_cases_give_the_same_pairs(made: Any, strategy: Any) -> None:
    sample, ranking = ranked(*made)
    choice = Pair(strategy=strategy, chosen_from=0.1, rejected_to=0.1)
    orders = (replace(sample, completions=list(order)) for order in permutations(sample.completions))
    assert len({repr(made_of(order, ranking, choice)) for order in orders}) == 1


@given(answers, choices)
def test_what_pairs_promise(made: Any, choice: Pair) -> None:
    sample, ranking = ranked(*made)
    rows = made_of(sample, ranking, choice)
    by_id = {completion.completion_id: completion for completion in sample.completions}
    for row in rows:
        if isinstance(row, DroppedPair):
            assert row.filter and row.reason
            continue
        chosen, rejected = by_id[row.chosen_id], by_id[row.rejected_id]
        assert (row.chosen, row.rejected) == ([_says(chosen)], [_says(rejected)])
        assert row.margin == row.score_chosen - row.score_rejected >= 0
        assert row.margin > 0 or len(rows) == 1, "a tie is told only where there is nothing else"
        assert normalised(chosen.text) != normalised(rejected.text) or "length" in (
            chosen.finish_reason,
            rejected.finish_reason,
        )
        assert chosen.finish_reason != "length", "a truncated answer is never chosen"
        assert rejected.finish_reason != "length" or choice.reject_truncated
        assert None not in (ranking.scores[int(row.chosen_id[1])], ranking.scores[int(row.rejected_id[1])])
        if choice.strategy == "threshold":
            assert row.score_chosen >= choice.chosen_from and row.score_rejected <= choice.rejected_to
    assert len({(getattr(row, "chosen_id"), getattr(row, "rejected_id")) for row in rows}) == len(rows)  # noqa: B009
    most = choice.max_pairs if choice.strategy in ("adjacent", "all", "threshold") else 1
    assert len(rows) <= most


def _says(completion: Completion) -> dict[str, str]:
    return {"role": "assistant", "content": completion.text}


distinct_scores = st.lists(st.integers(-99, 99), min_size=4, max_size=4, unique=True)


@given(st.permutations(["one", "two", "three", "four"]), distinct_scores, choices, st.integers(0, 3), st.integers(0, 3))
def test_swapping_two_scores_swaps_chosen_and_rejected(said: Any, values: Any, choice: Pair, one: int, two: int) -> None:
    def ids() -> list[tuple[Any, Any]]:
        rows = made_of(*ranked(*((text, float(value), "stop") for text, value in zip(said, values, strict=True))), choice)
        return [(row.chosen_id, row.rejected_id) for row in rows]

    before = ids()
    values[one], values[two] = values[two], values[one]
    swapped = {f"c{one}": f"c{two}", f"c{two}": f"c{one}"}
    assert ids() == [(swapped.get(chosen, chosen), swapped.get(rejected, rejected)) for chosen, rejected in before]


@given(st.lists(st.text(), min_size=2, max_size=6, unique_by=normalised), st.floats(-1e6, 1e6), choices)
def test_equal_scores_are_told_as_one_tie(said: list[str], score: float, choice: Pair) -> None:
    row = only(*ranked(*((text, score, "stop") for text in said)), choice)
    if isinstance(row, DroppedPair):
        assert (choice.strategy, row.filter) == ("threshold", "threshold")
    else:
        assert row.margin == 0 and row.chosen_id != row.rejected_id


def picked(strategy: str, scores: list[float], **settings: Any) -> list[tuple[float, float]]:
    of = Candidates("p", scores, [True] * len(scores))
    picks = STRATEGIES[strategy](of, Pair(strategy=strategy, **settings))  # type: ignore[arg-type]
    return [(scores[i], scores[j]) for i, j in picks]


def test_each_strategy_by_example() -> None:
    scores = [9.0, 7.0, 7.0, 4.0, 0.0]
    assert picked("best_worst", scores) == [(9, 0)]
    assert picked("adjacent", scores) == [(9, 7), (7, 4), (4, 0)]
    assert picked("adjacent", scores, max_pairs=2) == [(9, 7), (7, 4)]
    assert picked("all", scores) == [(9, 0), (7, 0), (7, 0), (9, 4), (4, 0), (7, 4), (7, 4), (9, 7), (9, 7)]
    assert picked("all", scores, max_pairs=1) == [(9, 0)]
    assert picked("threshold", scores, chosen_from=7, rejected_to=3) == [(9, 0), (7, 0), (7, 0)]
    assert picked("threshold", scores, chosen_from=10, rejected_to=3) == []
    assert {picked("best_random", scores)[0]} <= {(9, 7), (9, 4), (9, 0)}


def test_the_rejected_one_lies_two_deviations_below_the_mean() -> None:
    """A normal sample of 64: mean 0, deviation 1, and one answer that is an outlier at −6."""
    scores = sorted([*((at - 31) / 18.5 for at in range(63)), -6.0], reverse=True)
    mean = sum(scores) / 64
    deviation = (sum((score - mean) ** 2 for score in scores) / 64) ** 0.5
    ((chosen, rejected),) = picked("best_vs_mu_2sigma", scores)
    assert chosen == scores[0]
    assert abs(rejected - (mean - 2 * deviation)) == min(abs(score - (mean - 2 * deviation)) for score in scores)
    assert rejected > -6
    assert picked("auto", scores) == [(chosen, rejected)], "the default from 32 answers on"
    assert picked("auto", scores[33:]) == [(scores[33], -6.0)], "and below, the lowest"


def test_a_random_rejected_one_is_another_for_another_prompt_and_the_same_for_the_same() -> None:
    def at(prompt: int) -> int:
        return STRATEGIES["best_random"](Candidates(f"p{prompt}", [3.0, 2.0, 1.0, 0.0], [True] * 4), Pair())[0][1]

    drawn = [at(prompt) for prompt in range(300)]
    assert drawn == [at(prompt) for prompt in range(300)]
    assert all(60 < drawn.count(position) < 140 for position in (1, 2, 3))


def test_equal_texts_share_their_mean_score() -> None:
    pair = only(*ranked(("Yes", 1.0, "stop"), ("yes ", 0.0, "stop"), ("no", 0.75, "stop")))
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen_id, pair.rejected_id, pair.margin) == ("c2", "c0", 0.25)


EXAMPLES: dict[str, tuple[tuple[tuple[str, float | None, str], ...], str]] = {
    "identical": ((("a", 1.0, "stop"), (" A", 0.0, "stop")), "all judged answers are the same text"),
    "truncated": ((("a", 1.0, "length"), ("b", 0.0, "stop")), "fewer than two answers are whole"),
    "unranked": ((("a", 1.0, "stop"), ("b", None, "stop")), "fewer than two answers have a score"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_drop_by_example(name: str) -> None:
    made, reason = EXAMPLES[name]
    drop = only(*ranked(*made))
    assert isinstance(drop, DroppedPair)
    assert (drop.filter, drop.reason) == (name, reason)


def test_a_threshold_out_of_reach_is_told() -> None:
    drop = only(*ranked(("a", 1.0, "stop"), ("b", 0.0, "stop")), Pair(strategy="threshold", chosen_from=4, rejected_to=2))
    assert (drop.filter, drop.reason) == ("threshold", "no whole answer scores 4 or more above one of 2 or less")


def test_a_truncated_answer_is_rejected_only_where_the_recipe_says_so() -> None:
    made = ranked(("a", 1.0, "stop"), ("b", 0.5, "stop"), ("c", 0.0, "length"))
    assert only(*made).rejected_id == "c1"
    assert only(*made, Pair(reject_truncated=True)).rejected_id == "c2"


def test_a_truncated_answer_that_scores_best_is_no_tie() -> None:
    drop = only(*ranked(("a", 0.0, "stop"), ("b", 1.0, "length")), Pair(reject_truncated=True))
    assert isinstance(drop, DroppedPair)
    assert (drop.filter, drop.reason) == ("truncated", "fewer than two answers are whole")


def test_what_was_never_judged_is_dropped_with_its_own_reason() -> None:
    sample, ranking = ranked(("a", 1.0, "stop"), ("b", 0.0, "stop"))
    failed = replace(sample, completions=[], error="too long for the model")
    cases = {
        ("unsampled", "too long for the model"): (failed, None),
        ("unranked", "the judge gave no ranking"): (sample, None),
        ("abstained", "it is in Welsh"): (sample, replace(ranking, abstained="it is in Welsh", scores=[None, None])),
    }
    for (name, reason), (row, judged) in cases.items():
        drop = only(row, judged)
        assert isinstance(drop, DroppedPair)
        assert (drop.filter, drop.reason, drop.chosen, drop.judge) == (name, reason, None, judged and "judge")


def test_many_prompts_at_once_give_what_each_gives_alone() -> None:
    both = [ranked(("a", 1.0, "stop"), ("b", 0.0, "stop")), ranked(("x", 0.0, "stop"), ("X", 1.0, "stop"), ("y", 3.0, "stop"))]
    samples = [
        replace(
            one, prompt_id=f"p{at}", completions=[replace(c, completion_id=f"p{at}{c.completion_id}") for c in one.completions]
        )
        for at, (one, _) in enumerate(both)
    ]
    rankings = [
        replace(one, prompt_id=f"p{at}", completion_ids=[f"p{at}{id}" for id in one.completion_ids])
        for at, (_, one) in enumerate(both)
    ]
    formed = form(to_table(samples, Sample), to_table(rankings[::-1], Ranking), Pair(), PAIRS)
    alone = [only(*each) for each in zip(samples, rankings, strict=True)]
    assert list(from_table(formed.pairs, PreferencePair)) == alone
    assert [(row.chosen_id, row.margin) for row in alone] == [("p0c0", 1.0), ("p1c2", 2.5)]


def test_a_run_with_tools_keeps_the_calls() -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
    sample, ranking = ranked(("", 1.0, "stop"), ("It is blue.", 0.0, "stop"), ("", 0.0, "stop"))
    calling = replace(sample.completions[0], tool_calls=[call])
    sample = replace(sample, completions=[calling, *sample.completions[1:]], tools=[{"type": "function"}])
    (pair,) = made_of(sample, ranking, Pair(), tools=True)
    assert isinstance(pair, PreferencePair)
    assert pair.chosen == [{"role": "assistant", "content": "", "tool_calls": [call]}], "a call is no empty answer"
    assert (pair.rejected_id, pair.tools) == ("c1", [{"type": "function"}])


def test_a_run_with_variables_of_the_chat_template_keeps_them() -> None:
    sample, ranking = ranked(("It is blue.", 1.0, "stop"), ("Blue, I think.", 0.0, "stop"))
    (pair,) = made_of(
        replace(sample, chat_template_kwargs={"enable_thinking": False}), ranking, Pair(), chat_template_kwargs=True
    )
    assert pair.chat_template_kwargs == {"enable_thinking": False}
    (plain,) = made_of(sample, ranking, Pair(), chat_template_kwargs=True)
    assert plain.chat_template_kwargs is None
    (dropped,) = made_of(replace(sample, chat_template_kwargs={"enable_thinking": False}), None, Pair())
    assert dropped.chat_template_kwargs == {"enable_thinking": False}


def test_pairs_are_made_without_a_look_at_token_ids(tmp_path: Path) -> None:
    sample, ranking = ranked(("It is blue.", 1.0, "stop"), ("Blue, I think.", 0.0, "stop"))
    sample = replace(sample, completions=[replace(one, token_ids=[1, 2, 3]) for one in sample.completions])
    path = RunDir(tmp_path).stage("sample").open({}, {}).write("00000.parquet", [sample], Sample)
    read = read_table(path, SAMPLE_COLUMNS)
    assert "token_ids" not in [field.name for field in read.schema.field("completions").type.value_type]
    older = read.drop_columns(["chat_template_kwargs"])
    made = [
        form(table, to_table([ranking], Ranking), Pair(), PAIRS).pairs for table in (read, older, to_table([sample], Sample))
    ]
    assert made[0] == made[1] == made[2] and len(made[0]) == 1


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
    assert sum(manifest["dropped_prompts"].values()) + sum(manifest["dropped_pairs"].values()) == len(dropped)
    kept = len(train) + len(test)
    assert manifest["prompts"] == 120 and manifest["candidates"] == kept + sum(manifest["dropped_pairs"].values())
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
