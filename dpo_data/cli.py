"""The commands. Each imports what it needs when it is called, so that `dpo-data --help` answers at once."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dpo_data.argilla.commands import takes_commands
from dpo_data.errors import DpoDataError, InputError

if TYPE_CHECKING:
    from dpo_data.config import Recipe
    from dpo_data.rundir import RunDir

STAGE_HELP = {
    "sample": "answer every prompt N times",
    "rank": "have a judge rank the answers",
    "pair": "turn rankings into chosen/rejected pairs",
    "train": "train DPO on the pairs",
    "evaluate": "compare base and trained model on the held-out prompts",
    "publish": "push the pairs, the trained model or both to the Hugging Face Hub",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, an error's own, or 130 after Ctrl-C."""
    given = parser().parse_args(argv)
    grave = logging.StreamHandler()
    grave.setLevel(logging.WARNING)
    logging.basicConfig(format="%(message)s", handlers=[grave])
    try:
        return int(given.command(given) or 0)
    except DpoDataError as error:
        if given.debug:
            raise
        print(f"dpo-data: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        again = " ".join(["dpo-data", *(argv if argv is not None else sys.argv[1:])])
        print(f"\ndpo-data: stopped. What is finished is kept; go on with `{again}`", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    top = argparse.ArgumentParser(
        prog="dpo-data", description="Build preference datasets: sample → rank → pair → train → evaluate → publish."
    )
    top.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, work: Callable[[argparse.Namespace], int | None], help: str, recipe: bool = True
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        one.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        one.set_defaults(command=work)
        if recipe:
            _takes_recipe(one)
        return one

    add("run", _run, "run every stage of a recipe, then write the report")
    for name, help in STAGE_HELP.items():
        add(name, _stage(name), help)
    add("plan", _plan, "say what a recipe would do, without doing it")
    add(
        "demo",
        _demo,
        "make the demo's tiny model, if it is not there, for `dpo-data run flows/recipes/demo.toml`",
        recipe=False,
    )
    fork = add("fork", _fork, "begin a new run that keeps what still holds of an old one", recipe=False)
    fork.add_argument("old", metavar="OLD", help="the old run directory")
    _takes_recipe(fork)
    for name, work, help in (
        ("status", _status, "say how far a run is"),
        ("report", _report, "write a run's report.json and report.html anew"),
    ):
        add(name, work, help, recipe=False).add_argument("run", metavar="RUN", help="a run directory")
    compare = add("compare", _compare, "put two runs side by side: what was asked otherwise, and what came of it", recipe=False)
    compare.add_argument("one", metavar="RUN_A", help="a run directory")
    compare.add_argument("other", metavar="RUN_B", help="another")
    compare.add_argument("--out", metavar="FILE", default="compare.html", help="the page to write (default: compare.html)")
    export = add("export", _export, "write a run's pairs in another program's format", recipe=False)
    export.add_argument("run", metavar="RUN", help="a run directory")
    formats = "trl, llamafactory, axolotl, openrlhf, nemo_rl, hh, kto; with all answers of each prompt: ultrafeedback, text"
    export.add_argument("--format", required=True, metavar="FORMAT", help=formats)
    export.add_argument("--out", required=True, metavar="PATH", help="the new folder to write")
    add("doctor", _doctor, "check this machine: packages, GPU, disk, server", recipe=False)
    argilla = commands.add_parser("argilla", help="start and stop an Argilla on this machine, where people rank answers")
    takes_commands(argilla)
    deploy = add("deploy", _deploy, "start Prefect's server, deploy the flows and start a worker", recipe=False)
    deploy.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return top


def _takes_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="a .toml file; the shipped ones are flows/recipes/*.toml")
    command.add_argument("--run", metavar="DIR", help="the run directory (default: runs/<the recipe's name>)")
    command.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a value, as sample.n=4")


def _load(given: argparse.Namespace) -> "tuple[Recipe, RunDir]":
    from dpo_data.config import load
    from dpo_data.rundir import RunDir

    recipe = load(given.recipe, given.set)
    return recipe, RunDir(given.run or f"runs/{recipe.name}")


def _run(given: argparse.Namespace) -> None:
    from dpo_data import pipeline
    from dpo_data.progress import bars
    from dpo_data.report import last_words
    from dpo_data.report.rounds import rounds_words

    recipe, run = _load(given)
    with bars() as progress:
        report = pipeline.run(recipe, run, progress)
    print(rounds_words(run) if run.rounds else last_words(report, run))


def _stage(name: str) -> Callable[[argparse.Namespace], None]:
    def work(given: argparse.Namespace) -> None:
        from dpo_data import pipeline
        from dpo_data.progress import bars

        recipe, run = pipeline.current(*_load(given))
        with bars() as progress:
            manifest = pipeline.run_stage(name, recipe, run, progress)
        where = "".join(f" and at {url}" for url in manifest.get("urls", ()))
        print(f"{name}: complete in {run.stage(name).path}{where}, {manifest['seconds']:.1f} s")

    return work


def _plan(given: argparse.Namespace) -> None:
    from dpo_data.pipeline import current
    from dpo_data.plan import plan

    print(plan(*current(*_load(given))))


def _demo(given: argparse.Namespace) -> None:
    from dpo_data.config import load
    from dpo_data.demo.model import make

    print(f"The demo's model is {make(load('flows/recipes/demo.toml'))}. Now: dpo-data run flows/recipes/demo.toml")


def _fork(given: argparse.Namespace) -> None:
    from dpo_data import pipeline
    from dpo_data.rundir import RunDir

    recipe, run = _load(given)
    kept = pipeline.fork(RunDir(given.old), run, recipe)
    print(
        f"{run.path} keeps {', '.join(kept) or 'nothing'} of {given.old}. Go on: dpo-data run {given.recipe} --run {run.path}"
    )


def _status(given: argparse.Namespace) -> None:
    from dpo_data.rundir import RunDir
    from dpo_data.status import status

    print(status(RunDir(given.run)))


def _report(given: argparse.Namespace) -> None:
    from dpo_data.config import load
    from dpo_data.report import last_words, report
    from dpo_data.report.rounds import report_rounds, rounds_words
    from dpo_data.rundir import RunDir

    run = RunDir(given.run)
    if not (run.path / "recipe.toml").is_file():
        raise InputError(f"No run with a finished stage at {run.path}", "Name a run directory, as runs/demo.")
    recipe = load(run.path / "recipe.toml")
    for one in run.rounds:
        report(load(one.path / "recipe.toml"), one)
    if run.rounds:
        report_rounds(recipe, run)
    print(rounds_words(run) if run.rounds else last_words(report(recipe, run), run))


def _compare(given: argparse.Namespace) -> None:
    from pathlib import Path

    from dpo_data.compare import compare, html, table
    from dpo_data.files import write_atomically
    from dpo_data.rundir import RunDir

    found, out = compare(RunDir(given.one), RunDir(given.other)), Path(given.out)
    write_atomically(out, html(found).encode())
    print(f"{table(found)}\n\nplots and answers are in {out}")


def _export(given: argparse.Namespace) -> None:
    from pathlib import Path

    from dpo_data.export import export
    from dpo_data.rundir import RunDir

    for part in export(RunDir(given.run), given.format, Path(given.out)):
        print(f"{part.path}: {part.records:,} records")
        for reason, count in part.left_out.most_common():
            print(f"  left out {count:,}: {reason}, kept in {part.path.stem}.left-out.jsonl")


def _doctor(given: argparse.Namespace) -> int:
    from dpo_data.doctor import doctor

    return doctor()


def _deploy(given: argparse.Namespace) -> None:
    """Hands over to the one place that knows Prefect."""
    from dpo_data.share import SHIPPED

    os.execv(sys.executable, [sys.executable, str(SHIPPED / "flows" / "deploy.py"), *given.arguments])


def script() -> Any:
    sys.exit(main())


if __name__ == "__main__":
    script()
