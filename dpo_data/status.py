"""How far a run is, read from its directory alone."""

from dpo_data.errors import InputError
from dpo_data.rundir import FOLDERS, RunDir


def status(run: RunDir) -> str:
    """A line a stage: complete, begun or not begun, with its shards; of a run with rounds, those of each."""
    if not run.path.is_dir():
        raise InputError(f"No run at {run.path}", "Name a run directory, as runs/demo.")
    if run.rounds:
        return "\n".join(map(status, run.rounds))
    lines = [f"{run.path}"]
    for name in FOLDERS:
        stage = run.stage(name)
        manifest, shards = stage.manifest, len(stage.shards())
        if manifest:
            rows = sum(file.get("rows", 0) for file in manifest["files"])
            lines.append(f"  {name:<9} complete   {rows:>9,} rows  {manifest['seconds']:>8.1f} s")
        elif stage.recipe:
            lines.append(f"  {name:<9} begun      {shards:>9,} shards finished")
        else:
            lines.append(f"  {name:<9} not begun")
    return "\n".join(lines)
