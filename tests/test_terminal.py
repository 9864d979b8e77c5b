"""A person at the terminal: one key an answer, nothing asked twice, and no answer that drives the terminal."""

import json
import re
import sqlite3
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pty_child import CLI, Typist, typing
from test_panel import group

from dpo_data import pipeline
from dpo_data.config import Recipe, dump, load
from dpo_data.engines.echo import Echo
from dpo_data.errors import Unfinished
from dpo_data.files import read_rows
from dpo_data.judges import screen
from dpo_data.judges.screen import lay_out, printable, width, wrap
from dpo_data.judges.terminal import Terminal
from dpo_data.ledger import Ledger, inherit
from dpo_data.rows import PreferencePair, Ranking, Sample
from dpo_data.rundir import RunDir

CODES = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]")
"""What the program itself tells the terminal."""


def said(ranking: Ranking) -> list[dict[str, Any]]:
    return [entry for entry in json.loads(ranking.transcript) if entry["kind"] == "person"]


@pytest.fixture
def given_answers(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., tuple[Recipe, RunDir, list[str]]]:
    """Makes a run up to `rank` with these answers to each prompt, and the command that goes on."""

    def make(*answers: list[str], **judge: Any) -> tuple[Recipe, RunDir, list[str]]:
        prompts = tmp_path / "answers.jsonl"
        rows = [{"prompt": f"Question number {at}?", "completions": texts} for at, texts in enumerate(answers)]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        table = {"type": "terminal", "annotator": "anna", **judge}
        made = recipe(1, prompts={"path": str(prompts), "near_duplicates": 1}, rank={"judge": table})
        made = Recipe.model_validate(
            {**made.model_dump(exclude_none=True), "sample": {"shard_size": 2, "engine": {"type": "given"}}}
        )
        run = RunDir(tmp_path / "run")
        pipeline.run_stage("sample", made, run, lambda *_: None)
        (tmp_path / "recipe.toml").write_text(dump(made))
        return made, run, [*CLI, "rank", str(tmp_path / "recipe.toml"), "--run", str(run.path)]

    return make


def shown(typist: Typist, number: int, of: int) -> str:
    """The page of a prompt, once all of it is there."""
    return CODES.sub("", typist.wait_for(rf"\x1b\[2J\x1b\[1m{number} of {of}\x1b.*quit"))


