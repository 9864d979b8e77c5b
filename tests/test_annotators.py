"""What the audit says of annotators: each figure against the same count done by hand, and who is pointed out for what."""

import json
import math
import random
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from scipy.stats import kendalltau, rankdata
from sklearn.metrics import cohen_kappa_score
from test_agreement import by_the_book
from test_audit import Runs

from dpo_data.audit import annotation as annotation_module
from dpo_data.audit.entries import HASTY
from dpo_data.audit.schema import Annotation, Annotator, Audit, Figure
from dpo_data.audit.warnings import LEAST
from dpo_data.config import Recipe
from dpo_data.errors import RecipeError
from dpo_data.judges.people import Said, entry
from dpo_data.report import last_words, report
from dpo_data.rows import Completion, Ranking, Sample
from dpo_data.rundir import RunDir

Make = Callable[..., Recipe]
Entries = list[dict[str, Any]]

anew = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@pytest.fixture
def audited(tmp_path: Path, recipe: Make) -> Runs:
    return Runs(tmp_path, recipe)


def told(audit: Audit) -> Annotation:
    assert audit.annotation
    return audit.annotation


def one(audit: Audit, name: str) -> Annotator:
    (found,) = [annotator for annotator in told(audit).annotators if annotator.name == name]
    return found


def says(at: int, who: str, *scores: float | None, **more: Any) -> dict[str, Any]:
    """An annotator's answer about the prompt `p{at}`; its answers are shown in their order."""
    given = {f"p{at}a{i}": score for i, score in enumerate(scores) if score is not None}
    return entry(Said(who, "submitted", [f"p{at}a{i}" for i in range(len(scores))], given, **more))


def texts(*lengths: int) -> list[tuple[float | None, str, str]]:
    return [(1.0, "x" * length, "m") for length in lengths]


# By hand


@st.composite
def runs(draw: Any) -> tuple[list[Any], list[Entries]]:
    """Up to five prompts of two to four answers, and what up to three annotators said of all answers or some."""
    prompts, transcripts = [], []
    for at in range(draw(st.integers(1, 5))):
        n = draw(st.integers(2, 4))
        ids = [f"p{at}a{i}" for i in range(n)]
        prompts.append(texts(*(draw(st.integers(1, 3)) for _ in ids)))
        entries = []
        for _ in range(draw(st.integers(0, 5))):
            shown = draw(st.permutations(ids))
            if draw(st.booleans()):
                shown = shown[:2]
            scores = {id: float(draw(st.integers(1, 3))) for id in shown}
            discarded = draw(st.sampled_from([False, False, False, True]))
            said = Said(
                draw(st.sampled_from(["anna", "ben", "cleo"])),
                "discarded" if discarded else "submitted",
                list(shown),
                None if discarded else scores,
                draw(st.sampled_from([None, True, False])),
                draw(st.sampled_from([None, 0.5, 2.0, 7.0])),
            )
            entries.append(entry(said))
        transcripts.append(entries)
    return prompts, transcripts


Verdicts = dict[str, dict[tuple[int, int], int]]


def verdicts(at: int, entries: Entries) -> Verdicts:
    """Each annotator's order of each two answers of a prompt."""
    found: Verdicts = {}
    for said in entries:
        if said["status"] == "submitted":
            mine = found.setdefault(said["annotator"], {})
            for i, j in combinations(range(9), 2):
                x, y = (said["scores"].get(f"p{at}a{place}") for place in (i, j))
                if x is not None and y is not None:
                    mine[i, j] = (x > y) - (x < y)
    return found


def naive_alpha(units: list[list[int]]) -> float:
    """Krippendorff's α, interval, of verdicts that count half in either direction."""
    values = (-1, 0, 1)
    seen = {(c, k): 0.0 for c in values for k in values}
    for unit in units:
        for i, x in enumerate(unit):
            for j, y in enumerate(unit):
                if i != j:
                    seen[x, y] += 0.5 / (len(unit) - 1)
                    seen[-x, -y] += 0.5 / (len(unit) - 1)
    n = {c: sum(seen[c, k] for k in values) for c in values}
    total = sum(n.values())
    observed = sum(seen[c, k] * (c - k) ** 2 for c in values for k in values) * (total - 1)
    expected = sum(n[c] * n[k] * (c - k) ** 2 for c in values for k in values)
    return 1 - observed / expected if expected else math.nan


