"""A panel: its members take turns, its scores hang on no order and no other prompt, and who abstains is left out."""

import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
from chat_server import Reply, said, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rundir import files

from dpo_data import evaluate, pipeline
from dpo_data.config import Recipe, dump, parse
from dpo_data.engines.echo import Echo
from dpo_data.errors import OutOfDisk, RecipeError, StaleRun, TooManyFailures
from dpo_data.judges.borda import borda
from dpo_data.judges.given import Given
from dpo_data.judges.members import Judged, turn
from dpo_data.judges.pairwise import Pairwise
from dpo_data.judges.panel import Panel, together, z_scores
from dpo_data.judges.rule import Rule
from dpo_data.ledger import Ledger
from dpo_data.rows import Completion, Ranking, Sample
from dpo_data.rundir import RunDir
from dpo_data.seams import Completed, Output, Request, Sampling, Settings
from dpo_data.spool import Spool, spooled

RULES = [Rule(rule=f"marks:{name}") for name in ("first", "second", "third")]
NAMES = [f"rule:{one.rule}" for one in RULES]


def group(*texts: str, prompt_id: str = "p") -> Sample:
    """Answers whose ids come from their texts, so that they stay whatever the order."""
    completions = [Completion(f"id of {text}", at, text, "stop", 1, None, "m") for at, text in enumerate(texts)]
    return Sample(prompt_id, [{"role": "user", "content": "Why?"}], "s", completions, None)


def nobody(table: Settings) -> Any:
    raise AssertionError("no engine is asked for")


def rank(judge_settings: Any, *texts: str) -> Ranking:
    with closing(judge_settings.build(Echo(), 0, nobody)) as judge:
        (ranking,) = judge.rank([group(*texts)])
    return ranking


def by_text(ranking: Ranking) -> dict[str, float | None]:
    return {id.removeprefix("id of "): s for id, s in zip(ranking.completion_ids, ranking.scores, strict=True)}


MARKS = st.tuples(*[st.sampled_from("?12345")] * 3).map(" ".join)
VOTES = st.integers(2, 7).flatmap(
    lambda n: st.lists(
        st.lists(st.none() | st.integers(-3, 3).map(lambda x: x / 7), min_size=n, max_size=n), min_size=1, max_size=5
    )
)
"""What a few judges say of as many answers as there are; few enough different marks that there are ties."""


class TestScales:
    def test_z_scores_by_hand(self) -> None:
        assert z_scores([2, 4, 4, 4, 5, 5, 7, 9]) == [-1.5, -0.5, -0.5, -0.5, 0, 0, 1, 2], "mean 5, deviation 2"
        assert z_scores([10, 0]) == [1, -1]
        assert z_scores([0.1, 0.1, 0.1]) == [0, 0, 0] == z_scores([0, 0, 0])
        assert z_scores([7]) == [0] and z_scores([]) == []

    def test_borda_by_hand(self) -> None:
        assert borda([3, 1, 2]) == [1, 0, 0.5]
        assert borda([5, 5, 1]) == [0.75, 0.75, 0]
        assert borda([4, 4, 4]) == [0.5] * 3 and borda([4]) == [0.5] and borda([]) == []
        assert borda([9, 1, 8, 1, 1]) == [1, 0.25, 0.75, 0.25, 0.25]

    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=12))
    def test_any_scores_have_z_scores_that_keep_their_order(self, scores: list[float]) -> None:
        found = z_scores(scores)
        assert all(map(math.isfinite, found)) and abs(math.fsum(found)) < 1e-6
        assert math.fsum(z * z for z in found) == pytest.approx(0 if len(set(found)) < 2 else len(scores))
        for (a, z), (b, y) in combinations(zip(scores, found, strict=True), 2):
            assert z == y if a == b else (z <= y) == (a < b) or z == y

    @given(st.lists(st.integers(-50, 50), min_size=1, max_size=9), st.randoms())
    def test_borda_points_are_shares_of_what_is_beaten(self, scores: list[int], chance: random.Random) -> None:
        found = borda([float(score) for score in scores])
        n = len(scores)
        for at, points in enumerate(found):
            others = [other for place, other in enumerate(scores) if place != at]
            assert points == pytest.approx(
                sum((scores[at] > o) + (scores[at] == o) / 2 for o in others) / (n - 1) if n > 1 else 0.5
            )


