"""The audit of a judge: each figure against the same count done by hand, and what a judge has not is null."""

import json
import math
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from dpo_data.audit import answers as answers_module
from dpo_data.audit import audit
from dpo_data.audit.families import family, family_of_judge
from dpo_data.audit.people import read_labels
from dpo_data.audit.reasons import MOST, OTHER, Reasons, grouped
from dpo_data.audit.schema import Audit, Figure, Order
from dpo_data.config import Recipe
from dpo_data.errors import InputError
from dpo_data.rows import Completion, Ranking, Sample
from dpo_data.rundir import RunDir

Make = Callable[..., Recipe]
Answers = list[tuple[float | None, str, str]]
"""One prompt's answers: score, text, model."""

NAN = math.nan
anew = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)


class Runs:
    """Runs that were sampled and ranked, by hand."""

    def __init__(self, folder: Path, recipe: Make):
        self._folder, self._recipe, self._count = folder, recipe, 0

    def __call__(
        self,
        prompts: list[Answers],
        judge: str = "j",
        transcripts: Iterable[Any] = (),
        abstained: dict[int, str] | None = None,
        labels: list[Any] | None = None,
        groups: dict[str, list[str]] | None = None,
        sources: list[str] | None = None,
        shard: int = 3,
        **facts: Any,
    ) -> Audit:
        """The audit of prompts `p0`, `p1`, … with answers `p0a0`, …, in shards of so many."""
        self._count += 1
        run = RunDir(self._folder / str(self._count))
        told = list(transcripts)
        samples, rankings = [], []
        for at, of_prompt in enumerate(prompts):
            ids = [f"p{at}a{i}" for i in range(len(of_prompt))]
            completions = [
                Completion(id, i, text, "stop", 1, None, model)
                for i, (id, (_, text, model)) in enumerate(zip(ids, of_prompt, strict=True))
            ]
            source = sources[at] if sources else "s"
            samples.append(Sample(f"p{at}", [{"role": "user", "content": "?"}], source, completions, None))
            scores, transcript = [score for score, *_ in of_prompt], json.dumps(told[at] if told else [])
            order = range(len(ids))[::-1]  # a judge may rank in an order of its own
            rankings.append(
                Ranking(
                    f"p{at}", judge, [ids[i] for i in order], [scores[i] for i in order], (abstained or {}).get(at), transcript
                )
            )
        for name, rows, kind in (("sample", samples, Sample), ("rank", rankings, Ranking)):
            stage = run.stage(name).open({}, {})
            for index, start in enumerate(range(0, len(rows), shard)):
                stage.write(f"{index:05d}.parquet", rows[start : start + shard], kind)
            stage.finish(judge=judge, **facts)
        table: dict[str, Any] = {"groups": groups or {}}
        if labels is not None:
            path = run.path / "labels.jsonl"
            path.write_text("".join(json.dumps(label) + "\n" for label in labels))
            table["labels"] = str(path)
        found = audit(self._recipe(audit=table), run)
        assert found
        return found


@pytest.fixture
def audited(tmp_path: Path, recipe: Make) -> Runs:
    return Runs(tmp_path, recipe)


def plain(*scores: float | None) -> Answers:
    """Answers that differ in nothing but their scores."""
    return [(score, "same", "m") for score in scores]


def close(figure: Figure | None, part: float, whole: float) -> None:
    """The figure is part / whole, over whole cases; null where there is none."""
    if not whole:
        assert figure is None
        return
    assert figure and figure.count == whole
    assert figure.value == pytest.approx(part / whole)
    if figure.prompts > 1:
        assert figure.low is not None and figure.high is not None and figure.low <= figure.high
    else:
        assert figure.low is None and figure.high is None


# Scores

score = st.one_of(st.none(), st.integers(0, 3).map(float))
one_answer = st.tuples(
    score, st.sampled_from(["", "a", "bb", "ccc", "<think>long</think>d"]), st.sampled_from(["Qwen/Qwen3-8B", "x", "7"])
)
SPOKEN = {"<think>long</think>d": 1}


