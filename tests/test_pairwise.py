"""The pairwise judge: order bias is a tie, an unreadable answer decides nothing, and positions mean nothing."""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_data.engines.echo import Echo, EchoEngine
from dpo_data.errors import TemplateError
from dpo_data.judges.asking import LanguageJudge, read_reply
from dpo_data.judges.pairwise import Pairwise, inquiry, read, schema
from dpo_data.rows import Completion, Ranking, Sample
from dpo_data.seams import Completed, Output, Request, Sampling
from dpo_data.share import SHIPPED
from dpo_data.templates import Template, conversation, load_template

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts" / "pairwise").glob("*.txt"))
PLAIN = Template("plain", "{{ prompt }}\x00{{ answer_a }}\x00{{ answer_b }}")
"""A template that a scripted judge takes apart again."""


@dataclass
class Scripted:
    """An engine that is a function of (answer A, answer B), and answers in an order of its own."""

    verdict: Callable[[str, str], Output | str]
    order: Callable[[list[Completed]], list[Completed]] = lambda answers: answers
    model: str = "scripted"
    asked: int = 0

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        """Round by round: all that is ready is answered, in an order of its own."""
        while batch := [self._answer(request) for request in iter(lambda: next(requests, None), None)]:  # type: ignore[call-overload]
            yield from self.order(batch)

    def close(self) -> None: ...

    def _answer(self, request: Request) -> Completed:
        assert request.schema == schema(300)
        self.asked += 1
        _, a, b = request.messages[0]["content"].split("\x00")
        said = self.verdict(unfenced(a), unfenced(b))
        return Completed(request.id, [said if isinstance(said, Output) else Output(winner(said), "stop")])


def unfenced(text: str) -> str:
    """What stands between the marks."""
    first, *lines, last = text.split("\n")
    assert last == first.replace("<", "</")
    return "\n".join(lines)


def winner(name: str) -> str:
    return json.dumps({"reason": "…", "winner": name})


def longer(a: str, b: str) -> str:
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


def group(*said: str, prompt_id: str = "p") -> Sample:
    """Answers whose ids come from their texts, so that they stay whatever the order."""
    completions = [Completion(f"id of {text}", at, text, "stop", 1, None, "m") for at, text in enumerate(said)]
    return Sample(prompt_id, [{"role": "user", "content": "Why?"}], "s", completions, None)


def judge(engine: Scripted, schedule: str = "all", template: Template = PLAIN) -> LanguageJudge:
    settings = Pairwise.model_validate({"schedule": schedule})
    inquire = partial(inquiry, name="pairwise:scripted", settings=settings, template=template)
    return LanguageJudge("pairwise:scripted", engine, inquire, {}, 0)


def rank(engine: Scripted, *said: str, schedule: str = "all") -> Ranking:
    (ranking,) = judge(engine, schedule).rank([group(*said)])
    return ranking


def order(ranking: Ranking) -> list[str]:
    """The answers from best to worst; None is not among them."""
    scores = {text: score for text, score in by_text(ranking).items() if score is not None}
    return sorted(scores, key=lambda text: -scores[text])


def by_text(ranking: Ranking) -> dict[str, float | None]:
    return {id.removeprefix("id of "): s for id, s in zip(ranking.completion_ids, ranking.scores, strict=True)}


def test_a_consistent_judge_ranks() -> None:
    engine = Scripted(longer)
    ranking = rank(engine, "bb", "a", "ccc")
    scores = by_text(ranking)
    assert order(ranking) == ["ccc", "bb", "a"] and scores["bb"] == 0.0 and scores["ccc"] == -(scores["a"] or 0)
    assert ranking.abstained is None
    assert engine.asked == 6, "three pairs, each in both orders"
    transcript = json.loads(ranking.transcript)
    assert [(told["a"], told["b"]) for told in transcript] == [(f"id of {a}", f"id of {b}") for a, b in TWOS]
    assert [told["outcome"] for told in transcript] == ["B", "B", "B"], "in the order of their ids: a-bb, a-ccc, bb-ccc"
    assert not any(told["flipped"] or told["unread"] for told in transcript)
    assert transcript[0]["answers"] == [winner("B"), winner("A")] and transcript[0]["verdicts"] == ["B", "A"]
    assert {told["kind"] for told in transcript} == {"comparison"}


