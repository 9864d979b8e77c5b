"""A stranger's recipe, data and run directory are data: they run no code, leave no folder, take no memory, and do nothing on a
page."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_report
import vulnerabilities
import yaml
from argilla_ui import chromium
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, Request

from dpo_data import cli, compare, dataset, pipeline, sums
from dpo_data.card.dataset import dataset_card
from dpo_data.config import Recipe, Train, dump, load, parse
from dpo_data.errors import DpoDataError, InputError, RecipeError, TemplateError
from dpo_data.export import export
from dpo_data.files import read_rows, refuse_links
from dpo_data.formats import readers
from dpo_data.formats.prompts import Prompts, read_prompts
from dpo_data.functions import ALLOW, LOADS_CODE, OWN, find_function, loads_code
from dpo_data.judges.members import leaves
from dpo_data.judges.rewards import BUILT_IN
from dpo_data.lock import held
from dpo_data.report import report, rounds
from dpo_data.rounds import Round, Rounds
from dpo_data.rows import Sample
from dpo_data.rundir import RunDir
from dpo_data.share import SHIPPED
from dpo_data.status import status
from dpo_data.store import Store
from dpo_data.templates import load_template

Make = Callable[..., Recipe]
RECIPES = sorted((SHIPPED / "flows" / "recipes").glob("*.toml"))
RUN = lambda name, recipe, run: pipeline.run_stage(name, recipe, run, lambda *_: None)  # noqa: E731


@pytest.fixture
def nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a user's machine; conftest allows code for the tests' own rules."""
    monkeypatch.delenv(ALLOW)


