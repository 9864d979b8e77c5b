"""Gates: nothing is published or trained on before they hold, and the report that shows why is there first."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import evaluate, train

from dpo_data import pipeline, publish
from dpo_data.audit import audit
from dpo_data.audit.schema import Agreement, Audit, Figure, Members, Order, People, Route
from dpo_data.config import Gates, Recipe, parse
from dpo_data.errors import GateClosed, NotReady, PublishError, RecipeError
from dpo_data.gates import MISSING, Gate, gates, require
from dpo_data.rundir import RunDir

Make = Callable[..., Recipe]

PUBLISH = {"publish": {"repo_id": "me/pairs"}}
PAIRWISE = {"rank": {"judge": {"type": "pairwise"}}}


def figure(value: float) -> Figure:
    return Figure(value=value, expected=None, low=None, high=None, count=10, prompts=5)


def order(judge: str, flipped: float | None) -> Order:
    told = None if flipped is None else figure(flipped)
    return Order(judge=judge, shows="two", asked=9, unread=0, flipped=told, first_wins=None, cycles=None)


def members(value: float | None) -> Members:
    return Members(judges=("a", "b"), agreement=None if value is None else figure(value), opposite=None, contradicted=None)


def people(tau: float | None) -> People:
    agreement: dict[str, Any] = {"tau": None if tau is None else figure(tau).model_dump(), "kappa": None, "alpha": None}
    counts = dict.fromkeys(("annotators", "prompts", "unknown_prompts", "unknown_completions"), 1)
    return People.model_validate({"labels": "x", **counts, "judge": agreement, "people": None})


def route(calibration: float | None, unsure: float | None, people: bool) -> Route:
    told = [value and Agreement(tau=figure(value), kappa=None, alpha=None) for value in (calibration, unsure)]
    return Route(judges=("a", "b"), people=people, calibration=told[0], unsure=told[1])


def audited(**known: Any) -> Audit:
    """An audit in which all but the known is null."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("ties", "longer_wins", "length", "own_family", "saturation", "people", "annotation", "route", "calls"), None
    )
    empty: dict[str, Any] = {"abstentions": {}, "order": [], "members": [], "warnings": []}
    return Audit(**{"judge": "j", "prompts": 5, "abstained": 0.1, **empty, **nothing, **known})


def values(found: Audit | None, pairs: int | None = None) -> dict[str, float | None]:
    every = Gates(max_tie_rate=1, max_flip_rate=1, max_abstain_rate=1, min_agreement=-1, min_pairs=1)
    return {gate.name: gate.value for gate in gates(every, found, pairs)}


def test_each_gate_has_its_figure() -> None:
    found = audited(
        ties=figure(0.2), order=[order("a", 0.3), order("b", 0.6), order("c", None)], members=[members(0.7), members(0.4)]
    )
    assert values(found, 12) == {
        "max_tie_rate": 0.2,
        "max_flip_rate": 0.6,  # the worst
        "max_abstain_rate": 0.1,
        "min_agreement": 0.4,  # of those who agree least
        "min_pairs": 12,
    }


def test_agreement_is_with_people_where_they_labelled() -> None:
    between = [members(0.7)]
    assert values(audited(members=between, people=people(0.5)))["min_agreement"] == 0.5
    assert values(audited(members=between, people=people(None)))["min_agreement"] is None  # people say nothing of this run


@pytest.mark.parametrize(
    ("of_route", "labels", "agreement"),
    [
        (route(0.3, 0.9, people=True), None, 0.3),  # the slice, and not what the judge was unsure of
        (route(0.3, 0.9, people=True), 0.5, 0.3),  # people on the run itself before people on a file
        (route(0.3, 0.9, people=False), 0.5, 0.5),  # people before another judge
        (route(0.3, 0.9, people=False), None, 0.3),
        (route(None, 0.9, people=True), 0.5, 0.5),
        (route(None, 0.9, people=True), None, None),  # no slice: what the judge was unsure of says nothing of the rest
        (route(None, 0.9, people=False), None, 0.7),
    ],
)
def test_agreement_is_that_of_the_slice_where_there_is_one(
    of_route: Route, labels: float | None, agreement: float | None
) -> None:
    labelled = None if labels is None else people(labels)
    assert values(audited(members=[members(0.7)], people=labelled, route=of_route))["min_agreement"] == agreement


@pytest.mark.parametrize("name", MISSING)
def test_a_gate_without_a_figure_is_closed(name: str) -> None:
    loosest = {"min_agreement": -1.0, "min_pairs": 1}.get(name, 1.0)
    (gate,) = gates(Gates.model_validate({name: loosest}), None, None)
    assert not gate.holds and gate.value is None and gate.missing == MISSING[name]
    with pytest.raises(GateClosed, match=f"{name} = {loosest:g}, and there is no such figure"):
        require([gate], "runs/x")