@anew
@given(prompts=st.lists(st.lists(one_answer, min_size=1, max_size=5), min_size=1, max_size=7), shard=st.integers(1, 4))
def test_scores_are_counted_as_by_hand(audited: Runs, prompts: list[Answers], shard: int) -> None:
    found = audited(prompts, "pairwise:Qwen/Qwen2.5-7B-Instruct", shard=shard)
    ties = twos = longer = differ = own = mixed = 0
    taus = []
    for of_prompt in prompts:
        judged = [(score, SPOKEN.get(text, len(text)), model) for score, text, model in of_prompt if score is not None]
        for (s, n, m), (t, k, o) in combinations(judged, 2):
            twos, ties = twos + 1, ties + (s == t)
            differ += s != t and n != k
            longer += (s - t) * (n - k) > 0
            if s != t and "7" not in (m, o) and (m == "x") != (o == "x"):
                mixed += 1
                own += (m != "x") == (s > t)
        if len(judged) > 1:
            taus.append(kendalltau([s for s, *_ in judged], [n for _, n, _ in judged]).statistic)
    close(found.ties, ties, twos)
    close(found.longer_wins, longer, differ)
    known = [tau for tau in taus if not math.isnan(tau)]
    close(found.length, sum(known), len(known))
    close(found.own_family and found.own_family.wins, own, mixed)
    scores = [score for of_prompt in prompts for score, *_ in of_prompt if score is not None]
    if not scores:
        assert found.saturation is None
    else:
        best = found.saturation
        assert best and (best.mark, best.score, best.count) == ("highest", max(scores), len(scores))
        assert best.share == pytest.approx(scores.count(max(scores)) / len(scores))
    assert found.order == [] and found.members == [] and found.people is None and found.calls is None


def test_expected_values_are_those_without_bias(audited: Runs) -> None:
    found = audited([[(1.0, "a", "Qwen3"), (2.0, "bb", "Llama")], [(2.0, "a", "Qwen3"), (1.0, "bb", "Llama")]], "rubric:qwen")
    assert found.longer_wins and found.longer_wins.expected == 0.5 == found.longer_wins.value
    assert found.length and found.length.expected == 0.0 == found.length.value
    assert found.own_family and found.own_family.family == "qwen" and found.own_family.wins.value == 0.5
    assert found.ties and found.ties.expected is None


def test_many_answers_are_worked_on_in_parts(audited: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [plain(*range(n % 5 + 1)) for n in range(12)]
    whole = audited(prompts, shard=12)
    monkeypatch.setattr(answers_module, "MOST_TWOS", 1)
    assert audited(prompts, shard=12) == whole


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "qwen"),
        ("meta-llama/Meta-Llama-3-8B", "llama"),
        ("/models/gemma-2-9b/", "gemma"),
        ("gpt-4o-mini", "gpt"),
        ("7", None),
    ],
)
def test_a_family_is_a_name_without_its_version(model: str, name: str | None) -> None:
    assert family(model) == name


@pytest.mark.parametrize(
    ("judge", "name"),
    [
        ("pairwise:Qwen/Qwen2.5-7B", "qwen"),
        ("rule:concise", None),
        ("given", None),
        ("panel(pairwise:Qwen/Qwen3-8B, listwise:meta-llama/Llama-3.1-8B)", None),
        ("panel(pairwise:Qwen/Qwen3-8B, rubric:Qwen/QwQ-32B)", None),
        ("cascade(rule:concise, panel(pairwise:Qwen/Qwen3-8B, listwise:Qwen/Qwen2.5-72B))", "qwen"),
    ],
)
def test_a_judge_has_a_family_where_all_its_models_do(judge: str, name: str | None) -> None:
    assert family_of_judge(judge) == name


# Abstentions


def test_abstentions_are_grouped_by_reason(audited: Runs) -> None:
    prompts = [plain(None, None)] * 4 + [plain(1.0, 2.0)]
    why = {0: "1 of 8 answers could be scored", 1: "0 of 12 answers could be scored", 3: "the server said 'no, 3'"}
    found = audited(prompts, abstained=why)
    assert found.abstained == pytest.approx(3 / 5) and found.prompts == 5
    assert found.abstentions == {"N of N answers could be scored": 2, "the server said …": 1}


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        ("no list could be read: B, D and H2 are missing", "no list could be read: X are missing"),
        ("the answer 8f14e45fceea167a5a36 is not there", "the answer X is not there"),
        ("'winner' is missing", "… is missing"),
        ("took 3.5 s, 1,200 tokens", "took N s, N tokens"),
        ("pairwise:Qwen/Qwen2.5-7B could not decide: 3 ties", "pairwise:Qwen/Qwen2.5-7B could not decide: N ties"),
        ("rubric:CohereLabs/command-R could\nnot decide", "rubric:CohereLabs/command-R could not decide"),
    ],
)
def test_what_is_particular_does_not_split_a_reason(reason: str, name: str) -> None:
    assert grouped(reason) == name


