"""The wheel works on its own, far from the checkout: code, prompts, recipes and flows are all in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = """name = "far"
[prompts]
path = "prompts/demo.jsonl"
limit = 40
[sample]
n = 3
shard_size = 16
engine = { type = "echo" }
[rank.judge]
type = "pairwise"
template = "prompts/judges/pairwise.md"
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel and nothing else of ours."""
    made, target = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", str(made), str(ROOT)], capture_output=True, text=True, check=False
    )
    if built.returncode and "hatchling" in built.stderr and "No matching distribution" in built.stderr:
        pytest.skip("the wheel cannot be built here: hatchling is neither installed nor to be had")
    assert built.returncode == 0, built.stderr
    (wheel,) = made.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


@pytest.fixture
def python(installed: Path, tmp_path: Path) -> list[str]:
    """Python in an empty folder, with the wheel's own modules before all others."""
    return ["env", f"--chdir={tmp_path}", f"PYTHONPATH={installed}", sys.executable]


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_ships_is_found_inside(python: list[str], installed: Path) -> None:
    code = """if True:
        import json, dpo_data
        from dpo_data.config import load
        from dpo_data.share import SHIPPED
        recipes = sorted(path.name for path in (SHIPPED / "flows" / "recipes").glob("*.toml"))
        names = [load(f"flows/recipes/{name}").name for name in recipes]
        print(json.dumps([dpo_data.__file__, str(SHIPPED), recipes, names]))
    """
    code_file, shipped, recipes, names = json.loads(output(*python, "-c", code))
    assert Path(code_file) == installed / "dpo_data" / "__init__.py"
    assert Path(shipped) == installed / "dpo_data" / "share"
    assert recipes == sorted(path.name for path in (ROOT / "flows" / "recipes").glob("*.toml")) and "demo.toml" in recipes
    assert "demo" in names
    for folder in ("flows", "prompts"):
        assert files(ROOT, folder) == files(Path(shipped), folder)


def files(root: Path, folder: str) -> set[str]:
    found = {str(path.relative_to(root)) for path in (root / folder).rglob("*") if path.is_file()}
    return {name for name in found if "__pycache__" not in name}


def test_every_module_is_inside(installed: Path) -> None:
    inside = {name for name in files(installed, "dpo_data") if not name.startswith("dpo_data/share/")}
    assert inside == files(ROOT, "dpo_data")


def test_a_run_needs_no_checkout(python: list[str], tmp_path: Path) -> None:
    (tmp_path / "far.toml").write_text(RECIPE)
    told = output(*python, "-m", "dpo_data.cli", "run", "far.toml")
    assert "runs/far/report.html" in told
    manifest = json.loads((tmp_path / "runs" / "far" / "3-pair" / "manifest.json").read_text())
    assert manifest["train"] > 0
    assert "demo: runs/demo" in output(*python, "-m", "dpo_data.cli", "plan", "flows/recipes/demo.toml")
    assert not (tmp_path / "runs" / "demo").exists()
