"""The house's rules, read from the source: who imports whom, what is heavy, how long a file may be, what says what it does."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted((ROOT / "dpo_data").rglob("*.py"))}
FLOWS = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted((ROOT / "flows").rglob("*.py"))}
EVERYTHING = OURS | FLOWS
HEAVY = {
    *("torch", "vllm", "trl", "peft", "transformers", "argilla", "openai", "datasets", "pandas", "prefect", "matplotlib"),
    *("fsspec", "s3fs", "ray"),
}
STAGES = {"sample", "rank", "pair", "publish", "train", "evaluate"}

SEES: dict[str, set[str]] = {
    "rows": set(),
    "tables": {"rows"},
    "errors": set(),
    "share": set(),
    "chat_template": {"rows", "errors", "share"},
    "provenance": set(),
    "functions": {"errors", "provenance"},
    "progress": {"errors", "files", "rows", "rundir", "seams", "store"},
    "logs": {"errors", "rundir"},
    "nvidia": set(),
    "doctor": {"argilla", "config", "errors", "nvidia", "seams"},
    "status": {"errors", "lock", "nvidia", "progress", "rundir"},
    "watch": {"nvidia", "progress", "rundir", "status", "stop"},
    "seams": {"rows"},
    "child": {"errors"},
    "ray_cluster": {"child", "errors"},
    "models": {"errors", "provenance", "store"},
    "stream": set(),
    "spool": {"errors"},
    "dedup": {"stream", "rows", "errors", "ray_cluster"},
    "filters": {"chat_template", "functions", "rows", "tables", "seams", "errors", "dedup", "models", "provenance"},
    "files": {"rows", "tables", "errors"},
    "formats": {"rows", "seams", "errors", "share", "files", "provenance", "dedup"},
    "templates": {"rows", "errors", "share"},
    "wire": set(),
    "chat": {"rows", "seams", "errors", "wire"},
    "engines": {
        "chat_template",
        "rows",
        "seams",
        "errors",
        "chat",
        "child",
        "models",
        "provenance",
        "formats",
        "trainer",
        "ray_cluster",
    },
    "judges": {
        "argilla",
        "chat_template",
        "functions",
        "rows",
        "seams",
        "errors",
        "chat",
        "child",
        "models",
        "provenance",
        "templates",
        "share",
        "engines",
        "spool",
        "stream",
    },
    "argilla": {"rows", "seams", "errors", "provenance", "templates"},
    "ledger": {"chat_template", "rows", "seams", "errors", "models"},
    "explain": set(),
    "judging": {"rows", "seams", "config", "files", "ledger", "rundir", "templates"},
    "config": {"explain", "seams", "errors", "share", "engines", "judges", "formats", "filters"},
    "admission": {"rows", "config", "engines", "formats", "dedup", "ray_cluster", "templates", "errors", "rundir"},
    "lock": {"errors", "files"},
    "sums": {"errors", "files", "provenance"},
    "copies": {"files"},
    "stop": set(),
    "store": {"rows", "errors", "files", "copies", "lock"},
    "stage": {"rows", "tables", "errors", "files", "provenance", "store", "sums"},
    "lease": {"errors", "lock", "store"},
    "rundir": {"errors", "files", "lease", "lock", "stage", "store", "sums"},
    "hub": {"rows", "errors", "provenance"},
    "dataset": {"rows", "tables", "errors", "files", "provenance", "rundir"},
    "audit": {"config", "rundir", "files", "tables", "errors", "share", "length_control"},
    "gates": {"config", "audit", "errors"},
    "lineage": {"config", "errors", "evaluation", "rundir", "store"},
    "gc": {"config", "errors", "judges", "lock", "rundir"},
    "hints": {"config", "errors", "rundir", "files", "models", "rows"},
    "numbers": set(),
    "evaluation": {
        "audit",
        "child",
        "config",
        "engines",
        "errors",
        "formats",
        "judges",
        "length_control",
        "models",
        "numbers",
        "rows",
        "seams",
        "share",
        "templates",
    },
    "trainer": {"child", "errors", "files", "rows"},
    "weights": {"config", "rundir", "child", "models", "errors", "store"},
    "card": {"rows", "config", "rundir", "audit", "report", "dataset", "hub", "gates", "store", "weights", "numbers"},
}
"""What a module, or every module of a folder, may import of ours besides its own folder. A module that is not here is a stage,
its helper, or stands on top: held by the other rules."""


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(EVERYTHING[module].read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """The modules, dotted, that these statements import; `from package import name` gives both package and package.name."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def at_top(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: all but bodies of functions, and what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from at_top(child)