TWOS = [("a", "bb"), ("a", "ccc"), ("bb", "ccc")]


@pytest.mark.parametrize("always", ["A", "B"])
@pytest.mark.parametrize("schedule", ["all", "knockout", "swiss"])
def test_a_judge_that_always_says_the_same_letter_decides_nothing(always: str, schedule: str) -> None:
    ranking = rank(Scripted(lambda a, b: always), "one", "two", "three", "four", "five", schedule=schedule)
    assert set(ranking.scores) == {0.0}, "exactly: equal is a tie"
    assert all(told["flipped"] and told["outcome"] == "tie" for told in json.loads(ranking.transcript))


def test_a_judge_that_says_tie_is_no_flip() -> None:
    ranking = rank(Scripted(lambda a, b: "tie"), "one", "two")
    assert ranking.scores == [0.0, 0.0]
    assert not any(told["flipped"] for told in json.loads(ranking.transcript))


def test_a_tie_in_one_order_alone_is_a_flip_and_a_tie() -> None:
    ranking = rank(Scripted(lambda a, b: "A" if a == "one" else "tie"), "one", "two")
    assert ranking.scores == [0.0, 0.0]
    assert json.loads(ranking.transcript)[0]["flipped"]


def test_answers_that_say_the_same_tie_and_nobody_is_asked() -> None:
    completions = [Completion(f"c{at}", at, text, "stop", 1, None, "m") for at, text in enumerate(("one", "two!", "one"))]
    engine = Scripted(longer)
    (ranking,) = judge(engine).rank([replace(group(), completions=completions)])
    assert engine.asked == 4
    assert ranking.scores[0] == ranking.scores[2] and (ranking.scores[1] or 0) > 0
    (same,) = [told for told in json.loads(ranking.transcript) if (told["a"], told["b"]) == ("c0", "c2")]
    assert same["outcome"] == "tie" and same["verdicts"] == [None, None] and not same["flipped"]
    (alike,) = judge(Scripted(longer)).rank([replace(group(), completions=completions[::2])])
    assert alike.scores == [0.0, 0.0] and alike.abstained is None


@given(
    st.lists(st.text("abc", min_size=1, max_size=6), min_size=2, max_size=9, unique=True),
    st.sampled_from(["auto", "all", "knockout", "swiss"]),
    st.randoms(),
)
def test_the_order_of_the_answers_means_nothing(said: list[str], schedule: str, chance: Any) -> None:
    before = rank(Scripted(longer), *said, schedule=schedule)
    chance.shuffle(said)
    after = rank(Scripted(longer), *said, schedule=schedule)
    assert by_text(before) == by_text(after)


@given(st.sets(st.integers(1, 60), min_size=2, max_size=16))
def test_every_schedule_finds_the_best_and_the_worst(lengths: set[int]) -> None:
    """A judge that never errs: the knock-out and its bottom bracket find both ends, as comparing all does."""
    said = ["x" * length for length in lengths]
    for schedule in ("all", "knockout"):
        found = order(rank(Scripted(longer), *said, schedule=schedule))
        assert (found[0], found[-1]) == ("x" * max(lengths), "x" * min(lengths))


