"""What a run directory tells, as the parts of its report. Parquet is streamed, so memory does not grow with the run."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from dpo_data.errors import DpoDataError
from dpo_data.report import schema
from dpo_data.rows import Message, PreferencePair
from dpo_data.rundir import FOLDERS, RunDir

Value = TypeVar("Value")


class Thinned(Generic[Value]):
    """An evenly spaced, deterministic sample of a stream: at most `limit` values (even), at least half as many once full."""

    def __init__(self, limit: int):
        self.values: list[Value] = []
        self.count = 0
        self._limit = limit
        self._stride = 1

    def add(self, value: Value) -> None:
        if self.count % self._stride == 0:
            if len(self.values) == self._limit:
                del self.values[1::2]
                self._stride *= 2
            self.values.append(value)
        self.count += 1

    def few(self, most: int) -> list[Value]:
        """At most `most` of the sample, evenly spaced too."""
        count = len(self.values)
        return [self.values[at * count // most] for at in range(most)] if count > most else self.values


class Numbers(Thinned[float]):
    """A stream of numbers: count, mean and extremes exactly, quantiles and histogram from at most 20,000 of them."""

    def __init__(self) -> None:
        super().__init__(20_000)
        self.total, self.least, self.most = 0.0, math.inf, -math.inf

    def add(self, value: float) -> None:
        super().add(value)
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)

    def spread(self) -> schema.Spread:
        ordered = sorted(self.values)
        p10, median, p90 = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.5, 0.9))
        mean = self.total / self.count
        return schema.Spread(count=self.count, mean=mean, least=self.least, p10=p10, median=median, p90=p90, most=self.most)

    def histogram(self, bins: int = 21) -> schema.Histogram:
        """Bins of equal width; the least and the greatest value are in the middle of theirs."""
        width = (self.most - self.least) / (bins - 1) or 1.0
        low = self.least - width / 2
        found = Counter(min(bins - 1, int((value - low) / width)) for value in self.values)
        edges = [low + at * width for at in range(bins + 1)]
        return schema.Histogram(edges=edges, shares=[found[at] / len(self.values) for at in range(bins)])


class Lengths:
    """Lengths of chosen and rejected answers, in one unit."""

    def __init__(self) -> None:
        self.chosen, self.rejected = Numbers(), Numbers()
        self._longer = self._equal = 0

    def add(self, chosen: int, rejected: int) -> None:
        self.chosen.add(chosen)
        self.rejected.add(rejected)
        self._longer += chosen > rejected
        self._equal += chosen == rejected

    def summary(self) -> schema.Length | None:
        count = self.chosen.count
        if not count:
            return None
        return schema.Length(
            chosen=self.chosen.spread(),
            rejected=self.rejected.spread(),
            chosen_longer=self._longer / count,
            equal=self._equal / count,
        )


def stages(run: RunDir) -> dict[str, schema.StageState]:
    """How far each stage is."""
    told = {}
    for name in FOLDERS:
        stage = run.stage(name)
        manifest = stage.manifest
        state: Any = "complete" if manifest else "begun" if stage.recipe else "not begun"
        rows = sum(f.get("rows", 0) for f in manifest["files"]) if manifest else sum(1 for _ in stage.column("prompt_id"))
        told[name] = schema.StageState(state=state, rows=rows)
    return told


BEFORE = {
    "duplicate": "duplicates",
    "near_duplicate": "near_duplicates",
    "contaminated": "contaminated",
    "other_round": "other_rounds",
    "held_out": "held_out",
    "failed": "failed",
}
"""What becomes of prompts before they are ranked, and the count of it in the manifest of `sample`."""


def funnel(run: RunDir) -> list[schema.Step]:
    """Where every prompt went, as far as stages are complete. Raises DpoDataError where the counts do not add up."""
    sample, rank, pair, evaluate = (run.stage(name).manifest for name in ("sample", "rank", "pair", "evaluate"))
    steps: list[schema.Step] = []

    def step(kind: Any, **counts: int) -> None:
        steps.extend(schema.Step(name=name, kind=kind, count=count) for name, count in counts.items())

    if sample:
        step("left", read=sample["read"])
        step("out", **{name: sample[key] for name, key in BEFORE.items() if key in sample})
        step("left", sampled=_rows(sample, r"\d+") - sample["failed"])
    if sample and rank:
        step("out", abstained=rank["abstained"])
        step("left", ranked=_rows(rank, r"\d+") - rank["abstained"])
    if sample and rank and pair:
        step("out", **{name: n for name, n in pair["dropped_prompts"].items() if name not in ("unsampled", "abstained")})
        step("left", paired=pair["paired"])
        if pair["candidates"] != pair["paired"]:
            step("made", candidates=pair["candidates"])
        step("out", **pair["dropped_pairs"])
        step("left", pairs=_rows(pair, "train|test"))
        step("part", train=pair["train"], test=pair["test"])
    check(steps, str(run))
    if sample and evaluate and evaluate["prompts"] != sample["held_out"]:
        raise mismatch(str(run), f"{sample['held_out']} prompts are held out, and {evaluate['prompts']} were evaluated")
    return steps


def check(steps: list[schema.Step], where: str) -> None:
    """Raises DpoDataError unless each `left` is what was there less every `out` between, and the parts sum to the last."""
    remaining: int | None = None
    for step in steps:
        if step.kind == "out":
            remaining = (remaining or 0) - step.count
        elif step.kind == "made":
            if step.count < (remaining or 0):
                raise mismatch(where, f"{remaining} prompts gave only {step.count} {step.name}")
            remaining = step.count
        elif step.kind == "left":
            if step.count < 0 or remaining not in (None, step.count):
                raise mismatch(where, f"{remaining} prompts should be {step.name}, and {step.count} are")
            remaining = step.count
    parts = [step for step in steps if step.kind == "part"]
    if parts and (total := sum(step.count for step in parts)) != remaining:
        raise mismatch(where, f"{remaining} prompts should be in {' or '.join(step.name for step in parts)}, and {total} are")


def pairs(run: RunDir) -> tuple[Lengths, Lengths, Numbers, list[schema.PairExample]]:
    """Of all pairs: lengths in words, in tokens, the margins; and a few of them."""
    words, tokens, margins = Lengths(), Lengths(), Numbers()
    sample: Thinned[PreferencePair] = Thinned(16)
    for name in ("train", "test"):
        for pair in run.stage("pair").rows(PreferencePair, f"{name}.parquet"):
            words.add(len(pair.chosen[-1]["content"].split()), len(pair.rejected[-1]["content"].split()))
            margins.add(pair.margin)
            if name == "train":
                sample.add(pair)
            if pair.n_tokens_chosen is not None and pair.n_tokens_rejected is not None:
                tokens.add(pair.n_tokens_chosen, pair.n_tokens_rejected)
    return words, tokens, margins, [_pair_example(pair) for pair in sample.few(6)]


def scores(run: RunDir) -> tuple[Numbers, int]:
    """All scores, and how many answers have none."""
    numbers, unjudged = Numbers(), 0
    for of_prompt in run.stage("rank").column("scores"):
        judged = [score for score in of_prompt if score is not None]
        unjudged += len(of_prompt) - len(judged)
        for score in judged:
            numbers.add(score)
    return numbers, unjudged


def history(run: RunDir) -> list[dict[str, Any]]:
    """TRL's log_history: a dict a log, with `step`; training metrics by name, held-out ones with `eval_` before it."""
    path = run.stage("train").file("metrics.json")
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found