def naive_kappa(both: list[tuple[int, int]]) -> float:
    turned = [*both, *((-x, -y) for x, y in both)]
    if len({value for two in turned for value in two}) < 2:
        return math.nan
    return float(cohen_kappa_score([x for x, _ in turned], [y for _, y in turned], labels=[-1, 0, 1]))


def naive_tau(x: dict[Any, int], y: dict[Any, int]) -> float:
    both = [(x[two], y[two]) for two in x.keys() & y.keys()]
    scale = sum(a * a for a, _ in both) * sum(b * b for _, b in both)
    return sum(a * b for a, b in both) / math.sqrt(scale) if scale else math.nan


def same(figure: Figure | None, value: float) -> None:
    if math.isnan(value):
        assert figure is None
    else:
        assert figure and figure.value == pytest.approx(value)


def agreement_is(found: Any, twos: list[tuple[dict[Any, int], dict[Any, int]]], alpha: float, oriented: bool) -> None:
    """τ and κ of these twos of raters; α as it is given. `oriented`: it is told which rater is the first."""
    taus = [tau for x, y in twos if not math.isnan(tau := naive_tau(x, y))]
    both = [(x[two], y[two]) for x, y in twos for two in x.keys() & y.keys()]
    kappa = naive_kappa(both if oriented else [*both, *((y, x) for x, y in both)])
    same(found and found.tau, sum(taus) / len(taus) if taus else math.nan)
    same(found and found.kappa, kappa)
    same(found and found.alpha, alpha)
    assert found is None or found.tau is None or found.tau.count == len(taus)
    assert found is None or found.kappa is None or found.kappa.count == len(both)


@anew
@given(run=runs(), shard=st.integers(1, 3))
def test_agreement_is_counted_as_by_hand(audited: Runs, run: tuple[list[Any], list[Entries]], shard: int) -> None:
    prompts, transcripts = run
    sources = [f"{'ab'[at % 2]}.jsonl:{at}" for at in range(len(prompts))]
    found = audited(prompts, transcripts=transcripts, sources=sources, shard=shard).annotation
    if not any(transcripts):
        assert found is None
        return
    assert found
    heard = [verdicts(at, entries) for at, entries in enumerate(transcripts)]
    assert (found.prompts, found.several) == (sum(map(bool, heard)), sum(len(of) > 1 for of in heard))

    def units(of: list[Verdicts]) -> list[list[int]]:
        every = [[mine[two] for mine in prompt.values() if two in mine] for prompt in of for two in combinations(range(4), 2)]
        return [unit for unit in every if len(unit) > 1]

    def twos(of: list[Verdicts]) -> Any:
        return [(prompt[a], prompt[b]) for prompt in of for a, b in combinations(prompt, 2)]

    agreement_is(found.agreement, twos(heard), naive_alpha(units(heard)), oriented=False)
    for name in ("a.jsonl", "b.jsonl"):
        here = [of for of, source in zip(heard, sources, strict=True) if source.startswith(name)]
        agreement_is(found.sources.get(name), twos(here), naive_alpha(units(here)), oriented=False)
    for annotator in found.annotators:
        who = annotator.name
        mine = [(prompt[who], prompt[other]) for prompt in heard if who in prompt for other in prompt if other != who]
        pairs = [[x[two], y[two]] for x, y in mine for two in x.keys() & y.keys()]
        agreement_is(annotator.agreement, mine, naive_alpha(pairs), oriented=True)
    by_two = {two.annotators: two.kappa for two in found.twos}
    for a, b in combinations(["anna", "ben", "cleo"], 2):
        met = [(prompt[a], prompt[b]) for prompt in heard if a in prompt and b in prompt]
        same(by_two.get((a, b)), naive_kappa([(x[two], y[two]) for x, y in met for two in x.keys() & y.keys()]))
        assert ((a, b) in by_two) == bool(met)


