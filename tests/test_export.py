"""A run leaves in another program's format: what fits is read again unchanged, what does not is kept with its reason."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dpo_data.cli import main
from dpo_data.errors import EmptyStage, InputError, NotReady
from dpo_data.export import export
from dpo_data.formats import FORMATS
from dpo_data.formats.format import Group
from dpo_data.formats.prompts import Prompts, evaluation_texts, read_given, read_prompts
from dpo_data.formats.shapes import Answer
from dpo_data.rows import Completion, Message, PreferencePair, Prompt, Ranking, Sample, answered, completion_ids, prompt_id
from dpo_data.rundir import RunDir
from dpo_data.tables import schema_of, to_table

DATA = Path(__file__).parents[2] / "shared" / "data"
Given = list[tuple[Prompt, list[Answer]]]
PAIRED = [name for name, format in FORMATS.items() if format.of is PreferencePair]
RANKED = [name for name, format in FORMATS.items() if format.of is Group]
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"real data is not here: {DATA}")


def given_of(path: Path) -> Given:
    return list(read_given(Prompts(path=str(path))))


def a_run(folder: Path, given: Given, test: int = 1, ranked: bool = True) -> RunDir:
    """A finished run in which these answers were sampled and judged, the first of them the better one; its last `test` prompts
    are the test's."""
    run = RunDir(folder)
    samples, rankings, pairs = zip(*(_rows(prompt, answers, ranked) for prompt, answers in given), strict=True)
    tools = any(pair.tools or "tool_calls" in pair.chosen[0] or "tool_calls" in pair.rejected[0] for pair in pairs)
    columns = {"tools": tools, "chat_template_kwargs": any(pair.chat_template_kwargs for pair in pairs)}
    cut = len(pairs) - test
    for name, rows, kind in (("sample", samples, Sample), ("rank", rankings, Ranking)):
        stage = run.stage(name).open({}, {})
        for index in range(0, len(rows), 100):
            stage.write(stage.shard(index // 100).name, [row for row in rows[index : index + 100] if row], kind)
        stage.finish()
    stage = run.stage("pair").open({}, {})
    schema = schema_of(PreferencePair, **columns)
    with stage.writers({f"{part}.parquet": schema for part in ("train", "test")}) as append:
        for part, rows in (("train", pairs[:cut]), ("test", pairs[cut:])):
            append[f"{part}.parquet"](to_table(rows, PreferencePair, schema))
    stage.finish()
    return run


def _rows(prompt: Prompt, answers: list[Answer], ranked: bool) -> tuple[Sample, Ranking | None, PreferencePair]:
    ids = completion_ids(prompt.prompt_id, "m", {}, len(answers))
    completions = [
        Completion(id, at, one.text, one.finish_reason, one.n_tokens, None, one.model, one.tool_calls)
        for at, (id, one) in enumerate(zip(ids, answers, strict=True))
    ]
    scores = [one.score for one in answers]
    sides = [_turn(answers[0]), _turn(answers[-1])]
    pair = PreferencePair(
        prompt_id=prompt.prompt_id, prompt=prompt.prompt, chosen=[sides[0]], rejected=[sides[1]], chosen_id=ids[0],
        rejected_id=ids[-1], score_chosen=scores[0] or 0.0, score_rejected=scores[-1] or 0.0, margin=1.0,
        n_tokens_chosen=None, n_tokens_rejected=None, judge="j", model_chosen="m", model_rejected="m", source=prompt.source,
        flags=[], tools=prompt.tools, chat_template_kwargs=prompt.chat_template_kwargs,
    )  # fmt: skip
    ranking = Ranking(prompt.prompt_id, "j", ids, scores, None, "[]") if ranked else None
    return answered(prompt, completions), ranking, pair


def _turn(answer: Answer) -> Message:
    calls = {"tool_calls": answer.tool_calls} if answer.tool_calls else {}
    return {"role": "assistant", "content": answer.text, **calls}


def content(given: Given) -> list[tuple[Any, ...]]:
    """All of prompts and answers that every format carries."""
    return [(p.prompt_id, p.prompt, p.tools, [(a.text, a.score, a.tool_calls) for a in answers]) for p, answers in given]


def a_given(messages: list[Message], *texts: str) -> tuple[Prompt, list[Answer]]:
    scores = [1.0 - at / (len(texts) - 1) for at in range(len(texts))]
    answers = [Answer(text, "m", score, "stop", 2) for text, score in zip(texts, scores, strict=True)]
    return Prompt(prompt_id(messages), messages, "s:1"), answers


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


SMALL = [a_given(user(f"question {at}"), f"good {at}", f"middle {at}", f"bad {at}") for at in range(5)]


@pytest.mark.parametrize("name", PAIRED)
def test_pairs_come_back_from_each_format(tmp_path: Path, name: str) -> None:
    run = a_run(tmp_path / "run", SMALL)
    parts = export(run, name, tmp_path / "out")
    per_pair = 2 if name == "kto" else 1
    assert [(part.path.stem, part.records, part.left_out) for part in parts] == [
        ("train", 4 * per_pair, {}),
        ("test", per_pair, {}),
    ]
    names = {"train", "test"} | ({"dataset_info"} if name == "llamafactory" else set())
    assert {path.stem for path in (tmp_path / "out").iterdir()} == names
    found = given_of(parts[0].path) + given_of(parts[1].path)
    assert content(found) == content([(prompt, [answers[0], answers[-1]]) for prompt, answers in SMALL])


@pytest.mark.parametrize("name", RANKED)
def test_all_answers_come_back_from_each_format(tmp_path: Path, name: str) -> None:
    parts = export(a_run(tmp_path / "run", SMALL), name, tmp_path / "out")
    assert [(part.path.stem, part.records) for part in parts] == [("train", 4), ("test", 1)]
    found = given_of(parts[0].path) + given_of(parts[1].path)
    if name == "text":
        assert [(p.prompt, [a.text for a in answers]) for p, answers in found] == [
            (p.prompt, [a.text for a in answers]) for p, answers in SMALL
        ]
    else:
        assert content(found) == content(SMALL)
        assert [answers for _, answers in found] == [answers for _, answers in SMALL]


def test_what_does_not_fit_is_kept_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = [
        a_given(user("so \n\nAssistant: what"), "a", "b"),
        a_given([{"role": "system", "content": "s"}, *user("q")], "a", "b"),
    ]
    run = a_run(tmp_path / "run", [*odd, *SMALL])
    assert main(["export", str(run.path), "--format", "hh", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/out/train.jsonl: 4 records",
        "  left out 1: a text holds the format's own marker, kept in train.left-out.jsonl",
        "  left out 1: the format has no place for a turn of the system, kept in train.left-out.jsonl",
        f"{tmp_path}/out/test.jsonl: 1 records",
    ]
    kept = [json.loads(line) for line in (tmp_path / "out" / "train.left-out.jsonl").read_text().splitlines()]
    assert [(one["reason"], one["row"]["prompt_id"]) for one in kept] == [
        ("a text holds the format's own marker", odd[0][0].prompt_id),
        ("the format has no place for a turn of the system", odd[1][0].prompt_id),
    ]
    assert not (tmp_path / "out" / "test.left-out.jsonl").exists()


def test_an_export_that_would_be_empty_is_none(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", [a_given([{"role": "system", "content": "s"}, *user("q")], "a", "b")], test=0)
    with pytest.raises(EmptyStage, match="fits hh: the format has no place for a turn of the system"):
        export(run, "hh", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_part_without_rows_is_no_file(tmp_path: Path) -> None:
    export(a_run(tmp_path / "run", SMALL, test=0), "llamafactory", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train.jsonl", "dataset_info.json"}
    assert json.loads((tmp_path / "out" / "dataset_info.json").read_text()).keys() == {"train"}


def test_what_is_asked_wrong_is_said(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", SMALL)
    with pytest.raises(InputError, match=r"No format 'trk'\. Known: trl, llamafactory, axolotl, .*text\."):
        export(run, "trk", tmp_path / "out")
    with pytest.raises(NotReady, match="3-pair is not complete"):
        export(RunDir(tmp_path / "none"), "trl", tmp_path / "out")
    export(run, "trl", tmp_path / "out")
    before = (tmp_path / "out" / "train.parquet").read_bytes()
    with pytest.raises(InputError, match="out is there already"):
        export(run, "kto", tmp_path / "out")
    assert (tmp_path / "out" / "train.parquet").read_bytes() == before


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", SMALL)
    path = run.stage("pair").path / "test.parquet"
    path.write_bytes(data := b"x" * path.stat().st_size)
    manifest = run.stage("pair").path / "manifest.json"
    told = json.loads(manifest.read_text())
    next(file for file in told["files"] if file["name"] == path.name)["sha256"] = hashlib.sha256(data).hexdigest()
    manifest.write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"test\.parquet cannot be read"):
        export(run, "trl", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_trl_gets_its_columns_and_tools_where_there_are_some(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    tools = [{"type": "function", "function": {"name": "add"}}]
    prompt = Prompt(prompt_id(user("q"), tools), user("q"), "s:1", tools)
    called = [Answer("", "m", 1.0, tool_calls=[call]), Answer("no", "m", 0.0)]
    columns = ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]
    export(a_run(tmp_path / "plain", SMALL), "trl", tmp_path / "out")
    export(a_run(tmp_path / "tools", [*SMALL, (prompt, called)]), "trl", tmp_path / "called")
    assert pq.read_schema(tmp_path / "out" / "train.parquet").names == columns
    assert pq.read_schema(tmp_path / "called" / "train.parquet").names == [*columns, "tools"]
    assert content(given_of(tmp_path / "called" / "test.parquet")) == content([(prompt, called)])


def test_variables_of_the_chat_template_go_where_there_is_a_place_for_them(tmp_path: Path) -> None:
    from datasets import load_dataset

    kwargs = {"enable_thinking": False}
    prompt = Prompt(prompt_id(user("q"), None, kwargs), user("q"), "s:1", chat_template_kwargs=kwargs)
    run = a_run(tmp_path / "run", [*SMALL, (prompt, [Answer("yes", "m", 1.0), Answer("no", "m", 0.0)])], test=0)
    left_out = {name: export(run, name, tmp_path / name)[0].left_out for name in FORMATS}
    reason = {"the format has no place for chat_template_kwargs": 1}
    assert {name for name, left in left_out.items() if left == reason} == {
        "axolotl",
        "llamafactory",
        "openrlhf",
        "nemo_rl",
        "kto",
    }
    assert {name for name, left in left_out.items() if not left} == {"trl", "hh", "ultrafeedback", "text"}
    file = str(tmp_path / "trl" / "train.parquet")
    rows = load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["chat_template_kwargs"][:] == [{}] * 5 + [kwargs]
    assert given_of(Path(file))[-1][0] == replace(prompt, source="train.parquet:6")
    assert [one.chat_template_kwargs for one, _ in given_of(run.stage("sample").shard(0))] == [None] * 5 + [kwargs]


def test_kto_keeps_tools_and_calls_and_datasets_reads_them_as_they_are(tmp_path: Path) -> None:
    from datasets import load_dataset

    call = {"type": "function", "function": {"name": "add", "arguments": {"a": [1, None]}}}
    tools = [{"type": "function", "function": {"name": "add"}}]
    prompt = Prompt(prompt_id(user("q"), tools), user("q"), "s:1", tools)
    called = [Answer("", "m", 1.0, tool_calls=[call]), Answer("no", "m", 0.0)]
    parts = export(a_run(tmp_path / "tools", [*SMALL, (prompt, called)], test=0), "kto", tmp_path / "out")
    assert not any(part.left_out for part in parts)
    assert content([(prompt, called)])[0] in content(given_of(tmp_path / "out" / "train.jsonl"))
    file = str(tmp_path / "out" / "train.jsonl")
    rows = load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    (row,) = (row for row in rows if row["tools"] and row["label"])
    assert json.loads(row["tools"]) == tools
    assert row["completion"] == [{"role": "assistant", "content": "", "tool_calls": [call]}]


def test_a_runs_own_files_are_prompts_with_answers(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", SMALL)
    pairs = [(prompt, [answers[0], answers[-1]]) for prompt, answers in SMALL]
    assert content(given_of(run.stage("pair").path / "train.parquet")) == content(pairs[:4])
    sampled = given_of(run.stage("sample").shard(0))
    assert [(p.prompt_id, [a.text for a in answers]) for p, answers in sampled] == [
        (p.prompt_id, [a.text for a in answers]) for p, answers in SMALL
    ]


@real
@pytest.mark.parametrize("file", ["dpo_en_demo.json", "dpo_zh_demo.json"])
def test_real_pairs_come_back_unchanged_from_every_format(tmp_path: Path, file: str) -> None:
    given = given_of(DATA / file)
    records = json.loads((DATA / file).read_text(encoding="utf-8"))
    assert sum(len(answers) for _, answers in given) == 2 * len(records) == 600
    single = [(prompt, answers) for prompt, answers in given if len(answers) == 2]
    run = a_run(tmp_path / "run", single, test=30)
    for name, format in FORMATS.items():
        parts = export(run, name, tmp_path / name)
        found = [one for part in parts for one in given_of(part.path)]
        left_out = sum(sum(part.left_out.values()) for part in parts)
        assert len(found) + left_out == len(single)
        assert left_out == 0 or name in ("hh", "ultrafeedback", "llamafactory")
        wanted = {prompt.prompt_id: (prompt, answers) for prompt, answers in single}
        for one in found:
            prompt, answers = wanted[one[0].prompt_id]
            expected = [(a.text, a.tool_calls) for a in answers]
            assert (one[0].prompt, [(a.text, a.tool_calls) for a in one[1]]) == (prompt.prompt, expected)
            assert [a.score for a in one[1]] == ([None, None] if name == "text" else [1.0, 0.0])
        assert all(not part.left_out or (part.path.parent / f"{part.path.stem}.left-out.jsonl").exists() for part in parts), (
            format
        )


@real
def test_real_prompts_and_evaluation_sets_are_read_whole() -> None:
    assert len(list(read_prompts(Prompts(path=str(DATA / "alpaca_en_demo.json"))))) == 999
    texts = list(evaluation_texts(str(DATA / "mt_bench_question.jsonl")))
    records = [json.loads(line) for line in (DATA / "mt_bench_question.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [text for _, text in texts] == [turn for record in records for turn in record["turns"]]
    assert len(texts) == 160
