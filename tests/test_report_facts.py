"""What a report counts: every prompt has one fate, and a sample stands for its whole stream."""

import math
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_data.errors import DpoDataError
from dpo_data.report import facts

BEFORE = {
    "duplicate": "duplicates",
    "near_duplicate": "near_duplicates",
    "contaminated": "contaminated",
    "held_out": "held_out",
}
FATES = [*BEFORE, "unsampled", "abstained", "identical", "truncated", "tie", "empty", "train", "test"]


def manifests(fates: list[str]) -> dict[str, Any]:
    """The manifests of a run whose prompts met these fates."""
    met = Counter(fates)
    prompts = len(fates) - sum(met[name] for name in BEFORE)
    dropped = {
        "dropped_prompts": {name: met[name] for name in ("unsampled", "abstained", "identical", "truncated") if met[name]},
        "dropped_pairs": {name: met[name] for name in ("tie", "empty") if met[name]},
    }
    paired = met["tie"] + met["empty"] + met["train"] + met["test"]
    pair_files = {"train": met["train"], "test": met["test"], "dropped": sum(map(sum, map(dict.values, dropped.values())))}
    sampled = {"read": len(fates), "failed": met["unsampled"], **{key: met[name] for name, key in BEFORE.items()}}
    return {
        "sample": {
            **sampled,
            "files": files({"00000": prompts - prompts // 2, "00001": prompts // 2, "dropped": met["duplicate"]}),
        },
        "rank": {"abstained": met["abstained"], "files": files({"00000": prompts - met["unsampled"]})},
        "pair": {
            **dropped,
            "paired": paired,
            "candidates": paired,
            "train": met["train"],
            "test": met["test"],
            "files": files(pair_files),
        },
        "evaluate": {"prompts": met["held_out"]},
    }


def files(rows: dict[str, int]) -> list[dict[str, Any]]:
    return [{"name": f"{stem}.parquet", "rows": count} for stem, count in rows.items()]


@dataclass
class Run:
    """What a report reads of a run directory: how it is called, and the manifests of its stages."""

    manifests: dict[str, Any]

    def __str__(self) -> str:
        return "runs/x"

    def stage(self, name: str) -> Any:
        return SimpleNamespace(manifest=self.manifests.get(name))


def run_of(manifests: dict[str, Any]) -> Any:
    return Run(manifests)


@given(st.lists(st.sampled_from(FATES), min_size=1))
def test_every_prompt_has_one_fate(fates: list[str]) -> None:
    steps = facts.funnel(run_of(manifests(fates)))
    ends = sum(step.count for step in steps if step.kind in ("out", "part"))
    assert ends == len(fates) == steps[0].count
    found = {step.name: step.count for step in steps}
    assert all(found[name] == count for name, count in Counter(fates).items() if name != "unsampled")
    assert found["failed"] == fates.count("unsampled")


COUNTS = [("sample", key) for key in ("read", "failed", *BEFORE.values())] + [("rank", "abstained")]
COUNTS += [("pair", "paired"), ("pair", "train"), ("pair", "test"), ("evaluate", "prompts")]


@given(st.lists(st.sampled_from(FATES), min_size=1), st.sampled_from(COUNTS), st.integers(1, 5))
def test_a_lost_prompt_is_an_error(fates: list[str], count: tuple[str, str], lost: int) -> None:
    made = manifests(fates)
    made[count[0]][count[1]] += lost
    with pytest.raises(DpoDataError, match=r"runs/x does not add up: -?\d+ prompts"):
        facts.funnel(run_of(made))


@given(st.lists(st.sampled_from(FATES), min_size=1), st.integers(0, 50))
def test_prompts_may_give_several_pairs(fates: list[str], more: int) -> None:
    made = manifests([*fates, "train"])
    for count in (made["pair"], next(file for file in made["pair"]["files"] if file["name"] == "train.parquet")):
        count["train" if "train" in count else "rows"] += more
    made["pair"]["candidates"] += more
    found = {step.name: step for step in facts.funnel(run_of(made))}
    assert ("candidates" in found) == (more > 0)
    assert found["train"].count == fates.count("train") + 1 + more
    made["pair"]["candidates"] -= 1 + more
    with pytest.raises(DpoDataError, match="does not add up"):
        facts.funnel(run_of(made))


def test_what_json_cannot_hold_is_null_and_what_is_no_number_is_left_out() -> None:
    assert facts.finite({"loss": math.nan, "grad_norm": math.inf, "step": 3, "note": "x"}) == {
        "loss": None,
        "grad_norm": None,
        "step": 3.0,
    }


@given(st.integers(0, 500), st.sampled_from([2, 4, 16]))
def test_a_thinned_stream_is_evenly_spaced(count: int, limit: int) -> None:
    thinned: facts.Thinned[int] = facts.Thinned(limit)
    for value in range(count):
        thinned.add(value)
    steps = {after - before for before, after in zip(thinned.values, thinned.values[1:], strict=False)}
    assert thinned.count == count and len(steps) <= 1
    assert min(count, limit // 2) <= len(thinned.values) <= limit
    assert thinned.values[:1] == [0][:count]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_numbers_are_described_whole(values: list[float]) -> None:
    numbers = facts.Numbers()
    for value in values:
        numbers.add(value)
    spread, histogram = numbers.spread(), numbers.histogram()
    assert spread.count == len(values) and math.isclose(spread.mean, math.fsum(values) / len(values), abs_tol=1e-6)
    assert (spread.least, spread.most) == (min(values), max(values))
    assert spread.least <= spread.p10 <= spread.median <= spread.p90 <= spread.most
    assert math.isclose(sum(histogram.shares), 1) and len(histogram.edges) == len(histogram.shares) + 1
    assert histogram.edges[0] <= min(values) and histogram.edges[-1] >= max(values)
