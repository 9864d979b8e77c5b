"""How far a run is, read from its directory alone, and who is at it."""

import json
from dataclasses import dataclass, field
from typing import Any

from dpo_data.errors import InputError
from dpo_data.lock import Owner, left_by
from dpo_data.nvidia import Gpu, gpus
from dpo_data.progress import noted_in
from dpo_data.rundir import FOLDERS, RunDir

WAITS = 75
"""The exit code of a stage that waits for somebody."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one engine of a mix has answered so far."""

    model: str
    shards: int


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage. `state`: not begun, begun, running, stopped (begun, and nobody is at it), waiting (for somebody's answer),
    failed, complete. `rows` are what `step` counts: prompts, pairs, training steps. `failed`: rows that could not be
    sampled or ranked. `seconds`: how long a complete one took; `left`: about how long it will take yet. `last`: when the last
    row came, or, before any, when it began; UTC. What is not known is None."""

    name: str
    state: str
    step: str | None = None
    shards: int | None = None
    shards_total: int | None = None
    rows: int | None = None
    rows_total: int | None = None
    failed: int | None = None
    rows_per_second: float | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    left: float | None = None
    last: str | None = None
    error: str | None = None
    exit_code: int | None = None
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run: who is at it, or was killed at it, its stages, or those of its rounds, why no further round follows, and this
    machine's GPUs while somebody is at it."""

    run: str
    holder: Owner | None
    stages: list[StageStatus]
    killed: Owner | None = None
    rounds: list["RunStatus"] = field(default_factory=list)
    no_further: str | None = None
    gpus: list[Gpu] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 where it is complete, what the stage ended with that failed, or else 1."""
        stages = [stage for one in (self, *self.rounds) for stage in one.stages]
        if self.no_further or (not self.rounds and all(stage.state == "complete" for stage in stages)):
            return 0
        return next((stage.exit_code for stage in reversed(stages) if stage.exit_code), 1)


def status(run: RunDir) -> RunStatus:
    """How far a run is. Raises InputError where there is none."""
    if not run.exists:
        raise InputError(f"No run at {run}", "Name a run directory, as runs/demo.")
    rounds = run.rounds
    owner = next(filter(None, (one.holder for one in (run, *rounds))), None)
    killed = None if owner else next(filter(None, (left_by(one.path) for one in (run, *rounds))), None)
    return RunStatus(
        str(run),
        owner,
        [] if rounds else stages_of(run, owner is not None),
        killed,
        [RunStatus(str(one), None, stages_of(one, owner is not None)) for one in rounds],
        _no_further(run) if rounds else None,
        _gpus() if owner else [],
    )


def stages_of(run: RunDir, held: bool) -> list[StageStatus]:
    """The stages that one run, or round, asks for; all, where it does not tell. `held`: whether somebody is at it."""
    noted = noted_in(run)
    now = noted.get("now") or {}
    return [_stage(run, name, now if now.get("stage") == name else None, held) for name in noted.get("stages", FOLDERS)]


def _stage(run: RunDir, name: str, now: dict[str, Any] | None, held: bool) -> StageStatus:
    stage = run.stage(name)
    if manifest := stage.manifest:
        return _complete(name, manifest)
    recipe, shards = stage.recipe, stage.finished
    if not recipe and not now:
        return StageStatus(name, "not begun")
    by_shards = name in ("sample", "rank")
    if not now:
        return StageStatus(name, "begun", shards=shards if by_shards else None)
    state = "running" if held else "stopped"
    if now["error"]:
        state = "waiting" if now["exit_code"] == WAITS else "failed"
    speed = now["rows"] / now["seconds"] if now["seconds"] > 0 else None
    engines = _engines(recipe) if name == "sample" else []
    return StageStatus(
        name,
        state,
        step=now["what"] if now["what"] != name else None,
        shards=shards if by_shards else None,
        shards_total=_shards_total(run, name, recipe, now["total"] // max(1, len(engines))),
        rows=now["done"],
        rows_total=now["total"],
        failed=now["failed"] if by_shards else None,
        rows_per_second=speed,
        tokens_per_second=now["tokens"] / now["seconds"] if now["tokens"] and now["seconds"] > 0 else None,
        left=(now["total"] - now["done"]) / speed if state == "running" and speed else None,
        last=now["last"] or now["began"],
        error=now["error"],
        exit_code=now["exit_code"],
        parts=[Part(model, part.finished) for model, part in zip(engines, stage.parts if engines else (), strict=False)],
    )


def _complete(name: str, manifest: dict[str, Any]) -> StageStatus:
    """Of a stage that took several attempts, the manifest tells the seconds of the last one."""
    shards = [file["rows"] for file in manifest["files"] if file["name"].partition(".")[0].isdigit()]
    seconds, tokens = manifest["seconds"], manifest.get("tokens_here") if name == "sample" else None
    return StageStatus(
        name,
        "complete",
        shards=len(shards) if shards else None,
        shards_total=len(shards) if shards else None,
        rows=sum(shards) or sum(file.get("rows", 0) for file in manifest["files"]) or None,
        failed=manifest.get("failed", manifest.get("abstained")),
        tokens_per_second=tokens / seconds if tokens and seconds else None,
        seconds=seconds,
    )


def _shards_total(run: RunDir, name: str, recipe: dict[str, Any] | None, prompts: int) -> int | None:
    if name == "sample" and recipe and prompts:
        return int(-(-prompts // recipe["settings"]["sample"]["shard_size"]))
    return run.stage("sample").finished if name == "rank" else None


def _engines(recipe: dict[str, Any] | None) -> list[str]:
    """The models of a mix; none where one engine samples."""
    engine = recipe["settings"]["sample"]["engine"] if recipe else {}
    return [one.get("model") or one["type"] for one in engine.get("engines", [])]


def _no_further(run: RunDir) -> str | None:
    path = run.path / "rounds.json"
    told: str | None = json.loads(path.read_text(encoding="utf-8"))["stopped"] if path.is_file() else None
    return told


def _gpus() -> list[Gpu]:
    try:
        return gpus(limit=2)
    except OSError:
        return []
