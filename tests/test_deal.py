"""Requests among workers that die and are slow: each is answered once, and only what kills is set aside. Without Ray."""

from collections.abc import Iterator
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from dpo_data.engines.deal import PARTS, TRIES, Deal
from dpo_data.seams import Completed, Request


def asks(number: int) -> list[Request]:
    return [Request(str(at), [{"role": "user", "content": str(at)}], at) for at in range(number)]


def ids(requests: list[Request]) -> list[str]:
    return [request.id for request in requests]


def answers(*ids: str) -> list[Completed]:
    return [Completed(id, []) for id in ids]


def test_requests_go_out_in_their_order_side_by_side() -> None:
    deal = Deal(asks(10))
    assert ids(deal.give(0, 4)) == ["0", "1", "2", "3"]
    assert ids(deal.give(1, 4)) == ["4", "5", "6", "7"]
    assert ids(deal.give(0, 4)) == ["8", "9"]
    assert deal.held(0) == 6 and not deal.more and not deal.over


def test_who_is_idle_takes_over_what_a_slow_one_has_hardly_begun_and_the_first_answer_wins() -> None:
    deal = Deal(asks(8))
    deal.give(0, 8)
    assert ids(deal.give(1, 8)) == ["4", "5", "6", "7"]
    assert ids(deal.give(2, 8)) == ["2", "3"], "nothing is done three times"
    assert [one.id for one in deal.answered(answers("4", "5", "6", "7"))] == ["4", "5", "6", "7"]
    assert deal.held(0) == 4
    assert deal.answered(answers("4")) == []
    assert [one.id for one in deal.answered(answers("0", "1", "2", "3"))] == ["0", "1", "2", "3"]
    assert deal.over


def test_nothing_is_done_twice_as_long_as_there_may_be_more() -> None:
    source: list[Request | None] = [*asks(4), None, *asks(6)[4:]]
    deal = Deal(source)
    assert len(deal.give(0, 9)) == 4
    assert deal.give(1, 9) == [], "more hangs on an answer"
    assert not deal.over
    deal.answered(answers("0"))
    assert ids(deal.give(1, 9)) == ["4", "5"]


def test_it_is_over_where_what_comes_next_hangs_on_an_answer_given_already() -> None:
    deal = Deal([*asks(1), None, *asks(2)[1:]])
    deal.give(0, 9)
    assert deal.answered(answers("0")) and not deal.over
    deal = Deal([None])
    assert deal.give(0, 9) == [] and deal.over


def test_what_a_dead_worker_had_is_tried_one_at_a_time_and_the_one_that_kills_is_set_aside() -> None:
    deal = Deal(asks(6))
    deal.give(0, 3)
    assert deal.died(0, "killed") == []
    assert ids(deal.give(1, 2)) == ["3", "4"], "the others go on"
    assert ids(deal.give(0, 3)) == ["0"] and deal.give(0, 3) == [], "who has died sees to the suspects"
    deal.answered(answers("0"))
    assert ids(deal.give(0, 3)) == ["1"]
    (aside,) = deal.died(0, "killed")
    assert (aside.id, aside.outputs) == ("1", [])
    assert aside.error == f"set aside after {TRIES} tries, each of which ended its worker: killed"
    assert ids(deal.give(0, 3)) == ["2"]
    deal.answered(answers("2"))
    assert ids(deal.give(0, 3)) == ["5"], "and then it is one of the others again"


def test_a_request_that_another_has_too_is_no_suspect() -> None:
    deal = Deal(asks(2))
    deal.give(0, 9)
    deal.give(0, 9)
    assert ids(deal.give(1, 9)) == ["1"]
    assert deal.died(0, "killed") == []
    assert ids(deal.give(0, 9)) == ["0"]
    deal.answered(answers("0", "1"))
    assert deal.over


@given(st.integers(1, 5000), st.data())
def test_a_death_costs_few_rounds_and_few_more_deaths(number: int, data: st.DataObject) -> None:
    """However much the worker had: by chance, or by one request that kills."""
    poison = data.draw(st.one_of(st.none(), st.integers(0, number - 1).map(str)))
    deal, came, rounds, deaths = Deal(asks(number)), list[Completed](), 0, 1
    deal.give(0, number)
    came += deal.died(0, "killed")
    while new := ids(deal.give(0, number)):
        rounds += 1
        if poison in new:
            deaths += 1
            came += deal.died(0, "killed")
        else:
            came += deal.answered(answers(*new))
    assert deal.over and sorted(one.id for one in came) == sorted(map(str, range(number)))
    assert [one.id for one in came if one.error] == ([poison] if poison else [])
    levels = max(1, next(level for level in count() if PARTS**level >= number)) if poison else 0
    assert deaths <= 1 + levels and rounds <= PARTS * max(1, levels) + 1


@given(st.data(), st.integers(0, 60), st.integers(1, 4), st.integers(1, 12))
def test_each_request_is_answered_once_whatever_happens(data: st.DataObject, number: int, workers: int, most: int) -> None:
    requests = asks(number)
    poison = data.draw(st.sets(st.sampled_from(ids(requests)), max_size=3)) if requests else set()
    behind = data.draw(st.one_of(st.none(), st.integers(1, 9)), label="a request hangs on the answer that is so far behind")
    dice = data.draw(st.randoms(use_true_random=False))
    came: list[Completed] = []

    def source() -> Iterator[Request | None]:
        for at, request in enumerate(requests):
            while behind and at >= behind and str(at - behind) not in {one.id for one in came}:
                yield None
            yield request

    deal = Deal(source())
    has: list[dict[str, None]] = [{} for _ in range(workers)]
    for step in count():
        assert step < 5000
        for worker in range(workers):
            new = ids(deal.give(worker, most))
            has[worker].update(dict.fromkeys(new))
            assert len(new) <= max(most, number)
        if deal.over:
            break
        worker = dice.choice([at for at in range(workers) if has[at]])
        done = dice.sample(sorted(set(has[worker]) - poison), dice.randint(0, len(set(has[worker]) - poison)))
        came += deal.answered(answers(*done))
        for id in done:
            del has[worker][id]
        dies = poison & set(has[worker]) or (deal.held(worker) > 1 and dice.random() < 0.1)
        if dies:
            came += deal.died(worker, "killed")
            has[worker] = {}
    assert sorted(one.id for one in came) == sorted(ids(requests))
    assert {one.id for one in came if one.error} == poison
