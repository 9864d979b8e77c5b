"""The audit's statistics: held by other libraries, by cases worked out by hand, by properties, and by a known truth."""

import math
from typing import Any

import krippendorff
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare, kendalltau, rankdata
from sklearn.metrics import cohen_kappa_score

from dpo_data.audit.agreement import (
    VERDICTS,
    Metric,
    alpha,
    coincidences,
    kappa,
    kendall_w,
    mirrored,
    orders,
    table,
    tau_b,
)
from dpo_data.audit.bootstrap import Clusters, interval
from dpo_data.audit.figures import Tally, ratio

NAN = math.nan

few = st.integers(-2, 2).map(float)
some = st.one_of(few, st.just(NAN))
mostly = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0, NAN])  # two lists of `some` often share fewer than two that are known


def pairs_of(value: Any, least: int = 2) -> Any:
    """Two lists of the same length."""
    return st.integers(least, 9).flatmap(
        lambda n: st.tuples(*[st.lists(value, min_size=n, max_size=n).map(np.array) for _ in range(2)])
    )


def ratings(value: Any) -> Any:
    """Raters × units."""
    return st.tuples(st.integers(2, 4), st.integers(1, 8)).flatmap(
        lambda shape: st.lists(st.lists(value, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]).map(
            np.array
        )
    )


def same(ours: Any, theirs: Any) -> bool:
    return bool(np.allclose(ours, theirs, atol=1e-9, equal_nan=True))


# Kendall's τ-b


@given(pairs_of(some))
def test_tau_is_scipy_s(both: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = both
    known = ~(np.isnan(x) | np.isnan(y))
    assert same(tau_b(x, y), kendalltau(x[known], y[known]).statistic if known.sum() > 1 else NAN)


def test_tau_by_hand() -> None:
    assert tau_b(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(1 / 3)  # 2 concordant, 1 discordant
    assert tau_b(np.array([1.0, 1, 2]), np.array([1.0, 2, 3])) == pytest.approx(2 / math.sqrt(2 * 3))  # one tie
    rows = tau_b(np.array([[1.0, 2, 3], [3, 2, 1], [1, 1, 1]]), np.array([[1.0, 2, 3]] * 3))
    assert same(rows, [1, -1, NAN])


@given(pairs_of(mostly))
def test_tau_is_bounded_and_knows_neither_side_nor_scale(both: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = both
    tau = tau_b(x, y)
    assume(not np.isnan(tau))
    assert -1 - 1e-9 <= tau <= 1 + 1e-9
    assert same(tau, tau_b(y, x)) and same(tau, tau_b(np.exp(x), y)) and same(-tau, tau_b(-x, y))
    assert same(tau_b(x, x), 1)


# Cohen's κ


@given(pairs_of(few, least=1))
def test_kappa_is_scikit_learn_s(both: tuple[np.ndarray, np.ndarray]) -> None:
    values = np.unique(both)
    assume(len(values) > 1)
    assert same(kappa(table(*both, values)), cohen_kappa_score(*both, labels=values))


def test_kappa_by_hand() -> None:
    both = np.array([[20.0, 5], [10, 15]])  # 35 of 50 agree; by chance (25·30 + 25·20) / 50² = ½
    assert kappa(both) == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert np.isnan(kappa(np.array([[9.0, 0], [0, 0]])))  # nothing varies
    assert np.allclose(kappa(np.stack([both, np.eye(2)])), [0.4, 1])


@given(pairs_of(few), st.permutations(range(5)))
def test_kappa_knows_neither_side_nor_names(both: tuple[np.ndarray, np.ndarray], names: list[int]) -> None:
    values = np.arange(-2.0, 3.0)
    found = table(*both, values)
    ours = kappa(found)
    assert same(ours, kappa(found.T)) and same(ours, kappa(found[np.ix_(names, names)]))
    assert np.isnan(ours) or ours <= 1 + 1e-9
    if len(np.unique(both[0])) > 1:
        assert same(kappa(table(both[0], both[0], values)), 1)


# Krippendorff's α


@pytest.mark.parametrize("metric", ["nominal", "ordinal", "interval", "ratio"])
@given(given_ratings=ratings(some))
def test_alpha_is_krippendorff_s(metric: Metric, given_ratings: np.ndarray) -> None:
    given_ratings = np.abs(given_ratings) if metric == "ratio" else given_ratings
    values = np.unique(given_ratings[~np.isnan(given_ratings)])
    together = coincidences(given_ratings, values)
    assume((together.sum(axis=0) > 0).sum() > 1)
    theirs = krippendorff.alpha(reliability_data=given_ratings, level_of_measurement=metric, value_domain=values)
    assert same(alpha(together, values, metric), theirs)


def test_alpha_by_hand() -> None:
    """The binary example of Krippendorff's "Computing Krippendorff's Alpha-Reliability" (2011), and his nominal one, which has
    four observers and missing values."""
    two = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]], dtype=float)
    assert alpha(coincidences(two, np.array([0.0, 1])), np.array([0.0, 1]), "nominal") == pytest.approx(0.095, abs=5e-4)
    four = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
            [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
        ]
    )
    values = np.arange(1.0, 6)
    found = [alpha(coincidences(four, values), values, metric) for metric in ("nominal", "ordinal", "interval", "ratio")]
    assert found == pytest.approx([0.743, 0.815, 0.849, 0.797], abs=5e-4)