@given(st.text(max_size=300))
def test_a_reason_is_short(reason: str) -> None:
    assert len(grouped(reason)) <= 120


def test_reasons_do_not_grow_with_the_run() -> None:
    reasons = Reasons()
    for at in range(1000):
        reasons.add("".join(chr(97 + int(digit)) for digit in f"{at:04d}"))
    found = reasons.counts()
    assert len(found) == MOST + 1 and next(iter(found)) == OTHER and sum(found.values()) == 1000


# Comparisons

LETTER = ["A", "B", "tie"]
MIRRORED = {"A": "B", "B": "A", "tie": "tie"}


def comparison(a: str, b: str, straight: str | None, swapped: str | None, same: bool = False) -> dict[str, Any]:
    unread = None if same or (straight and swapped) else "cut off"
    flipped = not same and unread is None and straight != MIRRORED[swapped or ""]
    outcome = "tie" if same or flipped else None if unread else straight
    verdicts = [straight, swapped]
    return {"kind": "comparison", "a": a, "b": b, "verdicts": verdicts, "outcome": outcome, "flipped": flipped} | {
        "unread": unread, "answers": ["x", "y"], "template": "t"
    }  # fmt: skip


verdict = st.one_of(st.none(), st.sampled_from(LETTER))


@anew
@given(prompts=st.lists(st.lists(st.tuples(verdict, verdict, st.booleans()), min_size=10, max_size=10), min_size=1, max_size=6))
def test_comparisons_are_counted_as_by_hand(audited: Runs, prompts: list[list[tuple[str | None, str | None, bool]]]) -> None:
    """Five answers, all ten twos."""
    transcripts = [
        [
            comparison(f"p{at}a{i}", f"p{at}a{j}", None if same else straight, None if same else swapped, same)
            for (i, j), (straight, swapped, same) in zip(combinations(range(5), 2), said, strict=True)
        ]
        for at, said in enumerate(prompts)
    ]
    (found,) = audited([plain(*range(5))] * len(prompts), "pairwise:m", transcripts).order
    asked = [entry for entries in transcripts for entry in entries if entry["verdicts"] != [None, None] or entry["unread"]]
    read = [entry for entry in asked if entry["unread"] is None]
    assert (found.judge, found.shows, found.asked) == ("pairwise:m", "two", len(asked))
    assert found.unread == len(asked) - len(read)
    close(found.flipped, sum(entry["flipped"] for entry in read), len(read))
    named = [verdict for entry in asked for verdict in entry["verdicts"] if verdict in ("A", "B")]
    close(found.first_wins, named.count("A"), len(named))
    circles = decided = 0
    for entries in transcripts:
        beats = {(e["a"], e["b"]) if e["outcome"] == "A" else (e["b"], e["a"]) for e in entries if e["outcome"] in ("A", "B")}
        players = sorted({id for two in beats for id in two})
        for x, y, z in combinations(players, 3):
            won = [sum((one, other) in beats for other in (x, y, z)) for one in (x, y, z)]
            decided += sum(won) == 3
            circles += won == [1, 1, 1]
    close(found.cycles, circles, decided)


def test_a_circle_by_hand(audited: Runs) -> None:
    a, b, c = "p0a0", "p0a1", "p0a2"
    circle = [comparison(a, b, "A", "B"), comparison(b, c, "A", "B"), comparison(a, c, "B", "A")]
    line = [comparison(f"p1a{i}", f"p1a{j}", "A", "B") for i, j in combinations(range(3), 2)]
    (found,) = audited([plain(1, 1, 1), plain(3, 2, 1)], "pairwise:m", [circle, line]).order
    assert found.cycles and (found.cycles.value, found.cycles.count) == (0.5, 2)
    assert found.first_wins and (found.first_wins.value, found.first_wins.expected) == (0.5, 0.5)
    assert found.flipped and found.flipped.value == 0


