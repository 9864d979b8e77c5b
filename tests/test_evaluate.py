"""What evaluation says of base and trained model, and how sure it is."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import echo_run, judged, train

from dpo_data import evaluate as stage
from dpo_data.audit.bootstrap import LIMIT
from dpo_data.config import Evaluate, Lineage, Policy, Recipe, parse
from dpo_data.engines.echo import EchoEngine
from dpo_data.errors import InputError, RecipeError, TrainError, Unfinished
from dpo_data.evaluation.comparisons import Comparison, gain
from dpo_data.evaluation.perplexity import perplexity, rise, texts
from dpo_data.evaluation.perplexity_child import stretches
from dpo_data.evaluation.schema import Evaluation, Gain, Perplexity
from dpo_data.evaluation.sides import engine, policies
from dpo_data.evaluation.summary import parses, summary
from dpo_data.evaluation.verdict import FEWEST, verdict
from dpo_data.judges.rule import Rule, RuleJudge
from dpo_data.length_control import fit
from dpo_data.report import report
from dpo_data.rows import Completion, Ranking, Sample
from dpo_data.rundir import RunDir
from dpo_data.seams import Completed, Request, Sampling

Answers = list[tuple[str, float | None]]


def compared(*prompts: tuple[Answers, Answers]) -> tuple[dict[str, list[Sample]], list[Ranking]]:
    """Both models' answers with their scores, (base's, trained's) a prompt."""
    samples: dict[str, list[Sample]] = {"base": [], "trained": []}
    rankings = []
    for at, sides in enumerate(prompts):
        scores: dict[str, float | None] = {}
        for who, answers in zip(samples, sides, strict=True):
            rows = [Completion(f"{who}{at}.{i}", i, text, "stop", 1, -1.0, who) for i, (text, _) in enumerate(answers)]
            scores |= {row.completion_id: score for row, (_, score) in zip(rows, answers, strict=True)}
            samples[who].append(Sample(f"{at:03d}", [{"role": "user", "content": "?"}], "x", rows, None))
        rankings.append(Ranking(f"{at:03d}", "j", list(scores), list(scores.values()), None, "[]"))
    return samples, rankings


def by_length(count: int, quality: float, seed: int = 0) -> list[tuple[Answers, Answers]]:
    """A judge that likes what is long; the trained model's answers are the longer ones mostly, and better by `quality`."""
    chance = np.random.default_rng(seed)

    def answers(longer: float, better: float) -> Answers:
        sizes = np.maximum(1, chance.normal(300 + longer, 100, 3)).astype(int)
        return [("x" * size, size / 100 + better + chance.gumbel()) for size in sizes.tolist()]

    return [(answers(0, 0), answers(100, quality)) for _ in range(count)]


def rates(*prompts: tuple[Answers, Answers]) -> list[tuple[float, float | None]]:
    told = evaluated(*prompts)
    return [(side.win_rate, side.win_rate_length_controlled) for side in (told.base, told.trained)]


def evaluated(*prompts: tuple[Answers, Answers], **settings: Any) -> Evaluation:
    return summary(*compared(*prompts), Evaluate(**settings), {})


def test_a_win_that_is_only_length_is_seen_to_be_one() -> None:
    (base, base_controlled), (trained, controlled) = rates(*by_length(400, 0))
    assert trained > 0.65 and controlled == pytest.approx(0.5, abs=0.03)
    assert base == pytest.approx(1 - trained) and base_controlled == pytest.approx(1 - (controlled or 0))


def test_a_win_at_equal_length_stays_one() -> None:
    """Gumbel noise makes the judge logistic: better by 1 in log-odds. Worse by 1 is seen behind a win rate near one half."""
    assert rates(*by_length(400, 1))[1][1] == pytest.approx(1 / (1 + np.exp(-1)), abs=0.05)
    raw, controlled = rates(*by_length(400, -1))[1]
    assert raw > 0.45 and controlled == pytest.approx(1 / (1 + np.exp(1)), abs=0.05)


