"""What is owed to length is found and taken out, and nothing else is."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_data import length_control
from dpo_data.candidates import form, lengths
from dpo_data.config import Pair, Recipe
from dpo_data.length_control import Control, Measures, characters, control, fit, measure
from dpo_data.pair import pair
from dpo_data.rows import Completion, PreferencePair, Ranking, Sample
from dpo_data.rundir import RunDir
from dpo_data.tables import SCHEMAS, from_table, to_table
from dpo_data.templates import without_thinking

PROMPT = [{"role": "user", "content": "Why?"}]


# How often a model wins at equal length


def judged(theta: float, gamma: float, count: int, seed: int, mean: float = 150) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Comparisons that follow the model: (wins, differences, weights), a being longer by `mean` ± 300 characters."""
    chance = np.random.default_rng(seed)
    differences = np.round(chance.normal(mean, 300, count))
    odds = theta + gamma * np.tanh(differences / differences.std())
    return (chance.random(count) < 1 / (1 + np.exp(-odds))).astype(float), differences, np.ones(count)


@pytest.mark.parametrize(("theta", "gamma"), [(0.0, 0.0), (0.0, 2.0), (0.8, -1.5), (-1.2, 0.7)])
def test_what_was_put_in_is_found(theta: float, gamma: float) -> None:
    """The mean over seeds lies within three of its standard errors, and a single one is near."""
    found = np.array([fit(*judged(theta, gamma, 2000, seed))[:2] for seed in range(60)])  # type: ignore[index]
    errors = found.std(0, ddof=1)
    assert (np.abs(found.mean(0) - (theta, gamma)) < 3 * errors / 60**0.5).all()
    assert (errors < 0.15).all()


def test_a_judge_of_length_alone_gives_one_half_where_the_raw_win_rate_does_not() -> None:
    runs = [judged(0, 2.0, 2000, seed) for seed in range(40)]
    raw = np.mean([wins.mean() for wins, _, _ in runs])
    controlled = np.mean([fit(*run).win_rate for run in runs])  # type: ignore[union-attr]
    assert raw > 0.6 and abs(controlled - 0.5) < 0.01


def test_a_judge_that_always_takes_the_longer_gives_one_half() -> None:
    _, differences, weights = judged(0, 0, 20_000, 0, mean=300)
    wins = (np.sign(differences) + 1) / 2
    found = fit(wins, differences, weights)
    assert found and wins.mean() > 0.8 and abs(found.win_rate - 0.5) < 0.05 and found.gamma > 10


def test_a_judge_blind_to_length_gives_the_raw_win_rate() -> None:
    runs = [judged(0.8, 0, 1000, seed) for seed in range(80)]
    gaps = np.array([fit(*run).win_rate - run[0].mean() for run in runs])  # type: ignore[union-attr]
    assert abs(gaps.mean()) < 3 * gaps.std() / 80**0.5 < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_logistic_regression_of_scikit_learn(seed: int) -> None:
    """With weights, ties as half a win and half a loss, and the same ridge."""
    from sklearn.linear_model import LogisticRegression

    wins, differences, _ = judged(0.5, 1.3, 500, seed)
    wins[::7] = 0.5
    weights = np.random.default_rng(seed).uniform(0.1, 2, 500)
    found = fit(wins, differences, weights)
    assert found
    term = np.tanh(differences / found.sd)[:, None]
    theirs = LogisticRegression(C=1 / length_control.RIDGE[1], tol=1e-10, max_iter=1000).fit(
        np.concatenate([term, term]), np.repeat([1, 0], 500), np.concatenate([weights * wins, weights * (1 - wins)])
    )
    assert (found.theta, found.gamma) == pytest.approx((theirs.intercept_[0], theirs.coef_[0][0]), abs=1e-4)
    mean = np.average(differences, weights=weights)
    assert found.sd == pytest.approx(np.average((differences - mean) ** 2, weights=weights) ** 0.5)


comparisons = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(-3000, 3000), st.sampled_from([1.0, 0.25, 0.1])), max_size=30
)