# Lists


def listed(shown: list[str], ranks: list[int] | None) -> dict[str, Any]:
    unread = None if ranks else "not the JSON that was asked for"
    return {"kind": "list", "shown": shown, "ranks": ranks, "unread": unread, "answer": "x", "template": "t"}


@anew
@given(data=st.data())
def test_lists_are_counted_as_by_hand(audited: Runs, data: st.DataObject) -> None:
    transcripts = []
    for at in range(data.draw(st.integers(1, 4))):
        ids = [f"p{at}a{i}" for i in range(4)]
        entries = []
        for _ in range(data.draw(st.integers(1, 3))):
            shown = data.draw(st.permutations(ids))[: data.draw(st.integers(2, 4))]
            ranks = data.draw(st.one_of(st.none(), st.lists(st.integers(1, 4), min_size=len(shown), max_size=len(shown))))
            entries.append(listed(shown, ranks))
        transcripts.append(entries)
    (found,) = audited([plain(*range(4))] * len(transcripts), "listwise:m", transcripts).order
    read = [entry for entries in transcripts for entry in entries if entry["ranks"]]
    assert (found.shows, found.asked, found.unread) == ("list", sum(map(len, transcripts)), found.asked - len(read))
    first = sum((e["ranks"][0] == min(e["ranks"])) / e["ranks"].count(min(e["ranks"])) for e in read)
    close(found.first_wins, first, len(read))
    if found.first_wins:
        chance = sum(1 / len(entry["shown"]) for entry in read) / len(read)
        assert found.first_wins.expected == pytest.approx(chance)
    flipped = twos = 0
    for entries in transcripts:
        ranks_by_id = [dict(zip(e["shown"], e["ranks"], strict=True)) for e in entries if e["ranks"]]
        for one, other in combinations(ranks_by_id, 2):
            for x, y in combinations(sorted(one.keys() & other.keys()), 2):
                twos += 1
                flipped += (one[x] > one[y]) - (one[x] < one[y]) != (other[x] > other[y]) - (other[x] < other[y])
    close(found.flipped, flipped, twos)
    assert found.cycles is None


# Marks


def test_marks_say_what_the_top_is(audited: Runs) -> None:
    def marks(id: str, **given: int) -> dict[str, Any]:
        unread = None if given else "cut off"
        return {"kind": "marks", "completion_id": id, "marks": given or None, "top": 5, "unread": unread, "answer": "x"}

    told = [[marks("p0a0", true=5, clear=5), marks("p0a1", true=5, clear=4)], [marks("p1a0", true=4, clear=3), marks("p1a1")]]
    found = audited([plain(5.0, 4.5), plain(3.5, None)], "rubric:m", told)
    assert found.saturation and found.saturation.mark == "top" and found.saturation.score is None
    assert (found.saturation.share, found.saturation.count) == (pytest.approx(1 / 3), 3)
    assert found.order == []


def test_errors_are_no_figures(audited: Runs) -> None:
    told = [[{"kind": "error", "completion_id": "p0a0", "error": "ValueError"}]]
    found = audited([plain(None, 1.0)], "rule:x", told, {0: "1 of 2 answers could be scored"})
    assert found.order == [] and found.ties is None and found.longer_wins is None and found.length is None


# Panels and cascades


def member(
    judge: str, at: int, scores: list[float | None], transcript: list[Any] | None = None, why: str | None = None
) -> dict[str, Any]:
    ids = [f"p{at}a{i}" for i in range(len(scores))]
    return {"kind": "member", "judge": judge, "completion_ids": ids, "scores": scores, "abstained": why} | {
        "transcript": transcript or []
    }


