"""Each built-in rule by example, and by what comes near."""

import json
import os
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_data.judges import program
from dpo_data.judges.rewards import BUILT_IN, concise, detailed, exact, json_schema, regex, unit_test, valid_json
from dpo_data.templates import without_thinking


def test_the_built_in_rules() -> None:
    assert list(BUILT_IN) == ["concise", "detailed", "valid_json", "exact", "regex", "json_schema", "unit_test"]
    assert [concise([], text) for text in ("two words", "one", " ", "")] == [-2, -1, None, None]
    assert [detailed([], text) for text in ("a b A", "a b c", " ")] == [2, 3, None]
    assert [valid_json([], text) for text in ('{"a": [1]}', "3", "null", "{a}", "", "[" * 100_000, "NaN")] == [
        1,
        1,
        1,
        0,
        0,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("Paris", "Paris"),
        ("  PARIS.\n", "paris"),
        ("**Paris**!", "Paris"),
        ("“New   York”", "new york"),
        ("(B)", "B"),
        ("'yes'", "Yes"),
        ("42", "42"),
        ("1,000", "1000.0"),
        ("1e3", "1,000"),
        ("+7", "7.00"),
        ("$5", "5"),
        ("-.5", "−0.50"),
        (".5.", "0.5"),
        ("½ is wrong, but the answer is 1/2.", "0.5"),
        ("4,2", "4,2"),
        ("So \\boxed{42}, as said.", "42"),
        ("First \\boxed{1}, no: \\boxed{\\frac{1}{2}}", "0.5"),
        ("\\boxed{\\text{Paris}}", "paris"),
        ("\\boxed{x^{2}}", "x^{2}"),
        ("\\(7\\)", "7"),
        ("It is so.\n#### 42", "Two times 21 is 42.\n#### 42"),
        ("#### 1,234\n", "1234"),
        ("The answer is 4. No: the answer is 5.", "5"),
        ("The answer is 3.14. It is pi, nearly.", "3.14"),
        ("**Final Answer:** 42", "42"),
        ("The answer is:\n\n42", "42"),
        ("The answer is Dr. Who", "Dr. Who"),
        ("Answer: **42**.", "the answer is 42"),
        ("１２", "12"),
    ],
)
def test_the_same_final_answer(text: str, reference: str) -> None:
    assert exact([], text, reference=reference) == 1.0
    assert exact([], without_thinking(f"<think>the answer is 99</think>{text}"), reference=reference) == 1.0


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("", "Paris"),
        ("Parisian", "Paris"),
        ("I think Paris", "Paris"),
        ("-5", "5"),
        ("50%", "50"),
        ("50%", "0.5"),
        ("42 apples", "42"),
        ("1,00", "100"),
        ("1000,000", "1000000"),
        ("10²", "102"),
        ("C++", "C"),
        ("C#", "C"),
        ("[1, 2)", "(1, 2]"),
        ("\\boxed{41}, and the answer is 42", "42"),
        ("\\boxed{42", "42"),
        ("The answer is not 42.", "42"),
        ("The answer isn't important: 42.", "42"),
        ("#### 42\nNo, 43", "42"),
        ("The answer is 42 or 43.", "42"),
        ("1/0", "0"),
        ("3.0.0", "3.0"),
        ("1e999", "1e998"),
        ("9" * 5000, "8" * 5000),
    ],
)
def test_a_final_answer_that_only_comes_near(text: str, reference: str) -> None:
    assert exact([], text, reference=reference) == 0.0


@pytest.mark.parametrize("reference", [None, "", " ", "?!", "\\boxed{}"])
def test_without_a_reference_nothing_is_exact(reference: str | None) -> None:
    assert exact([], "42", reference=reference) is None


@given(st.text(max_size=40), st.text(max_size=40))
def test_exact_never_fails_and_is_the_same_both_ways(one: str, other: str) -> None:
    assert exact([], one, reference=one) in (1.0, None)
    there, back = exact([], one, reference=other), exact([], other, reference=one)
    assert there == back or None in (there, back)


