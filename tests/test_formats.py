"""What a format writes is read again as it was; what it cannot hold, it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conversations import groups, pairs
from hypothesis import assume, given

from dpo_data.errors import InputError
from dpo_data.export import WRITERS
from dpo_data.formats import FORMATS
from dpo_data.formats.format import Group
from dpo_data.formats.prompts import Prompts, read_given, read_prompts
from dpo_data.formats.shapes import Answer
from dpo_data.rows import Completion, PreferencePair, Prompt, Ranking, Sample
from dpo_data.tables import schema_of

Given = list[tuple[Prompt, list[Answer]]]
SCORED = {"trl", "axolotl", "openrlhf", "nemo_rl", "llamafactory"}
"""The formats of pairs that carry the scores; of the others they are 1 and 0."""


def given_of(path: Path) -> Given:
    return list(read_given(Prompts(path=str(path))))


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def written(folder: Path, name: str, row: Any) -> Given:
    """One row, written in a format and read again."""
    format = FORMATS[name]
    path = folder / f"train{format.suffix}"
    for old in path.glob("*.txt") if path.is_dir() else ():
        old.unlink()
    if path.is_dir():
        path.rmdir()
    of_pairs = schema_of(PreferencePair, tools=True, chat_template_kwargs=True)
    schema = pa.schema([of_pairs.field(column) for column in format.columns])
    WRITERS[format.suffix](path, iter(format.records(row)), schema)
    return given_of(path)


HOLDS = {
    "trl": pairs(kwargs=True),
    "llamafactory": pairs(),
    "hh": pairs(tools=False, system=False),
    "kto": pairs(),
    **dict.fromkeys(("axolotl", "openrlhf", "nemo_rl"), pairs(tools=False)),
}
"""Pairs that each format has a place for, but for a few."""


def test_every_format_is_tried() -> None:
    assert HOLDS.keys() | {"ultrafeedback", "text"} == FORMATS.keys()


@pytest.mark.parametrize("name", HOLDS)
def test_a_pair_is_read_again_as_it_was_written(tmp_path: Path, name: str) -> None:
    @given(HOLDS[name])
    def check(pair: PreferencePair) -> None:
        assume(not FORMATS[name].unfit(pair))
        ((prompt, answers),) = written(tmp_path, name, pair)
        assert (prompt.prompt, prompt.tools, prompt.prompt_id) == (pair.prompt, pair.tools, pair.prompt_id)
        assert prompt.chat_template_kwargs == pair.chat_template_kwargs
        sides = [pair.chosen[0], pair.rejected[0]]
        assert [answer.text for answer in answers] == [side["content"] for side in sides]
        assert [answer.tool_calls for answer in answers] == [side.get("tool_calls") for side in sides]
        wanted = [pair.score_chosen, pair.score_rejected] if name in SCORED else [1.0, 0.0]
        assert [answer.score for answer in answers] == wanted

    check()


@given(pairs(kwargs=True))
def test_trl_holds_every_pair(pair: PreferencePair) -> None:
    assert FORMATS["trl"].unfit(pair) is None


@pytest.mark.parametrize("name", ["ultrafeedback", "text"])
def test_all_answers_are_read_again_as_they_were_written(tmp_path: Path, name: str) -> None:
    @given(groups(alone=name == "ultrafeedback"))
    def check(group: Group) -> None:
        assert FORMATS[name].unfit(group) is None
        ((prompt, answers),) = written(tmp_path, name, group)
        assert (prompt.prompt, prompt.prompt_id) == (group.sample.prompt, group.sample.prompt_id)
        assert [answer.text for answer in answers] == [answer.text for answer in group.sample.completions]
        scores = group.scores() if name == "ultrafeedback" else {}
        assert [answer.score for answer in answers] == [scores.get(answer.completion_id) for answer in group.sample.completions]
        if name == "ultrafeedback":
            assert {(answer.model, answer.finish_reason, answer.n_tokens) for answer in answers} == {("m", "stop", 3)}

    check()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
SYSTEM = {"role": "system", "content": "Be brief."}


def a_pair(*prompt: Any, chosen: Any = None, rejected: Any = None, tools: Any = None, kwargs: Any = None) -> PreferencePair:
    return PreferencePair(
        prompt_id="p", prompt=list(prompt), chosen=[chosen or says("a")], rejected=[rejected or says("b")], chosen_id="c",
        rejected_id="r", score_chosen=1.0, score_rejected=0.0, margin=1.0, n_tokens_chosen=None, n_tokens_rejected=None,
        judge="j", model_chosen="m", model_rejected="m", source="s", flags=[], tools=tools,
        chat_template_kwargs=kwargs,
    )  # fmt: skip


UNFIT: list[tuple[str, PreferencePair, str | None]] = [
    ("hh", a_pair(SYSTEM, user("q")), "the format has no place for a turn of the system"),
    ("hh", a_pair(user("q\n\nHuman: no")), "a text holds the format's own marker"),
    ("hh", a_pair(user("q"), chosen=says("\n\nAssistant: x")), "a text holds the format's own marker"),
    ("hh", a_pair(user("q"), tools=[{"name": "add"}]), "the format has no place for tools"),
    *((name, a_pair(user("q"), chosen=CALLS), "the format has no place for tools")
      for name in ("axolotl", "openrlhf", "nemo_rl")),
    *((name, a_pair(user("q"), kwargs={"enable_thinking": False}), "the format has no place for chat_template_kwargs")
      for name in ("axolotl", "llamafactory", "openrlhf", "nemo_rl", "kto")),
    ("hh", a_pair(user("q"), kwargs={"enable_thinking": False}), None),
    ("axolotl", a_pair({"role": "developer", "content": ""}, user("q")), "the format has no place for a turn of the developer"),
    ("llamafactory", a_pair(user("a"), user("b")), "the format wants user and assistant to take turns"),
    ("llamafactory", a_pair(user("q"), SYSTEM, user("r")), "the format wants user and assistant to take turns"),
    ("llamafactory", a_pair(user("q"), chosen={**CALLS, "content": "let me see"}),
     "a turn has a text beside its tool calls, and the format has place for one of them"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "pair", "reason"), UNFIT)
def test_what_a_format_cannot_hold_it_says(name: str, pair: PreferencePair, reason: str | None) -> None:
    assert FORMATS[name].unfit(pair) == reason


def test_llamafactorys_record() -> None:
    pair = a_pair(
        {"role": "system", "content": ""}, user("q"), CALLS, {"role": "tool", "content": "1"}, tools=[{"name": "add"}]
    )
    (record,) = FORMATS["llamafactory"].records(pair)
    call = '{"name": "add", "arguments": {"a": 1}}'
    assert [tuple(turn.values()) for turn in record["conversations"]] == [
        ("system", ""), ("human", "q"), ("function_call", call), ("observation", "1"),
    ]  # fmt: skip
    assert record["chosen"] == {"from": "gpt", "value": "a"}
    assert record["tools"] == '[{"name": "add"}]'
    info = FORMATS["llamafactory"].beside(["train.jsonl"])["dataset_info.json"]
    assert info["train"]["file_name"] == "train.jsonl"
    assert info["train"]["ranking"] and set(info["train"]["columns"].values()) <= record.keys()


def test_the_records_of_other_programs() -> None:
    pair = a_pair(SYSTEM, user("q"))
    asked = [SYSTEM, user("q")]
    expected = {
        "axolotl": [
            {"messages": asked, "chosen": says("a"), "rejected": says("b"), "score_chosen": 1.0, "score_rejected": 0.0}
        ],
        "openrlhf": [
            {
                "chosen": [*asked, says("a")],
                "rejected": [*asked, says("b")],
                "score_chosen": 1.0,
                "score_rejected": 0.0,
                "margin": 1.0,
            }
        ],
        "nemo_rl": [
            {
                "context": asked,
                "completions": [
                    {"rank": 0, "completion": [says("a")], "score": 1.0},
                    {"rank": 1, "completion": [says("b")], "score": 0.0},
                ],
            }
        ],
        "kto": [
            {"prompt": asked, "completion": [says("a")], "label": True},
            {"prompt": asked, "completion": [says("b")], "label": False},
        ],
    }
    assert {name: FORMATS[name].records(pair) for name in expected} == expected
    (record,) = FORMATS["hh"].records(a_pair(user("q"), says("x"), user("r")))
    assert record["chosen"] == "\n\nHuman: q\n\nAssistant: x\n\nHuman: r\n\nAssistant: a"


def choose(best: str, worst: str) -> str:
    asked = "Q[system]:\n  Be brief.\n\nQ:\n  Name\n  \n  best: 9\n"
    answers = ["A[1]:\n  one\n", "A[2]:\n  two\n  \n", "A[10]:\n  ten\n"]
    return "\n".join([f"best: {best}\nworst: {worst}\n", asked, *answers])


def test_a_person_chooses_in_the_text(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes(choose("10", "1, 2").encode())
    ((prompt, answers),) = given_of(tmp_path)
    assert prompt.prompt == [SYSTEM, user("Name\n\nbest: 9")]
    assert prompt.source == f"{tmp_path.name}:1.txt"
    assert [(answer.text, answer.score) for answer in answers] == [("one", 0.0), ("two\n", 0.0), ("ten", 1.0)]


def test_an_editor_may_strip_blank_ends_and_write_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes(choose("10", "").encode())
    wanted = given_of(tmp_path)
    stripped = "\r\n".join(line.rstrip() for line in choose("10", "").split("\n"))
    (tmp_path / "1.txt").write_bytes(stripped.encode())
    assert given_of(tmp_path) == wanted


@pytest.mark.parametrize(
    ("best", "worst", "told"),
    [("3", "1", "best is 3, no answer's number"), ("x", "", "best is x, no"), ("1", "1", "answer 1 is both best and worst")],
)
def test_a_choice_that_cannot_be_is_refused(tmp_path: Path, best: str, worst: str, told: str) -> None:
    (tmp_path / "1.txt").write_bytes(choose(best, worst).encode())
    with pytest.raises(InputError, match=rf"1\.txt: {told}"):
        given_of(tmp_path)


RATED = {"honesty": {"Rating": "4"}, "truth": {"Rating": "5"}, "other": {"Rating": "N/A"}}
WAYS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str, float | None]]]] = {
    "completions": (
        [{"prompt": "q", "completions": ["a", {"text": "b", "model": "m", "score": 2}, {"content": "c", "rating": "3"}]}],
        [("a", "unknown", None), ("b", "m", 2.0), ("c", "unknown", 3.0)],
    ),
    "responses and scores": (
        [{"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, None, 0.5], "models": ["x", "y", "z"]}],
        [("a", "x", 1.0), ("b", "y", None), ("c", "z", 0.5)],
    ),
    "ultrafeedback": (
        [
            {
                "instruction": "q",
                "completions": [
                    {"model": "x", "response": "a", "overall_score": 7.5},
                    {"model": "y", "response": "b", "annotations": RATED},
                ],
            }
        ],
        [("a", "x", 7.5), ("b", "y", 4.5)],
    ),
    "flat": (
        [
            {"prompt": "q", "response": "a", "model": "x", "score": 1},
            {"prompt": "r", "response": "z"},
            {"prompt": "q", "response": "b"},
        ],
        [("a", "x", 1.0), ("b", "unknown", None)],
    ),
    "kto": (
        [{"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": [says("b")], "label": False}],
        [("a", "unknown", 1.0), ("b", "unknown", 0.0)],
    ),
    "llamafactory's kto": ([{"messages": [user("q"), says("a")], "label": False}], [("a", "unknown", 0.0)]),
    "pair": ([{"prompt": "q", "chosen": says("a"), "rejected": [says("b")]}], [("a", "unknown", 1.0), ("b", "unknown", 0.0)]),
    "pair with ratings": (
        [{"instruction": "q", "chosen": "a", "rejected": "b", "chosen-rating": 4, "rejected-rating": 3.5, "chosen-model": "x"}],
        [("a", "x", 4.0), ("b", "unknown", 3.5)],
    ),
    "sharegpt pair": (
        [{"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"}],
        [("a", "unknown", 1.0), ("b", "unknown", 0.0)],
    ),
    "binarized": (
        [
            {
                "prompt": "q",
                "messages": [user("q"), says("a")],
                "chosen": [user("q"), says("a")],
                "rejected": [user("q"), says("b")],
                "score_chosen": 8.5,
                "score_rejected": 3,
            }
        ],
        [("a", "unknown", 8.5), ("b", "unknown", 3.0)],
    ),
    "nothing": ([{"prompt": "q"}], []),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_answers_come_with_their_prompts(tmp_path: Path, way: str) -> None:
    records, wanted = WAYS[way]
    found = {prompt.prompt[-1]["content"]: answers for prompt, answers in given_of(jsonl(tmp_path / "p.jsonl", *records))}
    assert [(answer.text, answer.model, answer.score) for answer in found["q"]] == wanted
    assert set(found) == ({"q", "r"} if way == "flat" else {"q"})


def test_an_answer_may_call_tools(tmp_path: Path) -> None:
    turn = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    one = {"conversations": [{"from": "human", "value": "q"}], "chosen": turn, "rejected": {"from": "gpt", "value": "no"}}
    ((_, (chosen, rejected)),) = given_of(jsonl(tmp_path / "p.jsonl", one))
    assert (chosen.text, chosen.tool_calls, rejected.tool_calls) == ("", [CALL], None)


def test_limit_counts_records(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", *({"prompt": f"q{at % 2}", "response": str(at)} for at in range(5)))
    found = [(prompt.prompt[0]["content"], len(answers)) for prompt, answers in read_given(Prompts(path=str(path), limit=3))]
    assert found == [("q1", 1), ("q0", 2)]
    assert len(list(read_prompts(Prompts(path=str(path), limit=3)))) == 3


BAD = {
    "score that is NaN": ('{"prompt": "q", "completions": [{"text": "a", "score": NaN}]}', "score is nan, not a finite number"),
    "endless score": ('{"prompt": "q", "response": "a", "score": 1e999}', "score is inf, not a finite number"),
    "score that is a text": ('{"prompt": "q", "response": "a", "score": "good"}', "score is good, not a finite number"),
    "score that is true": ('{"prompt": "q", "response": "a", "score": true}', "score is True, not a finite number"),
    "huge score": ('{"prompt": "q", "response": "a", "score": 1' + "0" * 400 + "}", "score is a huge number"),
    "too few scores": ('{"prompt": "q", "responses": ["a", "b"], "scores": [1]}', "scores has 1 for 2 answers"),
    "one score": ('{"prompt": "q", "responses": ["a", "b"], "scores": 3}', "scores has 3 for 2 answers"),
    "score of one side": ('{"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1}', "one of chosen and"),
    "label of another kind": ('{"prompt": "q", "completion": "a", "label": "spam"}', "label is spam, neither true nor false"),
    "answer that is a number": ('{"prompt": "q", "answer": 3}', "an answer is 3, neither a text nor one message"),
    "answer of nothing": ('{"prompt": "q", "completions": [{"score": 3}]}', "an answer is None, neither a text"),
    "answer by a user": ('{"prompt": "q", "chosen": {"role": "user", "content": ""}, "rejected": 1}', "an answer is the"),
    "answers that are no list": ('{"prompt": "q", "completions": "a"}', "the answers are a, not a list"),
    "two conversations": ('{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b", "rejected": "\\n\\nHuman: x\\n\\nAssistant: b"}',
                          "chosen and rejected answer different conversations"),
    "half a character in a call": (
        '{"prompt": "q", "chosen": {"from": "function_call", "value": "{\\"name\\": \\"\\\\ud83d\\"}"}, "rejected": "b"}',
        "a call is not JSON: .* surrogates not allowed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", BAD)
def test_a_bad_answer_says_where_and_what_was_expected(tmp_path: Path, why: str) -> None:
    line, told = BAD[why]
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "fine", "response": "yes"}}\n{line}\n')
    with pytest.raises(InputError, match=rf"p\.jsonl, line 2: {told}") as error:
        given_of(tmp_path / "p.jsonl")
    assert error.value.remedy and "\n" not in str(error.value)


def test_unranked_answers_do_not_fit_ultrafeedback() -> None:
    sample = Sample("p", [user("q")], "s", [Completion("c", 0, "a", "stop", 1, None, "m")], None)
    unfit: Callable[[Any], str | None] = FORMATS["ultrafeedback"].unfit
    assert unfit(Group(sample, None)) == "it was not ranked: the judge gave no ranking"
    assert unfit(Group(sample, Ranking("p", "j", ["c"], [None], "no idea", "[]"))) == "it was not ranked: no idea"
