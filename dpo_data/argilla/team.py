"""The people of a workspace: accounts are made for those who have none."""

import json
import logging
import re
import secrets
from pathlib import Path

from dpo_data.argilla.access import credentials, write_private
from dpo_data.argilla.client import Client
from dpo_data.argilla.lock import held
from dpo_data.errors import ArgillaError

log = logging.getLogger(__name__)


def gather(client: Client, workspace: str, names: list[str], home: Path) -> None:
    """Give each of these an annotator's account, where there is none, and a place in the workspace. A new one's password is
    kept in the home: in credentials.json, or, of an Argilla that is not the home's own, in a file that names its host."""
    if not names:
        return
    there = {user["username"] for user in client.get(f"workspaces/{workspace}/users")["items"]}
    missing = [name for name in names if name not in there]
    if not missing:
        return
    ids = {user["username"]: user["id"] for user in client.get("users")["items"]}
    for name in missing:
        who = ids.get(name) or _made(client, name, home)
        client.post(f"workspaces/{workspace}/users", {"user_id": who})


def annotators(client: Client, workspace: str) -> dict[str, str]:
    """The names, by user id, of those in the workspace who are there to answer."""
    users = client.get(f"workspaces/{workspace}/users")["items"]
    return {user["id"]: user["username"] for user in users if user["role"] == "annotator"}


def names_of(client: Client, workspace: str) -> dict[str, str]:
    """All names that the asker may know, by user id: an owner knows every user, an admin those of the workspace."""
    me = client.get("me")
    users = client.get("users" if me["role"] == "owner" else f"workspaces/{workspace}/users")["items"]
    return {user["id"]: user["username"] for user in [me, *users]}


def book(url: str, home: Path) -> str:
    """The name of the file that keeps the passwords of an Argilla's people."""
    known = credentials(home)
    own = known is not None and known["api_url"] == url
    return "credentials.json" if own else f"users-{re.sub(r'[^A-Za-z0-9.-]+', '-', url.partition('//')[2])}.json"


def _made(client: Client, name: str, home: Path) -> str:
    """A new user's id. The password is on the disk before anybody can have it."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = home / book(client.url, home)
    with held(home / "credentials.lock"):
        try:
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            users = known.setdefault("users", {})
            password = users.setdefault(name, {}).setdefault("password", secrets.token_urlsafe(12))
        except (ValueError, TypeError, AttributeError):
            raise ArgillaError(f"{path} cannot be read", "Restore it, or name another folder as rank.judge.home.") from None
        write_private(path, json.dumps(known, indent=2) + "\n")
        user = client.post("users", {"username": name, "first_name": name, "role": "annotator", "password": password})
        users[name]["api_key"] = user["api_key"]
        write_private(path, json.dumps(known, indent=2) + "\n")
    log.info("argilla: made user %s, whose password is in %s", name, path)
    return str(user["id"])