@given(st.fractions(max_denominator=10**6), st.sampled_from(["{}", "\\boxed{{{}}}", "The answer is {}.", "so\n#### {}"]))
def test_numbers_are_compared_by_value(value: Fraction, said: str) -> None:
    text = said.format(value)
    assert exact([], text, reference=f"{value.numerator * 3}/{value.denominator * 3}") == 1.0
    assert exact([], text, reference=str(value + 1)) == 0.0
    assert exact([], said.format(f"{value.numerator:,}.00"), reference=str(value.numerator)) == 1.0


@pytest.mark.parametrize(
    "filler", [" ", "*", ".", "#", "####", "answer is ", "answer:", "\\boxed{", "```\n", "$(", "\n", "{", "[", "'", "("]
)
def test_a_text_of_one_thing_over_and_over_takes_no_time(filler: str) -> None:
    began = time.process_time()
    for text in (filler * 30_000, filler * 30_000 + "a", "a" + filler * 30_000 + "a"):
        exact([], text, reference="42")
        json_schema([], text, schema={"type": "object"})
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("args", "text", "score"),
    [
        ({"pattern": "riv.r"}, "a river", 1.0),
        ({"pattern": "riv.r"}, "a River", 0.0),
        ({"pattern": "riv.r", "flags": "i"}, "a River", 1.0),
        ({"pattern": "river", "full": True}, "a river", 0.0),
        ({"pattern": ".*river", "full": True}, "a river", 1.0),
        ({"pattern": "a.river"}, "a\nriver", 0.0),
        ({"pattern": "a.RIVER$", "flags": "ims"}, "a\nriver\n!", 1.0),
        ({"pattern": "^\\w+$", "flags": "a"}, "ü", 0.0),
        ({"pattern": "^\\w+$", "flags": "aa"}, "u", 1.0),
        ({"pattern": ""}, "", 1.0),
    ],
)
def test_regex(args: dict[str, Any], text: str, score: float) -> None:
    assert regex([], text, **args) == score


POINT = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "tag": {"$ref": "#/$defs/tag"}},
    "required": ["x"],
    "additionalProperties": False,
    "$defs": {"tag": {"enum": ["a", "b"]}},
}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"x": 1}', 1.0),
        (' \n{"x": 1.5, "tag": "a"}\n', 1.0),
        ('Here:\n```json\n{"x": 1}\n```\nDone.', 1.0),
        ('```\n{"x": 1}\n```', 1.0),
        ('~~~~ JSON\r\n{"x": 1}\r\n~~~~\r\n', 1.0),
        ('```json\n{"x": 1}\n', 1.0),
        ('{"x": "1"}', 0.0),
        ('{"x": 1, "tag": "c"}', 0.0),
        ('{"x": NaN}', 0.0),
        ('{"x": 1} {"x": 1}', 0.0),
        ('Here: {"x": 1}', 0.0),
        ('```json\n{"x": 1}\n```\n```json\n{"x": 1}\n```', 0.0),
        ('```json\n{"y": 1}\n```', 0.0),
        ("", 0.0),
        ("null", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_json_schema(tmp_path: Path, text: str, score: float) -> None:
    (tmp_path / "point.json").write_text(json.dumps(POINT))
    assert json_schema([], text, schema=POINT) == json_schema([], text, schema=str(tmp_path / "point.json")) == score


def test_a_schema_of_an_older_draft_is_read_as_such() -> None:
    old = {"$schema": "http://json-schema.org/draft-04/schema#", "type": "number", "minimum": 3, "exclusiveMinimum": True}
    assert [json_schema([], text, schema=old) for text in ("3", "4")] == [0.0, 1.0]


def test_what_a_schema_names_elsewhere_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    asked: list[Any] = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *told, **_: asked.append(told))
    with pytest.raises(Exception, match="Unresolvable"):
        json_schema([], "3", schema={"$ref": "http://127.0.0.1:9/schema.json"})
    assert asked == []


