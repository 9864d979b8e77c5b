"""Judge calls: nobody is asked twice, whatever is killed; what is spent is counted, and no more is spent than was given."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from chat_server import Reply, Scripted, said, serving
from hypothesis import given
from hypothesis import strategies as st

from dpo_data import pipeline
from dpo_data.config import Recipe, dump
from dpo_data.engines.echo import Echo
from dpo_data.engines.server import Server
from dpo_data.errors import OverBudget, RecipeError
from dpo_data.ledger import Ledger, Spent, inherit
from dpo_data.rows import Ranking
from dpo_data.rundir import RunDir
from dpo_data.seams import Completed, Output, Request, Sampling, Settings
from dpo_data.tables import SCHEMAS

GREEDY = {"temperature": 0, "max_tokens": 9}


class Counting(Settings):
    """An engine's table; what it builds writes down what it is asked."""

    type: Literal["counting"] = "counting"
    model: str = "counter"
    tokens: int = 10

    def build(self) -> "CountingEngine":
        BUILT.append(self)
        return CountingEngine(self.model, self.tokens)


BUILT: list[Counting] = []
ASKED: list[str] = []


class CountingEngine:
    """Three requests are on their way at a time. The request "fail" fails, and "never" is forgotten."""

    def __init__(self, model: str, tokens: int):
        self.model, self.tokens = model, tokens

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        live: list[Request] = []
        for request in requests:
            if request is None:
                if not live:
                    return
                yield self._answer(live.pop(0))
                continue
            ASKED.append(request.messages[0]["content"])
            live.append(request)
            if len(live) > 2:
                yield self._answer(live.pop(0))
        for request in live:
            if request.messages[0]["content"] != "never":
                yield self._answer(request)

    def close(self) -> None: ...

    def _answer(self, request: Request) -> Completed:
        text = request.messages[0]["content"]
        if text == "fail":
            return Completed(request.id, [], "it failed")
        return Completed(request.id, [Output(f"re: {text}", "stop", 1)], None, self.tokens - 1, 4)


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    BUILT.clear()
    ASKED.clear()


def ask(text: str, id: str | None = None, seed: int = 0, schema: Any = None) -> Request:
    return Request(id or text, [{"role": "user", "content": text}], seed, schema)


def answers(ledger: Ledger, *requests: Request, sampling: Any = GREEDY, **settings: Any) -> dict[str, str | None]:
    engine = ledger.engine(Counting(**settings))
    found = engine.complete(iter(requests), sampling)
    return {one.id: one.outputs[0].text if one.outputs else one.error for one in found}