@given(st.sampled_from(["max_abstain_rate", "min_pairs"]), st.integers(1, 10), st.integers(1, 10))
def test_the_limit_itself_holds(name: str, value: int, limit: int) -> None:
    of = limit / 10 if name == "max_abstain_rate" else limit
    (gate,) = gates(Gates.model_validate({name: of}), audited(abstained=value / 10), value)
    assert gate.holds == (value <= limit if name == "max_abstain_rate" else value >= limit)
    assert gate.missing is None and gate.limit == of


def test_a_recipe_without_gates_has_none() -> None:
    assert gates(Gates(), audited(), 3) == []
    require([], "runs/x")


def test_every_gate_that_is_closed_is_named_and_no_other() -> None:
    told = gates(Gates(max_tie_rate=0.1, max_abstain_rate=0.5, min_pairs=100), audited(ties=figure(0.25)), 12)
    with pytest.raises(GateClosed) as closed:
        require(told, "runs/x")
    assert closed.value.what == (
        "runs/x is neither published nor trained on: max_tie_rate = 0.1, and it is 0.25; min_pairs = 100, and it is 12"
    )
    assert "runs/x/report.html" in closed.value.remedy and closed.value.exit_code == 5


# In a run


def paired(recipe: Recipe, folder: Path) -> RunDir:
    run = RunDir(folder / "run")
    for name in ("sample", "rank", "pair"):
        pipeline.run_stage(name, recipe, run, lambda stage, done, total: None)
    return run


def begin(name: str, recipe: Recipe, run: RunDir) -> dict[str, Any]:
    return pipeline.run_stage(name, recipe, run, lambda stage, done, total: None)


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a publish that begins ends at once."""
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "nobody is logged in"))


def test_what_is_closed_does_not_begin_and_the_report_says_why(recipe: Make, tmp_path: Path) -> None:
    made = recipe(**PUBLISH, **PAIRWISE, gates={"max_flip_rate": 0.01, "min_pairs": 1})
    run = paired(made, tmp_path)
    assert not (run.path / "report.json").exists()
    with pytest.raises(GateClosed, match=r"max_flip_rate = 0\.01, and it is 0\.\d+\. ") as closed:
        begin("publish", made, run)
    assert "min_pairs" not in str(closed.value)
    assert not run.stage("publish").path.exists()
    told = json.loads((run.path / "report.json").read_text())
    by_name = {gate["name"]: gate for gate in told["gates"]}
    assert by_name["max_flip_rate"]["holds"] is False and by_name["min_pairs"]["holds"] is True
    found = audit(made, run)
    assert found and found.order[0].flipped and by_name["max_flip_rate"]["value"] == found.order[0].flipped.value > 0.01
    pairs = told["pairs"]["train"] + told["pairs"]["test"]
    assert by_name["min_pairs"]["value"] == pairs
    page = (run.path / "report.html").read_text()
    assert 'class="state closed">closed<' in page and 'class="state">open<' in page


def test_what_holds_begins(recipe: Make, tmp_path: Path) -> None:
    made = recipe(**PUBLISH, gates={"max_abstain_rate": 0.5, "min_pairs": 1})
    run = paired(made, tmp_path)
    with pytest.raises(PublishError, match="No token"):
        begin("publish", made, run)
    assert json.loads((run.path / "report.json").read_text())["gates"]


def test_a_rule_has_no_flip_rate(recipe: Make, tmp_path: Path) -> None:
    made = recipe(**PUBLISH, gates={"max_flip_rate": 0.9})
    run = paired(made, tmp_path)
    with pytest.raises(
        GateClosed, match="there is no such figure, since this judge was not shown the same answers in two orders"
    ):
        begin("publish", made, run)


def test_training_is_held_back_too(recipe: Make, tmp_path: Path, tiny_model: str) -> None:
    made = recipe(train={"model": tiny_model}, gates={"min_pairs": 10_000})
    run = paired(made, tmp_path)
    with pytest.raises(GateClosed, match="min_pairs = 10000, and it is"):
        begin("train", made, run)
    assert not run.stage("train").path.exists()


def test_what_is_complete_is_not_checked_again(recipe: Make, tmp_path: Path) -> None:
    made = recipe(**PUBLISH, gates={"min_pairs": 10_000})
    run = paired(made, tmp_path)
    run.stage("publish").open(publish.settings(made), publish.inputs(made, run)).finish(tag="v1")
    assert begin("publish", made, run)["tag"] == "v1"


def test_a_stage_that_is_not_ready_says_so_rather(recipe: Make, tmp_path: Path) -> None:
    made = recipe(**PUBLISH, gates={"min_pairs": 1})
    with pytest.raises(NotReady):
        begin("publish", made, RunDir(tmp_path / "new"))


def test_gates_may_change_and_nothing_is_done_again(recipe: Make, tmp_path: Path) -> None:
    made = recipe(**PUBLISH, gates={"min_pairs": 10_000})
    run = paired(made, tmp_path)
    before = run.stage("pair").manifest
    looser = made.model_copy(update={"gates": Gates(min_pairs=1)})
    with pytest.raises(GateClosed):
        begin("publish", made, run)
    assert begin("pair", looser, run) == before
    with pytest.raises(PublishError, match="No token"):
        begin("publish", looser, run)


def test_a_gate_says_what_its_keys_are() -> None:
    assert all(field.description for field in Gate.model_fields.values())


# After training, and after evaluate


def evaluation(win_rate: float, parsed: float | None = None, rise: float | None = None) -> dict[str, Any]:
    """The part of evaluate's manifest that gates look at."""
    return {
        "gain": {"over_base": {"value": win_rate - 0.5}, "over_last": None},
        "trained": {"win_rate": win_rate, "parsed": parsed},
        "perplexity": None if rise is None else {"rise": {"value": rise}},
    }