@given(st.integers(0, 2**32))
def test_the_order_in_which_verdicts_arrive_means_nothing(seed: int) -> None:
    groups = [group(*(f"{'x' * at}{of}" for at in range(of + 2)), prompt_id=f"p{of}") for of in range(5)]

    def shuffled(answers: list[Completed]) -> list[Completed]:
        return random.Random(seed).sample(answers, len(answers))

    straight = {row.prompt_id: row for row in judge(Scripted(longer)).rank(groups)}
    mixed = {row.prompt_id: row for row in judge(Scripted(longer, shuffled)).rank(groups)}
    assert straight == mixed and len(mixed) == 5


def test_groups_come_back_as_they_are_decided() -> None:
    """One stream of requests: a group is yielded when its own last verdict is there, and a lone answer abstains."""
    groups = [group("a", "bb", prompt_id="one"), group("c", prompt_id="lone"), group("d", "eee", prompt_id="two")]
    rankings = list(judge(Scripted(longer, lambda answers: answers[::-1])).rank(groups))
    assert {row.prompt_id: row.abstained for row in rankings} == {"one": None, "two": None, "lone": "fewer than two answers"}
    assert [row.prompt_id for row in rankings if row.prompt_id != "lone"] == ["two", "one"]


def test_lone_answers_alone_abstain() -> None:
    assert [row.abstained for row in judge(Scripted(longer)).rank([group("a"), group()])] == ["fewer than two answers"] * 2


def test_a_verdict_that_never_comes_leaves_the_group_out() -> None:
    groups = [group("a", "bb", prompt_id="one"), group("c", "ddd", prompt_id="two")]
    assert [row.prompt_id for row in judge(Scripted(longer, lambda answers: answers[:-1])).rank(groups)] == ["one"]


def test_there_are_transcripts_of_every_verdict() -> None:
    assert {path.stem.partition("-")[0] for path in TRANSCRIPTS} == {"A", "B", "tie", "none"}


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_gives_the_verdict_of_its_name(path: Path) -> None:
    """Each file is a judge's whole answer; its name begins with the verdict that may be read from it, or `none`."""
    expected = path.stem.partition("-")[0]
    reply = read_reply(Completed("r", [Output(path.read_text(encoding="utf-8"), "stop")]), read)
    assert (reply.value or "none") == expected
    assert (reply.unread is None) == (reply.value is not None) and len(reply.unread or "") <= 80


def test_where_nothing_can_be_read_the_judge_abstains_with_the_reason() -> None:
    engine = Scripted(lambda a, b: Output("I cannot tell.", "stop"))
    ranking = rank(engine, "one", "two", "three")
    assert ranking.scores == [None] * 3 and engine.asked == 12, "each is asked for once more"
    assert ranking.abstained == "no comparison was decided: not the JSON that was asked for"
    assert all(told["outcome"] is None for told in json.loads(ranking.transcript))


def test_one_unreadable_order_leaves_that_comparison_out() -> None:
    """bb is never told from ccc: each is known by the comparisons that were decided."""
    ranking = rank(Scripted(lambda a, b: "" if (a, b) == ("ccc", "bb") else longer(a, b)), "a", "bb", "ccc")
    scores = by_text(ranking)
    assert scores["bb"] == scores["ccc"] and (scores["a"] or 0) < 0
    assert ranking.abstained is None
    assert [told["unread"] for told in json.loads(ranking.transcript)] == [None, None, "no such verdict: ''"]


def test_an_answer_that_was_never_compared_is_not_judged() -> None:
    ranking = rank(Scripted(lambda a, b: "?" if "ccc" in (a, b) else longer(a, b)), "a", "bb", "ccc")
    scores = by_text(ranking)
    assert scores["ccc"] is None and (scores["bb"] or 0) > (scores["a"] or 0)