class TestScores:
    def test_the_mean_of_z_scores_by_hand(self) -> None:
        ranking = rank(Panel(judges=RULES[:2]), "1 30", "2 10", "3 20")
        each = math.sqrt(1.5)  # of 1, 2, 3: mean 2, deviation √⅔
        assert by_text(ranking) == {"1 30": 0.0, "2 10": round(-each / 2, 9), "3 20": round(each / 2, 9)}
        assert ranking.judge == f"panel({NAMES[0]}, {NAMES[1]})" and ranking.abstained is None

    def test_the_mean_of_borda_points_by_hand(self) -> None:
        ranking = rank(Panel(judges=RULES, combine="borda"), "1 5 0", "2 5 0", "9 1 0")
        assert by_text(ranking) == {"1 5 0": round((0 + 0.75 + 0.5) / 3, 9), "2 5 0": round(1.75 / 3, 9), "9 1 0": 0.5}

    def test_who_says_the_same_of_all_moves_nothing(self) -> None:
        scores = by_text(rank(Panel(judges=RULES[:2]), "1 7", "3 7"))
        assert scores == {"1 7": -0.5, "3 7": 0.5}

    def test_opposite_judges_leave_an_exact_tie(self) -> None:
        assert set(rank(Panel(judges=RULES[:2]), "1 3", "2 2", "3 1", "1.7 2.3").scores) == {0.0}

    def test_the_transcript_holds_what_each_member_said(self) -> None:
        ranking = rank(Panel(judges=RULES[:2], quorum=1), "1 ?", "2 ?", "? 5")
        first, other = json.loads(ranking.transcript)
        ids = ["id of 1 ?", "id of 2 ?", "id of ? 5"]
        assert first | {"transcript": None} == {
            "kind": "member", "judge": NAMES[0], "completion_ids": ids, "scores": [1, 2, None], "abstained": None,
            "transcript": None,
        }  # fmt: skip
        assert [told["completion_id"] for told in first["transcript"]] == ids[2:]
        assert other["abstained"] == "1 of 3 answers could be scored" and len(other["transcript"]) == 2

    @settings(max_examples=2)
    @given(
        st.lists(st.lists(MARKS, min_size=2, max_size=7, unique=True), min_size=30, max_size=60),
        st.sampled_from(["mean", "borda"]),
        st.sampled_from([None, 1, 2, 3]),
        st.randoms(use_true_random=False),
    )
    def test_the_order_of_answers_prompts_and_judges_means_nothing(
        self, prompts: list[list[str]], combine: str, quorum: int | None, chance: random.Random
    ) -> None:
        def ranked(rules: list[Rule]) -> dict[str, Ranking]:
            panel = Panel.model_validate({"judges": rules, "combine": combine, "quorum": quorum})
            groups = [group(*texts, prompt_id=id) for id, texts in named]
            with closing(panel.build(Echo(), 0, nobody)) as judge:
                return {row.prompt_id: row for row in judge.rank(groups)}

        named = [(f"p{at}", texts) for at, texts in enumerate(prompts)]
        before = ranked(RULES)
        for _, texts in named:
            chance.shuffle(texts)
        chance.shuffle(named)
        after = ranked(chance.sample(RULES, 3))
        assert len(before) == len(prompts) and before.keys() == after.keys()
        for id, texts in named:
            assert by_text(before[id]) == by_text(after[id]) and bool(before[id].abstained) == bool(after[id].abstained)
            assert after[id].completion_ids == [f"id of {text}" for text in texts]

    @given(VOTES, st.sampled_from([z_scores, borda]), st.integers(1, 4), st.randoms(use_true_random=False))
    def test_scores_are_joined_by_id_and_exact_whoever_speaks_first(
        self, votes: list[list[float | None]], scale: Any, quorum: int, chance: random.Random
    ) -> None:
        """Members name the answers in orders of their own, as judges may."""
        texts = [f"{at}" for at in range(len(votes[0]))]

        def ranking(of: list[float | None]) -> Ranking:
            told = chance.sample(list(zip((f"id of {text}" for text in texts), of, strict=True)), len(of))
            return Ranking("p", "j", [id for id, _ in told], [score for _, score in told], None, "[]")

        before = together(Judged(group(*texts), list(map(ranking, votes))), "p", scale, quorum)
        shown, voters = chance.sample(texts, len(texts)), chance.sample(votes, len(votes))
        after = together(Judged(group(*shown), list(map(ranking, voters))), "p", scale, quorum)
        assert by_text(before) == by_text(after) and before.abstained == after.abstained
        assert before.abstained or sum(score is not None for score in before.scores) >= 2

    @given(VOTES, st.sampled_from([z_scores, borda]))
    def test_an_answer_that_no_judge_puts_below_another_is_not_below_it(self, votes: list[Any], scale: Any) -> None:
        whole = [[0.0 if mark is None else mark for mark in vote] for vote in votes]
        texts = [f"{at}" for at in range(len(whole[0]))]
        ids = [f"id of {text}" for text in texts]
        told = [Ranking("p", "j", ids, list(vote), None, "[]") for vote in whole]
        scores = together(Judged(group(*texts), told), "p", scale, 1).scores
        for one, other in permutations(range(len(texts)), 2):
            high, low = scores[one], scores[other]
            assert high is not None and low is not None
            if all(vote[one] >= vote[other] for vote in whole):
                assert high >= low
            if all(vote[one] == vote[other] for vote in whole):
                assert high == low

    @pytest.mark.parametrize("quorum", [1, 2, 3])
    def test_an_answer_is_judged_where_a_quorum_judged_it(self, quorum: int) -> None:
        texts = ("1 1 1", "2 2 2", "3 3 ?", "4 ? ?")
        scores = by_text(rank(Panel(judges=RULES, quorum=quorum), *texts))
        assert [text for text in texts if scores[text] is not None] == list(texts[: 5 - quorum])

    def test_the_quorum_is_more_than_half_unless_it_is_said(self) -> None:
        half = rank(Panel(judges=RULES[:2]), "1 ?", "2 ?")
        assert half.scores == [None, None]
        assert half.abstained == (
            f"1 of 2 judges could decide, and the quorum is 2; {NAMES[1]} could not decide: 0 of 2 answers could be scored"
        )
        assert rank(Panel(judges=RULES), "1 4 ?", "2 6 ?").scores == [-1, 1], "who abstained is left out, and is no tie"
        assert len(json.loads(half.transcript)) == 2

    def test_fewer_than_two_judged_answers_are_an_abstention(self) -> None:
        ranking = rank(Panel(judges=RULES[:2]), "1 1 ", "2 ?", "3 ?", "? 2", "? 3")
        assert ranking.scores == [None] * 5
        assert ranking.abstained == "1 of 5 answers were judged by 2 judges or more"


