"""A page in the terminal, and the key that answers it. What a page says cannot drive the terminal.

A page is shown on the terminal's alternate screen, and only while a key is awaited: progress bars have the other one.
"""

import os
import re
import select
import sys
import termios
import tty
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

Page = list[tuple[str, str]]
"""Headings, each with a text."""

DOWN, UP = {"\x1b[B": 1, "j": 1}, {"\x1b[A": 1, "k": 1}
NEXT, BACK = {" ", "\x1b[6~"}, {"-", "\x1b[5~"}
"""Keys that scroll: lines, and pages."""

_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
_OPEN, _CLEAR, _CLOSE = "\x1b[?1049h\x1b[?25l", "\x1b[H\x1b[2J", "\x1b[?25h\x1b[?1049l"
_JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji need, and that move nothing."""


def watched() -> bool:
    """Whether somebody sits at standard input and output, and this process may read what they type."""
    if any(stream is None or not stream.isatty() for stream in (sys.stdin, sys.stdout)):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # a terminal, and not the one that controls this process
        return False


def press(page: Page, menu: str, keys: Iterable[str]) -> str:
    """Show a page over its menu until one of these keys is pressed, and return it. Keys that were pressed before the page was
    there do not count. Raises EOFError where the terminal is gone."""
    wanted, top = set(keys), 0
    with _raw(sys.stdin.fileno()) as terminal:
        while True:
            size = _size()
            rows = lay_out(page, size.columns - 1)
            below = wrap(menu, size.columns - 1)
            room = max(1, size.lines - len(below) - 1)
            top = max(0, min(top, len(rows) - room))
            _draw(rows[top : top + room], [_where(top, room, len(rows)), *below], room)
            key = _key(terminal, size)
            if key in wanted:
                return key
            top += DOWN.get(key, 0) - UP.get(key, 0) + (room if key in NEXT else -room if key in BACK else 0)


def lay_out(page: Page, columns: int) -> list[str]:
    """The rows of a page, each no wider than so many columns."""
    rows: list[str] = []
    for heading, text in page:
        rows += [f"{_BOLD}{row}{_PLAIN}" for row in wrap(printable(heading), columns)]
        rows += [*(wrap(printable(text), columns) if text else []), ""]
    return rows[:-1]


def printable(text: str) -> str:
    """A text in which every character that a terminal would obey is one that it shows: ␛ for an escape, U+202E by its number.
    Lines may end as they do on any machine."""
    text = re.sub("\r\n|[\r\u2028\u2029]", "\n", text)
    return "".join(char if char in "\n\t" or _harmless(char) else _shown(char) for char in text)


def wrap(text: str, columns: int) -> list[str]:
    """The rows of a text, broken at spaces where that can be, none wider than `columns` (at least 2)."""
    columns = max(2, columns)
    rows: list[str] = []
    for line in text.expandtabs(4).split("\n"):
        row = ""
        for word in re.findall(" +|[^ ]+ *", line):
            if row and width(row + word.rstrip(" ")) > columns:
                rows.append(row.rstrip(" "))
                row = ""
            row += word
            while width(row.rstrip(" ")) > columns:
                cut = _fitting(row, columns)
                rows.append(row[:cut])
                row = row[cut:]
        rows.append(row.rstrip(" "))
    return rows


def width(text: str) -> int:
    """How many columns of a terminal a text takes: two for a wide character of East Asia, none for a combining one."""
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if char in _JOINERS or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _fitting(row: str, columns: int) -> int:
    """How many characters of a row fit into so many columns."""
    taken = 0
    for at, char in enumerate(row):
        taken += _columns(char)
        if taken > columns:
            return at
    return len(row)


def _harmless(char: str) -> bool:
    return char in _JOINERS or unicodedata.category(char) not in ("Cc", "Cf", "Cs")


def _shown(char: str) -> str:
    code = ord(char)
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"‹U+{code:04X}›"


def _where(top: int, room: int, rows: int) -> str:
    """Which rows are shown, where that is not all; nothing else."""
    return "" if rows <= room else f"{top + 1}–{min(top + room, rows)} of {rows} lines; space, - and arrows scroll"


def _draw(rows: list[str], below: list[str], room: int) -> None:
    lines = [*rows, *[""] * (room - len(rows)), *below]
    sys.stdout.buffer.write((_CLEAR + "\r\n".join(lines)).encode(sys.stdout.encoding, "replace"))
    sys.stdout.buffer.flush()


def _size() -> os.terminal_size:
    """As the terminal says; as most are, where it does not."""
    size = os.get_terminal_size(sys.stdout.fileno())
    return size if size.columns and size.lines else os.terminal_size((80, 24))


@contextmanager
def _raw(terminal: int) -> Iterator[int]:
    """Keys come one by one and are not echoed while the block runs; then all is as it was, however it ends. Ctrl-C ends it;
    Ctrl-Z is a key like any other, for whoever came back would find another terminal."""
    before = termios.tcgetattr(terminal)
    sys.stdout.flush()
    try:
        tty.setcbreak(terminal, termios.TCSAFLUSH)
        mode = termios.tcgetattr(terminal)
        mode[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(terminal, termios.TCSAFLUSH, mode)
        sys.stdout.buffer.write(_OPEN.encode())
        yield terminal
    finally:
        sys.stdout.buffer.write(_CLOSE.encode())
        sys.stdout.buffer.flush()
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


def _key(terminal: int, size: os.terminal_size) -> str:
    """One key: a character in lower case, or an escape sequence; nothing where the window has another size by now."""
    while not select.select([terminal], [], [], 0.2)[0]:
        if _size() != size:
            return ""
    key = os.read(terminal, 1)
    if not key:
        raise EOFError
    while key.startswith(b"\x1b") and select.select([terminal], [], [], 0.05)[0]:
        key += os.read(terminal, 1)
        if len(key) > 2 and (key[-1:].isalpha() or key.endswith(b"~")):
            break
    return key.decode("latin-1").lower() if len(key) == 1 else key.decode("latin-1")