def columns(made: list[tuple[float, int, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    wins, differences, weights = np.array(made, float).reshape(-1, 3).T
    return wins, differences, weights


@given(comparisons)
def test_a_against_b_is_b_against_a(made: Any) -> None:
    wins, differences, weights = columns(made)
    one, other = fit(wins, differences, weights), fit(1 - wins, -differences, weights)
    assert (one is None) == (other is None)
    if one and other:
        assert other.theta == pytest.approx(-one.theta, abs=1e-5) and other.gamma == pytest.approx(one.gamma, abs=1e-5)
        assert other.win_rate == pytest.approx(1 - one.win_rate, abs=1e-6)


@given(comparisons, st.sampled_from([0.001, 3, 1e6]))
def test_the_unit_of_length_does_not_matter(made: Any, scale: float) -> None:
    wins, differences, weights = columns(made)
    one, other = fit(wins, differences, weights), fit(wins, differences * scale, weights)
    assert (one is None) == (other is None)
    if one and other:
        assert other[:2] == pytest.approx(one[:2], abs=1e-5) and other.sd == pytest.approx(one.sd * scale)


@given(comparisons)
def test_every_fit_is_finite_and_none_is_made_up(made: Any) -> None:
    wins, differences, weights = columns(made)
    found = fit(wins, differences, weights)
    signs = set(np.sign(differences))
    assert (found is None) == (signs in ({1.0}, {-1.0}, set())), "told only where lengths cross, or are the same"
    if found:
        assert np.isfinite(found).all() and 0 <= found.win_rate <= 1


def test_extremes() -> None:
    one = np.ones(100)
    won = fit(one, np.arange(-50, 50), one)
    assert won and won.win_rate > 0.9999 and won.gamma == pytest.approx(0, abs=0.01), "all won, whatever the length"
    half = fit(np.tile([1.0, 0.0, 1.0, 1.0], 25), np.zeros(100), one)
    assert half and half.sd == 0 and half.gamma == 0 and half.win_rate == pytest.approx(0.75, abs=1e-6)


def test_a_step_too_far_is_not_taken() -> None:
    """Newton's full steps end at θ = ±10⁶ and beyond here."""
    far = [13542, 15596, 8431, 16122, 5396, 28846, 4606, 15671, 38, -484, -229, -222, -149, -251]
    found = fit(np.array([0.5] + [1.0] * 14), np.array([-8783.0, *far]), np.array([1.0] + [1000.0] * 14))
    assert found and 5 < found.theta < 15 and 5 < found.gamma < 20


# Length out of the scores


@given(st.lists(st.text() | st.sampled_from(["a<think>b</think> c", "x</think>y", "<thinking>z", "</thinking>é", "1 < think"])))
def test_thinking_does_not_make_an_answer_longer(texts: list[str]) -> None:
    assert characters(pa.array(texts, pa.string())).tolist() == [len(without_thinking(text)) for text in texts]


def scored(
    count: int, n: int, effect: float, seed: int = 0, step: float = 0.0
) -> tuple[list[Sample], list[Ranking], list[Ranking]]:
    """Prompts with answers of many lengths, ranked by quality plus an `effect` of length, rounded to `step`; and by quality."""
    chance = np.random.default_rng(seed)
    size = np.maximum(1, np.round(chance.gamma(2, 100, (count, 1)) * chance.uniform(0.3, 1.7, (count, n)))).astype(int)
    quality = chance.normal(size=(count, n))
    deviation = size - size.mean(1, keepdims=True)
    scores = quality + effect * np.tanh(deviation / np.sqrt((deviation**2).mean()))
    if step:
        scores = np.round(scores / step) * step
    samples, with_length, without = [], [], []
    for at in range(count):
        ids = [f"{seed}.{at}.{i}" for i in range(n)]
        texts = [f"{chr(97 + i)}" * size[at, i] for i in range(n)]
        answers = [Completion(id, i, text, "stop", 1, -1.0, "m") for i, (id, text) in enumerate(zip(ids, texts, strict=True))]
        samples.append(Sample(f"p{seed}.{at}", PROMPT, "s", answers, None))
        for rankings, values in ((with_length, scores), (without, quality)):
            rankings.append(Ranking(f"p{seed}.{at}", "j", ids, values[at].tolist(), None, "[]"))
    return samples, with_length, without


BEST_WORST = Pair()


def controlling(samples: list[Sample], rankings: list[Ranking], wanted: float = 1e9, settings: Pair = BEST_WORST) -> Control:
    return control([lengths(to_table(samples, Sample), to_table(rankings, Ranking), settings, wanted)])


def pairs(
    samples: list[Sample], rankings: list[Ranking], taken: Control | None = None, settings: Pair = BEST_WORST
) -> list[PreferencePair]:
    formed = form(to_table(samples, Sample), to_table(rankings, Ranking), settings, SCHEMAS[PreferencePair], taken)
    return list(from_table(formed.pairs, PreferencePair))


def ends(found: list[PreferencePair]) -> set[tuple[str, str]]:
    return {(row.chosen_id, row.rejected_id) for row in found}


@pytest.mark.parametrize("effect", [1.5, -0.8])
def test_the_effect_of_length_is_found_and_taken_out(effect: float) -> None:
    samples, rankings, pure = scored(1500, 8, effect)
    found = controlling(samples, rankings)
    assert found.slope == pytest.approx(effect, abs=0.05)
    assert found.longer_wins and abs(found.longer_wins[0] - 0.5) > 0.12
    assert found.longer_wins[1] == pytest.approx(0.5, abs=0.01)
    wanted = ends(pairs(samples, pure))
    before, after = (len(wanted & ends(pairs(samples, rankings, taken))) / 1500 for taken in (None, found))
    assert after > 0.9 and before < 0.7


def test_what_owes_nothing_to_length_stays() -> None:
    samples, rankings, _ = scored(1500, 8, 0)
    found = controlling(samples, rankings)
    assert abs(found.slope) < 0.05 and len(ends(pairs(samples, rankings)) & ends(pairs(samples, rankings, found))) > 0.95 * 1500


@pytest.mark.parametrize("unit", [1e-6, 1e5])
def test_the_unit_of_the_scores_does_not_matter(unit: float) -> None:
    samples, rankings, _ = scored(200, 6, 1.0)
    other = [replace(row, scores=[unit * score - 3 * unit for score in row.scores if score is not None]) for row in rankings]
    one, same = controlling(samples, rankings), controlling(samples, other)
    assert same.slope == pytest.approx(unit * one.slope) and same.longer_wins == pytest.approx(one.longer_wins)
    assert ends(pairs(samples, rankings, one)) == ends(pairs(samples, other, same))


def test_an_outlier_sways_nothing() -> None:
    samples, rankings, _ = scored(500, 8, 1.0)
    found = controlling(samples, rankings)
    scores = [-1e9, *rankings[0].scores[1:]]
    assert controlling(samples, [replace(rankings[0], scores=scores), *rankings[1:]]).slope == pytest.approx(
        found.slope, abs=0.01
    )


@given(st.randoms(), st.sampled_from([0.3, 2.5, 1e9]), st.sampled_from([0.0, 1.0]))
def test_the_order_of_the_answers_changes_no_bit(chance: Any, wanted: float, step: float) -> None:
    samples, rankings, _ = scored(12, 5, 1.0, step=step)
    mixed = [replace(row, completions=chance.sample(row.completions, 5)) for row in samples]
    found = controlling(samples, rankings, wanted)
    assert controlling(mixed, chance.sample(rankings, 12), wanted) == found
    assert pairs(mixed, rankings, found) == pairs(samples, rankings, found)


def test_the_mean_preference_of_the_longer_is_balanced_to_one_two() -> None:
    """Σ sign(s′ᵢ − s′ⱼ)·(fᵢ − fⱼ), recomputed from all twos one by one, is below the weight of a single two."""
    samples, rankings, _ = scored(40, 6, 0.7)
    found = controlling(samples, rankings)
    pull, heaviest, twos = 0.0, 0.0, 0
    for sample, ranking in zip(samples, rankings, strict=True):
        size = np.array([len(one.text) for one in sample.completions])
        squashed = np.tanh((size - size.mean()) / found.sd)
        left = np.array(ranking.scores) - found.slope * squashed
        for i in range(6):
            for j in range(i):
                pull += np.sign(left[i] - left[j]) * (squashed[i] - squashed[j])
                heaviest = max(heaviest, abs(squashed[i] - squashed[j]))
                twos += size[i] != size[j]
    assert abs(pull) <= heaviest and found.twos == twos


@pytest.mark.parametrize(("wanted", "most"), [(0.25, 500), (1, 2000), (3.9, 6000), (28, 56_000)])
def test_a_few_twos_tell_what_all_tell(wanted: float, most: int) -> None:
    samples, rankings, _ = scored(2000, 8, 1.0)
    few, every = controlling(samples, rankings, wanted), controlling(samples, rankings)
    assert 0.8 * most < few.twos <= most * (1.1 if wanted < 1 else 1), "equally long ones tell nothing"
    assert few.slope == pytest.approx(every.slope, abs=5 / few.twos**0.5) and few.sd == every.sd
    assert few.longer_wins == pytest.approx(every.longer_wins, abs=2 / few.twos**0.5)


def test_twos_are_drawn_without_repetition() -> None:
    size, score = np.arange(1, 8) ** 2, np.zeros(7)
    for wanted in range(1, 30):
        drawn = measure(["one"], np.zeros(7, int), size, score, wanted)
        assert len({*zip(drawn.longer, drawn.shorter, strict=True)}) == len(drawn.longer) == min(wanted, 21)
        assert (drawn.longer > drawn.shorter).all()


@pytest.mark.parametrize("id", ["one", "two", "three", "four", "five"])
def test_twos_are_evenly_spaced(id: str) -> None:
    """Every third of the twos (0, 1), (0, 2), (1, 2), (0, 3), … of seven answers holds all the longer four."""
    drawn = measure([id], np.zeros(7, int), np.arange(7), np.zeros(7), 7)
    assert {3, 4, 5, 6} <= set(drawn.longer + 3)


# Scores that tie


def test_where_most_tie_a_slight_effect_leaves_the_scores_alone() -> None:
    """Any slope would break every tie one way, and sway more than it heals."""
    samples, rankings, _ = scored(600, 4, 0.2, step=3)
    found = controlling(samples, rankings)
    assert found.slope == 0 and pairs(samples, rankings, found) == pairs(samples, rankings)


@pytest.mark.parametrize(("ties", "longer", "slope"), [(5, 1, 0), (3, 2, 2.5), (3, 5, 2.5), (3, 7, 5), (0, 1, 5)])
def test_ties_stay_or_go_one_way_whichever_leaves_less(ties: int, longer: int, slope: float) -> None:
    """The longer one wins or ties. Slopes are 0 and 5; between them the ties go to the shorter one, at 5 the wins are ties."""
    apart, gains = np.full(ties + longer, 50.0), np.repeat([0.0, 5 * 2 * np.tanh(1)], [ties, longer])
    found = control([Measures(4, 4 * 50.0**2, apart, -apart, gains)])
    assert found.slope == pytest.approx(slope)


@pytest.mark.parametrize("step", [1.0, 2.0])
def test_coarse_scores_give_the_effect_too(step: float) -> None:
    samples, rankings, _ = scored(1500, 6, 1.5, step=step)
    found = controlling(samples, rankings)
    assert found.slope == pytest.approx(1.5, abs=0.15)
    assert found.longer_wins and found.longer_wins[0] > 0.65 and abs(found.longer_wins[1] - 0.5) < 0.08


def test_equally_long_answers_still_tie_and_what_was_not_judged_is_not() -> None:
    texts, scores = ["aaaa", "bbbb", "c" * 40, "d" * 4], [1.0, 1.0, 3.0, None]
    answers = [Completion(f"c{at}", at, text, "stop", 1, -1.0, "m") for at, text in enumerate(texts)]
    sample, ranking = Sample("p", PROMPT, "s", answers, None), Ranking("p", "j", ["c0", "c1", "c2", "c3"], scores, None, "[]")
    every = Pair(strategy="all")
    for taken in (Control(1.0, 10.0, 1, None), Control(-1.0, 10.0, 1, None), Control(9.0, 10.0, 1, None)):
        found = pairs([sample], [ranking], taken, every)
        assert ends(found) in ({("c2", "c0"), ("c2", "c1")}, {("c0", "c2"), ("c1", "c2")})
        assert found[0].margin == found[1].margin == found[0].score_chosen - found[0].score_rejected != 2


def test_cut_off_and_undecided_answers_tell_nothing() -> None:
    samples, rankings, _ = scored(100, 5, 1.0)
    cut = [
        replace(row, completions=[*row.completions, Completion(f"x{row.prompt_id}", 5, "z" * 9999, "length", 1, -1.0, "m")])
        for row in samples
    ]
    more = [
        replace(row, completion_ids=[*row.completion_ids, f"x{row.prompt_id}"], scores=[*row.scores, -9.0]) for row in rankings
    ]
    assert controlling(cut, more) == controlling(samples, rankings)
    assert controlling(cut, more, settings=Pair(reject_truncated=True)).slope < 0, "where they may be rejected, they count"
    silent = [replace(row, scores=[None] * 5, abstained="no") for row in rankings]
    assert controlling(samples, silent) == Control(0.0, 0.0, 0, None)
    assert control([]) == Control(0.0, 0.0, 0, None)


# The stage


@pytest.fixture
def made(tmp_path: Path, recipe: Callable[..., Recipe]) -> Callable[..., RunDir]:
    """A run with 300 prompts, whose judge looks at length, and its pairs."""

    def make(name: str, **settings: Any) -> RunDir:
        run = RunDir(tmp_path / name)
        samples, rankings, _ = scored(300, 6, 1.5)
        sampled, ranked = (run.stage(stage).open({}, {}) for stage in ("sample", "rank"))
        for index in range(10):
            part = slice(30 * index, 30 * (index + 1))
            sampled.write(f"{index:05d}.parquet", samples[part], Sample)
            ranked.write(f"{index:05d}.parquet", rankings[part], Ranking)
        sampled.finish(prompts=300, tools=False)
        ranked.finish(prompts=300, abstained=0)
        off = dict.fromkeys(("length_gap", "repetition"), False)
        pair(recipe(pair={"test": 0.1, "filters": off, **settings}), run, lambda *_: None)
        return run

    return make


def test_the_stage_takes_length_out_and_tells(made: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpo_data.pair.PROMPTS", 40)
    stage = made("on", length_control=True).stage("pair")
    told = stage.require()["length_control"]
    samples, rankings, _ = scored(300, 6, 1.5)
    found = controlling(samples, rankings)
    assert told == json.loads(json.dumps(found._asdict())), "shard by shard as at once"
    assert told["longer_wins"][0] > 0.7 and told["longer_wins"][1] == pytest.approx(0.5, abs=0.02)
    rows = [row for name in ("train", "test") for row in stage.rows(PreferencePair, f"{name}.parquet")]
    assert len(rows) > 250
    assert sorted(rows, key=lambda row: row.prompt_id) == sorted(pairs(samples, rankings, found), key=lambda row: row.prompt_id)


def test_off_it_changes_no_byte(made: Callable[..., RunDir]) -> None:
    default, off, on = made("default"), made("off", length_control=False), made("on", length_control=True)

    def files(run: RunDir) -> list[bytes]:
        return [(run.stage("pair").path / f"{name}.parquet").read_bytes() for name in ("train", "test", "dropped")]

    assert files(default) == files(off) != files(on)
    assert off.stage("pair").require()["length_control"] is None
    samples, rankings, _ = scored(300, 6, 1.5)
    rows = [row for name in ("train", "test") for row in off.stage("pair").rows(PreferencePair, f"{name}.parquet")]
    assert ends(rows) == ends(pairs(samples, rankings))
