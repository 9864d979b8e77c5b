"""`dpo-data argilla …`: the commands for an Argilla on this machine."""

import argparse
from collections.abc import Callable
from pathlib import Path


def takes_commands(argilla: argparse.ArgumentParser) -> None:
    """Give the command its own commands."""
    argilla.description = "Start and stop an Argilla on this machine, where people rank answers, and give them accounts."
    commands = argilla.add_subparsers(required=True, metavar="COMMAND")
    up = _add(commands, "up", _up, "start a real Argilla on this machine, with its web UI; the first time it is installed")
    up.add_argument(
        "--port", metavar="N", type=int, default=6900, help="where it listens, for this machine alone (default: 6900)"
    )
    _add(commands, "down", _down, "stop it; what people answered is kept")
    _add(commands, "status", _status, "say where it runs")
    user = commands.add_parser("user", help="manage annotators", description="Manage annotators.")
    add = _add(user.add_subparsers(required=True, metavar="COMMAND"), "add", _user_add, "give somebody an annotator's account")
    add.add_argument("name", metavar="NAME", help="what they sign in with")
    add.add_argument("--workspace", metavar="NAME", default="dpo-data", help="whose datasets they see (default: dpo-data)")


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    work: Callable[[argparse.Namespace], int | None],
    help: str,
) -> argparse.ArgumentParser:
    one = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    one.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    one.add_argument("--home", metavar="DIR", type=Path, default=Path("argilla-data"), help="its data (default: argilla-data)")
    one.set_defaults(command=work)
    return one


def _up(given: argparse.Namespace) -> None:
    from dpo_data.argilla import environment, local

    runs, new = local.running(given.home), not (given.home / "argilla.db").exists()
    if not environment.is_made():
        print(f"Installing argilla-server {environment.VERSION} into {environment.where()}, once", flush=True)
    access = local.up(given.home, given.port)
    print(f"Argilla {'runs already' if runs else 'runs'} at {access.url}, for this machine alone; its data is in {given.home}")
    if new:
        username, password, key = local.owner(given.home)
        print(
            f"Sign in as {username} with the password {password} (API key: {key}), said once and kept in credentials.json there"
        )
        print("Give others an account with `dpo-data argilla user add NAME`; stop with `dpo-data argilla down`")


def _down(given: argparse.Namespace) -> None:
    from dpo_data.argilla import local

    print("Stopped" if local.down(given.home) else f"No server of {given.home} runs")


def _status(given: argparse.Namespace) -> int:
    from dpo_data.argilla import local

    url = local.running(given.home)
    print(f"Argilla runs at {url}; its data is in {given.home}" if url else f"No server of {given.home} runs")
    return 0 if url else 1


def _user_add(given: argparse.Namespace) -> None:
    from dpo_data.argilla import local

    password = local.add_user(given.home, given.name, given.workspace)
    print(f"{given.name} signs in at {local.running(given.home)} with the password {password}, and sees {given.workspace}")