@dataclass
class Diary:
    """Engines that say in turn when they start and end, and answer by a function; `silent` are prompts they never answer."""

    silent: dict[str, str] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, table: Any) -> "DiaryEngine":
        return DiaryEngine(table.model, self)


@dataclass
class DiaryEngine:
    model: str
    diary: Diary
    started: bool = False

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        for request in requests:
            if request is None:
                return
            if not self.started:
                self.started = True
                self.diary.events.append(("starts", self.model))
            prompt_id = request.id.split("/")[0]
            self.diary.asked.append((self.model, prompt_id))
            if self.diary.silent.get(prompt_id) != self.model:
                winner = "AB"[zlib.crc32(f"{self.model} {request.messages}".encode()) % 2]
                yield Completed(request.id, [Output(json.dumps({"winner": winner}), "stop")])

    def close(self) -> None:
        if self.started:
            self.diary.events.append(("ends", self.model))


def asks(model: str, **more: Any) -> Pairwise:
    engine = {"type": "server", "base_url": "http://127.0.0.1:9/v1", "model": model}
    return Pairwise.model_validate({"reason": 0, "engine": engine, **more})


class TestTurns:
    def test_one_model_is_closed_before_the_next_is_started(self) -> None:
        diary = Diary()
        panel = Panel(judges=[asks("one"), RULES[0], asks("two"), asks("three")])
        with closing(panel.build(Echo(), 0, diary)) as judge:
            assert not diary.events and judge.name == f"panel(pairwise:one, {NAMES[0]}, pairwise:two, pairwise:three)"
            rows = list(judge.rank(group("1", "2", prompt_id=f"p{at}") for at in range(9)))
        assert len(rows) == 9 and {row.judge for row in rows} == {judge.name}
        assert diary.events == [(what, model) for model in ("one", "two", "three") for what in ("starts", "ends")]

    def test_a_member_gets_one_stream_of_all_prompts(self) -> None:
        """And the next gets it when the one before has ranked all."""
        diary = Diary()
        with closing(Panel(judges=[asks("one"), asks("two")]).build(Echo(), 0, diary)) as judge:
            list(judge.rank(group("1", "2", prompt_id=f"p{at}") for at in range(50)))
        assert diary.asked == [(model, f"p{at}") for model in ("one", "two") for at in range(50) for _ in range(2)]

    @pytest.mark.parametrize("slow", ["one", "two", "three"])
    def test_what_a_member_has_not_answered_is_left_out_and_later_ones_are_not_asked_for_it(self, slow: str) -> None:
        diary, models = Diary(silent={"p3": slow}), ["one", "two", "three"]
        with closing(Panel(judges=list(map(asks, models))).build(Echo(), 0, diary)) as judge:
            found = {row.prompt_id for row in judge.rank(group("1", "2", prompt_id=f"p{at}") for at in range(6))}
        assert found == {"p0", "p1", "p2", "p4", "p5"}
        assert [model for model in models if (model, "p3") in diary.asked] == models[: models.index(slow) + 1]

    def test_where_nothing_is_to_be_ranked_no_judge_begins(self) -> None:
        diary = Diary()
        with closing(Panel(judges=[asks("one"), asks("two")]).build(Echo(), 0, diary)) as judge:
            assert list(judge.rank([])) == [] and not diary.events
        built: list[int] = []
        assert list(turn(lambda: built.append(1), iter([]))) == [] and not built  # type: ignore[arg-type, func-returns-value]

    @pytest.mark.parametrize("done", [0, 1])
    def test_a_panel_that_is_closed_in_the_middle_ends_the_member_whose_turn_it_is(self, done: int) -> None:
        diary = Diary()
        judge = Panel(judges=[asks("one"), asks("two")]).build(Echo(), 0, diary)
        rankings = judge.rank(group("1", "2", prompt_id=f"p{at}") for at in range(9))
        for _ in range(done):
            next(rankings)
        judge.close()
        both = [("starts", "one"), ("ends", "one"), ("starts", "two"), ("ends", "two")]
        assert diary.events == (both if done else []) and list(rankings) == []


