"""The Python environment of this machine's Argilla server: made once, for all who start one.

argilla-server pins packages that dpo-data needs in other versions, so it lives in a virtual environment of its own, in the
user's cache folder, from the exact versions in `server/requirements.txt`.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

from dpo_data.argilla.lock import held
from dpo_data.errors import ArgillaError

VERSION = "2.8.0"
"""Of argilla-server. The code in `server/` stands in for parts of this very version."""
REQUIREMENTS = Path(__file__).parent / "server" / "requirements.txt"
ELSEWHERE = frozenset({"PIP_TARGET", "PIP_USER", "PIP_PREFIX", "PIP_ROOT"})
"""Settings that have pip install into another place. PYTHONPATH goes too: what lies there pip takes for installed."""
PYTHONS = ((3, 11), (3, 12))
"""Those for which every requirement has a wheel."""


def environment() -> Path:
    """The Python that runs the server. Makes its environment where it is not there, or was left half made; another process that
    is at it is waited for. Raises ArgillaError where it cannot be made, or holds another version of the server."""
    if sys.version_info[:2] not in PYTHONS:
        wanted = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise ArgillaError(
            f"argilla-server {VERSION} does not run on Python {sys.version_info.major}.{sys.version_info.minor}",
            f"Install dpo-data for Python {wanted}, or set ARGILLA_API_URL and ARGILLA_API_KEY to an Argilla elsewhere.",
        )
    folder = where()
    if not is_made():
        with held(folder.with_name(f"{folder.name}.lock")) as lock:
            if not is_made():
                _make(folder, lock)
                (folder / "complete").touch()
    _check(folder)
    return folder / "bin" / "python"


def is_made() -> bool:
    return (where() / "complete").exists()


def where() -> Path:
    """The environment's folder: another one for other requirements or another Python."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()
    pins = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:8]
    return cache / "dpo-data" / f"argilla-server-{VERSION}-{sysconfig.get_python_version().replace('.', '')}-{pins}"


def _make(folder: Path, lock: int) -> None:
    """Everything from wheels: nothing is built. The installer holds the lock too, so that nobody interferes with it where it
    outlives this process."""
    shutil.rmtree(folder, ignore_errors=True)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON") and key not in ELSEWHERE}
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "--only-binary=:all:", "-r", str(REQUIREMENTS)],
    ):
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, pass_fds=(lock,), env=plain
        )
        if done.returncode:
            last = (done.stdout.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ArgillaError(
                f"The environment of argilla-server {VERSION} cannot be made at {folder}: {last}",
                "Check the network and the disk, and run again; pip's own settings (PIP_INDEX_URL) hold here too.",
            )


def _check(folder: Path) -> None:
    """That nobody has put another argilla-server there. Before it is imported: that alone changes things."""
    found = [
        one.version for one in distributions(name="argilla-server", path=[str(p) for p in folder.glob("lib/*/site-packages")])
    ]
    if found != [VERSION]:
        raise ArgillaError(
            f"{folder} holds argilla-server {' and '.join(found) or 'no more'}, not {VERSION}",
            "Delete that folder and run again: it is made anew.",
        )