# Code


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_allowed: None) -> Iterator[Path]:
    """The working folder: a stranger's, with a recipe and a module that leaves a file `ran` when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(ALLOW, "0")  # so that what --allow-code sets is taken back
    (tmp_path / "theirs.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\n"
        "def score(messages, text): return len(text)\ndef drop(pair): return None\n"
    )
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"Name {at} rivers"}) + "\n" for at in range(8)))
    yield tmp_path
    sys.modules.pop("theirs", None)


def recipe_of(rule: str = "concise", extra: str = "") -> str:
    return (
        'name = "theirs"\n[prompts]\npath = "p.jsonl"\n[sample]\nn = 4\nengine = { type = "echo" }\n'
        f'[rank.judge]\ntype = "rule"\nrule = "{rule}"\n{extra}'
    )


@pytest.mark.parametrize(
    ("rule", "extra"),
    [
        ("theirs:score", ""),
        ("concise", '[pair.filters.theirs]\ntype = "python"\nfunction = "theirs:drop"\n'),
    ],
)
def test_a_recipes_function_is_imported_only_when_that_is_allowed(
    stranger: Path, capsys: pytest.CaptureFixture[str], rule: str, extra: str
) -> None:
    (stranger / "recipe.toml").write_text(recipe_of(rule, extra))
    for command in ("run", "sample"):
        assert cli.main([command, "recipe.toml"]) == 2
        said = capsys.readouterr().err
        assert "theirs:" in said and "add --allow-code" in said and said.count("\n") == 1
    assert not (stranger / "ran").exists()
    assert cli.main(["run", "recipe.toml", "--allow-code"]) == 0
    assert (stranger / "ran").exists()


@pytest.mark.parametrize(
    "path",
    ["os:system", "builtins:eval", "dpo_data.judges.program:passes", "dpo_data.judges.rewards:unit_test", "theirs:score"],
)
def test_only_what_shipped_recipes_name_needs_no_permission(stranger: Path, path: str) -> None:
    with pytest.raises(RecipeError, match="is code, and this run is allowed none"):
        find_function(path, "rule")
    assert not (stranger / "ran").exists() and all(find_function(own, "rule") for own in OWN)
    assert str(stranger) not in sys.path, "nor is anything else looked for there"


def test_answers_are_not_run_as_programs_unless_that_is_allowed(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = recipe_of("unit_test", 'args = { tests = "assert True" }\n')
    (stranger / "recipe.toml").write_text(table)
    assert cli.main(["run", "recipe.toml"]) == 2
    assert "The rule 'unit_test' runs answers and their tests as code, and this run is allowed none." in capsys.readouterr().err


@pytest.mark.parametrize("rule", ["concise", *OWN])
def test_a_module_beside_the_recipe_takes_no_librarys_place(stranger: Path, rule: str) -> None:
    """Python would look for modules in the working folder first."""
    for name in ("uuid", "queue", "numpy", "jinja2", "sitecustomize", "pyarrow", "matplotlib"):
        (stranger / f"{name}.py").write_text("from pathlib import Path\nPath('ran').touch()\nraise SystemExit('taken over')\n")
    (stranger / "recipe.toml").write_text(recipe_of(rule).replace("p.jsonl", "prompts/demo.jsonl"))
    command = str(Path(sys.executable).parent / "dpo-data")
    done = subprocess.run([command, "run", "recipe.toml"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not (stranger / "ran").exists()


LOADING: list[dict[str, Any]] = [
    {"trust_remote_code": True},
    {"worker_cls": "theirs.Worker"},
    {"worker_extension_cls": "theirs.Worker"},
    {"scheduler_cls": "theirs.Scheduler"},
    {"logits_processors": ["theirs:Processor"]},
    {"reasoning_parser_plugin": "theirs.py"},
    {"structured_outputs_config": {"reasoning_parser_plugin": "theirs.py"}},
    {"kv_transfer_config": {"kv_connector_module_path": "theirs"}},
    {"compilation_config": {"backend": "theirs.compile"}},
    {"distributed_executor_backend": "theirs.Executor"},
    {"log_config_file": "theirs.json"},
    {"model_class_overrides": {"A": "theirs:A"}},
    {"loading_config": {"module_path": "theirs"}},
    {"inductor_config": {"inductor_passes": {"a": "theirs.change"}}},
    {"speculative_config": {"model": "theirs.Proposer", "num_speculative_tokens": 2}},
    {"speculative_config": {"method": "custom_class", "model": "theirs"}},
    {"model_init_kwargs": '{"trust_remote_code": true}'},
    {"twice_packed": ' {"a": [{"b": "{\\"worker_cls\\": \\"theirs.Worker\\"}"}]}'},
    {"too_deep_to_see": "[" * 200_000},
]


def engine(**args: Any) -> dict[str, Any]:
    return {"sample": {"engine": {"type": "vllm", "model": "m", "args": args}}}


@pytest.mark.parametrize("args", LOADING, ids=lambda args: next(iter(args)))
def test_arguments_by_which_a_library_imports_code_are_refused(
    recipe: Make, tmp_path: Path, nothing_allowed: None, args: dict[str, Any]
) -> None:
    made = recipe(8, **engine(**args))
    with pytest.raises(RecipeError, match=r"'sample\.engine\.args\..*' has code loaded, and this run is allowed none"):
        RUN("sample", made, RunDir(tmp_path / "run"))


@pytest.mark.parametrize(
    "tables",
    [
        {
            "rank": {
                "judge": {"type": "reward_model", "model": "m", "backend": "transformers", "args": {"trust_remote_code": True}}
            }
        },
        {"train": {"model": "m", "args": {"model_init_kwargs": {"attn_implementation": "kernels-community/flash-attn"}}}},
        {"train": {"model": "m", "processes": 2, "launch": ["theirs.py"]}},
        {
            "rank": {
                "judge": {
                    "type": "panel",
                    "judges": [
                        {"type": "rule", "rule": "concise"},
                        {"type": "pairwise", "engine": {"type": "vllm", "model": "m", "args": {"trust_remote_code": True}}},
                    ],
                }
            }
        },
    ],
)
def test_so_they_are_in_any_other_table(recipe: Make, tmp_path: Path, nothing_allowed: None, tables: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="this run is allowed none"):
        RUN("sample", recipe(8, **tables), RunDir(tmp_path / "run"))


def test_ordinary_arguments_need_no_permission() -> None:
    plain = {
        "dtype": "float32",
        "distributed_executor_backend": "mp",
        "attention_backend": "FLASH_ATTN",
        "trust_remote_code": False,
        "speculative_config": {"method": "eagle", "model": "org/draft-0.5"},
        "chat_template": "{% for turn in messages %}{{ turn.content }}{% endfor %}",
        "gradient_checkpointing_kwargs": '{"use_reentrant": false}',
    }
    assert not list(loads_code({**engine(**plain), "train": {"args": {"model_init_kwargs": {"attn_implementation": "sdpa"}}}}))


def test_every_engine_argument_of_vllm_that_names_code_is_known() -> None:
    """By their names, in the source of the version that is installed: one that comes with a new version is seen here."""
    from importlib.util import find_spec

    package = find_spec("vllm")
    if package is None or package.origin is None:
        pytest.skip("NO VLLM HERE")
    tree = ast.parse((Path(package.origin).parent / "engine" / "arg_utils.py").read_text())
    [arguments] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs"]
    names = {node.target.id for node in arguments.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    naming = {name for name in names if re.search(r"cls|class|plugin|processors$|remote_code|module|log_config", name)}
    assert {"worker_cls", "trust_remote_code"} <= naming
    assert {name for name in naming if not LOADS_CODE.fullmatch(name)} <= {"max_lora_cls_labels", "lora_target_modules"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_needs_no_permission(path: Path, nothing_allowed: None) -> None:
    made = load(path)
    assert not list(loads_code(made.model_dump()))
    assert made.train is None or made.train.launch == Train.model_fields["launch"].default
    rules = [judge.rule for _, judge in leaves(made.rank.judge, "rank.judge") if judge.type == "rule"]
    assert set(rules) <= (BUILT_IN.keys() | OWN) - {"unit_test"}
    assert "python" not in {getattr(table, "type", None) for table in made.pair.filters.values()}


# Judges' templates


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ prompt.__init__.__globals__ }}",
        "{{ prompt | attr('__class__') }}",
        "{{ prompt.format(prompt) }}",
        "{{ self._TemplateReference__context }}",
        "{{ self }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% include '/etc/passwd' %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ 'x' * 9999999999 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ prompt | center(9999999999) }}",
        "{{ '%09999999999d' % 1 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set x = prompt %}",
        "{% if prompt %}" * 200 + "{% endif %}" * 200,
        "{{ " + "(" * 5000 + "prompt" + ")" * 5000 + " }}",
    ],
    ids=lambda text: text[:30],
)
def test_a_judges_template_computes_nothing(tmp_path: Path, text: str) -> None:
    """It is refused when it is read, so nothing of it is ever worked out."""
    (tmp_path / "t.md").write_text("{{ prompt }}" + text)
    with pytest.raises(TemplateError, match=r"more than a prompt|too deep"):
        load_template(str(tmp_path / "t.md"), ("prompt",))


def test_a_judges_template_shows_what_it_is_given_as_text(tmp_path: Path) -> None:
    (tmp_path / "t.md").write_text("{% if n > 1 and not none %}{{ prompt }}{% else %}alone{% endif %}")
    template = load_template(str(tmp_path / "t.md"), ("prompt",), ("n", "none"))
    assert template.render(prompt="{{ 7 * 7 }}{% if x %}", n=2, none="") == "{{ 7 * 7 }}{% if x %}"


# Recipes


@given(data=st.data())
def test_any_text_is_a_recipe_or_is_refused_in_one_line(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    valid = dump(load(data.draw(st.sampled_from(RECIPES)))).encode()
    at = data.draw(st.integers(0, len(valid)))
    cut, put = (
        data.draw(st.integers(0, 8)),
        data.draw(st.binary(max_size=8) | st.sampled_from([b'"', b"[[", b"= {", b"1e999", b"\n"])),
    )
    refused_or_read(tmp_path_factory.getbasetemp(), valid[:at] + put + valid[at + cut :])


@pytest.mark.parametrize(
    "text",
    [
        b"name = " + b"[" * 100_000,
        b"name = " + b"[" * 300 + b"]" * 300,
        b"a." * 50_000 + b"b = 1",
        b"[" + b"a." * 5_000 + b"b]\nc = 1",
        b"seed = " + b"9" * 10_000,
        b"seed = 0x" + b"f" * 10_000,
        b'name = "' + b"n" * 2_000_000 + b'"',
        b'name = "' + b"n" * 100_000 + b'"',
        b"\xff\xfe",
        b"seed = 1979-05-27",
        b"\0",
    ],
    ids=lambda text: str(text[:12]),
)
def test_extreme_recipes_are_refused(tmp_path: Path, text: bytes) -> None:
    assert refused_or_read(tmp_path, text + b"\n") is None


@pytest.mark.parametrize("path", ["\0", "r" * 5_000 + ".toml", "", "~nobody-of-this-name/r.toml", "/dev/zero", "/"])
def test_what_is_no_file_is_no_recipe(path: str) -> None:
    with pytest.raises(RecipeError):
        load(path)


def refused_or_read(folder: Path, text: bytes) -> Recipe | None:
    (folder / "r.toml").write_bytes(text)
    try:
        return load(folder / "r.toml")
    except RecipeError as error:
        assert "\n" not in str(error) and len(str(error)) < 2_000
    return None


PASSWORD = "what-nobody-may-see-1234567890"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sample.engine.args.hf_token", PASSWORD),
        ("train.args.hub_token", PASSWORD),
        ("sample.params.extra.api_key", PASSWORD),
        ("rank.judge.engine.base_url", f"http://me:{PASSWORD}@host/v1"),
        ("prompts.path", f"s3://{PASSWORD}@bucket/p.jsonl"),
        ("train.args.run_name", "hf_abcdefghijklmnopqrstuvwx"),
        ("prompts.system", "Use sk-proj-abcdefghijklmnop0123 for that."),
        *(
            (f"sample.params.extra.{key}", PASSWORD)
            for key in (
                "aws_secret_access_key",
                "secret_access_key",
                "secret_key",
                "private_key",
                "passwd",
                "passphrase",
                "Authorization",
                "x-api-key",
                "api-key",
                "aws_session_token",
            )
        ),
        *(
            ("train.args.run_name", f"{start}{'Ab3dEf6h' * 3}")
            for start in (
                "sk-",
                "sk-ant-api03-",
                "sk-or-v1-",
                "sk-proj-Ab-Cd_",
                "gsk_",
                "xai-",
                "ghp_",
                "github_pat_11A_",
                "AIza",
                "AKIA",
            )
        ),
        ("sample.params.extra.note", "bearer Ab3dEf6hAb3dEf6h"),
        ("rank.judge.engine.base_url", "https://host/v1?api_key=abc"),
        ("password", PASSWORD),
    ],
)
def test_a_secret_in_a_recipe_is_refused_and_not_repeated(key: str, value: str) -> None:
    table: dict[str, Any] = {}
    at = table
    *path, last = key.split(".")
    for part in path:
        at = at.setdefault(part, {})
    at[last] = value
    with pytest.raises(RecipeError, match=f"'{re.escape(key)}' looks like a key") as error:
        parse(table)
    assert not re.search(f"{PASSWORD}|hf_abc|sk-proj|Ab3d", str(error.value))


def test_words_that_only_sound_like_a_secret_are_not(recipe: Make) -> None:
    engine = {"type": "server", "base_url": "http://host/v1", "model": "sk-learn-2", "key_env": "OPENAI_API_KEY"}
    recipe(
        8,
        sample={"engine": engine, "params": {"stop_token": "<|im_end|>", "max_tokens": 8}},
        prompts={
            "path": "wiki-sk-instructions-2024-cleaned.jsonl",
            "system": "Explain bearer authentication, and risk-averse-people.",
        },
        train={"model": "m", "args": {"pad_token": "</s>", "run_name": "HF_HUB_ENABLE_HF_TRANSFER"}},
    )


# Data


def test_a_small_parquet_file_that_holds_much_is_read_a_little_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of 256 KiB that 2,000 rows name: 500 MB, stored in some hundred bytes, and read as plain strings."""
    file = tmp_path / "p.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000, pa.int32()), pa.array(["x" * 2**18]))
    table = pa.table({"prompt": column})
    pq.write_table(table, file, compression="zstd", dictionary_pagesize_limit=2**22, store_schema=False)
    assert file.stat().st_size < 10_000
    monkeypatch.setattr(readers, "BATCH", 2**21)
    before = pa.total_allocated_bytes()
    found = read_prompts(Prompts(path=str(file)))
    assert len(next(found).prompt[0]["content"]) == 2**18
    assert pa.total_allocated_bytes() - before < 2**23
    found.close()  # type: ignore[attr-defined]