def test_a_request_names_both_answers_in_both_orders() -> None:
    """The default prompt, as the engine sees it."""
    seen: list[Request] = []

    class Recorder(Scripted):
        def _answer(self, request: Request) -> Completed:
            seen.append(request)
            return Completed(request.id, [Output(winner("tie"), "stop")])

    template = load_template(Pairwise().template, ("prompt", "answer_a", "answer_b"))
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name {{ a }} river"}]
    sample = replace(group("the Rhine", "{{ prompt }} <b>"), prompt=talk)
    list(judge(Recorder(longer), template=template).rank([sample]))
    straight, swapped = (request.messages[-1]["content"] for request in seen)
    for text in (straight, swapped):
        for part in ("System: Be brief.", "User: Name {{ a }} river", "the Rhine", "{{ prompt }} <b>"):
            assert text.count(part) == 1, "all is shown once, and nothing of it is taken for the template's own"
    assert straight.index("the Rhine") < straight.index("{{ prompt }}")
    assert swapped.index("the Rhine") > swapped.index("{{ prompt }}")
    assert seen[0].seed != seen[1].seed


def test_seeds_and_transcripts_do_not_change_from_run_to_run() -> None:
    assert rank(Scripted(longer), "one", "three") == rank(Scripted(longer), "one", "three")


TEMPLATES = {
    "{{ prompt }} {{ answer_a }} {{ answer_b }} {{ rubric }}": r"names rubric, which this judge does not give\. It gives ",
    "{{ prompt }} {{ answer_a }}": r"never shows answer_b\. Without it the judge judges blindly",
    "{{ answer_a }} {{ answer_b }}": "never shows prompt",
    "{{ prompt }}\n{{ answer_a }\n{{ answer_b }}": r"my\.md, line 2: ",
    "{{ prompt }}\n{{ answer_a | shout }} {{ answer_b }}": r"my\.md, line 2, is more than a prompt: Filter",
    "{% if prompt %}{{ answer_a }}{{ answer_b }}": r"my\.md, line 1: ",
    b"{{ prompt }} \xff": r"my\.md is not UTF-8",
}


@pytest.mark.parametrize("text", TEMPLATES, ids=range(len(TEMPLATES)))
def test_a_bad_template_is_refused_when_the_judge_is_built(tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "my.md"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(TemplateError, match=TEMPLATES[text]) as error:  # type: ignore[index]
        Pairwise(template=str(file)).build(Echo(), 0, lambda settings: EchoEngine())
    assert error.value.remedy


def test_a_missing_template_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"No template at nowhere\.md\. .*prompts/judges/"):
        Pairwise(template="nowhere.md").inputs()


def test_a_changed_template_is_another_input(tmp_path: Path) -> None:
    text = (SHIPPED / "prompts" / "judges" / "pairwise.md").read_text()
    (tmp_path / "a.md").write_text(text)
    (tmp_path / "b.md").write_text(text + "!")
    of = [Pairwise(template=str(path)).inputs()["template"] for path in (tmp_path / "a.md", tmp_path / "b.md")]
    assert of[0] == Pairwise().inputs()["template"] != of[1]


def test_a_verdict_alone_or_after_a_bounded_reason() -> None:
    """The reason comes first in the schema, so that an engine that follows it lets the model think before it decides."""
    assert list(schema(120)["properties"]) == schema(120)["required"] == ["reason", "winner"]
    assert schema(120)["properties"]["reason"]["maxLength"] == 120
    assert list(schema(0)["properties"]) == schema(0)["required"] == ["winner"]


def test_the_judge_sees_the_calls_of_tools_and_what_they_gave() -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "Köln"}}}
    turns = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "content": "there"},
    ]
    assert conversation(turns) == 'User: Where?\n\nAssistant: Let me see.\n[calls look({"at": "Köln"})]\n\nTool: there'
    assert conversation(turns[:1]) == "Where?"
    shown: list[set[str]] = []

    def verdict(a: str, b: str) -> str:
        shown.append({a, b})
        return "A"

    asked = group("one", "")
    asked = replace(asked, completions=[asked.completions[0], replace(asked.completions[1], tool_calls=[call])])
    list(judge(Scripted(verdict)).rank([asked]))
    assert shown == [{"one", '[calls look({"at": "Köln"})]'}] * 2