class TestAtATerminal:
    def test_one_key_each_and_the_pairs_follow(self, given_answers: Any) -> None:
        made, run, command = given_answers(*([f"good {at}", f"bad {at}"] for at in range(5)))
        keys = []
        with typing(command) as anna:
            for at in range(1, 6):
                page = shown(anna, at, 5)
                keys.append("t" if at == 3 else "s" if at == 4 else "a" if page.index("good") < page.index("bad") else "b")
                anna.type(keys[-1])
            anna.wait_for("That was the last one.*Enter")
            anna.type("\n")
            assert anna.ends() == 0 and anna.echoes()
        rows = {row.prompt_id: row for row in run.stage("rank").rows(Ranking)}
        assert len(rows) == 5
        statuses = Counter(entry["status"] for row in rows.values() for entry in said(row))
        assert statuses == {"submitted": 4, "discarded": 1}
        skipped = [row for row in rows.values() if row.abstained]
        assert len(skipped) == 1 and "nobody answered" in str(skipped[0].abstained)
        (tie,) = [row for row in rows.values() if not row.abstained and len(set(row.scores)) == 1]
        assert set(said(tie)[0]["scores"].values()) == {0.5}
        for row in rows.values():
            (entry,) = said(row)
            assert entry["annotator"] == "anna" and sorted(entry["shown"]) == sorted(row.completion_ids)
            assert entry["seconds"] >= 0 and re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry["at"])
            assert entry["prefilled"] is None
        report = pipeline.run(made, run)
        assert report["pairs"]["train"] + report["pairs"]["test"] == 3
        chosen = [pair.chosen[0]["content"] for pair in _pairs(run)]
        assert all(text.startswith("good") for text in chosen)

    def test_quit_and_go_on(self, given_answers: Any) -> None:
        _, run, command = given_answers(*([f"x {at}", f"y {at}"] for at in range(4)))
        with typing(command) as anna:
            for at in range(1, 4):
                shown(anna, at, 4)
                anna.type("a" if at < 3 else "q")
            anna.wait_for("2 of 4 prompts await an answer. Run again in a terminal.")
            assert anna.ends() == 75 and anna.echoes(), "the terminal is as it was"
        assert len(run.stage("rank").shards()) == 1
        with typing(command) as anna:
            shown(anna, 1, 2)
            anna.type("u")  # there is nothing left to undo
            for at in (1, 2):
                shown(anna, at, 2)
                anna.type("a")
            anna.wait_for("That was the last one")
            anna.type("q")
            assert anna.ends() == 0
        assert all(len(said(row)) == 1 for row in run.stage("rank").rows(Ranking))

    def test_killed_at_any_key_nothing_is_asked_twice(self, given_answers: Any) -> None:
        """Killed by SIGKILL as soon as the next page is there: the key before it is on the disk."""
        _, run, command = given_answers(*([f"one {at}", f"two {at}"] for at in range(3)))
        asked: Counter[str] = Counter()
        for _ in range(3):
            with typing(command) as anna:
                page = anna.wait_for(r"\d of \d\x1b.*quit")
                asked[re.search(r"Question number \d", page)[0]] += 1  # type: ignore[index]
                anna.type("a")
                anna.wait_for(r"(\d of \d\x1b.*quit|That was the last)")
                anna.kill()
        assert set(asked.values()) == {1} and len(asked) == 3
        assert not run.stage("rank").manifest
        with typing(command) as anna:
            assert anna.ends() == 0, "all is answered, so nobody is asked"
        assert [len(said(row)) for row in run.stage("rank").rows(Ranking)] == [1, 1, 1]

    def test_undo_takes_back_the_last_one(self, given_answers: Any) -> None:
        _, run, command = given_answers(["yes", "no"], ["up", "down"])
        with typing(command) as anna:
            shown(anna, 1, 2)
            anna.type("t")
            shown(anna, 2, 2)
            anna.type("u")
            page = shown(anna, 1, 2)
            anna.type("a" if page.index("yes") < page.index("no\r") else "b")
            shown(anna, 2, 2)
            anna.type("s")
            anna.wait_for("That was the last one.*done")
            anna.type("u")
            page = shown(anna, 2, 2)
            anna.type("b" if page.index("up") < page.index("down") else "a")
            anna.wait_for("That was the last one.*done")
            anna.type("\n")
            assert anna.ends() == 0
        made = {pair.chosen[0]["content"] for pair in _pairs_of(run)}
        assert made == {"yes", "down"}
        with sqlite3.connect(run.calls) as calls:
            assert calls.execute("SELECT count(*) FROM calls").fetchone() == (2,)

    def test_ctrl_c_leaves_the_terminal_as_it_was(self, given_answers: Any) -> None:
        _, _, command = given_answers(["yes", "no"])
        with typing(command) as anna:
            shown(anna, 1, 1)
            assert not anna.echoes()
            anna.type("\x03")
            anna.wait_for("What is finished is kept")
            assert anna.ends() == 130 and anna.echoes()

    def test_other_keys_do_nothing(self, given_answers: Any) -> None:
        """Ctrl-Z would leave the terminal in the middle of a page."""
        _, run, command = given_answers(["yes", "no"])
        with typing(command) as anna:
            for keys in ("\x1a", "xyz", "\x1b[C", "\x1bOP", "漢", "\x04\x00", "A"):
                shown(anna, 1, 1)
                anna.type(keys)
            anna.wait_for("last one.*done")
            anna.type("\n")
            assert anna.ends() == 0
        assert len(list(run.stage("rank").rows(Ranking))) == 1

    def test_an_answer_cannot_drive_the_terminal(self, given_answers: Any) -> None:
        evil = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x9b2J\u202egnol\x00\x7f\rover\x1b[6n"
        _, _, command = given_answers([evil, "plain"])
        with typing(command) as anna:
            page = anna.wait_for(r"1 of 1\x1b.*quit").partition("1 of 1")[2]
        left = CODES.sub("", page)
        assert not [char for char in left if unicodedata.category(char) in ("Cc", "Cf") and char not in "\r\n"]
        assert "␛]0;title␇␛[2J␛[31mred‹U+009B›2J‹U+202E›gnol␀␡" in left.replace("\r\n", "")
        assert "\x1b[31m" not in page and "\x1b[6n" not in page

    def test_long_pages_scroll_and_follow_the_window(self, given_answers: Any) -> None:
        _, _, command = given_answers(["\n".join(f"line {at}" for at in range(60)), "short"])
        with typing(command, columns=30, lines=20) as anna:
            page = shown(anna, 1, 1)
            assert "1–" in page and "line 59" not in page
            for _ in range(8):
                anna.type(" ")
                anna.wait_for("quit")
            anna.type("\x1b[5~")
            anna.wait_for("quit")
            anna.resize(100, 90)
            page = anna.wait_for("line 59.*short.*quit|short.*line 59.*quit")
            anna.type("-")
            anna.type("a")
            anna.wait_for("last one")

    def test_the_bar_and_the_page_share_no_screen(self, given_answers: Any) -> None:
        """Every page opens the alternate screen and closes it before anything else is written."""
        _, _, command = given_answers(*([f"x {at}", f"y {at}"] for at in range(4)))
        with typing(command) as anna:
            came = ""
            for at in range(1, 5):
                came += anna.wait_for(rf"{at} of 4\x1b.*quit")
                anna.type("a")
            came += anna.wait_for("last one.*done")
            anna.type("\n")
            anna.ends()
            came += anna.seen
        for page in came.split("\x1b[?1049h")[1:]:
            on_the_page = page.partition("\x1b[?1049l")[0]
            assert "rows/s" not in on_the_page
        assert "rows/s" in came


def _pairs(run: RunDir) -> list[PreferencePair]:
    files = [run.stage("pair").path / f"{name}.parquet" for name in ("train", "test")]
    return [row for path in files for row in read_rows(path, PreferencePair)]


def _pairs_of(run: RunDir) -> list[PreferencePair]:
    pipeline.run(load(run.path / "recipe.toml"), run)
    return _pairs(run)


class TestWithNobodyThere:
    def test_a_run_without_a_terminal_waits(self, given_answers: Any) -> None:
        _, _, command = given_answers(["yes", "no"], ["same", "same"], ["up", "down"])
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert ended.returncode == 75
        assert (
            "2 of 3 prompts await an answer, and nobody is at a terminal to give it. Run again in a terminal." in ended.stderr
        )

    def test_what_needs_nobody_is_ranked_without(self) -> None:
        with closing(Terminal().build(Echo(), 0, lambda table: table.build())) as judge:
            lone, same = judge.rank([group("1", prompt_id="lone"), _alike("p")])
        assert lone.abstained == "fewer than two answers" and same.abstained == "all answers say the same"


def _alike(prompt_id: str) -> Sample:
    of = group("1", "2", prompt_id=prompt_id)
    return replace(of, completions=[replace(one, text="the same") for one in of.completions])


class Person:
    """Presses these keys, then quits; and remembers which pages were answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, keys: Iterable[str]):
        self.keys = iter(keys)
        self.answered: Counter[str] = Counter()
        monkeypatch.setattr(screen, "watched", lambda: True)
        monkeypatch.setattr(screen, "press", self.press)

    def press(self, page: screen.Page, menu: str, keys: Iterable[str]) -> str:
        key = next(self.keys, "q")
        what = json.dumps(page[1:])
        if "\n" in keys:
            return "u" if key == "u" else "\n"
        if key in "abts":
            self.answered[what] += 1
        return key


KEYS = st.lists(st.sampled_from("aabbtsuq"), max_size=60)
GROUPS = st.lists(st.lists(st.integers(0, 9).map(str), min_size=1, max_size=6), min_size=1, max_size=5)


@given(keys=KEYS, answers=GROUPS)
def test_whatever_keys_nothing_is_asked_twice(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], answers: list[list[str]]
) -> None:
    """Through quits and undos: a page is answered once more only where its answer was taken back; and in the end every prompt
    has a ranking, with one entry for each two that were compared."""
    path = tmp_path_factory.mktemp("ledger") / "calls"
    groups = [group(*dict.fromkeys(texts), prompt_id=f"p{at}") for at, texts in enumerate(answers)]
    found: dict[str, Ranking] = {}
    undone = 0
    forget = Ledger.forget
    with pytest.MonkeyPatch.context() as patch:

        def counting(self: Ledger, key: str) -> None:
            nonlocal undone
            undone += 1
            forget(self, key)

        patch.setattr(Ledger, "forget", counting)
        person = Person(patch, [*keys, *"a" * 200])
        for _ in range(len(keys) + 2):
            with closing(Ledger(path, "rank")) as ledger, closing(Terminal(annotator="a").build(Echo(), 0, ledger)) as judge:
                try:
                    for ranking in judge.rank(one for one in groups if one.prompt_id not in found):
                        assert ranking.prompt_id not in found
                        found[ranking.prompt_id] = ranking
                    break
                except Unfinished:
                    pass
    assert found.keys() == {one.prompt_id for one in groups}
    entries = [entry for ranking in found.values() for entry in said(ranking)]
    twos = Counter((ranking.prompt_id, *sorted(entry["shown"])) for ranking in found.values() for entry in said(ranking))
    assert set(twos.values()) <= {1}
    assert sum(person.answered.values()) == len(entries) + undone


class TestScores:
    @pytest.mark.parametrize("n", [2, 3, 4, 7])
    def test_a_person_who_knows_is_understood(self, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Best and worst are found, with no more questions than the plan says."""
        asked = 0

        def press(page: screen.Page, menu: str, keys: Iterable[str]) -> str:
            nonlocal asked
            if "\n" in keys:
                return "\n"
            asked += 1
            texts = dict(page)
            return "a" if int(texts["A"]) > int(texts["B"]) else "b"

        monkeypatch.setattr(screen, "watched", lambda: True)
        monkeypatch.setattr(screen, "press", press)
        settings = Terminal(annotator="a")
        with closing(Ledger(tmp_path / "calls", "rank")) as ledger, closing(settings.build(Echo(), 0, ledger)) as judge:
            (ranking,) = judge.rank([group(*map(str, range(n)))])
        scores = dict(zip(ranking.completion_ids, ranking.scores, strict=True))
        assert (
            max(scores, key=lambda id: scores[id]) == f"id of {n - 1}" and min(scores, key=lambda id: scores[id]) == "id of 0"
        )
        assert asked <= settings.records(n) and (n == 7 or asked == settings.records(n))

    def test_a_fork_takes_the_answers_along(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two more answers came to each prompt: what was said of the others is not asked again."""
        monkeypatch.setattr(screen, "watched", lambda: True)
        asked: Counter[str] = Counter()

        def press(page: screen.Page, menu: str, keys: Iterable[str]) -> str:
            asked[" ".join(sorted([dict(page).get("A", ""), dict(page).get("B", "")]))] += 1
            return "\n" if "\n" in keys else "a"

        monkeypatch.setattr(screen, "press", press)
        for path, texts in (("old", "12"), ("new", "1234")):
            with closing(Ledger(tmp_path / path, "rank")) as ledger:
                list(Terminal(annotator="a").build(Echo(), 0, ledger).rank([group(*texts)]))
            inherit(tmp_path / "old", tmp_path / "new")
        del asked[" "]  # the last word
        assert set(asked.values()) == {1} and len(asked) == 6

    def test_sides_are_drawn_and_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sides: list[Counter[str]] = []

        def press(page: screen.Page, menu: str, keys: Iterable[str]) -> str:
            sides[-1][dict(page)["A"]] += 1
            return "a"

        monkeypatch.setattr(screen, "watched", lambda: True)
        monkeypatch.setattr(screen, "press", lambda page, menu, keys: "\n" if "\n" in keys else press(page, menu, keys))
        for seed in (0, 0, 1):
            sides.append(Counter())
            judge = Terminal(annotator="a").build(Echo(), seed, lambda table: table.build())
            list(judge.rank([group(f"left {at}", f"right {at}", prompt_id=f"p{at}") for at in range(200)]))
        left = [sum(text.startswith("left") for text in of) for of in sides]
        assert 60 < left[0] < 140 and sides[0] == sides[1] != sides[2]

    def test_answers_that_say_the_same_are_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(screen, "watched", lambda: True)
        monkeypatch.setattr(screen, "press", lambda page, menu, keys: "\n" if "\n" in keys else "ab"[dict(page)["A"] == "x"])
        of = group("1", "2", "3")
        texts = ["x", "y", "x"]
        same = replace(of, completions=[replace(one, text=text) for one, text in zip(of.completions, texts, strict=True)])
        (ranking,) = Terminal(annotator="a").build(Echo(), 0, lambda table: table.build()).rank([same])
        assert len(said(ranking)) == 1 and ranking.scores[0] == ranking.scores[2] < ranking.scores[1]  # type: ignore[operator]


class TestText:
    @given(st.text(), st.integers(2, 40))
    def test_no_row_is_too_wide_and_no_text_is_lost(self, text: str, columns: int) -> None:
        rows = wrap(printable(text), columns)
        assert all(width(row) <= columns for row in rows)
        assert "".join("".join(rows).split()) == "".join(printable(text).split())

    @given(st.text(st.characters()))
    def test_nothing_that_is_printable_is_obeyed(self, text: str) -> None:
        told = printable(text)
        kinds = {unicodedata.category(char) for char in told if char not in "\n\t\u200c\u200d"}
        assert not kinds & {"Cc", "Cf", "Cs"} and not {"\u2028", "\u2029"} & set(told)
        assert printable(told) == told
        told.encode()

    @pytest.mark.parametrize(
        ("text", "columns"),
        [("漢字", 4), ("e\u0301", 1), ("🙂", 2), ("ｆｕｌｌ", 8), ("a\u200db", 2), ("", 0)],
        ids=["Han", "combining", "emoji", "full width", "joiner", "nothing"],
    )
    def test_widths_by_hand(self, text: str, columns: int) -> None:
        assert width(text) == columns

    def test_rows_by_hand(self) -> None:
        assert wrap("one two three", 7) == ["one two", "three"]
        assert wrap("  in  dent", 6) == ["  in", "dent"]
        assert wrap("abcdefgh", 3) == ["abc", "def", "gh"]
        assert wrap("漢字漢字", 5) == ["漢字", "漢字"]
        assert wrap("a\n\nb", 5) == ["a", "", "b"]
        assert printable("a\r\nb\rc\x1b[0m") == "a\nb\nc␛[0m"

    def test_a_heading_of_ours_is_the_only_bold_one(self) -> None:
        rows = lay_out([("A", "\x1b[1mB\x1b[0m")], 40)
        assert rows == ["\x1b[1mA\x1b[0m", "␛[1mB␛[0m"]
