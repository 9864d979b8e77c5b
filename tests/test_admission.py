"""Which prompts a run samples: none twice, none that an evaluation set holds, and each of the others with its reason."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_data import pipeline
from dpo_data.admission import Admission, admit
from dpo_data.config import Recipe, load, parse
from dpo_data.errors import EmptyStage, InputError, StaleRun
from dpo_data.formats.prompts import read_prompts
from dpo_data.plan import count, plan
from dpo_data.report import facts
from dpo_data.rows import DroppedPrompt, PreferencePair, Prompt, Sample
from dpo_data.rundir import RunDir

SHARED = Path(__file__).parents[2] / "shared" / "data"
WORDS = [f"w{at}" for at in range(200)]
LONG = " ".join(WORDS[:60])


def write(path: Path, *records: Any) -> str:
    """A prompts file: texts, or whole records."""
    lines = [json.dumps({"prompt": one} if isinstance(one, str) else one) + "\n" for one in records]
    path.write_text("".join(lines))
    return str(path)


def asking(path: str, **prompts: Any) -> Recipe:
    sample = {"n": 2, "max_tokens": 8, "engine": {"type": "echo"}}
    judge = {"type": "rule", "rule": "concise"}
    return parse({"name": "t", "prompts": {"path": path, **prompts}, "sample": sample, "rank": {"judge": judge}})


def why(admitted: Admission) -> dict[str, tuple[str, str]]:
    return {row.source: (row.filter, row.reason) for row in admitted.dropped()}


def sources(rows: Any) -> list[str]:
    return [row.source for row in rows]


def test_a_repetition_names_what_it_repeats(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", "one", "two", "one", {"prompt": "three", "source": "mine"}, "three", "one")
    admitted = admit(asking(path))
    assert sources(admitted.sampled()) == ["p.jsonl:1", "p.jsonl:2", "mine"]
    assert why(admitted) == {
        "p.jsonl:3": ("duplicate", "the same messages as p.jsonl:1"),
        "p.jsonl:5": ("duplicate", "the same messages as mine"),
        "p.jsonl:6": ("duplicate", "the same messages as p.jsonl:1"),
    }
    assert admitted.counts == {
        **{"read": 6, "prompts": 3, "held_out": 0},
        **{"duplicates": 3, "near_duplicates": 0, "contaminated": 0},
    }


def test_a_near_duplicate_names_its_twin_and_how_like_it_is(tmp_path: Path) -> None:
    changed = LONG.replace(" w30 ", " other ")  # 5 of 56 shingles are others: 51 in common, 61 in all
    path = write(tmp_path / "p.jsonl", "something else", LONG, changed, LONG.upper() + "!")
    admitted = admit(asking(path))
    assert sources(admitted.sampled()) == ["p.jsonl:1", "p.jsonl:2"]
    assert why(admitted) == {
        "p.jsonl:3": ("near_duplicate", f"{51 / 61:.2f} like p.jsonl:2"),
        "p.jsonl:4": ("near_duplicate", "1.00 like p.jsonl:2"),
    }
    assert sources(admit(asking(path, near_duplicates=0.85)).sampled()) == ["p.jsonl:1", "p.jsonl:2", "p.jsonl:3"]
    assert sources(admit(asking(path, near_duplicates=1)).sampled()) == [f"p.jsonl:{at}" for at in (1, 2, 3, 4)]


def chat(system: str | None, text: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "system", "content": system}] if system else []
    return {"messages": [*turns, {"role": "user", "content": text}], **more}


def test_a_shared_system_prompt_makes_no_two_prompts_alike(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", chat(LONG, "name a river"), chat(LONG, "name a hill"), chat(LONG, "Name a river!"))
    assert why(admit(asking(path))) == {"p.jsonl:3": ("near_duplicate", "1.00 like p.jsonl:1")}


def test_another_system_prompt_other_tools_or_variables_make_another_prompt(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    asked = [chat(None, LONG), chat("be brief", LONG), chat("be long", LONG + "!"), chat(None, LONG, tools=[tool])]
    asked.append(chat(None, LONG, chat_template_kwargs={"enable_thinking": False}))
    path = write(tmp_path / "p.jsonl", *asked, chat("be long", LONG))
    assert why(admit(asking(path))) == {"p.jsonl:6": ("near_duplicate", "1.00 like p.jsonl:3")}


def test_what_an_evaluation_set_holds_is_dropped_from_both_shares(tmp_path: Path) -> None:
    questions = [" ".join(WORDS[at : at + 16]) for at in range(0, 160, 16)]
    exam = write(tmp_path / "exam.jsonl", "short one", *questions)
    tainted = [f"Please answer: {question}" for question in questions]
    half = " ".join(WORDS[:13]) + " and then"  # 6 of the first question's 9 n-grams
    clean = [f"clean question {at} of mine about {at * 7}" for at in range(40)]
    path = write(
        tmp_path / "p.jsonl", *clean, *tainted, half, f"{half} but 4 of its n-grams".replace("w4", "x"), "Oh, short one!"
    )
    admitted = admit(asking(path, holdout=0.3, decontaminate={"against": [exam]}))
    told = why(admitted)
    assert told["p.jsonl:41"] == ("contaminated", f"holds 1.00 of the 8-grams of {exam}, line 2")
    assert told["p.jsonl:51"] == ("contaminated", f"holds 0.67 of the 8-grams of {exam}, line 2")
    assert told["p.jsonl:53"] == ("contaminated", f"holds 1.00 of the 8-grams of {exam}, line 1")
    assert len(told) == 12 == admitted.counts["contaminated"] and "p.jsonl:52" not in told
    assert not set(told) & {*sources(admitted.sampled()), *sources(admitted.held_out())}
    assert admitted.counts["held_out"] > 3
    assert admit(asking(path)).counts["contaminated"] == 0


def test_a_twin_of_what_is_dropped_stays_and_is_the_one_that_is_named(tmp_path: Path) -> None:
    """What a reason names as the other prompt is one that a run has."""
    exam = write(tmp_path / "exam.jsonl", "w0 w1 w2")
    others = [LONG.replace("w1 ", "x "), LONG.replace("w1 ", "x ").replace("w59", "y")]
    admitted = admit(asking(write(tmp_path / "p.jsonl", LONG, *others), decontaminate={"against": [exam]}))
    assert {source: told for source, (told, _) in why(admitted).items()} == {
        "p.jsonl:1": "contaminated",
        "p.jsonl:3": "near_duplicate",
    }
    assert why(admitted)["p.jsonl:3"][1].endswith("like p.jsonl:2")


def shingles(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))}


texts = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 3)).map(
        lambda one: " ".join([*WORDS[one[0] * 20 : one[0] * 20 + 30], *["tail"] * one[1]])
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=25)
@given(texts, st.sampled_from([0.0, 0.3]))
def test_every_prompt_is_sampled_held_out_or_dropped(
    tmp_path_factory: pytest.TempPathFactory, made: list[str], holdout: float
) -> None:
    path = write(tmp_path_factory.mktemp("p") / "p.jsonl", *made, "always there")
    recipe = asking(path, holdout=holdout)
    try:
        admitted = admit(recipe)
    except EmptyStage:
        return
    dropped = list(admitted.dropped())
    staying = {row.source: row for row in [*admitted.sampled(), *admitted.held_out()]}
    fates = [*staying, *sources(dropped)]
    assert sorted(fates) == sorted(sources(read_prompts(recipe.prompts))) and len(fates) == admitted.counts["read"]
    assert admitted.counts["read"] == sum(count for name, count in admitted.counts.items() if name != "read")
    for row in dropped:
        twin = staying.get(row.reason.rsplit(" ", 1)[1])
        if row.filter == "duplicate":
            continue
        assert row.filter == "near_duplicate" and twin is not None and int(twin.source[8:]) < int(row.source[8:])
        mine, others = (shingles(one.prompt[0]["content"]) for one in (row, twin))
        alike = len(mine & others) / len(mine | others)
        assert alike >= 0.8 and row.reason.startswith(f"{alike:.2f} like")


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """A prompts file that holds some of everything."""
    clean = [f"question {at} about the number {at * 31} and its neighbour" for at in range(60)]
    asked = [*clean, *clean[:3], LONG, LONG + " end", "the exam asks for this very thing, word by word"]
    return write(tmp_path / "p.jsonl", *asked)


def test_all_stages_see_the_same_prompts(tmp_path: Path, mixed: str) -> None:
    exam = write(tmp_path / "exam.jsonl", "the exam asks for this very thing")
    recipe, run = asking(mixed, holdout=0.2, decontaminate={"against": [exam]}), RunDir(tmp_path / "run")
    planned, told = count(recipe, run), plan(recipe, run)
    pipeline.run(recipe, run)
    stage = run.stage("sample")
    manifest = stage.require()
    assert planned["read"] == 66 and (planned["duplicates"], planned["near_duplicates"], planned["contaminated"]) == (3, 1, 1)
    assert {key: manifest[key] for key in admit(recipe).counts} == {key: planned[key] for key in admit(recipe).counts}
    assert re.search(
        rf"prompts +{manifest['prompts']} \(\d+ more held out, 3 repeated, 1 near-duplicates, 1 contaminated\)", told
    )
    assert list(stage.column("prompt_id")) == [row.prompt_id for row in admit(recipe).sampled()]
    assert list(stage.rows(Prompt, "held_out.parquet")) == list(admit(recipe).held_out())
    assert list(stage.rows(DroppedPrompt, "dropped.parquet")) == list(admit(recipe).dropped())
    steps = {step.name: step.count for step in facts.funnel(run)}
    assert (steps["read"], steps["duplicate"], steps["near_duplicate"], steps["contaminated"]) == (66, 3, 1, 1)


def test_an_evaluation_set_is_part_of_what_a_run_stands_on(tmp_path: Path, mixed: str) -> None:
    exam = tmp_path / "exam.jsonl"
    write(exam, "the exam asks for this very thing")
    recipe, run = asking(mixed, decontaminate={"against": [str(exam)]}), RunDir(tmp_path / "run")
    pipeline.run_stage("sample", recipe, run, lambda *_: None)
    write(exam, "it asks for something else")
    with pytest.raises(StaleRun, match=rf"inputs\.evaluation\.{exam} was"):
        pipeline.run_stage("sample", recipe, run, lambda *_: None)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No evaluation set at"),
        ("", "No text in the evaluation set"),
        ("{", "line 1 is not JSON"),
        ("{}", "no prompt in"),
    ],
    ids=["missing", "empty", "not JSON", "no text"],
)
def test_a_bad_evaluation_set_is_met_before_an_engine_starts(
    tmp_path: Path, mixed: str, content: str | None, told: str
) -> None:
    exam = tmp_path / "exam.jsonl"
    if content is not None:
        exam.write_text(content)
    nobody = {"type": "server", "base_url": "http://127.0.0.1:9/v1", "model": "m", "retries": 0}
    made = asking(mixed, decontaminate={"against": [str(exam)]}).model_dump(mode="json")
    recipe = parse({**made, "sample": {"engine": nobody}})
    with pytest.raises(InputError, match=told) as error:
        pipeline.run_stage("sample", recipe, RunDir(tmp_path / "run"), lambda *_: None)
    assert "\n" not in str(error.value) and str(exam) in str(error.value)


def test_no_prompt_left_says_what_dropped_them(tmp_path: Path) -> None:
    exam = write(tmp_path / "exam.jsonl", "one two", "three four")
    path = write(tmp_path / "p.jsonl", "one two", "one two", "oh three four")
    with pytest.raises(EmptyStage, match=r"p\.jsonl: 3 read \(1 duplicates, 2 contaminated\)\. Check"):
        admit(asking(path, decontaminate={"against": [exam]}))
    with pytest.raises(EmptyStage, match=r"p\.jsonl: 0 read\. Check"):
        admit(asking(write(tmp_path / "p.jsonl")))


def test_the_shipped_demo_loses_no_prompt() -> None:
    """Its prompts are made from templates: at 0.8 as much as 115 of 733 would be too like another."""
    recipe = load("flows/recipes/demo.toml")
    counts = admit(recipe).counts
    assert counts["read"] == 733 == counts["prompts"] + counts["held_out"]
    assert load("flows/recipes/smollm2.toml").prompts == recipe.prompts


def test_a_prompt_of_a_megabyte_goes_through(tmp_path: Path) -> None:
    huge = " ".join(f"word{at}" for at in range(110_000))
    path = write(tmp_path / "p.jsonl", huge, huge + " end", *(f"question {at} about {at} rivers" for at in range(6)))
    assert len(huge) > 1_000_000
    run = RunDir(tmp_path / "run")
    pipeline.run(asking(path), run)
    assert why(admit(asking(path))) == {"p.jsonl:2": ("near_duplicate", "1.00 like p.jsonl:1")}
    assert huge in [row.prompt[0]["content"] for row in run.stage("sample").rows(Sample)]
    assert list(run.stage("pair").rows(PreferencePair, "train.parquet"))


TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": 1}}}


@pytest.mark.parametrize(
    ("record", "tools"),
    [
        (chat(None, "plain"), False),
        (chat(None, "with tools", tools=[TOOL]), True),
        (
            {
                "messages": [
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": "", "tool_calls": [CALL]},
                    {"role": "tool", "content": "42"},
                ]
            },
            True,
        ),
    ],
    ids=["plain", "tools", "calls"],
)
def test_a_run_knows_whether_it_has_tools(
    tmp_path: Path, record: dict[str, Any], tools: bool, prompts: Callable[[int], str]
) -> None:
    path = write(tmp_path / "p.jsonl", record, "another one")
    run = RunDir(tmp_path / "run")
    manifest = pipeline.run_stage("sample", asking(path), run, lambda *_: None)
    assert manifest["tools"] is tools
    kept = {row.source: row for row in run.stage("sample").rows(Sample)}
    assert kept["p.jsonl:1"].tools == record.get("tools") and kept["p.jsonl:1"].prompt == record["messages"]


@pytest.mark.skipif(not SHARED.exists(), reason=f"real data is not here: {SHARED}")
def test_real_text_loses_what_repeats_and_little_else() -> None:
    exam = str(SHARED / "mt_bench_question.jsonl")
    alpaca = admit(asking(str(SHARED / "alpaca_en_demo.json"), decontaminate={"against": [exam]}))
    assert (alpaca.counts["read"], alpaca.counts["duplicates"]) == (999, 14)
    assert alpaca.counts["near_duplicates"] + alpaca.counts["contaminated"] < 10
    itself = admit(asking(exam, decontaminate={"against": [str(SHARED / "alpaca_en_demo.json")]}))
    assert itself.counts["read"] == 80
    with pytest.raises(EmptyStage, match="80 contaminated"):
        admit(asking(exam, decontaminate={"against": [exam]}))
