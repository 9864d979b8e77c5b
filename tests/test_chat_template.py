"""A chat template of one's own, and the variables that prompts give it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_data import chat_template, pipeline
from dpo_data.config import parse
from dpo_data.engines.echo import Echo, EchoEngine
from dpo_data.engines.vllm import Vllm
from dpo_data.errors import InputError, StaleRun, TemplateError
from dpo_data.formats.prompts import Prompts, read_prompts
from dpo_data.judges.listwise import Listwise
from dpo_data.judges.pairwise import Pairwise
from dpo_data.judges.rubric import Rubric
from dpo_data.rows import Prompt, content_id, prompt_id
from dpo_data.rundir import RunDir
from dpo_data.sample import inputs, sample

OWN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
QWEN = (
    "{%- for m in messages %}{%- if loop.index > 9 %}{%- break %}{%- endif %}{{ m.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{% generation %}{{ '<think>' if enable_thinking else '' }}{% endgeneration %}{%- endif %}"
)


@pytest.mark.parametrize("text", [OWN, QWEN], ids=["plain", "with all that transformers knows"])
def test_a_template_is_known_by_its_content(tmp_path: Path, text: str, tiny_model: str) -> None:
    from transformers import AutoTokenizer

    file = tmp_path / "own.jinja"
    file.write_text(text, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = text
    tokenizer.apply_chat_template([{"role": "user", "content": "?"}], add_generation_prompt=True)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert chat_template.read(str(file)) == text
    assert chat_template.digest(str(file)) == content_id(AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template)
    assert chat_template.digest(None) is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No chat template at .*own.jinja. Name a Jinja file, or leave it out"),
        (b"\xff{{ messages }}", "own.jinja is not UTF-8"),
        (b"a\n{% for m in messages %}", r"own.jinja, line 2: Unexpected end of template.*Mend"),
        (b"Answer well.", "own.jinja shows no `messages`, so it is no chat template"),
    ],
    ids=["missing", "no text", "no Jinja", "no chat template"],
)
def test_what_is_no_chat_template_is_refused(tmp_path: Path, content: bytes | None, told: str) -> None:
    file = tmp_path / "own.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TemplateError, match=told) as caught:
        chat_template.of(Vllm(model="m", chat_template=str(file)))
    assert "\n" not in str(caught.value)


def test_it_decides_what_is_sampled_and_how_is_judged(tmp_path: Path, tiny_model: str) -> None:
    file = tmp_path / "own.jinja"
    engine = {"type": "vllm", "model": tiny_model, "chat_template": str(file)}
    tables: dict[str, Any] = {"name": "t", "prompts": {"path": "p"}, "rank": {"judge": {"type": "rule", "rule": "concise"}}}
    judges = [table(engine=Vllm(**engine)) for table in (Listwise, Pairwise, Rubric)]
    seen = []
    for text in (OWN, OWN + "!"):
        file.write_text(text)
        mix = [{"type": "echo"}, engine]
        read = [
            inputs(parse({**tables, "sample": {"engine": one}}), RunDir(tmp_path))
            for one in (engine, {"type": "mix", "engines": mix})
        ]
        seen.append([one["chat_template"] for one in read] + [judge.inputs()["judge_chat_template"] for judge in judges])
        assert seen[-1] == [content_id(text), [None, content_id(text)], *[content_id(text)] * 3]
    assert inputs(parse({**tables, "sample": {"engine": {"type": "echo"}}}), RunDir(tmp_path))["chat_template"] is None


def written(path: Path, *records: dict[str, Any]) -> list[Prompt]:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(records)), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(read_prompts(Prompts(path=str(path))))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_record_brings_variables_of_the_chat_template(tmp_path: Path, suffix: str) -> None:
    given: list[Any] = [{"enable_thinking": False}, {"style": "short"}, None]
    rows = written(tmp_path / f"p{suffix}", *({"prompt": "Hi", "chat_template_kwargs": one} for one in given))
    assert [row.chat_template_kwargs for row in rows] == given, "of null is not there, as Parquet has it for other rows' keys"
    turns = [{"role": "user", "content": "Hi"}]
    assert [row.prompt_id for row in rows] == [prompt_id(turns, None, one) for one in given]
    assert rows[2].prompt_id == prompt_id(turns)
    texts = [{"prompt": "Hi", "chat_template_kwargs": json.dumps(one)} for one in given]
    assert written(tmp_path / f"again{suffix}", *texts) == [
        Prompt(row.prompt_id, row.prompt, f"again{suffix}:{at}", None, None, row.chat_template_kwargs)
        for at, row in enumerate(rows, 1)
    ]


def test_the_recipes_variables_are_for_every_prompt_and_a_records_own_go_before(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    written(path, {"prompt": "a"}, {"prompt": "b", "chat_template_kwargs": {"enable_thinking": True, "style": "short"}})
    rows = list(read_prompts(Prompts(path=str(path), chat_template_kwargs={"enable_thinking": False})))
    assert [row.chat_template_kwargs for row in rows] == [
        {"enable_thinking": False},
        {"enable_thinking": True, "style": "short"},
    ]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([1], r"is \[1\], not an object"),
        ("fast", "is not JSON"),
        ({"tokenize": False}, "sets 'tokenize', which is no variable of a chat template"),
        ({"a": float("nan")}, "is not JSON"),
    ],
)
def test_what_are_no_variables_is_refused(tmp_path: Path, value: Any, told: str) -> None:
    with pytest.raises(InputError, match=rf"p\.jsonl, line 2: chat_template_kwargs {told}"):
        written(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b", "chat_template_kwargs": value})
    if isinstance(value, dict):
        with pytest.raises(InputError, match=f"prompts.chat_template_kwargs in the recipe {told}"):
            Prompts(path="p", chat_template_kwargs=value)


POLICY = {
    "revision": "r",
    "adapter": None,
    "dtype": "float32",
    "quantization": None,
    "template": "t",
    "logprobs": "raw_logprobs",
}


def test_a_run_tells_how_its_log_probs_came_about(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Echo here says of itself what vLLM says; test_vllm has vLLM say it."""
    engines = EchoEngine()
    monkeypatch.setattr(Echo, "build", lambda self: engines)
    run, stage = RunDir(tmp_path / "run"), RunDir(tmp_path / "run").stage("sample")
    assert sample(recipe(), run, lambda *_: None)["policy"] is None
    for told, wanted in ((POLICY, None), ({**POLICY, "dtype": "bfloat16"}, None)):
        engines.policy = told  # type: ignore[attr-defined]
        for name in ("manifest.json", "00001.parquet"):
            (stage.path / name).unlink()
        assert sample(recipe(), run, lambda *_: None)["policy"] is wanted, "the shards differ in it"
    for path in [*stage.shards(), stage.path / "manifest.json"]:
        path.unlink()
    assert sample(recipe(), run, lambda *_: None)["policy"] == {**POLICY, "dtype": "bfloat16"}


