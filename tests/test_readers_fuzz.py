"""Whatever stands in a file: it is read, or an InputError says what is wrong. No other error ever leaves a reader."""

import csv
import datetime
import io
import json
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversations import TEXTS
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_data.errors import InputError
from dpo_data.formats.prompts import Prompts, evaluation_texts, prompts_hash, prompts_shape, read_given, read_prompts
from dpo_data.formats.readers import READERS
from dpo_data.formats.shapes import COLUMNS
from dpo_data.rows import Prompt
from dpo_data.tables import SCHEMAS, to_table

RECORDS: list[dict[str, Any]] = [
    {"prompt": "Name a rivér.", "completions": ["a", {"text": "b", "score": 2.5, "model": "m"}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], "tools": '[{"name": "f"}]'},
    {"conversations": [{"from": "human", "value": "x"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"},
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["a", "b"]], "system": "s"},
    {"prompt": "q", "completion": "a", "label": True},
]  # fmt: skip
TEXT = b"best: 1\nworst:\n\nQ[system]:\n  s\n\nQ:\n  q\n\nA[1]:\n  one\n\nA[2]:\n  two\n"


def read_all(path: Path) -> None:
    """All that is ever read of prompts, answers and evaluation texts; what comes back is whole."""
    prompts = Prompts(path=str(path))
    prompts_hash(prompts)
    for work in (lambda: list(read_prompts(prompts)), lambda: list(read_given(prompts)), lambda: prompts_shape(prompts)):
        try:
            rows = work()
        except InputError as error:
            assert path.name in error.what and "\n" not in str(error) and len(str(error)) < 2000
            continue
        for row in rows if isinstance(rows, list) else []:
            prompt, answers = row if isinstance(row, tuple) else (row, [])
            assert isinstance(prompt, Prompt) and prompt.prompt[-1]["role"] in ("user", "tool")
            json.dumps(
                [prompt.prompt, prompt.tools, [[a.text, a.score, a.tool_calls] for a in answers]], allow_nan=False
            ).encode()
    with suppress(InputError):
        assert all(isinstance(text, str) for _, text in evaluation_texts(str(path)))


def parquet(records: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue()


def csv_of(records: list[dict[str, Any]]) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, ["prompt", "completion", "score"])
    writer.writeheader()
    writer.writerows(records)
    return sink.getvalue().encode()


VALID: dict[str, Callable[[], bytes]] = {
    ".jsonl": lambda: "".join(json.dumps(record) + "\n" for record in RECORDS).encode(),
    ".json": lambda: json.dumps(RECORDS, ensure_ascii=False, indent=1).encode(),
    ".csv": lambda: csv_of([{"prompt": 'a "b", c', "completion": "x\ny", "score": "1.5"}, {"prompt": "d", "score": ""}]),
    ".txt": lambda: "one\ntwö\n\nthree".encode(),
    ".parquet": lambda: parquet([{"prompt": "q", "answer": "a", "messages": None}, {"messages": RECORDS[1]["messages"]}]),
    "": lambda: TEXT,
}  # fmt: skip
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=5)


def test_every_reader_is_tried() -> None:
    assert VALID.keys() == READERS.keys() | {""}


def placed(folder: Path, suffix: str) -> tuple[Path, Path]:
    """The file to write, and the path to read: for a folder of texts the folder."""
    if suffix:
        return folder / f"p{suffix}", folder / f"p{suffix}"
    (folder / "p").mkdir()
    return folder / "p" / "1.txt", folder / "p"


@pytest.mark.parametrize("suffix", VALID)
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, suffix: str) -> None:
    file, path = placed(tmp_path, suffix)
    valid = VALID[suffix]()

    @given(EDITS)
    def check(edits: list[tuple[float, int, bytes]]) -> None:
        content = bytearray(valid)
        for at, cut, put in edits:
            start = int(at * len(content))
            content[start : start + cut] = put
        file.write_bytes(content)
        read_all(path)

    file.write_bytes(valid)
    assert list(read_given(Prompts(path=str(path))))
    check()