@anew
@given(run=runs(), shard=st.integers(1, 3))
def test_habits_are_counted_as_by_hand(audited: Runs, run: tuple[list[Any], list[Entries]], shard: int) -> None:
    prompts, transcripts = run
    found = audited(prompts, transcripts=transcripts, shard=shard).annotation
    every = [(at, said) for at, entries in enumerate(transcripts) for said in entries]
    names = sorted({said["annotator"] for _, said in every})
    assert [annotator.name for annotator in found.annotators] == names if found else not names
    for annotator in found.annotators if found else []:
        mine = [(at, said) for at, said in every if said["annotator"] == annotator.name and said["status"] == "submitted"]
        assert annotator.submitted == len(mine)
        assert annotator.discarded == sum(said["annotator"] == annotator.name for _, said in every) - len(mine)
        first = chance = 0.0
        for _, said in mine:
            best = [id for id, score in said["scores"].items() if score == max(said["scores"].values())]
            first += (said["shown"][0] in best) / len(best)
            chance += 1 / len(said["scores"])
        same(annotator.first_best, first / len(mine) if mine else math.nan)
        if annotator.first_best:
            assert annotator.first_best.expected == pytest.approx(chance / len(mine))
            assert annotator.first_best.count == len(mine)
        seconds = [said["seconds"] for _, said in mine if said["seconds"] is not None]
        assert annotator.seconds == (median(seconds) if seconds else None)
        same(annotator.hasty, sum(took < HASTY for took in seconds) / len(seconds) if seconds else math.nan)
        shown = [said["prefilled"] for _, said in mine if said["prefilled"] is not None]
        same(annotator.prefilled, sum(shown) / len(shown) if shown else math.nan)
        wins = cases = 0
        for at, of_prompt in enumerate(verdicts(at, entries) for at, entries in enumerate(transcripts)):
            for (i, j), verdict in of_prompt.get(annotator.name, {}).items():
                longer = len(prompts[at][i][1]) - len(prompts[at][j][1])
                cases += verdict != 0 and longer != 0
                wins += verdict * longer > 0
        same(annotator.longer_wins, wins / cases if cases else math.nan)


@anew
@given(data=st.data(), n=st.integers(2, 4))
def test_w_is_that_of_the_book(audited: Runs, data: Any, n: int) -> None:
    """The mean over prompts; who ranked only some of the answers is left out."""
    prompts, transcripts, expected, chance = [], [], [], []
    for at in range(3):
        rows = data.draw(st.lists(st.lists(st.integers(1, 3), min_size=n, max_size=n), max_size=4))
        entries = [says(at, f"whole {who}", *row) for who, row in enumerate(rows)]
        if n > 2 and len(rows) > 1:
            entries.append(says(at, "some", 1, 2, *[None] * (n - 2)))
        prompts.append(texts(*[1] * n))
        transcripts.append(entries)
        w = by_the_book(rankdata(rows, axis=1)) if len(rows) > 1 else math.nan
        if not math.isnan(w):
            expected.append(w)
            chance.append(1 / len(rows))
    found = audited(prompts, transcripts=transcripts).annotation
    w = found.w if found else None
    same(w, sum(expected) / len(expected) if expected else math.nan)
    if w:
        assert w.expected == pytest.approx(sum(chance) / len(chance)) and w.count == len(expected)


def test_what_goes_in_a_circle_is_tied(audited: Runs) -> None:
    """Two by two, anna says a > b > c > a, and ben a > b > c: his word alone is left, and half of it counts."""
    circle = [says(0, "anna", 2, 1, None), says(0, "anna", None, 2, 1), says(0, "anna", 1, None, 2)]
    found = told(audited([texts(1, 1, 1)], transcripts=[[*circle, says(0, "ben", 3, 2, 1)]]))
    assert found.w and found.w.value == pytest.approx(0.5)
    assert told(audited([texts(1, 1, 1)], transcripts=[[*circle[:2], says(0, "ben", 3, 2, 1)]])).w is None  # not all compared


def test_people_in_a_panel_or_cascade_are_heard(audited: Runs) -> None:
    entries = [says(0, "anna", 1, 2), says(0, "ben", 1, 2)]

    def member(transcript: Entries) -> dict[str, Any]:
        told = {"kind": "member", "judge": "argilla:x", "completion_ids": ["p0a0", "p0a1"], "scores": [0.0, 1.0]}
        return {**told, "abstained": None, "transcript": transcript}

    nested = [member([]), member([member(entries)])]
    assert audited([texts(1, 2)], transcripts=[nested]).annotation == audited([texts(1, 2)], transcripts=[entries]).annotation


def test_answers_that_the_prompt_has_not_are_left_out(audited: Runs) -> None:
    found = told(audited([texts(1, 1)], transcripts=[[says(0, "anna", 1, 2), says(0, "ben", 1, 2, 9)]]))
    assert found.agreement and found.agreement.tau and found.agreement.tau.value == 1
    assert found.agreement.kappa and found.agreement.kappa.count == 1