def test_each_prompt_counts_the_same_however_many_comparisons_it_has() -> None:
    many: tuple[Answers, Answers] = ([("aa", 1.0), ("b", 0.0), ("cccc", 3.0)], [("d", 2.0), ("eee", 2.0), ("ffffff", 1.0)])
    one: tuple[Answers, Answers] = ([("aaa", 1.0)], [("b", 0.0)])
    wins = [1, 1, 0, 1, 1, 0, 0.5, 1, 0, 0]
    differences = [-1, 0, -3, 1, 2, -1, 4, 5, 2, -2]
    found = fit(np.array(wins), np.array(differences), np.array([1 / 9] * 9 + [1]))
    assert found
    (_, (raw, controlled)) = rates(many, one)
    assert raw == pytest.approx(5.5 / 9 / 2) and controlled == pytest.approx(found.win_rate)


def test_what_is_not_told_is_null() -> None:
    longer: tuple[Answers, Answers] = ([("a", 0.0), ("bb", None)], [("ccc", 1.0)])
    assert rates(longer) == [(0.0, None), (1.0, None)], "the trained model's are always the longer ones"
    assert rates(longer, ([("a", 0.0)], [("b", 0.0)]))[1][1] is not None
    assert rates(([("a", None)], [("b", 1.0)])) == [(0.5, None), (0.5, None)], "nothing was compared"