@given(ratings(some), st.permutations(range(5)), st.randoms(use_true_random=False))
def test_alpha_knows_neither_raters_nor_units_nor_names(given_ratings: np.ndarray, names: list[int], dice: Any) -> None:
    values = np.arange(-2.0, 3.0)
    together = coincidences(given_ratings, values)
    ours = alpha(together, values, "nominal")
    assert same(together, together.T)
    assert np.isnan(ours) or ours <= 1 + 1e-9
    shuffled = given_ratings[dice.sample(range(len(given_ratings)), len(given_ratings))]
    assert same(ours, alpha(coincidences(shuffled[:, ::-1], values), values, "nominal"))
    assert same(ours, alpha(together[np.ix_(names, names)], values, "nominal"))
    for metric in ("ordinal", "interval"):
        turned = alpha(coincidences(-given_ratings, values), values, metric)
        assert same(alpha(together, values, metric), turned)


@given(ratings(few))
def test_perfect_agreement_is_one(given_ratings: np.ndarray) -> None:
    one = given_ratings[:1]
    assume(len(np.unique(one)) > 1)
    values = np.arange(-2.0, 3.0)
    for metric in ("nominal", "ordinal", "interval"):
        assert same(alpha(coincidences(np.vstack([one, one, one]), values), values, metric), 1)


@given(pairs_of(few, least=3), st.randoms(use_true_random=False))
def test_which_answer_comes_first_means_nothing(both: tuple[np.ndarray, np.ndarray], dice: Any) -> None:
    """κ and α of verdicts stay when the answers are numbered anew; and their ordinal α is their interval α."""

    def verdicts(of: Any) -> np.ndarray:
        return mirrored(table(orders(both[0][of]), orders(both[1][of]), VERDICTS))

    straight, anew = (verdicts(order) for order in (range(len(both[0])), dice.sample(range(len(both[0])), len(both[0]))))
    assert same(kappa(straight), kappa(anew))
    together = straight + straight.T
    assert same(alpha(together, VERDICTS, "ordinal"), alpha(anew + anew.T, VERDICTS, "ordinal"))
    assert same(alpha(together, VERDICTS, "ordinal"), alpha(together, VERDICTS, "interval"))


@given(st.lists(ratings(some), min_size=1, max_size=3))
def test_many_prompts_at_once_are_each_by_itself(prompts: list[np.ndarray]) -> None:
    """Padding with raters and units that are not there changes nothing."""
    values = np.arange(-2.0, 3.0)
    padded = np.full((len(prompts), 4, 8), NAN)
    for row, one in enumerate(prompts):
        padded[row, : one.shape[0], : one.shape[1]] = one
    found = coincidences(padded, values), table(padded[:, 0], padded[:, 1], values)
    for row, one in enumerate(prompts):
        assert same(found[0][row], coincidences(one, values)) and same(found[1][row], table(one[0], one[1], values))


def test_kappa_of_its_paper() -> None:
    """Cohen (1960), table 1: 200 cases, three categories, 140 alike, and 82 by chance."""
    both = np.array([[88.0, 14, 18], [10, 40, 10], [2, 6, 12]])
    assert kappa(both) == pytest.approx(0.49, abs=5e-3) and kappa(both) == pytest.approx((140 - 82) / (200 - 82))


# Kendall's W


def by_the_book(ranks: np.ndarray) -> float:
    """12S / (m²(n³ − n) − mΣT), in plain Python."""
    m, n = ranks.shape
    sums = [sum(row[i] for row in ranks) for i in range(n)]
    s = sum((one - sum(sums) / n) ** 2 for one in sums)
    t = sum(c**3 - c for row in ranks.tolist() for c in (row.count(value) for value in set(row)))
    whole = m * m * (n**3 - n) - m * t
    return float(12 * s / whole) if whole else NAN


def test_w_of_a_textbook() -> None:
    """Siegel (1956), page 234: ten objects by three variables, with ties: W = .828 (also the example of NAG's g08da)."""
    ranks = np.array(
        [
            [1, 4.5, 2, 4.5, 3, 7.5, 6, 9, 7.5, 10],
            [2.5, 1, 2.5, 4.5, 4.5, 8, 9, 6.5, 10, 6.5],
            [2, 1, 4.5, 4.5, 4.5, 4.5, 8, 8, 8, 10],
        ]
    )
    assert kendall_w(ranks) == pytest.approx(0.828, abs=5e-4)