def test_a_row_of_far_too_many_turns_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "p.parquet"
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    many = pa.ListArray.from_arrays(pa.array([0, 2**20], pa.int32()), pa.nulls(2**20, turn))
    pq.write_table(pa.table({"messages": many}), file)
    assert file.stat().st_size < 10_000
    monkeypatch.setattr(readers, "NESTED", 2**16)
    with pytest.raises(InputError, match=r"has 1,048,576 values of messages\.list\.element\.role in 1 rows\. Write it with"):
        list(read_prompts(Prompts(path=str(file))))


# Run directories


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A run up to its pairs. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "p.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Name {at} rivers of the world"}) + "\n" for at in range(24))
    )
    recipe = parse(
        {
            "name": "test",
            "prompts": {"path": str(folder / "p.jsonl"), "near_duplicates": 1},
            "sample": {"n": 4, "max_tokens": 8, "shard_size": 8, "engine": {"type": "echo"}},
            "rank": {"judge": {"type": "pairwise"}},
            "pair": {"test": 0.2},
        }
    )
    pipeline.run(recipe, RunDir(folder / "run"))
    return recipe, folder / "run"


@pytest.fixture
def received(finished: tuple[Recipe, Path], tmp_path: Path) -> tuple[Recipe, RunDir]:
    """The same run, which somebody has sent; beside it a file that is not in it."""
    shutil.copytree(finished[1], tmp_path / "received")
    (tmp_path / "own.txt").write_text("mine")
    return finished[0], RunDir(tmp_path / "received")


