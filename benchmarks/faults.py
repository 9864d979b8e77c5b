"""Faults injected into real runs at random moments, and whether each was survived: a table by fault and stage.

    python benchmarks/faults.py [--seeds N | --starts N | --flows N]

A run begins in a process of its own, and at a moment that the seed decides one of its processes gets SIGKILL or SIGTERM. It is
survived where nothing of the run goes on living and no temporary file of it is left, and run again it ends well, with the same
samples, rankings and pairs, byte for byte, as a run that nobody touched. Some runs are asked to end while they start, by
SIGTERM or a closed terminal: these must do so, and say it. All is real: vLLM and the trainer with a tiny model on the CPU,
the Hub and Prefect's server on loopback.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from striking import START, Case, Injected, Shot, chains, starts, until, whole

from dpo_data.rundir import FOLDERS

PLAIN = """name = "faults"
[prompts]
path = "prompts.jsonl"
holdout = 0.1
[sample]
n = 3
max_tokens = 8
shard_size = 8
engine = { type = "echo", delay = 0.004 }
"""
ASKED = '[rank.judge]\ntype = "pairwise"\nengine = { type = "echo", delay = 0.001 }\n'
RULED = '[rank.judge]\ntype = "rule"\nrule = "concise"\n'
PUBLISHED = '[publish]\nrepo_id = "tester/{run}"\n'
TRAINED = '[train]\nmodel = "{model}"\nbatch_size = 4\nsave_steps = 2\n[evaluate]\nn = 2\n'

SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def shots(seeds: int) -> dict[str, list[list[Shot]]]:
    """The chains of shots by the case of their run: one for each seed where a run is cheap, and one where a trainer, an engine
    or Prefect has to start."""
    kill, term = SIGNALS
    early = ("sample", "rank", "pair")
    return {
        "asked": [[Shot("run", SIGNALS[(at + n) % 2], stage, at) for n, stage in enumerate(early)] for at in range(seeds)],
        "published": [[Shot("run", one, "publish", at) for one in SIGNALS] for at in range(seeds // 4)],
        "ruled": [[Shot("child", one, "rank", 0)] for one in SIGNALS],
        "trained": [
            [
                Shot("run", term, "train", 0),
                Shot("child", kill, "train", 0),
                Shot("child", term, "train", 1),
                Shot("engine", kill, "evaluate", 0),
                Shot("engine", term, "evaluate", 1),
                Shot("run", kill, "evaluate", 2),
            ]
        ],
        "flow": [[Shot("flow", one, stage, 0) for one, stage in zip(SIGNALS, early, strict=False)]],
    }


def everything(folder: Path, seeds: int) -> list[Injected]:
    """All faults, in runs in an empty folder."""
    from faults_on_prefect import on_prefect
    from hub import HubServer

    write_prompts(folder)
    planned = shots(seeds)
    with HubServer(folder / "hub") as hub:
        asked = Case(folder, PLAIN + ASKED)
        found = starts(asked, 2 * seeds)
        found += chains(asked, "asked", planned["asked"], whole(asked, "asked"))
        published = Case(folder, PLAIN + RULED + PUBLISHED, hub.environment(folder / "home"))
        like = whole(published, "published")
        found += chains(published, "published", planned["published"], like)
    ruled = Case(folder, PLAIN + RULED)
    found += chains(ruled, "ruled", planned["ruled"], like)
    trained = Case(folder, PLAIN + RULED + TRAINED.replace("{model}", tiny_model(folder / "model")))
    found += chains(trained, "trained", planned["trained"], until(trained, "trained", "train"))
    return found + on_prefect(folder, ruled, planned["flow"], like)


def flows(folder: Path, count: int) -> list[Injected]:
    """SIGTERM of so many flows, as they sample, rank or pair."""
    from faults_on_prefect import on_prefect

    write_prompts(folder)
    ruled = Case(folder, PLAIN + RULED)
    shots = [[Shot("flow", signal.SIGTERM, ("sample", "rank", "pair")[at % 3], at)] for at in range(count)]
    return on_prefect(folder, ruled, shots, whole(ruled), around=False)


def write_prompts(folder: Path) -> None:
    prompts = (json.dumps({"prompt": f"Question {at}: name {at + 2} rivers of the world"}) for at in range(100))
    (folder / "prompts.jsonl").write_text("\n".join(prompts))


def tiny_model(folder: Path) -> str:
    """The folder of a Llama with random weights, with the demo's tokenizer and chat template."""
    import torch

    from dpo_data.demo.model import build_tokenizer, tiny_llama
    from dpo_data.demo.questions import questions

    torch.manual_seed(0)
    tokenizer = build_tokenizer([f"{q.prompt} {q.answer} {q.sentence}" for q in questions()])
    tiny_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def table(found: Iterable[Injected]) -> str:
    """Markdown: how many of those injected were survived, by fault and stage."""
    found = list(found)
    injected = Counter((one.fault, one.stage) for one in found)
    survived = Counter((one.fault, one.stage) for one in found if not one.why)
    stages = [name for name in (START, *FOLDERS) if any(stage == name for _, stage in injected)]
    lines = [f"| survived of injected | {' | '.join(stages)} | all |", f"|---|{'---|' * (len(stages) + 1)}"]
    for fault in dict.fromkeys(one.fault for one in found):
        cells = [f"{survived[fault, stage]}/{injected[fault, stage]}" if injected[fault, stage] else "" for stage in stages]
        of_fault = [one for one in found if one.fault == fault]
        lines.append(f"| {fault} | {' | '.join(cells)} | {sum(not one.why for one in of_fault)}/{len(of_fault)} |")
    return "\n".join([*lines, "", f"{sum(survived.values())} of {len(found)} survived"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--starts", type=int, help="nothing but so many runs that are asked to end while they start")
    parser.add_argument("--flows", type=int, help="nothing but so many flows on Prefect that are asked to end by SIGTERM")
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the Hub on loopback is the tests'
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C, and so would the runs
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup does a closed terminal
    with tempfile.TemporaryDirectory() as folder:
        if given.starts:
            write_prompts(Path(folder))
            found = starts(Case(Path(folder), PLAIN + ASKED), given.starts)
        elif given.flows:
            found = flows(Path(folder), given.flows)
        else:
            found = everything(Path(folder), given.seeds)
    print(table(found))
    print(*(f"{one.fault}, {one.stage}, seed {one.seed}: {one.why}" for one in found if one.why), sep="\n")


if __name__ == "__main__":
    main()
