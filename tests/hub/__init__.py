"""A small Hugging Face Hub for tests, on loopback: the real clients push to it and load from it.

`with HubServer(folder) as server:` starts it on a thread of this process. `server.environment(home)` is what a client's process
needs: the clients read it when they are imported, so they run in processes of their own (`hub.clients`). `server.hub.faults`
takes failures to come (`Fault`), and `server.hub.log` tells every request.

Commits, trees, tags, LFS and the error answers are real; Xet, pull requests and the web page are not there.
"""

from collections.abc import Mapping
from pathlib import Path

from hub.app import Hub
from hub.faults import Fault, Faults
from hub.loopback import LoopbackServer
from hub.store import Repo

__all__ = ["Fault", "Hub", "HubServer", "Repo"]

TOKEN = "hf_theTestersOwnToken"


class HubServer:
    """The hub with its faults, served. `tokens` maps a token to the namespaces it may write, the user's own name first."""

    def __init__(self, root: Path, tokens: Mapping[str, list[str]] | None = None) -> None:
        self.root = root
        self.hub = Faults(Hub(root, tokens or {TOKEN: ["tester", "lab"]}))
        self.server = LoopbackServer(self.hub)
        self.url = self.server.url

    def __enter__(self) -> "HubServer":
        self.server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """The variables under which huggingface_hub and datasets talk to this server, with caches of their own in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token or "",
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def repo(self, name: str, kind: str = "datasets") -> Repo:
        """A repository as it is stored now."""
        return Repo(self.root, kind, name)

    def lines(self, part: str = "") -> list[str]:
        """The requests whose "METHOD path" holds `part`, each with its answer: "POST /api/… 200"."""
        return [f"{entry['line']} {entry['status']}" for entry in self.hub.log if part in entry["line"]]