def uses(recipe: Recipe, run: RunDir, out: Path) -> list[Callable[[], Any]]:
    """What is done with a run directory and writes in it, or near it."""
    return [
        lambda: RUN("rank", recipe, run),
        lambda: report(recipe, run),
        lambda: pipeline.fork(run, RunDir(out / "fork"), recipe),
        lambda: pipeline.fork(RunDir(out / "none"), run, recipe),
    ]


def try_all(recipe: Recipe, run: RunDir, out: Path) -> None:
    """Each use ends well or with an error of ours: no other error leaves it."""
    reads = (lambda: export(run, "trl", out / "export"), lambda: list(run.stage("sample").rows(Sample)), lambda: status(run))
    for use in (*uses(recipe, run, out), *reads):
        try:
            use()
        except DpoDataError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "link",
    [
        ".lock", "logs", "logs/run.log", "report.json", ".report.json.tmp", "recipe.toml", "calls.sqlite", "curves.png",
        "1-sample", "1-sample/00009.parquet", "1-sample/.manifest.json.tmp", "2-rank/SHA256SUMS", "3-pair/train.parquet",
        "4-train", "4-train/model",
    ],
)  # fmt: skip
def test_a_link_out_of_a_run_directory_is_refused(received: tuple[Recipe, RunDir], tmp_path: Path, link: str) -> None:
    made, run = received
    own, folder = tmp_path / "own.txt", tmp_path / "own"
    folder.mkdir()
    (folder / "x.tmp").write_text("mine")
    path = run.path / link
    is_folder = "." not in path.name
    if path.exists():
        path.rename(tmp_path / "away")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(folder if is_folder else own)
    for use in uses(made, run, tmp_path):
        with pytest.raises(InputError, match=r"is a link out of .*received"):
            use()
    with pytest.raises(InputError, match="is a link out of"), held(run.path):
        pass
    assert own.read_text() == "mine" and [one.name for one in folder.iterdir()] == ["x.tmp"]