class TestSpool:
    @given(st.lists(st.text(max_size=40)), st.data())
    def test_rows_come_back_in_their_order(self, rows: list[str], data: Any) -> None:
        assert list(spooled(rows)) == rows
        with closing(Spool[str]()) as spool:
            for row in rows:
                spool.put(row)
            assert list(spool) == rows == list(spool)

    def test_the_last_has_come_before_the_first_is_given(self) -> None:
        seen: list[int] = []
        assert next(spooled(seen.append(at) or at for at in range(5))) == 0 and seen == [0, 1, 2, 3, 4]

    def test_a_full_disk_is_said_to_be_full(self) -> None:
        spool = Spool[str]()
        spool._file = open("/dev/full", "r+b")  # noqa: SIM115  # the kernel refuses every byte
        with pytest.raises(OutOfDisk, match=r"The disk of /\S+ is full.* set TMPDIR"), closing(spool):
            spool.put("x" * 100_000)
        spool = Spool[str]()
        spool._file = open("/dev/full", "r+b")  # noqa: SIM115
        spool.put("x")  # small enough to wait for others
        with pytest.raises(OutOfDisk), closing(spool):
            list(spool)

    def test_rows_wait_where_the_user_says(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        with closing(Spool[str]()) as spool:
            descriptor = os.readlink(f"/proc/self/fd/{spool._file.fileno()}")
        assert descriptor.startswith(str(tmp_path)) and not list(tmp_path.iterdir()), "and nothing is there to be left behind"


MEMORY = """
import sys
sys.path.insert(0, {tests!r})
from dpo_data.engines.echo import Echo
from dpo_data.judges.panel import Panel
from dpo_data.judges.rule import Rule
from dpo_data.rows import Completion, Sample

def groups(count):
    for at in range(count):
        answers = [Completion(f"c{{at}}/{{i}}", i, f"{{at}} {{i}} " + "word " * 300, "stop", 1, None, "m") for i in range(8)]
        yield Sample(f"p{{at}}", [{{"role": "user", "content": f"Why {{at}}?"}}], "s", answers, None)

def ranked(count):
    judge = Panel(judges=[Rule(rule=rule) for rule in ("concise", "detailed")]).build(Echo(), 0, None)
    return sum(row.abstained is None for row in judge.rank(groups(count)))

def peak():  # in MB; getrusage would begin with what the parent had
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))

assert ranked(500) == 500
before = peak()
assert ranked({count}) == {count}
print(before, peak())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_prompts() -> None:
    """5,000 prompts with eight answers of 1.5 kB are 60 MB of text."""
    script = MEMORY.format(tests=str(Path(__file__).parent), count=5_000)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after - before < 20, f"{before} MB before, {after} MB after"


PAIRWISE_AND_RULE = {"type": "panel", "judges": [{"type": "pairwise"}, {"type": "rule", "rule": "concise"}]}


def stage(name: str, recipe: Recipe, run: RunDir) -> dict[str, Any]:
    return pipeline.run_stage(name, recipe, run, lambda *_: None)


class TestInARun:
    def test_a_language_model_and_a_rule(self, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
        run = RunDir(tmp_path / "run")
        made = recipe(40, rank={"judge": PAIRWISE_AND_RULE})
        stage("sample", made, run)
        manifest = stage("rank", made, run)
        assert manifest["judge"] == "panel(pairwise:echo, rule:concise)"
        rows = list(run.stage("rank").rows(Ranking))
        assert len(rows) == 40 and sum(row.abstained is None for row in rows) > 30
        for row in rows:
            pairwise, rule = json.loads(row.transcript)
            assert sorted(pairwise["completion_ids"]) == sorted(rule["completion_ids"]) == sorted(row.completion_ids)
            assert {told["kind"] for told in pairwise["transcript"]} == {"comparison"}
        assert manifest["calls"]["calls"] > 40
        stage("pair", made, run)

    def test_a_prompt_s_result_hangs_on_no_other_prompt(self, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
        made, run = recipe(40, rank={"judge": PAIRWISE_AND_RULE}), RunDir(tmp_path / "run")
        stage("sample", made, run)
        stage("rank", made, run)
        before = files(run.stage("rank").path)
        for name in ("00002.parquet", "manifest.json"):
            (run.stage("rank").path / name).unlink()
        (tmp_path / "run" / "calls.sqlite").unlink()
        assert stage("rank", made, run)["calls"]["calls"] > 0
        assert files(run.stage("rank").path) == before

    def test_members_that_all_abstain_stop_the_run_with_their_reasons(
        self, recipe: Callable[..., Recipe], tmp_path: Path
    ) -> None:
        judges = [{"type": "rule", "rule": f"marks:{name}"} for name in ("never", "nor")]
        made, run = recipe(8, rank={"judge": {"type": "panel", "judges": judges}}), RunDir(tmp_path / "run")
        stage("sample", made, run)
        with pytest.raises(TooManyFailures, match=r"0 of 2 judges could decide.*rule:marks:nor could not decide: 0 of 4"):
            stage("rank", made, run)

    def test_a_changed_model_of_a_member_makes_rank_and_evaluate_stale(self, prompts: Any, tmp_path: Path) -> None:
        model = tmp_path / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"weights")
        made = panel_recipe(prompts(8), {"type": "pairwise", "engine": {"type": "vllm", "model": str(model)}}, CONCISE)
        run = RunDir(tmp_path / "run")
        found = made.rank.judge.inputs()
        assert set(found) == {"judges.0.template", "judges.0.judge_model"} and found["judges.0.judge_model"].startswith(
            "sha256:"
        )
        assert found.items() <= evaluate.inputs(made, run).items()
        stage("sample", made, run)
        rank_stage = run.stage("rank").open(pipeline.rank.settings(made), pipeline.rank.inputs(made, run))
        (rank_stage.path / "00000.parquet").write_bytes(b"made")
        (model / "model.safetensors").write_bytes(b"wEights")
        with pytest.raises(StaleRun, match=r"judges\.0\.judge_model was \"sha256:"):
            stage("rank", made, run)

    def test_large_weights_are_read_once(self, tmp_path: Path) -> None:
        """As long as size and time of change stay; the file may be unreadable by then."""
        from dpo_data.models import model_revision

        (tmp_path / "config.json").write_text("{}")
        (weights := tmp_path / "model.safetensors").write_bytes(b"a")
        os.utime(weights, ns=(1, 1))
        first = model_revision(str(tmp_path))
        weights.write_bytes(b"b")
        os.utime(weights, ns=(1, 1))
        assert model_revision(str(tmp_path)) == first
        os.utime(weights, ns=(2, 2))
        assert model_revision(str(tmp_path)) != first


CONCISE = {"type": "rule", "rule": "concise"}
ECHO = {"type": "pairwise", "engine": {"type": "echo"}}


def panel_recipe(path: str, *judges: dict[str, Any], **tables: Any) -> Recipe:
    base = {
        "name": "t",
        "prompts": {"path": path},
        "sample": {"n": 4, "max_tokens": 16, "shard_size": 4, "engine": {"type": "echo"}},
    }
    return parse({**base, "rank": {"judge": {"type": "panel", "judges": list(judges)}}, **tables})


class TestKilled:
    PROMPTS = 24

    @pytest.fixture
    def servers(self) -> Iterator["Judges"]:
        with ExitStack() as stack:
            yield Judges(stack)

    def test_killed_in_the_second_member_s_turn_nobody_is_asked_twice(
        self, servers: "Judges", prompts: Callable[[int], str], tmp_path: Path
    ) -> None:
        made = panel_recipe(prompts(self.PROMPTS), servers.judge("small"), servers.judge("large"), CONCISE)
        for name in ("sample", "rank"):
            stage(name, made, whole := RunDir(tmp_path / "whole"))
        total = servers.count()
        assert min(total.values()) > self.PROMPTS
        servers.order.clear()
        run = RunDir(tmp_path / "run")
        stage("sample", made, run)
        servers.stop_at = total["large"] // 2
        (tmp_path / "recipe.toml").write_text(dump(made))
        command = [sys.executable, "-m", "dpo_data.cli", "rank", str(tmp_path / "recipe.toml"), "--run", str(run.path)]
        child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            assert servers.reached.wait(60), child.poll()
        finally:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            servers.go.set()
        assert not run.stage("rank").shards() and servers.count()["small"] == total["small"]
        with closing(sqlite3.connect(run.calls)) as calls:
            kept = dict(calls.execute("SELECT model, count(*) FROM calls GROUP BY model").fetchall())
        assert kept["small"] == total["small"] and 0 < kept["large"] < total["large"]
        servers.order.clear()
        assert stage("rank", made, run)["calls"]["calls"] == sum(total.values())
        assert servers.count() == {"large": total["large"] - kept["large"]}
        ranked = [list(one.stage("rank").rows(Ranking)) for one in (run, whole)]
        assert ranked[0] == ranked[1] and len(ranked[0]) == self.PROMPTS
        assert files(run.stage("rank").path) == files(whole.stage("rank").path)


class Judges:
    """Two chat servers that judge; `order` is who was asked. The large one waits at `stop_at` answers until `go`."""

    def __init__(self, stack: ExitStack):
        self.order: list[str] = []
        self.stop_at: int | None = None
        self.reached, self.go = threading.Event(), threading.Event()
        self.urls: dict[str, str] = {}
        for model in ("small", "large"):
            _, self.urls[model] = stack.enter_context(serving(lambda text, before, model=model: self.reply(model, text)))

    def reply(self, model: str, text: str) -> Reply:
        self.order.append(model)
        if model == "large" and self.stop_at and self.order.count("large") > self.stop_at:
            self.reached.set()
            self.go.wait(60)
        return said(json.dumps({"reason": model, "winner": ("A", "B", "tie")[zlib.crc32(f"{model} {text}".encode()) % 3]}))

    def count(self) -> dict[str, int]:
        return {model: self.order.count(model) for model in dict.fromkeys(self.order)}

    def judge(self, model: str) -> dict[str, Any]:
        engine = {"type": "server", "base_url": self.urls[model], "model": model, "concurrency": 4, "logprobs": False}
        return {"type": "pairwise", "engine": engine}


def refusal(*judges: dict[str, Any], **tables: Any) -> str:
    with pytest.raises(RecipeError) as error:
        panel_recipe("p", *judges, **tables)
    assert "\n" not in str(error.value)
    return str(error.value)


MIX = {"n": 4, "engine": {"type": "mix", "engines": [{"type": "echo"}, {"type": "echo", "delay": 0.1}]}}
PANEL = {"type": "panel", "judges": [CONCISE, ECHO]}


class TestRecipe:
    def test_a_wrong_key_of_a_member_is_named_with_the_nearest_known_one(self) -> None:
        wrong = "Unknown key 'rank.judge.judges.1.templat' in the recipe. Did you mean 'template'?"
        assert refusal(CONCISE, {"type": "pairwise", "templat": "t"}) == wrong
        wrong = "Unknown key 'rank.judge.judges.0.engine.dely' in the recipe. Did you mean 'delay'?"
        assert refusal({"type": "pairwise", "engine": {"type": "echo", "dely": 1}}, CONCISE) == wrong
        assert refusal(CONCISE, {"type": "rule"}) == "the recipe lacks 'rank.judge.judges.1.rule'. Add it."
        assert refusal(CONCISE, {"rule": "x"}) == "the recipe lacks 'rank.judge.judges.1.type'. Add it."
        wrong = "Unknown key 'rank.judge.quorums' in the recipe. Did you mean 'quorum'?"
        assert refusal(rank={"judge": {**PANEL, "quorums": 2}}) == wrong

    def test_no_panel_is_a_member_of_a_panel(self) -> None:
        assert refusal(CONCISE, PANEL).startswith("'rank.judge.judges.1.type' in the recipe is 'panel'. Use one of 'pairwise'")

    def test_one_judge_is_no_panel(self) -> None:
        assert "'rank.judge.judges' in the recipe is" in refusal(CONCISE) and "at least 2 items" in refusal(CONCISE)

    def test_the_same_judge_twice_is_refused(self) -> None:
        told = "The panel names a judge of type 'rule' twice. Name each once: the two would agree."
        assert refusal(CONCISE, ECHO, CONCISE) == told
        server = {"type": "server", "base_url": "http://h/v1", "model": "m"}
        twice = [{"type": "pairwise", "engine": {**server, "timeout": seconds}} for seconds in (1, 2)]
        assert "'pairwise' twice" in refusal(*twice), "what decides no answer makes no other judge"
        assert panel_recipe("p", {"type": "pairwise", "reason": 0}, {"type": "pairwise", "reason": 9})

    def test_a_quorum_is_no_more_than_there_are_judges(self) -> None:
        told = "The panel's quorum is 3, and it has 2 judges. Make it at most 2, or leave it out for more than half of them."
        assert refusal(rank={"judge": {**PANEL, "quorum": 3}}) == told
        assert panel_recipe("p", rank={"judge": {**PANEL, "quorum": 2}})

    def test_what_the_sampler_cannot_judge_is_met_in_members_too(self) -> None:
        told = (
            "The judge 'pairwise' has no engine of its own, and the 'mix' that samples cannot judge. "
            "Name one model under [rank.judge.judges.1.engine]."
        )
        assert refusal(CONCISE, {"type": "pairwise"}, sample=MIX) == told
        assert panel_recipe("p", CONCISE, ECHO, sample=MIX)
        deep = {"type": "cascade", "first": CONCISE, "then": {"type": "panel", "judges": [CONCISE, {"type": "pairwise"}]}}
        assert "[rank.judge.then.judges.1.engine]" in refusal(rank={"judge": deep}, sample=MIX)

    def test_a_given_member_needs_given_answers_and_cannot_score_others(self) -> None:
        assert "name another judge at rank.judge.judges.1." in refusal(CONCISE, {"type": "given"})
        given = {"engine": {"type": "given"}}
        assert panel_recipe("p", CONCISE, {"type": "given"}, sample=given)
        train = {"prompts": {"path": "p", "holdout": 0.1}, "train": {"model": "m"}, "sample": given}
        assert "The judge 'given' cannot score what the models answer" in refusal({"type": "given"}, CONCISE, **train)

    def test_its_cost_and_its_inputs_are_those_of_its_members(self) -> None:
        panel = Panel(judges=[asks("one"), asks("two", schedule="all"), RULES[0]])
        assert panel.calls(8) == asks("one").calls(8) + 8 * 7
        found = panel.inputs()
        assert found["judges.0.template"] == Pairwise().inputs()["template"] and found["judges.2.rule"]
        assert list(panel.members()) == ["judges.0", "judges.1", "judges.2"] and isinstance(panel.judges[0], Pairwise)

    def test_the_schema_of_the_recipe_holds_no_table_within_itself(self) -> None:
        """A form is made of it, which would have no end."""
        schema = Recipe.model_json_schema()

        def below(name: str, above: tuple[str, ...]) -> None:
            assert name not in above, f"{' → '.join(above)} → {name}"
            for found in json.dumps(schema["$defs"][name]).split('"#/$defs/')[1:]:
                below(found.split('"')[0], (*above, name))

        assert any(name.endswith("Panel") for name in schema["$defs"])
        for name in schema["$defs"]:
            below(name, ())


def test_given_scores_may_sit_on_a_panel() -> None:
    answers = [Completion(f"c{at}", at, f"{at}", "stop", 1, None, "m", None, score) for at, score in enumerate([5.0, 1.0])]
    sample = Sample("p", [{"role": "user", "content": "Why?"}], "s", answers, None)
    with closing(Panel(judges=[RULES[0], Given()]).build(Echo(), 0, nobody)) as judge:
        assert [row.scores for row in judge.rank([sample])] == [[0.0, 0.0]]


def test_the_ledger_serves_all_members(tmp_path: Path) -> None:
    """Two that ask the same of the same model ask once, and what was answered is not asked again."""
    panel = Panel(judges=[Pairwise(schedule="all"), Pairwise(schedule="swiss")])
    groups = [group(f"one {at}", f"two {at}", prompt_id=f"p{at}") for at in range(5)]
    for before in (0, 10):
        with (
            closing(Ledger(tmp_path / "calls.sqlite", "rank")) as ledger,
            closing(panel.build(Echo(), 0, ledger.engine)) as judge,
        ):
            assert ledger.spent().calls == before
            assert len(list(judge.rank(groups))) == 5
            assert ledger.spent().calls == 10