@given(ratings(few))
def test_w_is_that_of_the_book_and_of_scipy(given_ratings: np.ndarray) -> None:
    ranks = np.array([rankdata(row) for row in given_ratings])
    m, n = ranks.shape
    found = kendall_w(ranks)
    assert same(found, by_the_book(ranks))
    assume(n > 2 and not np.isnan(found))
    assert same(found, friedmanchisquare(*ranks.T).statistic / (m * (n - 1)))
    assert -1e-9 <= found <= 1 + 1e-9
    padded = np.full((m + 1, n + 2), NAN)
    padded[:m, :n] = ranks
    assert same(kendall_w(padded), found) and same(kendall_w(-ranks), found) and same(kendall_w(ranks[::-1, ::-1]), found)


def test_w_at_its_ends() -> None:
    one = np.array([1.0, 2, 3])
    assert same(kendall_w(np.array([one, one, one])), 1) and same(kendall_w(np.array([one, one[::-1]])), 0)
    assert np.isnan(kendall_w(np.array([one]))) and np.isnan(kendall_w(np.full((2, 3), 2.0)))
    dice = np.random.default_rng(0)
    by_chance = kendall_w(dice.permuted(np.broadcast_to(np.arange(5.0), (20_000, 4, 5)), axis=-1))
    assert by_chance.mean() == pytest.approx(1 / 4, abs=0.005)


# The bootstrap


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=70), st.sampled_from([2, 4, 8]), st.integers(1, 9))
def test_clusters_keep_every_sum(parts: list[tuple[int, int]], limit: int, step: int) -> None:
    clusters = Clusters(2, limit)
    array = np.array(parts, dtype=float).reshape(-1, 2)
    for start in range(0, len(array), step):
        clusters.add(array[start : start + step])
    assert clusters.prompts == len(parts) and np.array_equal(clusters.total, array.sum(axis=0))
    assert np.array_equal(clusters.sums.sum(axis=0), clusters.total)
    assert min(len(parts), limit // 2) <= len(clusters.sums) <= limit


def test_clusters_are_neighbours_evenly_large() -> None:
    clusters = Clusters(1, 4)
    clusters.add(np.arange(11.0)[:, None])
    assert clusters.sums[:, 0].tolist() == [0 + 1 + 2 + 3, 4 + 5 + 6 + 7, 8 + 9 + 10]


def drawn(dice: np.random.Generator, prompts: int, truth: float) -> np.ndarray:
    """Twos of answers to prompts each of which has a share of its own, `truth` in the mean: those of a prompt go together."""
    shares = dice.beta(4 * truth, 4 * (1 - truth), prompts)
    cases = dice.integers(1, 29, prompts)
    return np.column_stack([dice.binomial(cases, shares), cases]).astype(float)


@pytest.mark.parametrize("limit", [4096, 64], ids=["each prompt", "clusters of prompts"])
def test_intervals_cover_the_truth_as_often_as_they_say(limit: int) -> None:
    dice, truth, runs = np.random.default_rng(5), 0.3, 600
    covered = 0
    for run in range(runs):
        clusters = Clusters(2, limit)
        clusters.add(drawn(dice, 150, truth))
        low, high = interval(clusters.sums, ratio, seed=run, draws=400) or (NAN, NAN)
        covered += low <= truth <= high
    assert 0.92 <= covered / runs <= 0.97  # 0.95 give or take three standard deviations, less a little for 150 prompts


def test_prompts_are_drawn_and_not_answers() -> None:
    """Twenty prompts of which each is all or nothing tell as much as twenty answers, however many twos they hold."""
    parts = np.array([[40.0, 40.0], [0.0, 40.0]] * 10)
    low, high = interval(parts, ratio) or (NAN, NAN)
    error = math.sqrt(0.5 * 0.5 / 20)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert interval(parts, ratio) == (low, high) and interval(parts, ratio, seed=1) != (low, high)
    narrower = interval(parts, ratio, level=0.5) or (NAN, NAN)
    assert low < narrower[0] < narrower[1] < high


def test_one_prompt_has_no_interval() -> None:
    assert interval(np.array([[1.0, 2.0]]), ratio) is None
    assert interval(np.zeros((5, 2)), ratio) is None  # never a case


def test_a_prompt_without_a_case_weighs_nothing() -> None:
    tallies = Tally(), Tally()
    tallies[0].add(np.array([1, 0, 2]), np.array([2, 2, 2]))
    tallies[1].add(np.array([1, 0, 0, 0, 2]), np.array([2, 0, 2, 0, 2]))
    assert tallies[0].figure() == tallies[1].figure()
    told = tallies[0].figure(expected=0.5)
    assert told and (told.value, told.count, told.prompts, told.expected) == (0.5, 6, 3, 0.5)
    assert Tally().figure() is None
