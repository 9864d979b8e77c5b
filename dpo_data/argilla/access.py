"""Where an Argilla is and the key to it: from the environment, or from the folder of the server on this machine."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_data.errors import ArgillaError

HOME = Path("argilla-data")
"""The folder of this machine's server, where none is named."""


@dataclass(frozen=True)
class Access:
    """An Argilla's address and the API key of the user who asks."""

    url: str
    key: str


def access(home: Path) -> Access:
    """ARGILLA_API_URL with ARGILLA_API_KEY, or else those of the server in `home` and its owner. Raises ArgillaError where
    there is neither."""
    url, key = (os.environ.get(name, "").strip() for name in ("ARGILLA_API_URL", "ARGILLA_API_KEY"))
    if url and key:
        return Access(url.rstrip("/"), key)
    if url or key:
        given, missing = ("ARGILLA_API_URL", "ARGILLA_API_KEY") if url else ("ARGILLA_API_KEY", "ARGILLA_API_URL")
        raise ArgillaError(f"{given} is set and {missing} is not", "Set both, or neither for the server on this machine.")
    known = credentials(home)
    if known is None:
        raise ArgillaError(
            f"No Argilla is known: no {home}/credentials.json, and ARGILLA_API_URL is not set",
            "Start one on this machine with `dpo-data argilla up`, or set ARGILLA_API_URL and ARGILLA_API_KEY.",
        )
    return Access(known["api_url"], known["api_key"])


def credentials(home: Path) -> dict[str, Any] | None:
    """What `credentials.json` of a server's folder holds: api_url, username, password, api_key, and users by name.
    None where it is not there. Raises ArgillaError where it cannot be read."""
    path = home / "credentials.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        said = {name: str(known[name]) for name in ("api_url", "username", "password", "api_key")}
        return {**said, "users": dict(known["users"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgillaError(f"{path} cannot be read: {error!r}", "Restore it, or name another folder with --home.") from None


def write_private(path: Path, text: str) -> None:
    """Write a file that nobody else may read, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