GOOD = "def add(a, b):\n    return a + b"
BAD = "def add(a, b):\n    return a - b"
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (GOOD, 1.0),
        (BAD, 0.0),
        (f"Sure!\n```python\n{GOOD}\n```\nThat adds.", 1.0),
        (f"```py\n{BAD}\n```\nBetter:\n```Python\n{GOOD}\n```", 1.0),
        (f"```python\n{GOOD}\n```\n```\nprint(add(1, 2)) ->\n```", 1.0),
        (f"```\n{GOOD}\n```\n```bash\npython add.py\n```", 1.0),
        (f"```python\n{GOOD}\n", 1.0),
        (f"from __future__ import annotations\n{GOOD}", 1.0),
        (f"Sure!\n{GOOD}", 0.0),
        (f"```python\n{GOOD}\n```\n```python\n{BAD}\n```", 0.0),
        ("", 0.0),
        (f"{GOOD}\nimport sys; sys.exit(0)", 0.0),
        (f"{GOOD}\nimport os; os._exit(0)", 0.0),
        (f"{GOOD}\nimport sys; sys.exit(1)", 0.0),
        ("def add(a, b):\n    return resource or most or a + b", 0.0),
        (f"{GOOD}\n\0", 0.0),
        (f"{GOOD}\nx = '\ud800'", 0.0),
    ],
)
def test_unit_test(text: str, score: float) -> None:
    assert unit_test([], text, reference=TESTS) == score


def test_tests_of_the_recipe_go_before_the_references() -> None:
    assert unit_test([], GOOD, reference="assert False", tests=TESTS) == 1.0
    assert unit_test([], GOOD, reference=TESTS, tests="assert False") == 0.0
    assert [unit_test([], GOOD, reference=one) for one in (None, "", " \n")] == [None] * 3


def test_a_suite_that_exits_by_itself_passes_and_fails() -> None:
    suite = "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(add(1, 2), 3)\nunittest.main()"
    assert [unit_test([], code, reference=suite) for code in (GOOD, BAD)] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("code", "args"),
    [
        ("while True: pass", {"seconds": 1.0}),
        ("import time; time.sleep(600)", {"seconds": 1.0}),
        ("import signal, time; signal.pthread_sigmask(0, range(1, 65)); time.sleep(600)", {"seconds": 1.0}),
        ("x = bytearray(300 * 2**20)", {"memory_mb": 256}),
        ("open('big', 'wb').write(bytes(17 * 2**20))", {}),
        ("input()", {}),
        ("import os; assert not os.listdir()\nraise SystemError", {}),
        ("import os; os.kill(os.getpid(), 9)", {}),
        ("import ctypes; ctypes.string_at(0)", {}),
        ("import bad_rules", {}),
        ("import sys; assert not sys.flags.isolated", {}),
        ("import os; assert 'HF_TOKEN' in os.environ", {}),
    ],
)
def test_a_program_that_goes_beyond_its_limits_fails(monkeypatch: pytest.MonkeyPatch, code: str, args: dict[str, Any]) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    began = time.monotonic()
    assert unit_test([], code, reference="pass", **args) == 0.0
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("code", "args"),
    [
        ("x = bytearray(100 * 2**20)", {"memory_mb": 256}),
        ("pass", {"memory_mb": 64}),
        ("open('small', 'wb').write(bytes(15 * 2**20))", {}),
        ("import os; assert not os.listdir()", {}),
        ("print('x' * 10**7)", {}),
        ("import numpy; numpy.ones(100) @ numpy.ones(100)", {}),
        ("from dataclasses import dataclass\n@dataclass\nclass A: x: int\nimport pickle; pickle.loads(pickle.dumps(A(3)))", {}),
        ("import sys; assert __name__ == '__main__' and len(sys.argv) == 1", {}),
    ],
)
def test_a_program_within_its_limits_passes(code: str, args: dict[str, Any]) -> None:
    assert unit_test([], code, reference="pass", **args) == 1.0


@pytest.mark.parametrize("ends", ["", "; time.sleep(600)", "; os._exit(1)"])
def test_a_program_leaves_no_process_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pids = tmp_path.parent / f"{tmp_path.name}-pids"
    code = (
        "import os, subprocess, time\n"
        "one = subprocess.Popen(['sleep', '600'], start_new_session=True).pid\n"
        "two = os.fork()\n"
        "if not two: os.setsid(); time.sleep(600)\n"
        f"open({str(pids)!r}, 'w').write(f'{{one}} {{two}}'){ends}"
    )
    program.passes(code, "pass", seconds=2.0)
    left = [int(pid) for pid in pids.read_text().split()]
    time.sleep(0.2)
    assert len(left) == 2 and not any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in left)
    assert os.listdir(tmp_path) == []
