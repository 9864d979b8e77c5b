"""Check this machine, and say what to do about what is missing; with a recipe, also what that needs."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dpo_data.doctor import keys, machine, packages, servers
from dpo_data.doctor.check import Check
from dpo_data.seams import Settings

if TYPE_CHECKING:
    from dpo_data.config import Recipe


def doctor(recipe: "Recipe | None" = None, run: str = "runs") -> int:
    """Print a line a check. Returns 1 where something that every run needs is missing, or that this recipe needs; else 0."""
    checks = list(look(recipe, run))
    for mark, name, told in checks:
        print(f"{mark:>4}  {name:<8} {told}")
    return int(any(check.mark == "bad" for check in checks))


def look(recipe: "Recipe | None", run: str) -> Iterator[Check]:
    """All checks. `run`: the run directory, or the folder of all of them."""
    imports, driver = packages.Imports(), packages.driver()
    tables = list(_tables(recipe)) if recipe else []
    asked = [table for table in tables if hasattr(table, "base_url")]
    home = next((table.home for table in tables if getattr(table, "type", None) == "argilla"), None)
    last = [
        machine.memory(),
        machine.shared_memory(),
        machine.disk(run),
        machine.files(),
        *packages.extras(set(_extras(tables, run))),
        servers.prefect(),
        servers.argilla(home),
        *filter(None, [servers.ray()]),
        *(servers.chat(*one) for one in dict.fromkeys((table.base_url, table.model, table.key_env) for table in asked)),
        *keys.keys(_keys(recipe)),
    ]
    told = imports.told()
    yield machine.python()
    yield from packages.gpu(driver)
    yield packages.torch(driver, told)
    yield packages.vllm(told, needed=any(getattr(table, "type", None) == "vllm" for table in tables))
    yield from last


def _tables(settings: Any) -> Iterator[Any]:
    """A recipe's tables, at any depth."""
    if isinstance(settings, Settings):
        yield settings
        for value in vars(settings).values():
            yield from _tables(value)
    elif isinstance(settings, list | tuple | dict):
        for value in settings.values() if isinstance(settings, dict) else settings:
            yield from _tables(value)


def _extras(tables: list[Any], run: str) -> Iterator[str]:
    """Those that a run needs."""
    if any(getattr(table, "workers", 1) > 1 for table in tables):
        yield "ray"
    if any(getattr(table, "method", None) == "qlora" for table in tables):
        yield "qlora"
    if run.startswith("s3://"):
        yield "s3"


def _keys(recipe: "Recipe | None") -> Iterator[str]:
    """Those that a recipe needs, by the names of their variables, but for those of servers, which are looked at with these."""
    if recipe and recipe.publish:
        yield keys.HUB
    trackers = recipe.train.report_to if recipe and recipe.train else []
    yield from (
        keys.TRACKERS[name] for name in ([trackers] if isinstance(trackers, str) else trackers) if name in keys.TRACKERS
    )