AFTER = Gates(max_chosen_drop=0.5, max_kl=1.0, min_win_rate=0.5, min_parse_rate=0.9, max_perplexity_rise=0.1)


def test_gates_after_training_have_their_figures() -> None:
    health = {"health": {"chosen_drop": 0.2, "kl": 1.5}}
    told = {gate.name: gate for gate in gates(AFTER, None, None, health, evaluation(0.6, 0.95, 0.2))}
    assert {name: (gate.value, gate.holds, gate.after) for name, gate in told.items()} == {
        "max_chosen_drop": (0.2, True, "train"),
        "max_kl": (1.5, False, "train"),
        "min_win_rate": (0.6, True, "evaluate"),
        "min_parse_rate": (0.95, True, "evaluate"),
        "max_perplexity_rise": (0.2, False, "evaluate"),
    }


def test_what_is_not_measured_is_closed_and_says_why() -> None:
    nothing = {"gain": {"over_base": None, "over_last": None}, "trained": {"win_rate": 0.5, "parsed": None}, "perplexity": None}
    for manifests in ((None, None), ({"health": None}, nothing)):
        told = gates(AFTER, None, None, *manifests)
        assert len(told) == 5 and not any(gate.holds for gate in told) and all(gate.missing for gate in told)


def test_training_does_not_wait_for_what_comes_after_it() -> None:
    told = gates(AFTER, None, None)
    require(told, "runs/x", "train")
    with pytest.raises(GateClosed, match=r"runs/x is not published: max_chosen_drop = 0\.5, and there is no such figure"):
        require(told, "runs/x", "publish")


@pytest.mark.parametrize(
    ("gate", "tables", "remedy"),
    [
        ("min_win_rate", {}, r"Set \[train\] and prompts.holdout"),
        ("max_kl", {}, r"Set \[train\]"),
        ("min_parse_rate", {"train": {"model": "m"}}, "evaluate.must_parse"),
        ("max_perplexity_rise", {"train": {"model": "m"}}, "evaluate.perplexity"),
    ],
)
def test_a_gate_that_could_never_hold_is_an_error(recipe: Make, gate: str, tables: dict[str, Any], remedy: str) -> None:
    with pytest.raises(RecipeError, match=f"gates.{gate} could never hold.*{remedy}"):
        recipe(**tables, gates={gate: 0.5})


def evaluates(prompts: str, model: str, **limits: float) -> Recipe:
    return parse(
        {
            "name": "test",
            "prompts": {"path": prompts, "holdout": 0.2},
            "sample": {"n": 4, "max_tokens": 8, "shard_size": 8, "engine": {"type": "echo"}},
            "rank": {"judge": {"type": "rule", "rule": "concise"}},
            "train": {"model": model},
            "gates": limits,
            **PUBLISH,
        }
    )


def test_nothing_is_published_where_the_model_got_worse(prompts: Callable[[int], str], tmp_path: Path, tiny_model: str) -> None:
    """Base answers score 1 and 3, the trained model's always 3: it wins 75 % of comparisons."""
    path = prompts(60)
    made = evaluates(path, tiny_model, min_win_rate=0.8)
    run = paired(made, tmp_path)
    with pytest.raises(NotReady, match="5-evaluate is not complete"):
        begin("publish", made, run)
    train(run)
    evaluate(run, run.stage("sample").require()["held_out"])
    with pytest.raises(GateClosed, match=r"is not published: min_win_rate = 0\.8, and it is 0\.75\. Read"):
        begin("publish", made, run)
    assert not run.stage("publish").path.exists()
    told = json.loads((run.path / "report.json").read_text())
    assert [(gate["name"], gate["holds"]) for gate in told["gates"]] == [("min_win_rate", False)]
    page = (run.path / "report.html").read_text()
    assert "comparisons that the trained model wins" in page and 'class="state closed">closed<' in page
    with pytest.raises(PublishError, match="No token"):
        begin("publish", evaluates(path, tiny_model, min_win_rate=0.7), run)
    with pytest.raises(PublishError, match="No token"):
        begin("publish", evaluates(path, tiny_model), run)