def test_a_link_within_a_run_directory_is_none_of_our_business(received: tuple[Recipe, RunDir]) -> None:
    made, run = received
    (run.path / "latest").symlink_to("3-pair")
    refuse_links(run.path)
    (run.path.parent / "link").symlink_to(run.path)
    assert report(made, RunDir(run.path.parent / "link"))["name"] == made.name


@pytest.mark.parametrize("name", ["../../own.txt", "{own}", "..", "../2-rank/00000.parquet"])
def test_file_names_of_a_manifest_do_not_leave_its_folder(received: tuple[Recipe, RunDir], tmp_path: Path, name: str) -> None:
    made, run = received
    own = tmp_path / "own.txt"
    file = run.path / "1-sample" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"].append({"name": name.format(own=own), "rows": 1, "bytes": 4, "sha256": "0" * 64})
    file.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="which lies elsewhere"):
        run.stage("sample").require()
    try_all(made, run, tmp_path)
    assert own.read_text() == "mine"


def test_file_names_of_hashes_do_not_leave_their_folder(received: tuple[Recipe, RunDir], tmp_path: Path) -> None:
    """What is not as its hash says is deleted."""
    made, run = received
    folder = run.path / "1-sample"
    (folder / "manifest.json").unlink()
    names = ["../../own.txt", str(tmp_path / "own.txt"), "..", ".", "00000.parquet"]
    (folder / sums.SUMS).write_text("".join(f"{'0' * 64}  {name}\n" for name in names))
    assert sums.read(folder) == {"00000.parquet": "0" * 64}
    pipeline.run_stage("sample", made, run, lambda *_: None)
    assert (tmp_path / "own.txt").read_text() == "mine"


