"""The commands. Each imports what it needs when it is called, so that `dpo-data --help` answers at once."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dpo_data import logs, stop
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
    """Run one command. Returns the exit code: 0, an error's own, or 128 and the number of the signal that stopped it."""
    debug = False
    try:
        given = parser().parse_args(argv)
        debug = given.debug
        if getattr(given, "log_format", None):
            os.environ[logs.FORMAT] = given.log_format
        logs.to_terminal()
        return int(given.command(given) or 0)
    except BaseException as error:
        if number := stop.obeyed(error):
            again = " ".join(["dpo-data", *(argv if argv is not None else sys.argv[1:])])
            logs.say(f"\ndpo-data: stopped. What is finished is kept; go on with `{again}`")
            return 128 + number
        if debug or not isinstance(error, DpoDataError):
            raise
        logs.say(f"dpo-data: error: {error}")
        return error.exit_code


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
    status = add("status", _status, "say how far a run is", recipe=False)
    status.add_argument("run", metavar="RUN", help="a run directory")
    status.add_argument("--watch", action="store_true", help="draw it anew each second until the run ends, as which it exits")
    status.add_argument("--json", action="store_true", help="as JSON; with --watch a line each second")
    report = add("report", _report, "write a run's report.json and report.html anew", recipe=False)
    report.add_argument("run", metavar="RUN", help="a run directory")
    compare = add("compare", _compare, "put two runs side by side: what was asked otherwise, and what came of it", recipe=False)
    compare.add_argument("one", metavar="RUN_A", help="a run directory")
    compare.add_argument("other", metavar="RUN_B", help="another")
    compare.add_argument("--out", metavar="FILE", default="compare.html", help="the page to write (default: compare.html)")
    export = add("export", _export, "write a run's pairs in another program's format", recipe=False)
    export.add_argument("run", metavar="RUN", help="a run directory")
    formats = "trl, llamafactory, axolotl, openrlhf, nemo_rl, hh, kto; with all answers of each prompt: ultrafeedback, text"
    export.add_argument("--format", required=True, metavar="FORMAT", help=formats)
    export.add_argument("--out", required=True, metavar="PATH", help="the new folder to write")
    doctor = add("doctor", _doctor, "check this machine: packages, GPU, disk, servers, keys", recipe=False)
    _takes_recipe(doctor, "?")
    argilla = commands.add_parser("argilla", help="start and stop an Argilla on this machine, where people rank answers")
    takes_commands(argilla)
    gc = add("gc", _gc, "say which old run directories and dead flow runs there are; with --yes end them", recipe=False)
    gc.add_argument("folder", metavar="RUNS", nargs="?", help="a folder of run directories; without it, flow runs alone")
    gc.add_argument("--keep", metavar="N", type=int, help="the newest N runs of each recipe's name stay (default: 1)")
    gc.add_argument("--older-than", metavar="AGE", help="and what was written to since, as 30d, 12h or 2w")
    gc.add_argument("--unpublished", action="store_true", help="runs may go that were not published")
    gc.add_argument("--yes", action="store_true", help="do it")
    deploy = add("deploy", _deploy, "start Prefect's server, deploy the flows and start a worker", recipe=False)
    deploy.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return top


def _takes_recipe(command: argparse.ArgumentParser, nargs: str | None = None) -> None:
    help = "a .toml file; the shipped ones are flows/recipes/*.toml"
    command.add_argument("recipe", metavar="RECIPE", nargs=nargs, help=help)
    command.add_argument("--run", metavar="DIR", help="the run directory, or its URL (default: runs/<the recipe's name>)")
    command.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a value, as sample.n=4")
    command.add_argument("--log-format", choices=logs.FORMATS, help=f"the form of log lines (default: {logs.FORMAT}, or text)")
    command.add_argument("--allow-code", action="store_true", help="run what the recipe names as code: only if you know it")


def _load(given: argparse.Namespace) -> "tuple[Recipe, RunDir]":
    from dpo_data.config import load
    from dpo_data.functions import ALLOW
    from dpo_data.rundir import RunDir

    recipe = load(given.recipe, given.set)
    if given.allow_code:
        os.environ[ALLOW] = "1"
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
        print(f"{name}: complete in {run.stage(name)}{where}, {manifest['seconds']:.1f} s")

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
    print(f"{run} keeps {', '.join(kept) or 'nothing'} of {given.old}. Go on: dpo-data run {given.recipe} --run {run}")


def _status(given: argparse.Namespace) -> int:
    from dataclasses import asdict

    from dpo_data.rundir import RunDir
    from dpo_data.status import status
    from dpo_data.watch import text, watch

    run = RunDir(given.run)
    if given.watch:
        return watch(run, given.json)
    found = status(run)
    print(json.dumps(asdict(found), indent=1) if given.json else text(found))
    return 0


def _report(given: argparse.Namespace) -> None:
    from dpo_data.config import load
    from dpo_data.report import last_words, report
    from dpo_data.report.rounds import report_rounds, rounds_words
    from dpo_data.rundir import RunDir

    run = RunDir(given.run)
    if not (run.path / "recipe.toml").is_file():
        raise InputError(f"No run with a finished stage at {run}", "Name a run directory, as runs/demo.")
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

    recipe, run = _load(given) if given.recipe else (None, None)
    return doctor(recipe, given.run or str(run or "runs"))


def _gc(given: argparse.Namespace) -> None:
    """Hands over, for the flow runs, to the one place that knows Prefect."""
    from pathlib import Path

    from dpo_data.gc import gc, rule_of
    from dpo_data.share import SHIPPED

    if given.folder:
        gc(Path(given.folder), rule_of(given.keep, given.older_than, given.unpublished), given.yes)
        sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(SHIPPED / "flows" / "gc.py"), *["--yes"] * given.yes])


def _deploy(given: argparse.Namespace) -> None:
    """Hands over to the one place that knows Prefect."""
    from dpo_data.share import SHIPPED

    os.execv(sys.executable, [sys.executable, str(SHIPPED / "flows" / "deploy.py"), *given.arguments])


def script() -> Any:
    """The command in a process of its own, which SIGTERM and a closed terminal stop as Ctrl-C does."""
    stop.listen()
    try:
        code = main()
    finally:
        stop.over()
    sys.exit(code)


if __name__ == "__main__":
    script()