@pytest.mark.parametrize("suffix", VALID)
def test_a_file_cut_anywhere_is_read_or_refused(tmp_path: Path, suffix: str) -> None:
    file, path = placed(tmp_path, suffix)
    valid = VALID[suffix]()
    for at in range(0, len(valid), max(1, len(valid) // 60)):
        file.write_bytes(valid[:at])
        read_all(path)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.sampled_from(["true", "NaN", "1e999", "[]", "[1]", "{", '["a"]'])
)
WORDS = [
    "role",
    "content",
    "from",
    "value",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "text",
    "response",
    "score",
    "rank",
    "model",
]
WORDS += ["annotations", "Rating", "completion", "rating", "n_tokens", "finish_reason"]
SAID = [
    "user",
    "assistant",
    "system",
    "tool",
    "human",
    "gpt",
    "function_call",
    "observation",
    "\n\nHuman: a\n\nAssistant: b",
    '{"name": "f"}',
]
VALUES = st.recursive(
    SCALARS | st.sampled_from(SAID),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | TEXTS, inner, max_size=3),
    max_leaves=10,
)
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(SAID), "content": VALUES}, optional={"tool_calls": VALUES})
    | st.fixed_dictionaries({"from": st.sampled_from(SAID), "value": VALUES | st.sampled_from(SAID)}),
    max_size=3,
)  # fmt: skip
FIELDS = st.dictionaries(st.sampled_from(sorted(COLUMNS)), VALUES | TURNS, max_size=5)


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_any_json_is_read_or_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"p{suffix}"

    @given(st.lists(FIELDS | FIELDS.map(lambda record: {**record, "prompt": "q"}) | VALUES, max_size=3))
    @example([{"prompt": "q", "completions": [{"text": "a", "score": 10**400}]}])
    @example([{"prompt": "q", "tools": [{"a": float("nan")}]}])
    @example(
        [
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]},
                ]
            }
        ]
    )
    @example([{"instruction": "a", "history": {"a": 1}}, {"instruction": "a", "history": [["a"]]}])
    def check(records: list[Any]) -> None:
        lines = [json.dumps(record) for record in records]
        file.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{', '.join(lines)}]")
        read_all(file)

    check()


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"prompt": "q", "tools": ' + "[" * 900 + "]" * 900 + "}",
        '{"prompt": "q", "tools": ' + json.dumps("[" * 100_000) + "}",
        '{"prompt": ' + "9" * 5000 + "}",
        '{"prompt": "q", "score": ' + "9" * 4000 + ', "answer": "a"}',
        '{"prompt": ' + "9" * 4000 + "}",
        '{"' + "k" * 100_000 + '": 1}',
        '{"": "q"}',
        '{"prompt": "\\ud83d"}',
        '{"prompt\\u0000": "q", "\\ud83d": 1}',
        '{"prompt": "' + "q" * 2**20 + '"}',
    ],
    ids=lambda line: line[:24],
)
def test_extremes_are_read_or_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "p.jsonl").write_text(line)
    (tmp_path / "p.json").write_text(f"[{line}]")
    read_all(tmp_path / "p.jsonl")
    read_all(tmp_path / "p.json")


ARROW: list[pa.DataType] = [
    *(pa.string(), pa.large_string(), pa.binary(), pa.int64(), pa.float32(), pa.bool_(), pa.null(), pa.date32()),
    pa.decimal128(9, 2),
    *(pa.timestamp("ns"), pa.timestamp("s", tz="Mars/Olympus"), pa.duration("us"), pa.dictionary(pa.int8(), pa.string())),
    *(pa.list_(pa.string()), pa.list_(pa.int64()), pa.map_(pa.string(), pa.int64()), pa.list_(pa.float64())),
    pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.string())])),
    pa.list_(pa.struct([("from", pa.string()), ("value", pa.binary())])),
    pa.struct([("content", pa.date32()), ("role", pa.string())]),
    pa.struct([("a", pa.int64()), ("a", pa.int64())]),
]  # fmt: skip
SAMPLES: list[Any] = [
    None,
    "q",
    "[1]",
    b"\xff",
    3,
    2.5,
    True,
    Decimal("1.50"),
    datetime.date(2020, 1, 1),
    [("k", 1)],
    ["a"],
    [1],
    2**62,
    -(2**62),
]
SAMPLES += [
    [{"role": "user", "content": "q", "tool_calls": None}],
    [{"from": "human", "value": b"q"}],
    {"content": None, "role": "user"},
]


def column(kind: pa.DataType, values: list[Any]) -> pa.Array:
    """Those of the values that the type can hold together; null for the others."""
    held: list[Any] = []
    for value in values:
        try:
            pa.array([*held, value], kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            value = None
        held.append(value)
    return pa.array(held, kind)


def test_any_parquet_table_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    columns = st.tuples(
        st.sampled_from(sorted(COLUMNS)), st.sampled_from(ARROW), st.lists(st.sampled_from(SAMPLES), min_size=2, max_size=2)
    )

    @given(st.lists(columns, min_size=1, max_size=4))
    @example([("answer", pa.timestamp("s", tz="Mars/Olympus"), [None, 3])])
    def check(chosen: list[tuple[str, pa.DataType, list[Any]]]) -> None:
        arrays = [column(kind, values) for _, kind, values in chosen]
        try:
            pq.write_table(pa.Table.from_arrays(arrays, names=[name for name, _, _ in chosen]), file)
        except pa.ArrowException:
            return
        read_all(file)

    check()


def test_the_pipelines_own_files_of_other_rows_are_refused(tmp_path: Path) -> None:
    for kind in SCHEMAS:
        pq.write_table(to_table([], kind), tmp_path / "p.parquet")
        read_all(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    "path", ["", "\0", "~nobody-of-this-name/p.txt", "p" * 5000 + ".txt", "hf://datasets/", "/proc/self/mem/p.txt"]
)
def test_any_path_is_read_or_refused(path: str) -> None:
    for work in (read_prompts, read_given):
        with pytest.raises(InputError):
            list(work(Prompts(path=path)))
