"""Where the files that ship with the package are, in a checkout and in an installed wheel alike."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
SHIPPED = _PACKAGE / "share" if (_PACKAGE / "share").is_dir() else _PACKAGE.parent
"""The folder that holds `prompts/` and `flows/`: the checkout's root, or `share/` inside the installed package."""


def find(path: str) -> Path:
    """A user's file, or else the shipped one of that name (`prompts/demo.jsonl`). The result need not exist."""
    own = Path(path).expanduser()
    return own if own.exists() or own.is_absolute() or not (SHIPPED / path).exists() else SHIPPED / path