@anew
@given(
    prompts=st.lists(
        st.tuples(*[st.lists(score, min_size=4, max_size=4) for _ in range(2)], st.booleans()), min_size=1, max_size=8
    )
)
def test_members_are_compared_as_by_hand(
    audited: Runs, prompts: list[tuple[list[float | None], list[float | None], bool]]
) -> None:
    transcripts = [
        [member("one:m", at, left), member("two:m", at, right, why="could not" if out else None)]
        for at, (left, right, out) in enumerate(prompts)
    ]
    found = audited([plain(*range(4))] * len(prompts), "panel(one:m, two:m)", transcripts).members
    both = [(left, right) for left, right, out in prompts if not out]
    if not both:
        assert found == []
        return
    taus, apart, opposite = [], 0, 0
    for left, right in both:
        known = [(x, y) for x, y in zip(left, right, strict=True) if x is not None and y is not None]
        if len(known) > 1:
            taus.append(kendalltau(*zip(*known, strict=True)).statistic)
        for (x, y), (z, w) in combinations(known, 2):
            apart += x != z and y != w
            opposite += (x - z) * (y - w) < 0
    known_taus = [tau for tau in taus if not math.isnan(tau)]
    assert len(found) == 1 and found[0].judges == ("one:m", "two:m") and found[0].contradicted is None
    close(found[0].agreement, sum(known_taus), len(known_taus))
    close(found[0].opposite, opposite, apart)


def test_a_list_that_contradicts_a_comparison(audited: Runs) -> None:
    a, b, c = "p0a0", "p0a1", "p0a2"
    compared = [comparison(a, b, "A", "B"), comparison(b, c, "A", "B"), comparison(a, c, "tie", "tie")]
    ranked = [listed([a, b, c], [2, 1, 3])]  # b before a, against the comparison; b before c, as it says; a, c: not decided
    two = [member("pairwise:m", 0, [1.0, 0.0, -1.0], compared), member("listwise:n", 0, [2.0, 3.0, 1.0], ranked)]
    for entries in (two, two[::-1]):
        found = audited([plain(1, 2, 3)], "panel(pairwise:m, listwise:n)", [entries])
        (both,) = found.members
        assert both.contradicted and (both.contradicted.value, both.contradicted.count) == (0.5, 2)
        assert {order.judge: order.shows for order in found.order} == {"pairwise:m": "two", "listwise:n": "list"}


def test_a_cascade_s_panel_is_looked_into(audited: Runs) -> None:
    panel = [member("pairwise:m", 0, [1.0, 0.0], [comparison("p0a0", "p0a1", "A", "A")]), member("rubric:m", 0, [0.0, 1.0])]
    told = [member("rule:r", 0, [1.0, 1.0]), member("panel(pairwise:m, rubric:m)", 0, [1.0, 1.0], panel)]
    found = audited([plain(1, 2)], "cascade(rule:r, panel(pairwise:m, rubric:m))", [told])
    assert [members.judges for members in found.members] == [
        ("rule:r", "panel(pairwise:m, rubric:m)"),
        ("pairwise:m", "rubric:m"),
    ]
    assert found.members[0].agreement is None and found.members[0].opposite is None  # both tie all
    assert found.members[1].agreement and found.members[1].agreement.value == -1
    (order,) = found.order
    assert isinstance(order, Order) and order.judge == "pairwise:m" and order.flipped and order.flipped.value == 1


def test_members_of_one_name_are_told_apart(audited: Runs) -> None:
    told = [member("rule:r", 0, [1.0, 2.0]), member("rule:r", 0, [2.0, 1.0]), member("rule:r", 0, [1.0, 2.0])]
    found = {members.judges: members.agreement for members in audited([plain(1, 2)], "panel", [told]).members}
    assert {judges: figure and figure.value for judges, figure in found.items()} == {
        ("rule:r", "rule:r (2)"): -1,
        ("rule:r", "rule:r (3)"): 1,
        ("rule:r (2)", "rule:r (3)"): -1,
    }


# People


def label(at: int, who: str, *scores: float | None) -> dict[str, Any]:
    given = {f"p{at}a{i}": score for i, score in enumerate(scores) if score is not None}
    return {"prompt_id": f"p{at}", "annotator": who, "scores": given}


