"""A rule scores answers one by one; what it cannot score is not judged, with its reason."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_data.errors import RecipeError
from dpo_data.judges.rule import BUILT_IN, Rule, RuleJudge, concise, detailed, find_rule, valid_json
from dpo_data.rows import Completion, Ranking, Sample

PROMPT = [{"role": "user", "content": "Why?"}]


def rank(score: Callable[..., Any], *said: str) -> Ranking:
    completions = [Completion(f"c{at}", at, text, "stop", 1, None, "m") for at, text in enumerate(said)]
    (ranking,) = RuleJudge("rule:test", score).rank([Sample("p", PROMPT, "s", completions, None)])
    return ranking


def test_the_built_in_rules() -> None:
    assert [concise([], text) for text in ("two words", "one", " ", "")] == [-2, -1, None, None]
    assert [detailed([], text) for text in ("a b A", "a b c", " ")] == [2, 3, None]
    assert [valid_json([], text) for text in ('{"a": [1]}', "3", "{a}", "", "[" * 100_000)] == [1, 1, 0, 0, 0]
    assert list(BUILT_IN) == ["concise", "detailed", "valid_json"]


def test_scores_stand_beside_their_ids() -> None:
    ranking = rank(concise, "two words", "one", "and three words")
    assert (ranking.completion_ids, ranking.scores) == (["c0", "c1", "c2"], [-2.0, -1.0, -3.0])
    assert (ranking.judge, ranking.abstained, json.loads(ranking.transcript)) == ("rule:test", None, [])


def unsure(messages: Any, text: str) -> Any:
    """A rule with every bad habit."""
    if text == "raise":
        raise KeyError("no such thing")
    odd: dict[str, Any] = {
        "none": None,
        "nan": float("nan"),
        "inf": float("inf"),
        "word": "high",
        "huge": 10**400,
        "pair": (1, 2),
    }
    return odd.get(text, len(text))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise", "KeyError: 'no such thing'"),
        ("none", "the rule returned None"),
        ("nan", "the rule returned nan"),
        ("inf", "the rule returned inf"),
        ("word", "TypeError: "),
        ("huge", "OverflowError: "),
        ("pair", "TypeError: "),
    ],
)
def test_what_cannot_be_scored_is_not_judged_and_says_why(text: str, told: str) -> None:
    ranking = rank(unsure, "fine", text, "fine too")
    assert ranking.scores == [4.0, None, 8.0] and ranking.abstained is None
    ((asked,)) = json.loads(ranking.transcript)
    assert asked["completion_id"] == "c1"
    assert asked["error"].startswith(told)


@pytest.mark.parametrize(("said", "judged"), [(("fine", "nan"), 1), (("nan", "raise", "none"), 0), (("fine",), 1), ((), 0)])
def test_fewer_than_two_judged_answers_abstain(said: tuple[str, ...], judged: int) -> None:
    assert rank(unsure, *said).abstained == f"{judged} of {len(said)} answers could be scored"


def test_true_and_false_are_scores() -> None:
    assert rank(lambda messages, text: text == "yes", "yes", "no").scores == [1.0, 0.0]


def test_a_rule_sees_the_conversation() -> None:
    assert rank(lambda messages, text: len(messages[0]["content"]), "a", "b").scores == [4.0, 4.0]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of the user's in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "house_rules.py"
    file.write_text("GOOD = 3\ndef polite(messages, text):\n    return 1.0 if 'please' in text else 0.0\n")
    yield file
    sys.modules.pop("house_rules", None)


def test_a_rule_of_ones_own_comes_from_the_working_folder(module: Path) -> None:
    judge = Rule(rule="house_rules:polite").build(Rule(rule="concise"), 0)
    assert judge.name == "rule:house_rules:polite"
    assert [judge.score([], text) for text in ("please", "now")] == [1.0, 0.0]


def test_a_changed_rule_is_another_input(module: Path) -> None:
    before = Rule(rule="house_rules:polite").inputs()
    assert before == Rule(rule="house_rules:polite").inputs() and before["rule"]
    module.write_text(module.read_text().replace("0.0", "0.5"))
    assert Rule(rule="house_rules:polite").inputs() != before
    assert Rule(rule="concise").inputs() == {}


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("consise", r"No built-in rule 'consise'\. Use one of concise, detailed, valid_json, or module:function\."),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("house_rules:rude", "cannot be imported: AttributeError: .*rude"),
        ("house_rules:", "cannot be imported: AttributeError"),
        (":polite", "cannot be imported: ValueError: Empty module name"),
        ("house_rules:GOOD", "is int, not a function"),
    ],
)
def test_a_rule_that_is_not_there_says_so(module: Path, rule: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        find_rule(rule)


def test_a_module_that_does_not_parse_says_so(module: Path) -> None:
    module.write_text("def polite(:")
    with pytest.raises(RecipeError, match="cannot be imported: SyntaxError: "):
        find_rule("house_rules:polite")