@pytest.mark.parametrize("file", ["1-sample/manifest.json", "1-sample/recipe.json", "recipe.toml", "calls.sqlite"])
@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff"], ids=["empty", "list", "deep", "bytes"])
def test_a_damaged_book_is_refused_without_a_traceback(
    received: tuple[Recipe, RunDir], tmp_path: Path, file: str, content: bytes
) -> None:
    made, run = received
    (run.path / file).write_bytes(content)
    try_all(made, run, tmp_path)


@pytest.mark.parametrize(
    "columns",
    [
        {"a": [1]},
        {"prompt_id": [1], "prompt": [2]},
        {"prompt_id": ["x"], "prompt": ["y"], "source": [None], "completions": [3]},
    ],
)
def test_a_shard_of_other_columns_is_refused(received: tuple[Recipe, RunDir], columns: dict[str, list[Any]]) -> None:
    path = received[1].path / "1-sample" / "00000.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=r"00000\.parquet cannot be read"):
        list(read_rows(path, Sample))


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "..", ".", "", "x\n", "x\0", "~", "a" * 101, "x/../../y", "..\\x"])
def test_no_recipes_name_leaves_runs(recipe: Make, name: str) -> None:
    with pytest.raises(RecipeError, match="'name' in the recipe is"):
        recipe(8, name=name)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("output_dir", "says where training writes"),
        ("logging_dir", "says where training writes"),
        ("push_to_hub", "would publish the model before any gate"),
    ],
)
def test_training_writes_into_the_run_directory_alone(recipe: Make, key: str, says: str) -> None:
    for args in ({"args": {key: "/tmp/x"}}, {"sft": {"args": {key: "/tmp/x"}}}):
        with pytest.raises(RecipeError, match=rf"args\.{key}' {says}"):
            recipe(8, train={"model": "m", **args})


