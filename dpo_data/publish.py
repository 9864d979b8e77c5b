"""The pairs, all ranked answers and a card that says how they were made go to the Hugging Face Hub, as one tagged commit.

Nothing is public unless the recipe asks for it. A push that broke off is made again: what the Hub has stored is not sent twice,
and what is committed is not committed twice. The token is in no file and no log.
"""

import logging
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dpo_data.card import card
from dpo_data.config import Publish, Recipe
from dpo_data.dataset import CONFIGS, gather
from dpo_data.errors import PublishError
from dpo_data.hub import open_repo, require_token
from dpo_data.provenance import file_hash
from dpo_data.rundir import RunDir
from dpo_data.seams import Progress

log = logging.getLogger(__name__)


def publish(recipe: Recipe, run: RunDir, progress: Progress) -> dict[str, Any]:
    """Push the dataset, and keep its card in `6-publish`. Returns the manifest: commit, tag and what was pushed."""
    wanted = _asked(recipe)
    for before in ("sample", "rank", "pair"):
        run.stage(before).require()
    stage = run.stage("publish").open(settings(recipe), inputs(recipe, run))
    if stage.manifest:
        return stage.manifest
    require_token()
    tag = wanted.tag or tag_of(run) or recipe.name
    if tag == wanted.revision:
        raise PublishError(f"{tag!r} is the branch and cannot be the tag too", "Name a publish.tag.")
    repo = open_repo(wanted.repo_id, wanted.revision, wanted.private)
    with TemporaryDirectory(dir=stage.path, prefix=".", suffix=".tmp") as folder:
        data = gather(run, Path(folder), wanted.judgments)
        text = card(recipe, run, data, tag)
        readme = Path(folder) / "README.md"
        readme.write_text(text, encoding="utf-8")
        files = {"README.md": readme, **{one.path: one.file for one in data}}
        progress("publish", 0, len(files))
        commit = repo.push(files, is_ours, tag, f"{recipe.name}: {tag}", lambda done: progress("publish", done, len(files)))
        pushed = [{"path": one.path, "rows": one.rows, "sha256": file_hash(one.file)} for one in data]
    stage.write_text("README.md", text)
    progress("publish", len(files), len(files))
    url = f"{repo.url}/tree/{tag}"
    log.info("published: %s, commit %s", url, commit)
    return stage.finish(
        repo_id=repo.repo_id, private=repo.private, revision=repo.revision, tag=tag, commit=commit, url=url, pushed=pushed
    )


def settings(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe decides what is published, and where."""
    return recipe.deciding("publish")


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Content hashes of what this stage reads."""
    return {name: run.stage(name).digest for name in ("sample", "rank", "pair")}


def tag_of(run: RunDir) -> str:
    """The tag of a run that names none: its directory's name, as git takes it."""
    return re.sub(r"[^\w.-]+", "-", run.path.resolve().name).strip(".-")


def is_ours(path: str) -> bool:
    """Whether a file of the repository is one that a push makes, and so may delete."""
    folder, _, name = path.partition("/")
    return folder in CONFIGS and re.fullmatch(r"(train|test)-\d+\.parquet", name) is not None


def _asked(recipe: Recipe) -> Publish:
    assert recipe.publish is not None  # the pipeline runs no stage that the recipe does not ask for
    return recipe.publish