def test_variables_reach_the_pairs_and_the_held_out_prompts(recipe: Any, tmp_path: Path) -> None:
    path, kwargs = tmp_path / "p.jsonl", {"enable_thinking": False}
    asked = [{"prompt": f"Question {at} about {at * 7} rivers and hills"} for at in range(30)]
    written(path, *({**one, "chat_template_kwargs": kwargs if at % 2 else None} for at, one in enumerate(asked)))
    made, run = recipe(prompts={"path": str(path), "holdout": 0.3}), RunDir(tmp_path / "run")
    pipeline.run(made, run)
    ours = {row.prompt_id for row in read_prompts(made.prompts) if row.chat_template_kwargs}
    stages = {name: run.stage(name).require() for name in ("sample", "pair")}
    assert all(manifest["chat_template_kwargs"] and not manifest["tools"] for manifest in stages.values())
    for name, part in (("sample", "held_out.parquet"), ("sample", "00000.parquet"), ("pair", "train.parquet")):
        rows = pq.read_table(run.stage(name).path / part).to_pylist()
        found = {row["prompt_id"]: json.loads(row["chat_template_kwargs"] or "{}") for row in rows}
        assert found == {id: kwargs if id in ours else {} for id in found} and ours & found.keys() and found.keys() - ours


def test_other_variables_make_other_samples(recipe: Any, tmp_path: Path, prompts: Any) -> None:
    run = RunDir(tmp_path / "run")
    sample(recipe(), run, lambda *_: None)
    other = recipe(prompts={"path": prompts(40), "chat_template_kwargs": {"enable_thinking": False}})
    with pytest.raises(StaleRun, match=r"prompts\.chat_template_kwargs"):
        sample(other, run, lambda *_: None)