def test_no_object_of_a_store_lands_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import fsspec

    monkeypatch.setenv("DPO_DATA_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    listed = {f"/bucket/run/{name}": {"name": name, "size": 1, "created": 0.0} for name in ("recipe.toml", "../../../own.txt")}
    monkeypatch.setattr(type(memory), "find", lambda *_, **__: listed)
    with pytest.raises(InputError, match="which would lie elsewhere on this machine"):
        Store("memory://bucket/run").bring(".*")


# Pages

HOSTILE = [
    "<script>window.hacked=1</script>",
    "</style></title></textarea></script><script>window.hacked=1</script>",
    "<img/src=x/onerror=window.hacked=1>",
    "<svg/onload=window.hacked=1>",
    "<a/href=javascript:window.hacked=1>me</a>",
    "javascript:window.hacked=1",
    "\"onmouseover='window.hacked=1'autofocus/onfocus='window.hacked=1",
    "<iframe/srcdoc='<script>parent.hacked=1</script>'>",
    "<meta/http-equiv=refresh/content=0;url=http://127.0.0.1:9/>",
    "<link/rel=stylesheet/href=http://127.0.0.1:9/x.css>",
    "{{7*7}}{%raw%}",
    "]]><!--",
]
"""Each is one word, for the echo engine answers in words."""
CSP = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every page that is written, with such texts wherever they may stand: prompts, answers, models, sources, settings."""
    folder = tmp_path_factory.mktemp("hostile")
    prompts = folder / "p.jsonl"
    records = [
        {
            "prompt": f"Question {at} {HOSTILE[at % len(HOSTILE)]}",
            "source": HOSTILE[at % len(HOSTILE)],
            "completions": [
                {"text": " ".join([*HOSTILE, "more"] * more), "model": HOSTILE[more], "score": more} for more in (1, 2)
            ],
        }
        for at in range(60)
    ]
    prompts.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_report, "HARM", " ".join(HOSTILE))
        runs = [one_run(folder / name, str(prompts), beta) for name, beta in (("one", 0.1), ("other", 0.2))]
    report(*runs[0])
    text = " ".join(HOSTILE)
    came_out = Round(
        round=1, run=text, sampled_from=text, complete=True, prompts=1, reused=0, pairs=1, over_base=None, over_last=None,
        closed=HOSTILE,
    )  # fmt: skip
    told = Rounds(name=text, count=2, shared=True, base=text, rounds=[came_out], best=None, stopped=text)
    made, run = runs[0]
    card = dataset_card(made, run, dataset.gather(run, folder, False), "tag")
    return {
        "report": (run.path / "report.html").read_text(),
        "compare": compare.html(compare.compare(*(run for _, run in runs))),
        "rounds": rounds._page(told),
        "card": MarkdownIt("commonmark").enable("table").render(card.split("\n---\n", 1)[1]),
    }


def one_run(path: Path, prompts: str, beta: float) -> tuple[Recipe, RunDir]:
    recipe = parse(
        {
            "name": "hostile",
            "prompts": {"path": prompts, "holdout": 0.4, "system": " ".join(HOSTILE), "near_duplicates": 1},
            "sample": {"engine": {"type": "given"}},
            "rank": {"judge": {"type": "cascade", "first": {"type": "given"}, "then": {"type": "rule", "rule": "detailed"}}},
            "pair": {"filters": {"private": False, "repetition": False, "near_identical": False}},
            "publish": {"repo_id": "a/b"},
        }
    )
    run = RunDir(path)
    for stage in ("sample", "rank", "pair"):
        RUN(stage, recipe, run)
    recipe = recipe.model_copy(update={"train": Train(model=HOSTILE[3], beta=beta, args={"run_name": HOSTILE[0]})})
    test_report.train(run)
    test_report.evaluate(run, run.stage("sample").require()["held_out"])
    run.write("recipe.toml", dump(recipe))
    return recipe, run


def did(browser: Browser, page: str, folder: Path) -> tuple[Any, list[str]]:
    """What a page has set, and what it asked others for, once it has been hovered over and clicked at."""
    file = folder / "page.html"
    file.write_text(page)
    tab = browser.new_page()
    asked: list[Request] = []
    tab.on("request", lambda request: asked.append(request))
    tab.on("dialog", lambda dialog: dialog.dismiss())
    tab.goto(file.as_uri())
    tab.evaluate("document.querySelectorAll('a[href^=javascript], summary').forEach(one => one.click())")
    tab.evaluate("document.querySelectorAll('*').forEach(one => one.dispatchEvent(new Event('mouseover')))")
    tab.wait_for_timeout(100)
    left = [one.url for one in asked if one.url != file.as_uri() and one.failure != "csp"]
    found = tab.evaluate("window.hacked"), left
    tab.close()
    return found


@pytest.mark.slow
def test_what_a_page_shows_does_nothing_in_a_browser(hostile: dict[str, str], tmp_path: Path) -> None:
    """By escaping alone, and by the page's own policy alone."""
    raw = "<script>window.hacked=1</script><img src=http://127.0.0.1:9/x.png onerror=window.hacked=1>"
    with chromium() as browser:
        assert did(browser, f"<p>{raw}", tmp_path) == (1, ["http://127.0.0.1:9/x.png"]), "it would be seen"
        for name, page in hostile.items():
            assert "window.hacked=1" in page, name
            assert did(browser, page, tmp_path) == (None, []), name
            assert did(browser, CSP.sub("", page), tmp_path) == (None, []), f"{name}, without its policy"
            if name != "card":
                assert CSP.search(page) and "</body>" in page
                assert did(browser, page.replace("</body>", f"{raw}</body>"), tmp_path) == (None, []), f"{name}, unescaped"


# What listens

SOURCES = [*(SHIPPED / "dpo_data").rglob("*.py"), *(SHIPPED / "flows").rglob("*.py")]


def test_what_listens_does_so_on_this_machine_alone() -> None:
    """Every address that our code binds or names as a host to listen on; what really listens is looked at by test_canary."""
    bound = []
    for path in SOURCES:
        name, text = str(path.relative_to(SHIPPED)), path.read_text(encoding="utf-8")
        assert "0.0.0.0" not in text, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "bind":
                bound += [(name, ast.unparse(one)) for one in node.args if isinstance(one, ast.Tuple)]
            if isinstance(node, ast.List | ast.Tuple):
                words = [ast.unparse(one) for one in node.elts]
                bound += [(name, f"({words[at + 1]},)") for at, word in enumerate(words[:-1]) if word == "'--host'"]
    listening = {"dpo_data/argilla/local.py", "flows/server.py", "flows/sample_and_train.py"}
    assert listening <= {name for name, _ in bound}
    assert {(name, address) for name, address in bound if not address.startswith("('127.0.0.1',")} == set()


def test_containers_are_reached_from_their_own_machine_alone() -> None:
    composed = [yaml.safe_load(path.read_text()) for path in (SHIPPED / "deploy").glob("compose*.yaml")]
    ports = [
        str(port) for file in composed for service in file.get("services", {}).values() for port in service.get("ports", [])
    ]
    assert len(ports) >= 2 and all(port.startswith("127.0.0.1:") for port in ports)


# Packages


def test_what_is_known_to_be_vulnerable_is_told_with_its_remedy() -> None:
    flaw = {"id": "PYSEC-1", "fix_versions": ["2.0"], "aliases": [], "description": ""}
    found = {
        "dependencies": [
            {"name": "a", "version": "1.0", "vulns": [flaw]},
            {"name": "b", "version": "1.0", "vulns": []},
            {"name": "c", "skip_reason": "not found on PyPI"},
        ]
    }
    assert vulnerabilities.told(found).splitlines() == [
        "1 known vulnerabilities in 2 packages; the service knows nothing of 1 others, or is away",
        "  a 1.0: PYSEC-1, mended in 2.0",
    ]


def test_the_report_ends_well_where_nobody_answers() -> None:
    assert Path(vulnerabilities.AUDIT[0]).exists()
    env = {**os.environ, "HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, vulnerabilities.__file__], env=env, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0 and done.stdout.startswith("pip-audit: no report: ") and done.stdout.count("\n") == 1
    assert "Unable to connect to proxy" in done.stdout