def numbers(part: Any, place: str = "") -> dict[str, float]:
    """Every number in a part of the report, by its place."""
    if isinstance(part, BaseModel):
        part = part.model_dump()
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, (list, tuple)) else ()
    found = {place: float(part)} if isinstance(part, (int, float)) else {}
    for key, value in inner:
        found |= numbers(value, f"{place}.{key}")
    return found


def test_chunks_and_shards_mean_nothing(audited: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(0)
    prompts = [texts(*(dice.randint(1, 9) for _ in range(dice.randint(2, 4)))) for _ in range(40)]
    transcripts = [
        [says(at, who, *(dice.randint(1, 3) for _ in of)) for who in "abc" if dice.random() < 0.8]
        for at, of in enumerate(prompts)
    ]
    groups = {"x": ["a", "b"], "y": ["c"]}
    whole = numbers(audited(prompts, transcripts=transcripts, groups=groups, shard=40))
    assert len(whole) > 150
    assert numbers(audited(prompts, transcripts=transcripts, groups=groups, shard=7)) == pytest.approx(whole, nan_ok=True)
    monkeypatch.setattr(annotation_module, "AT_ONCE", 3)
    assert numbers(audited(prompts, transcripts=transcripts, groups=groups, shard=40)) == pytest.approx(whole, nan_ok=True)


def test_who_answers_first_means_nothing(audited: Runs) -> None:
    dice = random.Random(1)
    transcripts = [[says(at, who, *(dice.randint(1, 3) for _ in "123")) for who in "abcd"] for at in range(10)]
    straight = told(audited([texts(1, 2, 3)] * 10, transcripts=transcripts))
    turned = told(audited([texts(1, 2, 3)] * 10, transcripts=[entries[::-1] for entries in transcripts]))
    assert len(numbers(straight)) > 100 and numbers(turned) == pytest.approx(numbers(straight))


def test_from_the_fiftieth_source_on_they_count_together(audited: Runs) -> None:
    many = annotation_module.MOST_SOURCES + 5
    transcripts = [[says(at, who, 1, 2) for who in "ab"] for at in range(many)]
    sources = [f"{at:03d}.jsonl:7" for at in range(many)]
    found = told(audited([texts(1, 2)] * many, transcripts=transcripts, sources=sources)).sources
    assert len(found) == annotation_module.MOST_SOURCES + 1
    rest = found[annotation_module.OTHER_SOURCES].kappa
    assert rest and rest.count == 5


# Whom the audit points out

CAREFUL = {"anna": 0.2, "ben": 0.2, "cleo": 0.3}


def crowd(
    prompts: int, errs: dict[str, float], taste: Callable[[str, int], float] = lambda who, at: 0.0, seed: int = 0, **more: Any
) -> tuple[list[Any], list[Entries]]:
    """Prompts with four answers of which the later is the better, in an order of showing by chance; who errs, orders anyhow."""
    dice = random.Random(seed)
    of_prompts, transcripts = [], []
    for at in range(prompts):
        lengths = dice.sample(range(1, 50), 4)
        of_prompts.append(texts(*lengths))
        entries = []
        for who, share in errs.items():
            worth = [i + taste(who, length) for i, length in enumerate(lengths)]
            scores = dice.sample(worth, 4) if dice.random() < share else worth
            shown = dice.sample([f"p{at}a{i}" for i in range(4)], 4)
            given = {f"p{at}a{i}": score for i, score in enumerate(scores)}
            known = {key: of[who](dice, given, shown) for key, of in more.items() if who in of}
            entries.append(entry(Said(who, "submitted", shown, **{"scores": given, "seconds": 20.0, **known})))
        transcripts.append(entries)
    return of_prompts, transcripts


def pointed_out(audited: Runs, crowd: tuple[list[Any], list[Entries]], **more: Any) -> list[str]:
    found: Audit = audited(crowd[0], transcripts=crowd[1], shard=1000, **more)
    return found.warnings


@pytest.mark.parametrize("seed", range(5))
def test_nobody_is_pointed_out_who_does_well(audited: Runs, seed: int) -> None:
    assert pointed_out(audited, crowd(60, CAREFUL, seed=seed), groups={"a": ["anna", "ben"], "c": ["cleo"]}) == []


def test_low_agreement_is_pointed_out(audited: Runs) -> None:
    made = crowd(60, dict.fromkeys("abc", 1.0))
    found = audited(made[0], transcripts=made[1])
    alpha = told(found).agreement.alpha  # type: ignore[union-attr]
    assert alpha and abs(alpha.value) < 0.2
    value = f"{alpha.value:.2f}".replace("-", "−")
    assert found.warnings[0].startswith(f"The annotators agree little: Krippendorff's α is {value} (95 % interval ")


def test_a_source_is_pointed_out(audited: Runs) -> None:
    easy, hard = crowd(60, CAREFUL), crowd(120, dict.fromkeys(CAREFUL, 1.0))
    sources = [f"easy.jsonl:{at}" for at in range(60)] + [f"hard.jsonl:{at}" for at in range(60)]
    both = easy[0] + hard[0][60:], easy[1] + hard[1][60:]
    (warning,) = pointed_out(audited, both, sources=sources)
    assert warning.startswith("The annotators agree little on the prompts of hard.jsonl: ")


def test_who_throws_dice_is_pointed_out(audited: Runs) -> None:
    (warning,) = pointed_out(audited, crowd(60, {**CAREFUL, "dora": 1.0}))
    assert warning.startswith("dora agrees little with the others: ")


@pytest.mark.parametrize(("share", "pointed"), [(1.0, True), (0.5, True), (0.0, False)])
def test_who_likes_the_first_place_is_pointed_out(audited: Runs, share: float, pointed: bool) -> None:
    def place(dice: random.Random, given: dict[str, float], shown: list[str]) -> dict[str, float]:
        return {**given, shown[0]: 9.0} if dice.random() < share else given

    found = pointed_out(audited, crowd(80, CAREFUL, scores={"ben": place}))
    assert bool(found) == pointed and all("ben puts the answer shown first best in " in warning for warning in found)
    if share == 1.0:
        assert "in 100 % (95 % interval 100 to 100) of 80 answers, where 25 % is chance" in found[0]


def test_who_answers_in_no_time_is_pointed_out(audited: Runs) -> None:
    quick = {"cleo": lambda dice, given, shown: 1.4 if dice.random() < 0.6 else 9.0}
    (warning,) = pointed_out(audited, crowd(60, CAREFUL, seconds=quick))
    assert warning.startswith("cleo answers in under 2 s in ") and "of 60 answers, with a median of 1.4 s" in warning
    seldom = {"cleo": lambda dice, given, shown: 1.4 if dice.random() < 0.1 else 9.0}
    assert pointed_out(audited, crowd(60, CAREFUL, seconds=seldom)) == []


def test_who_keeps_the_suggestion_is_pointed_out(audited: Runs) -> None:
    kept = {"anna": lambda dice, given, shown: True, "ben": lambda dice, given, shown: dice.random() < 0.5}
    (warning,) = pointed_out(audited, crowd(60, CAREFUL, prefilled=kept))
    assert warning == "anna left the suggestion as it was in 60 of 60 answers: these say little beside the suggestion."


FOUR = dict.fromkeys(["anna", "ben", "cleo", "dan"], 0.1)
GROUPS = {"short": ["anna", "ben"], "long": ["cleo", "dan"]}


def test_a_group_whose_preferences_differ_is_pointed_out(audited: Runs) -> None:
    """One group likes the longer answers, the other does not care: each agrees within itself, and less with the other."""
    likes = crowd(80, FOUR, taste=lambda who, length: length / 4 if who in GROUPS["long"] else 0.0)
    found = audited(likes[0], transcripts=likes[1], groups=GROUPS)
    (apart,) = told(found).apart
    assert apart.groups == ("short", "long") and apart.agreement and apart.agreement.tau
    assert apart.less and apart.less.low and apart.less.low > 0.1 and apart.longer_wins and apart.longer_wins.value < -0.2
    within = [group.agreement.tau.value for group in told(found).groups if group.agreement and group.agreement.tau]
    assert apart.less.value == pytest.approx(math.sqrt(within[0] * within[1]) - apart.agreement.tau.value)
    assert [warning.split(":")[0].split(" by ")[0] for warning in found.warnings] == [
        "The groups short and long prefer different answers",
        "The group long prefers the longer answer more often than short,",
    ]


def test_a_careless_group_prefers_nothing_else(audited: Runs) -> None:
    """They agree less, with themselves too: no other preference shows."""
    made = crowd(150, {**FOUR, "cleo": 0.6, "dan": 0.6})
    found = audited(made[0], transcripts=made[1], groups=GROUPS)
    (apart,) = told(found).apart
    short, long = told(found).groups
    assert short.agreement and short.agreement.tau and long.agreement and long.agreement.tau
    assert short.agreement.tau.value > long.agreement.tau.value + 0.2
    assert (
        apart.less and apart.less.low is not None and apart.less.low <= 0 and not any("groups" in one for one in found.warnings)
    )


def test_group_figures_by_hand(audited: Runs) -> None:
    """anna and ben agree, cleo and dan agree, and the two groups say the opposite; the last answer is the longest."""
    entries = [says(0, who, 1, 2, 3) for who in ("anna", "ben")] + [says(0, who, 3, 2, 1) for who in ("cleo", "dan", "eve")]
    found = told(audited([texts(1, 2, 3)], transcripts=[entries], groups={**GROUPS, "nobody": ["zoe"]}))
    short, long, nobody = found.groups
    assert [group.annotators for group in found.groups] == [2, 2, 0]
    assert short.agreement == long.agreement and short.agreement and short.agreement.tau and short.agreement.tau.value == 1
    assert short.longer_wins and long.longer_wins and (short.longer_wins.value, long.longer_wins.value) == (1, 0)
    assert nobody.agreement is None and nobody.longer_wins is None
    assert [two.groups for two in found.apart] == [("short", "long"), ("short", "nobody"), ("long", "nobody")]
    apart = found.apart[0]
    assert apart.agreement and apart.agreement.tau and (apart.agreement.tau.value, apart.agreement.tau.count) == (-1, 4)
    assert apart.less and apart.less.value == 2 and apart.longer_wins and apart.longer_wins.value == 1
    assert found.apart[1].less is None and found.apart[1].longer_wins is None


def test_few_prompts_point_nobody_out(audited: Runs) -> None:
    first = {"ben": lambda dice, given, shown: {**given, shown[0]: 9.0}}
    kept = {who: lambda dice, given, shown: True for who in CAREFUL}
    hasty = {"ben": lambda dice, given, shown: 0.5}
    made = crowd(LEAST - 1, dict.fromkeys(CAREFUL, 1.0), scores=first, prefilled=kept, seconds=hasty)
    assert pointed_out(audited, made) == []


def test_an_annotator_is_in_one_group(recipe: Make) -> None:
    assert recipe(audit={"groups": {"a": ["anna"], "b": ["ben"]}}).audit.groups == {"a": ["anna"], "b": ["ben"]}
    with pytest.raises(RecipeError, match="names the annotator 'anna' twice"):
        recipe(audit={"groups": {"a": ["anna"], "b": ["ben", "anna"]}})


# A cascade's judges


def sent(at: int, route: str | None, first: Iterable[float], then: Iterable[float] | None, people: bool = True) -> Entries:
    def member(judge: str, scores: Iterable[float] | None, transcript: Entries, route: str | None) -> dict[str, Any]:
        given = [None] * 3 if scores is None else list(scores)
        ids = [f"p{at}a{i}" for i in range(3)]
        told = {"kind": "member", "judge": judge, "completion_ids": ids, "scores": given, "transcript": transcript}
        return {**told, "abstained": "nobody answered" if scores is None else None, "route": route}

    members = [member("rule:r", first, [], None)]
    if route:
        told = [says(at, "anna", *then)] if then and people else []
        members.append(member("argilla:x", then, told, route))
    return members


def test_the_slice_is_told_from_what_the_judge_was_unsure_of(audited: Runs) -> None:
    up, down, some = (1.0, 2.0, 3.0), (3.0, 2.0, 1.0), (1.0, 3.0, 2.0)
    transcripts = [
        sent(0, "calibration", up, up),
        sent(1, "unsure", up, down),
        sent(2, None, up, None),
        sent(3, "calibration", up, some),
        sent(4, "calibration", up, None),  # nobody answered
        sent(5, "unsure", up, down),
    ]
    found = audited([texts(1, 1, 1)] * 6, "cascade(rule:r, argilla:x)", transcripts=transcripts).route
    assert found and found.judges == ("rule:r", "argilla:x") and found.people
    assert found.calibration and found.calibration.tau and found.unsure and found.unsure.tau
    taus = [kendalltau(up, of).statistic for of in (up, some)]
    assert (found.calibration.tau.value, found.calibration.tau.prompts) == (pytest.approx(sum(taus) / 2), 2)
    assert (found.unsure.tau.value, found.unsure.tau.prompts) == (pytest.approx(-1), 2)
    assert found.calibration.kappa and found.calibration.kappa.value == pytest.approx((5 / 6 - 1 / 2) / (1 - 1 / 2))
    both = [(1, 1)] * 5 + [(1, -1)]
    assert found.calibration.alpha and found.calibration.alpha.value == pytest.approx(naive_alpha([[*two] for two in both]))


def test_a_cascade_without_a_slice_or_without_people(audited: Runs) -> None:
    found = audited([texts(1, 1, 1)], transcripts=[sent(0, "unsure", (1, 2, 3), (1, 2, 3), people=False)]).route
    assert found and found.calibration is None and found.unsure and not found.people
    assert audited([texts(1, 1, 1)], transcripts=[sent(0, None, (1, 2, 3), None)]).route is None


# The page


def page_of(folder: Path, recipe: Recipe, entries: Callable[[int], Entries], count: int = 30) -> tuple[dict[str, Any], str]:
    """The report of a run that was sampled and ranked, by hand."""
    run = RunDir(folder / "run")
    samples, rankings = [], []
    for at in range(count):
        completions = [Completion(f"p{at}a{i}", i, "x" * (i + 1), "stop", 1, None, "m") for i in range(3)]
        samples.append(Sample(f"p{at}", [{"role": "user", "content": "?"}], f"{'ab'[at % 2]}.jsonl:{at}", completions, None))
        ids = [one.completion_id for one in completions]
        rankings.append(Ranking(f"p{at}", "argilla:x", ids, [1.0, 2.0, 3.0], None, json.dumps(entries(at))))
    kept = {"prompts": count, "read": count, "failed": 0, "models": {"m": 3 * count}, "abstained": 0}
    for name, rows, kind in (("sample", samples, Sample), ("rank", rankings, Ranking)):
        stage = run.stage(name).open({}, {})
        stage.write("00000.parquet", rows, kind)
        stage.finish(judge="argilla:x", **kept)
    return report(recipe, run), (run.path / "report.html").read_text().replace("\u00a0", " ")


def test_the_page_shows_warnings_first(tmp_path: Path, recipe: Make) -> None:
    def entries(at: int) -> Entries:
        dice = random.Random(at)
        return [says(at, who, *(dice.random() for _ in "123"), seconds=1.0) for who in ("anna", "<b>ben</b>", "cleo")]

    made = recipe(audit={"groups": {"x": ["anna"], "y": ["cleo", "<b>ben</b>"]}})
    told, page = page_of(tmp_path, made, entries)
    assert (many := len(told["audit"]["warnings"])) >= 4
    assert f"{many} about annotators, in the report" in last_words(told, RunDir(tmp_path / "run"))
    section = page[page.index("What do the annotators say?") : page.index("Can the judge be trusted?")]
    assert "3 people gave 90 answers about 30 prompts" in section.replace("\n    ", " ")
    assert section.index("<li>The annotators agree little: Krippendorff") < section.index("Do they agree?")
    assert section.count("<li>") == many
    assert "<b>ben</b>" not in page and "&lt;b&gt;ben&lt;" in section
    for shown in ("Kendall’s W", "a.<wbr>jsonl", "One by one", "1.0 s", "Two by two", "groups of them", "x and y"):
        assert shown in section
    assert "first judge" not in section


def test_the_page_of_a_cascade_says_what_the_slice_is_for(tmp_path: Path, recipe: Make) -> None:
    up, down = (1.0, 2.0, 3.0), (3.0, 2.0, 1.0)
    told, page = page_of(
        tmp_path / "a", recipe(), lambda at: sent(at, "unsure" if at % 3 else "calibration", up, up if at % 2 else down)
    )
    assert told["audit"]["route"]["calibration"]["tau"]["prompts"] == 10
    assert "calibration slice: order of the answers" in page and "where it was not sure: order of the answers" in page
    assert "say nothing about the rest" in page and "There is no calibration slice" not in page
    _, page = page_of(tmp_path / "b", recipe(), lambda at: sent(at, "unsure", up, up))
    assert "There is no calibration slice" in page


def test_without_annotators_there_is_no_such_section(tmp_path: Path, recipe: Make) -> None:
    told, page = page_of(tmp_path, recipe(), lambda at: [])
    assert told["audit"]["annotation"] is None and told["audit"]["warnings"] == [] and "annotators say" not in page
    assert "warnings" not in last_words(told, RunDir(tmp_path / "run"))