def test_nobody_is_asked_twice(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls", "rank")
    assert answers(ledger, ask("a"), ask("b")) == {"a": "re: a", "b": "re: b"}
    assert answers(ledger, ask("b", "again"), ask("c")) == {"again": "re: b", "c": "re: c"}
    ledger.close()
    assert answers(Ledger(tmp_path / "calls", "evaluate"), ask("c", "x"), ask("a", "y")) == {"x": "re: c", "y": "re: a"}
    assert ASKED == ["a", "b", "c"]
    assert len(BUILT) == 2, "an engine that is asked nothing new is never started"


def test_of_requests_that_say_the_same_one_is_asked(tmp_path: Path) -> None:
    found = answers(Ledger(tmp_path / "calls", "rank"), *(ask("same", f"{at}", seed=at) for at in range(9)), ask("b"))
    assert found == {**{f"{at}": "re: same" for at in range(9)}, "b": "re: b"}
    assert sorted(ASKED) == ["b", "same"]


@pytest.mark.parametrize(
    ("request_", "more", "asked"),
    [
        (ask("a", seed=1), {}, 0),
        (ask("a", seed=1), {"sampling": {"temperature": 0.7, "max_tokens": 9}}, 1),
        (ask("a"), {"sampling": {"temperature": 0, "max_tokens": 8}}, 1),
        (ask("a", schema={"type": "object"}), {}, 1),
        (ask("a "), {}, 1),
        (ask("a"), {"model": "another"}, 1),
        (ask("a"), {"tokens": 11}, 1),
    ],
    ids=["seed of a greedy call", "seed", "sampling", "schema", "messages", "model", "settings"],
)
def test_what_makes_a_call_another_one(tmp_path: Path, request_: Request, more: Any, asked: int) -> None:
    ledger = Ledger(tmp_path / "calls", "rank")
    answers(ledger, ask("a"))
    ASKED.clear()
    answers(ledger, request_, **more)
    assert len(ASKED) == asked


def test_a_sampled_call_of_the_same_seed_is_the_same(tmp_path: Path) -> None:
    ledger, sampling = Ledger(tmp_path / "calls", "rank"), {"temperature": 1.0}
    for _ in range(2):
        answers(ledger, ask("a", seed=3), ask("a", "b", seed=4), sampling=sampling)
    assert ASKED == ["a", "a"]


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls", "rank")
    for _ in range(2):
        assert answers(ledger, ask("fail"), ask("a")) == {"fail": "it failed", "a": "re: a"}
    assert ASKED == ["fail", "a", "fail"] and ledger.spent().calls == 1


def test_an_engine_that_forgets_a_request_is_found_out(tmp_path: Path) -> None:
    """Its answers are passed on, the one that it owes is missing, and nobody waits for ever."""
    assert answers(Ledger(tmp_path / "calls", "rank"), ask("a"), ask("never"), ask("b")) == {"a": "re: a", "b": "re: b"}


@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4), min_size=1, max_size=12))
def test_questions_that_hang_on_answers_get_them(tmp_path_factory: pytest.TempPathFactory, chains: list[list[str]]) -> None:
    """Many who each ask one question after the other, through a ledger that knows some of the answers: all get theirs."""
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "calls", "rank")
    answers(ledger, ask("a"), ask("c"))
    ASKED.clear()
    got: dict[int, list[str]] = {at: [] for at in range(len(chains))}
    waiting = [(at, 0) for at in range(len(chains))]

    def requests() -> Iterator[Request | None]:
        while any(len(got[at]) < len(chain) for at, chain in enumerate(chains)):
            if waiting:
                at, step = waiting.pop(0)
                yield ask(chains[at][step], f"{at}/{step}")
            else:
                yield None

    stream, engine, rounds = requests(), ledger.engine(Counting()), 0
    while any(len(got[at]) < len(chain) for at, chain in enumerate(chains)):
        for answer in engine.complete(stream, GREEDY):
            at, step = map(int, answer.id.split("/"))
            got[at].append(answer.outputs[0].text)
            if step + 1 < len(chains[at]):
                waiting.append((at, step + 1))
        rounds += 1
        assert rounds < 60
    assert got == {at: [f"re: {text}" for text in chain] for at, chain in enumerate(chains)}
    assert sorted(ASKED) == sorted({text for chain in chains for text in chain} - {"a", "c"})
    ledger.close()


class Price(Settings):
    input: float = 1e6
    output: float = 3e6
    cached: float | None = None


def test_what_is_spent_is_counted(tmp_path: Path) -> None:
    """A call reads nine tokens, four of them again, and writes one; a token read costs 1, read again 0.5, written 3."""
    ledger = Ledger(tmp_path / "calls", "rank", {"counter": Price(cached=5e5)})
    answers(ledger, ask("a"), ask("b"), ask("a", "again"))
    assert ledger.spent() == Spent(2, 18, 8, 2, cost=2 * (5 * 1 + 4 * 0.5 + 3))
    ledger.close()
    later = Ledger(tmp_path / "calls", "evaluate", {"counter": Price()})
    answers(later, ask("c"), ask("b"))
    assert later.spent("evaluate") == Spent(1, 9, 4, 1, cost=12.0)
    assert later.spent("rank").calls == 2 and later.spent().calls == 3 and later.spent().tokens == 30


def test_tokens_that_nobody_counts_are_estimated(tmp_path: Path) -> None:
    class Silent(CountingEngine):
        def _answer(self, request: Request) -> Completed:
            return Completed(request.id, [Output("x" * 10, "stop")])

    class Table(Counting):
        def build(self) -> "CountingEngine":
            return Silent("counter", 0)

    ledger = Ledger(tmp_path / "calls", "rank")
    list(ledger.engine(Table()).complete(iter([ask("y" * 41)]), GREEDY))
    assert ledger.spent() == Spent(1, 11, None, 3)


def test_tokens_are_limited(tmp_path: Path) -> None:
    """A call takes ten tokens. Of 95, nine are made; raised to 130, four more; what was answered is never asked again."""
    requests = [ask(f"{at}") for at in range(20)]
    with pytest.raises(OverBudget, match=r"90 tokens of rank\.max_tokens_total = 95 are used\. Raise it and run again"):
        answers(Ledger(tmp_path / "calls", "rank", max_tokens=95), *requests)
    assert len(ASKED) == 9
    with pytest.raises(OverBudget, match="130 tokens"):
        answers(Ledger(tmp_path / "calls", "rank", max_tokens=130), *requests)
    assert [f"{at}" for at in range(13)] == ASKED
    assert len(answers(Ledger(tmp_path / "calls", "rank", max_tokens=200), *requests)) == 20
    assert len(ASKED) == 20