def test_thinking_is_no_length() -> None:
    plain = [([("aa", 1.0)], [("b", 2.0)]), ([("a", 1.0)], [("bb", 2.0)]), ([("a", 2.0)], [("bbb", 1.0)])]
    aloud: Any = [(base, [(f"<think>{'hm ' * 99}</think>{text}", score) for text, score in mine]) for base, mine in plain]
    assert rates(*aloud) == rates(*plain)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run up to training."""
    recipe, run = echo_run(tmp_path_factory.mktemp("run"), type="rule", rule="concise")
    train(run)
    return recipe, run


@pytest.mark.parametrize("told", [True, False])
def test_the_report_shows_both(run: tuple[Any, RunDir], told: bool) -> None:
    recipe, made = run
    count = made.stage("sample").require()["held_out"]
    prompts = by_length(count, 0) if told else [([("a", 0.0)], [("bb", 1.0)])] * count
    samples, rankings = compared(*prompts)
    judged(made, samples, rankings)
    side = report(recipe, made)["evaluate"]["trained"]
    page = (made.path / "report.html").read_text()
    row = page.partition("won at equal length")[2].partition("answers cut off")[0]
    assert "comparisons won" in page
    if told:
        assert f"{100 * side['win_rate_length_controlled']:.0f}\u00a0%" in row and "unknown" not in row
    else:
        assert side["win_rate_length_controlled"] is None and "unknown" in row and "%" not in row


# Better, by how much, how sure


SCORE = st.none() | st.integers(0, 3).map(float)
ANSWERS = st.lists(st.tuples(st.text("ab ", max_size=6), SCORE), min_size=1, max_size=3)
PROMPTS = st.lists(st.tuples(ANSWERS, ANSWERS), min_size=1, max_size=12)
SETTINGS = Evaluate(thresholds={"good": 2}, must_parse="a.*")


@given(PROMPTS)
def test_the_sides_mirror_each_other(prompts: Any) -> None:
    one, other = (evaluated(*of, **SETTINGS.model_dump()) for of in (prompts, [(b, a) for a, b in prompts]))
    assert one.trained.win_rate == pytest.approx(1 - other.trained.win_rate) == pytest.approx(other.base.win_rate)
    assert (one.moved.improved, one.moved.harmed, one.moved.same) == (
        other.moved.harmed,
        other.moved.improved,
        other.moved.same,
    )
    mine, theirs = one.gain.over_base, other.gain.over_base
    assert (mine is None) == (theirs is None)
    for ours, mirrored in [(mine, theirs), (one.changes.mean_score, other.changes.mean_score)]:
        if ours and mirrored:
            assert ours.value == pytest.approx(-mirrored.value)
            assert (ours.low is None) == (mirrored.low is None)
            if ours.low is not None:
                assert (ours.low, ours.high) == (pytest.approx(-mirrored.high), pytest.approx(-mirrored.low))  # type: ignore[operator]


@given(PROMPTS, st.randoms(use_true_random=False))
def test_the_order_of_prompts_changes_nothing(prompts: Any, chance: Any) -> None:
    samples, rankings = compared(*prompts)
    before = summary(samples, rankings, SETTINGS, {})
    for rows in (*samples.values(), rankings):
        chance.shuffle(rows)
    assert summary(samples, rankings, SETTINGS, {}) == before


def planted(prompts: int, rate: float, chance: np.random.Generator) -> list[list[Comparison]]:
    """Comparisons of which that share is won; those of one prompt go together, as they do."""
    of_prompt = chance.beta(4 * rate, 4 * (1 - rate), prompts)
    return [[Comparison(float(won), 0) for won in chance.random(4) < share] for share in of_prompt]


def test_a_planted_win_rate_is_inside_its_interval_as_often_as_it_says() -> None:
    chance, inside = np.random.default_rng(0), 0
    for _ in range(300):
        found = gain(planted(60, 0.6, chance))
        assert found and found.low is not None and found.high is not None and found.comparisons == 240
        inside += found.low <= 0.1 <= found.high
    assert 0.91 <= inside / 300 <= 0.99, inside


def test_an_interval_narrows_with_the_prompts() -> None:
    chance = np.random.default_rng(1)
    few, many = gain(planted(30, 0.6, chance)), gain(planted(LIMIT + 3000, 0.6, chance))
    assert few and many and few.low is not None and few.high is not None and many.low is not None and many.high is not None
    assert many.high - many.low < 0.03 < few.high - few.low


def test_ties_are_told() -> None:
    found = evaluated(([("a", 1.0)], [("b", 1.0)]), ([("a", 1.0)], [("b", 2.0)])).gain.over_base
    assert found and found.tied == 0.5 and found.value == 0.25 and (found.prompts, found.comparisons) == (2, 2)


def sure(value: float, low: float | None, high: float | None, prompts: int = 50) -> Gain:
    return Gain(value=value, low=low, high=high, tied=0.0, prompts=prompts, comparisons=4 * prompts)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (sure(0.18, 0.11, 0.24), "better: 68 % of comparisons won, 95 % interval 61–74 %"),
        (sure(0.18, 0.1149, 0.2401), "better: 68 % of comparisons won, 95 % interval 61–75 %"),  # rounded outwards
        (sure(0.02, -0.04, 0.08), "not shown to be better: 52 % of comparisons won, 95 % interval 46–58 %"),
        (sure(0.02, 0.0, 0.08), "not shown to be better: 52 % of comparisons won, 95 % interval 50–58 %"),
        (sure(-0.2, -0.3, -0.1), "worse: 30 % of comparisons won, 95 % interval 20–40 %"),
        (
            sure(0.5, 0.5, 0.5, FEWEST - 1),
            "not shown to be better: 100 % of comparisons won, and 5 prompts are too few to tell",
        ),
        (sure(0.5, 0.5, 0.5, FEWEST), "better: 100 % of comparisons won, 95 % interval 100–100 %"),
        (sure(0.5, None, None, 1), "not shown to be better: 100 % of comparisons won, and 1 prompt is too few to tell"),
        (None, "not shown to be better: no two answers were compared"),
    ],
)
def test_a_verdict_says_no_more_than_its_interval(found: Gain | None, said: str) -> None:
    assert verdict(found) == said


# What could not be scored


def blamed(rankings: Iterable[Ranking]) -> list[Ranking]:
    """The same, where each answer without a score is itself the reason, as the rule judge and the reward model say it."""

    def errors(row: Ranking) -> list[dict[str, Any]]:
        without = [id for id, score in zip(row.completion_ids, row.scores, strict=True) if score is None]
        return [{"kind": "error", "completion_id": id, "error": "the rule returned None"} for id in without]

    return [replace(row, transcript=json.dumps(errors(row))) for row in rankings]


def failed(answered: Iterable[Sample], prompts: int) -> list[Sample]:
    """The same, where the first so many prompts failed."""
    return [replace(row, completions=[], error="lost") if at < prompts else row for at, row in enumerate(answered)]


@pytest.mark.parametrize("n", [1, 3])
def test_a_model_that_says_nothing_does_not_win_by_it(n: int) -> None:
    """With a rule that wants few words and cannot judge none: of 40 prompts the trained model has a word to say to 8."""
    few: list[tuple[Answers, Answers]] = [
        ([("one two three", None)] * n, [("one" if at < 8 else "", None)] * n) for at in range(40)
    ]
    samples, _ = compared(*few)
    judge = Rule(rule="concise").build(Rule(rule="concise"), 0, lambda settings: pytest.fail("it asks nobody"))
    rankings = list(judge.rank(stage._together(samples)))
    judge.close()
    told = summary(samples, rankings, Evaluate(n=n, thresholds={"short": -2}), {})
    assert told.trained.win_rate == pytest.approx(0.2) and told.verdict.startswith("worse: 20 % of comparisons won")
    assert (told.trained.judged, told.trained.judged_share, told.base.judged_share) == (8 * n, 0.2, 1.0)
    assert told.worse[0] == "fewer answers that were judged: 100 % → 20 %"
    assert told.trained.shares == {"short": 0.2} and told.base.shares == {"short": 0.0}
    assert (told.moved.improved, told.moved.harmed, told.moved.same) == (8, 32, 0)
    assert told.trained.failed == 0


def test_a_prompt_at_which_one_side_failed_is_lost_by_it() -> None:
    samples, rankings = compared(*[([("a", 1.0), ("b", 1.0)], [("c", 2.0), ("d", 2.0)])] * 20)
    theirs = [replace(row, completion_ids=row.completion_ids[:2], scores=row.scores[:2]) for row in rankings[:15]]
    told = summary({**samples, "trained": failed(samples["trained"], 15)}, [*theirs, *rankings[15:]], Evaluate(n=2), {})
    assert told.trained.win_rate == 0.25 and told.moved.harmed == 15 and told.verdict.startswith("worse: ")
    assert (told.trained.failed, told.trained.answers, told.trained.judged_share) == (15, 10, 0.25)
    assert told.worse[:2] == ["fewer answers that were judged: 100 % → 25 %", "more prompts without any answer: 0 → 15"]
    both = {who: failed(rows, 15) for who, rows in samples.items()}
    assert summary(both, rankings[15:], Evaluate(n=2), {}).trained.win_rate == 1.0, "where both failed nothing is compared"


def test_the_judge_sees_what_the_others_said_where_one_side_failed() -> None:
    samples, _ = compared(*[([("a", 1.0)], [("b", 1.0)])] * 3)
    groups = list(stage._together({"base": failed(samples["base"], 2), "trained": failed(samples["trained"], 1)}))
    assert [(row.prompt_id, [one.text for one in row.completions], row.error) for row in groups] == [
        ("001", ["b"], None),
        ("002", ["a", "b"], None),
    ]


def test_what_the_judge_left_out_by_itself_is_no_loss() -> None:
    """The same scores, with no word that an answer is to blame; a prompt without any score, whoever is to blame; and a judge
    that abstains."""
    known: tuple[Answers, Answers] = ([("a", 1.0)], [("b", 2.0)])
    unread: tuple[Answers, Answers] = ([("a", 1.0), ("b", 1.0)], [("c", 2.0), ("d", None)])
    silent: tuple[Answers, Answers] = ([("a", None)], [("b", None)])
    assert evaluated(known, unread).trained.win_rate == 1.0
    samples, rankings = compared(known, unread, silent)
    assert summary(samples, blamed(rankings), Evaluate(), {}).trained.win_rate == pytest.approx((1 + 0.5) / 2)
    abstained = [rankings[0], *(replace(row, abstained="it could not decide") for row in blamed(rankings)[1:])]
    assert summary(samples, abstained, Evaluate(), {}).trained.win_rate == 1.0
    told = summary(samples, blamed(rankings), Evaluate(thresholds={"good": 1}), {})
    assert told.trained.shares == {"good": pytest.approx(2 / 3)} and told.base.shares == {"good": 1.0}, "the silent one is out"


@pytest.mark.parametrize(
    ("answers", "moved"),
    [
        ([("b", 5.0), ("", None), ("", None)], (0, 1, 0)),  # what it says is better, and mostly it says nothing
        ([("b", 0.5), ("b", 2.0), ("", None)], (0, 1, 0)),
        ([("b", 2.0), ("b", 2.0), ("", None)], (1, 0, 0)),
        ([("b", 2.0), ("", None)], (0, 0, 1)),
        ([("", None)], (0, 1, 0)),
    ],
)
def test_a_prompt_is_answered_worse_where_more_comparisons_are_lost(answers: Answers, moved: tuple[int, int, int]) -> None:
    samples, rankings = compared(([("a", 1.0)], answers))
    told = summary(samples, blamed(rankings), Evaluate(), {}).moved
    assert (told.improved, told.harmed, told.same) == moved


def test_a_member_of_the_judge_may_say_that_an_answer_could_not_be_scored() -> None:
    samples, (ranking,) = compared(([("a", 1.0)], [("b", 2.0), ("", None)]))
    told = [{"kind": "member", "judge": "r", "transcript": json.loads(blamed([ranking])[0].transcript)}]
    nested = replace(ranking, transcript=json.dumps(told))
    assert summary(samples, [nested], Evaluate(), {}).trained.win_rate == 0.5


@given(PROMPTS)
def test_what_could_not_be_scored_mirrors_too(prompts: Any) -> None:
    def told(of: Any) -> Evaluation:
        samples, rankings = compared(*of)
        return summary(samples, blamed(rankings), SETTINGS, {})

    one, other = told(prompts), told([(b, a) for a, b in prompts])
    assert one.trained.win_rate == pytest.approx(1 - other.trained.win_rate)
    assert (one.moved.improved, one.moved.harmed) == (other.moved.harmed, other.moved.improved)


# What got worse


def answered(good: int, of: int, text: str) -> list[Answers]:
    return [[(text, 3.0 if at < good else 1.0)] for at in range(of)]


def test_what_got_worse_is_said_and_what_may_be_chance_says_so() -> None:
    fell = [*zip(answered(30, 40, "one two three"), answered(5, 40, "one"), strict=True)]
    told = evaluated(*fell, thresholds={"good": 3}, must_parse=r"\w+ .*")
    assert told.verdict.startswith("worse: ")
    assert told.worse == [
        "fewer answers that are good: 75 % → 12 %",
        "fewer answers of the form asked for: 100 % → 0 %",
        "a lower mean score: 2.5 → 1.25",
        "length drifts: 3.0 → 1.0 words an answer, 67 % fewer; wanted or not",
        "25 prompts are answered worse than before, and 0 better",
    ]
    assert "worse than before, which may be chance, and 0 better" in evaluated(*fell[5:8]).worse[-1], "three are too few"
    little = [*zip(answered(20, 40, "one"), [*answered(0, 1, "one"), *answered(19, 39, "one")], strict=True)]
    assert (
        evaluated(*little, thresholds={"good": 3}).worse[0] == "fewer answers that are good: 50 % → 48 %, which may be chance"
    )


@pytest.mark.parametrize(("harmed", "improved"), [(22, 18), (5, 0), (6, 0), (14, 6), (15, 6), (15, 5), (3, 25), (2600, 2400)])
def test_prompts_answered_worse_are_chance_by_the_sign_test(harmed: int, improved: int) -> None:
    """A two-sided binomial test, counted out."""
    cases = harmed + improved
    above = sum(math.comb(cases, at) for at in range(harmed, cases + 1))
    moves = [*[([("a", 2.0)], [("b", 1.0)])] * harmed, *[([("a", 1.0)], [("b", 2.0)])] * improved]
    (said,) = [one for one in evaluated(*moves).worse if "answered worse" in one]  # type: ignore[arg-type]
    assert ("chance" in said) == (harmed <= improved or 40 * above >= 2**cases), said


def test_a_model_that_falls_silent_is_said_to() -> None:
    told = evaluated(*[([("one two three", 1.0)], [("", 1.0)])] * 9)
    assert told.worse == ["length drifts: 3.0 → 0.0 words an answer, 100 % fewer; wanted or not"]


@pytest.mark.parametrize(("cut", "chance"), [(9, ""), (1, ", which may be chance")])
def test_a_rise_in_answers_cut_off_is_said(cut: int, chance: str) -> None:
    samples, rankings = compared(*[([("a", 1.0)], [("a", 1.0)])] * 20)
    trained = [
        replace(row, completions=[replace(one, finish_reason="length" if at < cut else "stop") for one in row.completions])
        for at, row in enumerate(samples["trained"])
    ]
    told = summary({**samples, "trained": trained}, rankings, Evaluate(), {})
    assert told.worse == [f"more answers cut off: 0 % → {5 * cut} %{chance}"] and told.base.cut_off == 0.0
    assert summary({"base": trained, "trained": samples["base"]}, rankings, Evaluate(), {}).worse == []


def test_nothing_is_worse_where_nothing_is() -> None:
    rose = [*zip(answered(5, 40, "one two"), answered(30, 40, "one two"), strict=True)]
    told = evaluated(*rose, thresholds={"good": 3})
    assert told.verdict.startswith("better: ") and told.worse == []
    assert (told.moved.improved, told.moved.harmed, told.moved.same) == (25, 0, 15)


def test_what_training_and_another_text_tell_is_there_too() -> None:
    samples, rankings = compared(*zip(answered(5, 9, "a"), answered(9, 9, "a"), strict=True))
    text = Perplexity(path="notes.txt", texts=1, tokens=9, base=18.25, trained=20.5, rise=Gain.model_construct(value=0.123, low=0.09, high=0.15))  # fmt: skip  # noqa: E501
    alarm = {"name": "chosen_falls", "step": 40, "value": 0.3, "limit": 0.25, "said": "Chosen answers fall"}
    training = {"held_out": {"rewards/accuracies": 0.4, "rewards/margins": math.nan}, "health": {"alarms": [alarm]}}
    told = summary(samples, rankings, Evaluate(), training, text, 200)
    assert told.held_out and told.held_out.accuracy == 0.4 and told.held_out.margin is None and told.held_out.pairs == 200
    assert told.worse == [
        "of the test pairs it tells only 40 % right",
        "perplexity of notes.txt: 18.25 → 20.5, 12 % more",
        "while it trained: Chosen answers fall (step 40)",
    ]
    for few in (20, None):
        said = summary(samples, rankings, Evaluate(), training, text, few).worse[0]
        assert said == "of the test pairs it tells only 40 % right, which may be chance"


def test_a_win_by_length_is_called_one() -> None:
    assert any("what it wins may be length" in one for one in evaluated(*by_length(400, -0.3)).worse)


def test_the_last_round_is_compared_too() -> None:
    samples, rankings = compared(*[([("a", 1.0)], [("b", 2.0)])] * 20)
    last = [
        Sample(row.prompt_id, row.prompt, "x", [Completion(f"last{at}", 0, "c", "stop", 1, -1.0, "last")], None)
        for at, row in enumerate(samples["base"])
    ]
    scored = [
        Ranking(row.prompt_id, "j", [*row.completion_ids, f"last{at}"], [*row.scores, 3.0], None, "[]")
        for at, row in enumerate(rankings)
    ]
    told = summary({**samples, "last": last}, scored, Evaluate(), {})
    assert told.last and (told.last.win_rate, told.trained.win_rate, told.base.win_rate) == (1.0, 1.0, 0.0)
    assert told.gain.over_base and told.gain.over_last
    assert (told.gain.over_base.value, told.gain.over_last.value) == (0.5, -0.5)
    assert "the model of the last round wins more: 100 % of comparisons" in told.worse


@pytest.mark.parametrize(
    ("form", "text", "has"),
    [
        ("json", '{"a": 1}', True),
        ("json", "<think>hm {</think>[1, 2]", True),
        ("json", 'Here: {"a": 1}', False),
        ("json", "", False),
        ("json", "NaN", False),
        (r"\d+", "42", True),
        (r"\d+", "about 42", False),
        ("yes|no", "<think>\nyes\n</think>\nno", True),
        ("a.*z", "a\nz", True),
    ],
)
def test_a_form_is_met_by_the_whole_answer(form: str, text: str, has: bool) -> None:
    assert parses(form)(text) == has
    told = evaluated(([(text, 1.0)], [(text, 1.0), ("other 7", 1.0)]), must_parse=form)
    assert told.base.parsed == float(has) and told.trained.parsed == float(has) / 2
    assert told.changes.parsed and told.changes.parsed.value == -float(has) / 2


def test_a_form_that_is_no_expression_is_an_error() -> None:
    with pytest.raises(RecipeError, match="no regular expression"):
        Evaluate(must_parse="(")


# The sides


def of_vllm(**tables: Any) -> Recipe:
    return parse(
        {
            "name": "x",
            "prompts": {"path": "p.jsonl", "holdout": 0.1},
            "sample": {"n": 2, "max_tokens": 8, "engine": {"type": "vllm", "model": "m", "revision": "r", "args": {"seed": 1}}},
            "rank": {"judge": {"type": "rule", "rule": "concise"}},
            "train": {},
            **tables,
        }
    )


def test_who_stands_on_each_side(tmp_path: Any) -> None:
    def who(recipe: Recipe, **manifest: Any) -> dict[str, tuple[str, str | None, str | None]]:
        return {side: (p.model, p.revision, p.adapter) for side, p in policies(recipe, manifest, str(tmp_path)).items()}

    model = str(tmp_path / "model")
    assert who(of_vllm()) == {"base": ("m", "r", None), "trained": ("m", "r", model)}
    assert who(of_vllm(train={"method": "qlora"}))["trained"] == ("m", "r", model)
    assert who(of_vllm(train={"method": "full"})) == {"base": ("m", "r", None), "trained": (model, None, None)}
    assert who(of_vllm(), base="sft")["trained"] == (str(tmp_path / "sft"), None, model)
    first = of_vllm(lineage={"base": "b", "revision": "q"})
    assert "last" not in who(first)
    later = first.model_copy(update={"lineage": Lineage(base="b", revision="q", round=2)})
    assert who(later) == {"base": ("b", "q", None), "last": ("m", "r", None), "trained": ("m", "r", model)}
    assert engine(later, policies(later, {}, str(tmp_path))["base"]).args == {"seed": 1}, "as it sampled"


@dataclass
class Answering:
    """The echo engine on one side; the trained model says a word more. `asked` is told of each request."""

    model: str
    asked: list[tuple[str, str, int, Sampling]]
    engine: EchoEngine = field(default_factory=EchoEngine)

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        for request in requests:
            assert request
            self.asked.append((self.model, request.id, request.seed, dict(sampling)))
            (told,) = self.engine.complete([request], sampling)
            more = " too" if self.model == "trained" else ""
            yield replace(told, outputs=[replace(one, text=one.text + more) for one in told.outputs])

    def close(self) -> None: ...


Begin = Callable[[], tuple[Recipe, RunDir, list[tuple[str, str, int, Sampling]]]]


@pytest.fixture
def begin(run: tuple[Recipe, RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Copies of one run up to training, each with what its sides are asked."""
    made = parse({**run[0].model_dump(mode="json", exclude_unset=True), "train": {"model": "m"}, "evaluate": {"n": 3}})
    copies = iter(range(9))

    def copy() -> tuple[Recipe, RunDir, list[tuple[str, str, int, Sampling]]]:
        asked: list[tuple[str, str, int, Sampling]] = []

        def of(recipe: Recipe, policy: Policy) -> Any:
            return type("Table", (), {"build": lambda self: Answering("trained" if policy.adapter else "base", asked)})()

        monkeypatch.setattr(stage, "engine", of)
        folder = shutil.copytree(run[1].path, tmp_path / str(next(copies)))
        shutil.rmtree(folder / "5-evaluate", ignore_errors=True)
        return made, RunDir(folder), asked

    return copy