def test_people_beside_the_judge_by_hand(audited: Runs) -> None:
    """Ann says what the judge says, and Ben its opposite, on the one prompt that he labels."""
    labels = [label(0, "ann", 1, 2, 3), label(0, "ben", 3, 2, 1), label(1, "ann", 5, 4, 3)]
    found = audited([plain(1, 2, 3), plain(9, 8, 7), plain(1, 2, 3)], labels=labels).people
    assert found and (found.annotators, found.prompts, found.unknown_prompts, found.unknown_completions) == (2, 2, 0, 0)
    assert found.judge.tau and (found.judge.tau.value, found.judge.tau.count) == (pytest.approx(1 / 3), 3)
    assert found.judge.kappa and found.judge.kappa.count == 9
    assert found.judge.kappa.value == pytest.approx((2 / 3 - 1 / 2) / (1 - 1 / 2))  # either winner is as likely
    assert found.people and found.people.tau and found.people.tau.value == -1
    assert found.people.kappa and found.people.kappa.value == -1 and found.people.kappa.prompts == 1
    assert found.people.alpha and found.people.alpha.value == pytest.approx(1 - 1 / 0.6)  # 6 values: 2·3·3 / (6·5) by chance


def test_a_judge_that_agrees_agrees_fully(audited: Runs) -> None:
    prompts = [plain(at, 2, 3) for at in (1, 2, 5)]
    labels = [label(at, who, *(score for score, *_ in of)) for at, of in enumerate(prompts) for who in ("a", "b", "c")]
    found = audited(prompts, labels=labels).people
    assert found and found.people
    for agreement in (found.judge, found.people):
        for figure in (agreement.tau, agreement.kappa, agreement.alpha):
            assert figure and (figure.value, figure.low, figure.high) == pytest.approx((1, 1, 1))


def test_one_annotator_is_nobody_to_agree_with(audited: Runs) -> None:
    found = audited([plain(1, 2), plain(1, 2)], labels=[label(0, "ann", 1, 2), label(1, "ben", 1, 2)]).people
    assert found and found.people is None and found.judge.tau and found.judge.tau.value == 1


def test_what_people_labelled_and_the_run_has_not_is_counted(audited: Runs) -> None:
    labels = [label(0, "ann", 1, 2, 3), label(7, "ann", 1, 2), label(8, "ben", 2, 1), label(1, "ann", 1)]
    found = audited([plain(1, 2), plain(None, None)], labels=labels, abstained={1: "no"}).people
    assert found and (found.prompts, found.unknown_prompts, found.unknown_completions) == (2, 2, 1)
    assert found.judge.tau and found.judge.tau.prompts == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", r"labels.jsonl:2: not JSON"),
        ("[]", r"labels.jsonl:2: prompt_id or annotator"),
        ('{"prompt_id": 1, "annotator": "a", "scores": {}}', r"labels.jsonl:2: prompt_id or annotator"),
        ('{"prompt_id": "p", "annotator": "a"}', r"labels.jsonl:2: scores"),
        ('{"prompt_id": "p", "annotator": "a", "scores": {"c": "5"}}', r"labels.jsonl:2: scores"),
        ('{"prompt_id": "p", "annotator": "a", "scores": {"c": true}}', r"labels.jsonl:2: scores"),
        ('{"prompt_id": "p", "annotator": "a", "scores": {"c": NaN}}', r"labels.jsonl:2: scores"),
        ('{"prompt_id": "p0", "annotator": "ann", "scores": {}}', r"labels.jsonl:2: 'ann' labels the prompt p0 again"),
    ],
)
def test_a_bad_label_is_named(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(label(0, "ann", 1, 2)) + "\n" + line + "\n")
    with pytest.raises(InputError, match=why):
        read_labels(str(path))


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(str(tmp_path / "none.jsonl"))


def test_empty_lines_are_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text("\n" + json.dumps(label(0, "ann", 1, 2)) + "\n\n")
    assert read_labels(str(path)) == {"p0": {"ann": {"p0a0": 1, "p0a1": 2}}}


# The whole


def test_what_the_judging_took_is_told(audited: Runs) -> None:
    spent = {"calls": 3, "prompt_tokens": 30, "cached_tokens": None, "completion_tokens": 9, "cost": 0.5}
    found = audited([plain(1, 2)], calls=spent)
    assert found.calls and found.calls.model_dump() == spent


def test_a_run_that_is_not_ranked_has_no_audit(tmp_path: Path, recipe: Make) -> None:
    assert audit(recipe(), RunDir(tmp_path / "new")) is None


def test_shards_mean_nothing(audited: Runs) -> None:
    prompts = [[(float(at % 3), "x" * (at % 4 + 1), "m"), (1.0, "y", "m"), (2.0, "zz", "m")] for at in range(20)]
    assert audited(prompts, shard=1) == audited(prompts, shard=20)