def test_all_that_is_on_its_way_comes_before_the_stop(tmp_path: Path) -> None:
    found = []
    with pytest.raises(OverBudget):
        for one in (
            Ledger(tmp_path / "calls", "rank", max_tokens=50)
            .engine(Counting())
            .complete((ask(f"{at}") for at in range(20)), GREEDY)
        ):
            found.append(one.id)
    assert found == ASKED == [f"{at}" for at in range(5)]


def test_money_is_limited(tmp_path: Path) -> None:
    with pytest.raises(OverBudget, match=r"24 of rank\.max_cost = 30 is spent"):
        answers(Ledger(tmp_path / "calls", "rank", {"counter": Price()}, max_cost=30), *(ask(f"{at}") for at in range(20)))
    assert len(ASKED) == 2, "twelve each"


def test_a_limit_without_a_price_is_refused_before_anything_is_paid(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no price is known\. Give it a table \[prices\.\"counter\"\]"):
        Ledger(tmp_path / "calls", "rank", {"other": Price()}, max_cost=30).engine(
            Server(base_url="http://127.0.0.1:9/v1", model="counter")
        )
    Ledger(tmp_path / "calls", "rank", max_cost=30).engine(Counting())  # at hand, so free


def test_what_was_decided_once_holds_on_the_same_basis(tmp_path: Path) -> None:
    """For the stage that decided it, and after a kill as well: another process finds it as soon as `once` has returned."""
    ledger = Ledger(tmp_path / "calls", "rank", basis="x")
    assert ledger.once("choice", lambda: ["a", 1]) == ["a", 1] == ledger.once("choice", lambda: "anew")
    others = [
        Ledger(tmp_path / "calls", stage, basis=basis) for stage, basis in (("rank", "x"), ("rank", "y"), ("evaluate", "x"))
    ]
    assert [other.once("choice", lambda: "anew") for other in others] == [["a", 1], "anew", "anew"]
    assert ledger.once("another", lambda: None) is None and ledger.once("another", lambda: 1) is None
    assert ledger.spent() == Spent(), "a decision is no call"


def test_where_no_row_stands_on_it_a_decision_is_made_anew(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls", "rank")
    other = Ledger(tmp_path / "calls", "evaluate")
    ledger.once("choice", lambda: "old")
    ledger.once("fact", lambda: "old", lasting=True)
    other.once("choice", lambda: "old")
    ledger.decide_anew()
    assert [ledger.once(key, lambda: "new") for key in ("choice", "fact")] == ["new", "old"]
    assert other.once("choice", lambda: "new") == "old"


def test_of_two_that_decide_at_once_the_first_has_its_way(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path / "calls", "rank"), Ledger(tmp_path / "calls", "rank")
    assert first.once("choice", lambda: second.once("choice", lambda: "second")) == "second"
    assert first.once("choice", lambda: "first") == "second"


class AsAPerson(Counting):
    takes_tokens: ClassVar[bool] = False


def test_a_person_is_asked_whatever_tokens_are_left(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls", "rank", max_tokens=3)
    assert answers(ledger, ask("a"))
    with pytest.raises(OverBudget):
        answers(ledger, ask("b"))
    (answer,) = ledger.engine(AsAPerson()).complete([ask("c")], GREEDY)
    assert answer.outputs


def test_a_decision_stays_with_its_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "old", "rank")
    answers(ledger, ask("a"))
    ledger.once("choice", lambda: "old")
    inherit(tmp_path / "old", tmp_path / "new")
    fork = Ledger(tmp_path / "new", "rank")
    assert fork.once("choice", lambda: "new") == "new"
    assert answers(fork, ask("a")) == {"a": "re: a"} and ASKED == ["a"]


def test_a_decision_that_fails_is_none(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls", "rank")
    with pytest.raises(ZeroDivisionError):
        ledger.once("choice", lambda: 1 / 0)
    assert ledger.once("choice", lambda: 2) == 2


def test_what_was_forgotten_is_asked_again_and_counted_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls", "rank")
    answers(ledger, ask("a"), ask("b"))
    engine: Any = ledger.engine(Counting())
    engine.forget(ask("a"), GREEDY)
    assert ledger.spent().calls == 1
    answers(ledger, ask("a"), ask("b"))
    assert ASKED == ["a", "b", "a"] and ledger.spent().calls == 2


def test_a_judge_that_asks_nobody_leaves_no_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls", "rank")
    assert ledger.spent() == Spent() and ledger.engine(Echo()).model == "echo"
    ledger.close()
    assert not (tmp_path / "calls").exists()


def verdict(text: str, before: int) -> Reply:
    """Says at once, deterministically, which answer is longer."""
    first, second = (text.partition(f"<answer {name}>\n")[2].partition(f"\n</answer {name}>")[0] for name in "AB")
    winner = "A" if len(first) > len(second) else "B" if len(second) > len(first) else "tie"
    return said(json.dumps({"winner": winner}))


@pytest.fixture
def judged(recipe: Callable[..., Recipe]) -> Iterator[tuple[Scripted, Callable[..., Recipe]]]:
    """A chat server that judges, and a maker of recipes whose judge it is."""

    def slow(text: str, before: int) -> Reply:
        time.sleep(0.01)
        return verdict(text, before)

    with serving(slow) as (script, url):

        def make(count: int = 30, rank: dict[str, Any] | None = None, **judge: Any) -> Recipe:
            engine = {"type": "server", "base_url": url, "model": "m", "concurrency": 4}
            table = {"judge": {"type": "pairwise", "reason": 0, "engine": engine, **judge}, **(rank or {})}
            return recipe(count, rank=table)

        yield script, make


def rows(run: RunDir) -> list[Ranking]:
    return list(run.stage("rank").rows(Ranking))


def test_a_run_that_was_killed_asks_nobody_again(tmp_path: Path, judged: Any) -> None:
    """Killed in the middle of `rank` and started again: what was written down by then is not asked again, not one of it; the
    rest is; and the rows are those of a run that nobody killed."""
    script, make = judged
    made = make()
    whole, killed = RunDir(tmp_path / "whole"), RunDir(tmp_path / "killed")
    pipeline.run(made, whole)
    asked_in_all = sum(script.asked.values())
    assert set(script.asked.values()) == {1} and asked_in_all > 200
    script.asked.clear()
    (tmp_path / "recipe.toml").write_text(dump(made))
    command = [sys.executable, "-m", "dpo_data.cli", "run", str(tmp_path / "recipe.toml"), "--run", str(killed.path)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while sum(script.asked.values()) < asked_in_all // 2:
        assert child.poll() is None
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    time.sleep(0.1)  # what was on its way comes in
    asked = sum(script.asked.values())
    with sqlite3.connect(killed.calls) as calls:
        ((kept,),) = calls.execute("SELECT count(*) FROM calls")
    assert asked_in_all // 3 < kept <= asked < asked_in_all and asked - kept <= 8
    pipeline.run(made, killed)
    assert sum(script.asked.values()) == asked_in_all + (asked - kept), "only what had been asked and not yet written down"
    assert rows(killed) == rows(whole)
    assert killed.stage("rank").manifest["calls"]["calls"] == asked_in_all  # type: ignore[index]


def test_a_fork_takes_along_what_was_paid_for(tmp_path: Path, judged: Any) -> None:
    """The same samples, compared all with all instead of in a knock-out: what the knock-out asked is not asked again."""
    script, make = judged
    old, new, fresh = (RunDir(tmp_path / name) for name in ("old", "new", "fresh"))
    pipeline.run(make(20, schedule="knockout"), old)
    before = set(script.asked)
    assert pipeline.fork(old, new, make(20, schedule="all")) == ["sample"]
    pipeline.run(make(20, schedule="all"), new)
    assert set(script.asked.values()) == {1}, "nobody was asked twice"
    assert new.stage("rank").manifest["calls"]["calls"] == len(set(script.asked) - before)  # type: ignore[index]
    pipeline.run(make(20, schedule="all"), fresh)
    assert rows(new) == rows(fresh)


def test_a_budget_stops_a_run_with_what_is_done_kept(tmp_path: Path, judged: Any) -> None:
    """Each call takes 3 + 5 tokens."""
    script, make = judged
    run = RunDir(tmp_path / "run")
    with pytest.raises(OverBudget, match=r"max_tokens_total = 800"):
        pipeline.run(make(rank={"max_tokens_total": 800}), run)
    assert 90 <= sum(script.asked.values()) <= 100
    kept = len(run.stage("rank").shards())
    assert kept >= 1 and not run.stage("rank").manifest
    pipeline.run(make(rank={"max_tokens_total": 1_000_000}), run)
    assert set(script.asked.values()) == {1}
    assert len(rows(run)) == 30 and {row.abstained for row in rows(run)} <= {None, "fewer than two answers"}
    assert SCHEMAS[Ranking].names[-1] == "transcript"