def versions(manifests: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Each package's version, or all of them where stages ran with different ones."""
    found: dict[str, dict[str, None]] = {}
    for manifest in manifests:
        for name, version in manifest["versions"].items():
            found.setdefault(name, {})[version] = None
    return {name: ", ".join(seen) for name, seen in found.items()}


def finite(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Metrics as JSON can hold them: None for NaN and infinity."""
    return {
        name: float(value) if math.isfinite(value) else None
        for name, value in metrics.items()
        if isinstance(value, (int, float))
    }


def _rows(manifest: dict[str, Any], stem: str) -> int:
    """Rows in those of a stage's Parquet files whose stem matches."""
    return sum(file["rows"] for file in manifest["files"] if re.fullmatch(rf"({stem})\.parquet", file["name"]))


def mismatch(where: str, what: str) -> DpoDataError:
    """The error that says that a run's files do not fit together."""
    return DpoDataError(
        f"{where} does not add up: {what}", "Its files were changed by hand or come from different runs; redo the stage."
    )


def _pair_example(pair: PreferencePair) -> schema.PairExample:
    return schema.PairExample(
        prompt=shown_turns(pair.prompt),
        chosen=shown(_told(pair.chosen[-1])),
        rejected=shown(_told(pair.rejected[-1])),
        score_chosen=pair.score_chosen,
        score_rejected=pair.score_rejected,
    )


def shown_turns(messages: list[Message]) -> list[dict[str, str]]:
    """A conversation as report.json holds it."""
    return [{"role": turn["role"], "content": shown(_told(turn))} for turn in messages]


def _told(turn: Message) -> str:
    """A turn's text; its tool calls as JSON."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls") or ()]
    return "\n".join([*([turn["content"]] if turn["content"] else []), *calls])


def shown(text: str) -> str:
    """A text as report.json holds it: a long one cut."""
    return text if len(text) <= 2000 else text[:2000] + " …"