def ours(module: str) -> set[str]:
    """The modules of ours that a module imports anywhere, as the first word below dpo_data: `judges.rule` is `judges`."""
    found = imported(ast.walk(tree(module)))
    return {name.split(".")[1] for name in found if name.startswith("dpo_data.") and _is_module(name)}


def _is_module(name: str) -> bool:
    return name in EVERYTHING or f"{name}.__init__" in EVERYTHING


def word(module: str) -> str:
    return module.split(".")[1]


def test_there_is_something_to_read() -> None:
    assert {"dpo_data.rows", "dpo_data.judges.pairwise", "dpo_data.engines.__init__"} <= OURS.keys()
    assert ours("dpo_data.rank") >= {"config", "rundir", "rows"}
    assert "vllm" in {name.split(".")[0] for name in imported(ast.walk(tree("dpo_data.engines.vllm_child")))}


@pytest.mark.parametrize("module", OURS)
def test_nothing_heavy_is_imported_at_the_top(module: str) -> None:
    assert not HEAVY & {name.split(".")[0] for name in imported(at_top(tree(module)))}


@pytest.mark.parametrize("module", OURS)
def test_only_flows_know_prefect(module: str) -> None:
    names = {name.split(".")[0] for name in imported(ast.walk(tree(module)))}
    assert not {"prefect", "flows"} & names


@pytest.mark.parametrize("module", [module for module in OURS if word(module) in SEES])
def test_each_module_sees_only_what_is_below_it(module: str) -> None:
    assert ours(module) - {word(module)} <= SEES[word(module)]


@pytest.mark.parametrize("module", OURS)
def test_argillas_server_stands_alone(module: str) -> None:
    """What runs in its environment sees nothing of ours, and nobody else sees what is only there."""
    if module.startswith("dpo_data.argilla.server."):
        assert not ours(module)
    else:
        assert not {"argilla_server", "server"} & {name.split(".")[0] for name in imported(ast.walk(tree(module)))}


@pytest.mark.parametrize("module", [module for module in OURS if word(module) in STAGES])
def test_stages_see_neither_each_other_nor_what_stands_on_them(module: str) -> None:
    assert not ours(module) & (STAGES - {word(module)} | {"pipeline", "cli", "plan", "report", "status"})


@pytest.mark.parametrize("module", OURS)
def test_the_command_line_is_on_top(module: str) -> None:
    seen = ours(module)
    assert "cli" not in seen - {word(module)}
    if "pipeline" in seen:
        assert word(module) in {"cli", "plan"}


@pytest.mark.parametrize("module", EVERYTHING)
def test_a_file_fits_in_the_head(module: str) -> None:
    assert len(EVERYTHING[module].read_text(encoding="utf-8").splitlines()) <= 300
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 100, node.name


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(node: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    for child in node.body:
        if isinstance(child, Definition) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public(child)


def is_obvious(node: Definition, method: bool) -> bool:
    """A class of named fields, a function of two statements, or a short method of a class that says what it is."""
    if isinstance(node, ast.ClassDef):
        return len(node.body) == 1 or all(isinstance(part, ast.AnnAssign) for part in node.body)
    return len(node.body) <= 2 or (method and (node.end_lineno or 0) - node.lineno < 12)


@cache
def seam_methods() -> set[str]:
    """The methods that every engine or judge has: what they do is said in seams.py, once."""
    protocols = [node for node in tree("dpo_data.seams").body if isinstance(node, ast.ClassDef)]
    methods = {one.name for protocol in protocols for one in protocol.body if isinstance(one, ast.FunctionDef)}
    return methods | {"build", "inputs", "calls"}


@pytest.mark.parametrize("module", EVERYTHING)
def test_what_is_public_says_what_it_does(module: str) -> None:
    """By a docstring; or by its name, where it is obvious or its meaning is a seam's."""
    top = set(tree(module).body)
    silent = [node for node in public(tree(module)) if not ast.get_docstring(node) and not is_obvious(node, node not in top)]
    assert not [node.name for node in silent if node.name not in seam_methods()]


@pytest.mark.parametrize("module", EVERYTHING)
def test_every_file_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(tree(module))
