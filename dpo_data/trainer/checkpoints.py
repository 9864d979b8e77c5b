"""What a training that was killed goes on from."""

import json
import math
from pathlib import Path


def last_checkpoint(folder: Path, before: float = math.inf) -> Path | None:
    """The newest checkpoint, of those before a step, that was written to its end: its state file comes last, and parses."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: -step_of(path)):
        if step_of(checkpoint) >= before:
            continue
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return checkpoint
    return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])