def test_both_sides_are_asked_the_same(begin: Begin) -> None:
    made, run, asked = begin()
    stage.evaluate(made, run, lambda *told: None)
    sides = {who: [what for side, *what in asked if side == who] for who in ("base", "trained")}
    assert sides["base"] == sides["trained"] and len(sides["base"]) == run.stage("sample").require()["held_out"]
    assert all(sampling == {**made.sample.sampling, "n": 3} for _, _, sampling in sides["base"])
    assert made.sample.sampling["max_tokens"] == 8 and len({seed for _, seed, _ in sides["base"]}) == len(sides["base"])


def test_an_evaluation_that_was_killed_comes_out_the_same(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the trained model answers, and then with a judge that still owes rankings."""
    made, whole, asked_once = begin()
    wanted = stage.evaluate(made, whole, lambda *told: None)
    assert wanted["verdict"].startswith("worse: ")

    made, run, asked = begin()

    def killed(name: str, done: int, total: int) -> None:
        if (name, done) == ("evaluate trained", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.evaluate(made, run, killed)
    with monkeypatch.context() as owing:
        rank = RuleJudge.rank
        owing.setattr(RuleJudge, "rank", lambda self, groups: iter(list(rank(self, groups))[:3]))
        with pytest.raises(Unfinished, match=f"3 of {wanted['prompts']} held-out prompts are ranked. Run again"):
            stage.evaluate(made, run, lambda *told: None)
    assert not (run.stage("evaluate").path / "rank.parquet").exists()
    found = stage.evaluate(made, run, lambda *told: None)
    assert {key: found[key] for key in ("digest", *Evaluation.model_fields)} == {
        key: wanted[key] for key in ("digest", *Evaluation.model_fields)
    }
    assert [who for who, *_ in asked].count("base") == len(asked_once) / 2 and len(asked) == len(asked_once) + 3


# What was forgotten


@given(st.integers(0, 300), st.integers(2, 40))
def test_every_token_is_scored_once_with_as_much_before_it_as_there_is(length: int, window: int) -> None:
    scored: list[int] = []
    for begin, first, end in stretches(length, window):
        assert end - begin <= window and begin < first < end <= length
        assert first - begin >= min(first, window - window // 2)
        scored += range(first, end)
    assert scored == list(range(1, length))


def test_a_rise_has_an_interval_over_stretches() -> None:
    chance = np.random.default_rng(0)
    tokens = np.full(200, 512.0)
    base = np.column_stack([chance.normal(1000, 50, 200), tokens])
    trained = np.column_stack([base[:, 0] + 512 * chance.normal(0.1, 0.02, 200), tokens])
    found = rise(base, trained)
    assert found.low is not None and found.high is not None
    assert found.low < found.value < found.high and found.value == pytest.approx(math.expm1(0.1), abs=0.01)
    assert rise(base, base) == type(found)(value=0.0, low=0.0, high=0.0)
    assert rise(base[:1], trained[:1]).low is None


def test_a_text_is_read_whole_and_what_else_there_is_by_its_turns(tmp_path: Any) -> None:
    for name, content in (("a.txt", "one\n\ntwo\n"), ("b.jsonl", '{"prompt": "x"}\n{"prompt": "y"}\n'), ("c.md", " \n")):
        (tmp_path / name).write_text(content)
    assert list(texts(str(tmp_path / "a.txt"))) == ["one\n\ntwo\n"]
    assert list(texts(str(tmp_path / "b.jsonl"))) == ["x", "y"]
    with pytest.raises(InputError, match="holds no text"):
        list(texts(str(tmp_path / "c.md")))
    with pytest.raises(InputError, match="cannot be read"):
        list(texts(str(tmp_path / "none.txt")))


@pytest.mark.parametrize(("who", "remedy"), [("base", "another base model"), ("trained", "a lower train.learning_rate")])
@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e6])
def test_a_perplexity_that_is_no_number_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str, remedy: str, loss: float
) -> None:
    class Child:
        """Tells of two stretches under each model, base first."""

        def __init__(self, *what: Any) -> None:
            self.parts = iter({"parts": [[9.0, 3], [loss if side == who else 9.0, 3]]} for side in ("base", "trained"))

        def send(self, told: Any) -> None: ...

        def receive(self) -> Any:
            return next(self.parts)

        def close(self) -> None: ...

    monkeypatch.setattr("dpo_data.evaluation.perplexity.Child", Child)
    monkeypatch.setattr("dpo_data.evaluation.perplexity.find_model", lambda model, revision: model)
    (tmp_path / "notes.txt").write_text("some text")
    with pytest.raises(TrainError, match=f"The {who} model's perplexity of .*notes.txt is (nan|inf), no finite.*{remedy}"):
        perplexity(str(tmp_path / "notes.txt"), {side: Policy("m") for side in ("base", "trained")}, lambda *told: None)
