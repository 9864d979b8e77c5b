"""What of the prompts file is sampled, held out and dropped: decided in one place, before an engine starts.

The file is read again rather than held: a prompt costs some 40 bytes, and what `near_duplicates` keeps of it: with workers on
Ray 20 bytes.
"""

import logging
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from dpo_data.config import Recipe
from dpo_data.dedup import Contamination, near_duplicates, on_ray
from dpo_data.engines.given import Given
from dpo_data.errors import EmptyStage, InputError
from dpo_data.formats.prompts import Prompts, evaluation_texts, is_held_out, prompts_hash, read_given, read_prompts
from dpo_data.ray_cluster import cluster
from dpo_data.rows import DroppedPrompt, Prompt, batched, content_id
from dpo_data.rundir import RunDir
from dpo_data.templates import said

FATES = ("prompts", "held_out", "duplicates", "near_duplicates", "contaminated", "other_rounds")
SAMPLED, HELD_OUT, DUPLICATE, NEAR_DUPLICATE, CONTAMINATED, OTHER_ROUND = range(len(FATES))
"""What may become of a prompt, by the words of the manifest."""

WHY = {
    DUPLICATE: ("duplicate", "the same messages as {other}"),
    NEAR_DUPLICATE: ("near_duplicate", "{share:.2f} like {other}"),
    CONTAMINATED: ("contaminated", "holds {share:.2f} of the {n}-grams of {other}"),
    OTHER_ROUND: ("other_round", "{other}"),
}
"""A dropped prompt's filter and reason."""

BATCH = 256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Admission:
    """What becomes of every prompt of a recipe's file, row by row.

    `counts`: `read` is the sum of `prompts` (to sample), `held_out`, `duplicates`, `near_duplicates`, `contaminated` and, where
    rounds share the prompts, `other_rounds`. `answers`: how many of the prompts to sample came with how many answers; empty
    where none are given. `other`, `share`: for a dropped row, the row or the evaluation text that it is like, and how much; or
    the run that sampled it last. `reused`: how many of the prompts to sample an earlier round has sampled; None where rounds
    do not share them.
    """

    recipe: Recipe
    counts: dict[str, int]
    answers: Counter[int]
    fates: npt.NDArray[np.int8]
    other: npt.NDArray[np.int64]
    share: npt.NDArray[np.float64]
    evaluation: list[str]
    reused: int | None = None

    def sampled(self) -> Iterator[Prompt]:
        return compress(_prompts(self.recipe), self.fates == SAMPLED)

    def held_out(self) -> Iterator[Prompt]:
        return compress(_prompts(self.recipe), self.fates == HELD_OUT) if self.counts["held_out"] else iter(())

    def dropped(self) -> Iterator[DroppedPrompt]:
        """The prompts that are neither sampled nor held out, each with a reason that names what it is like, or who took it."""
        named = set(self.other[np.isin(self.fates, (DUPLICATE, NEAR_DUPLICATE))].tolist())
        sources: dict[int, str] = {}  # what a row is like stands before it
        n = self.recipe.prompts.decontaminate.n if self.recipe.prompts.decontaminate else 0
        lost = np.isin(self.fates, tuple(WHY)).any()
        for row, prompt in enumerate(_prompts(self.recipe) if lost else ()):
            if row in named:
                sources[row] = prompt.source
            fate, at = int(self.fates[row]), int(self.other[row])
            if fate in WHY:
                filter, reason = WHY[fate]
                other = self.evaluation[at] if fate == CONTAMINATED else self._round(at) if fate == OTHER_ROUND else sources[at]
                reason = reason.format(other=other, share=self.share[row], n=n)
                kept = (prompt.tools, prompt.reference, prompt.chat_template_kwargs)
                yield DroppedPrompt(prompt.prompt_id, prompt.prompt, prompt.source, filter, reason, *kept)

    def _round(self, at: int) -> str:
        """Why a prompt is no part of this round: who sampled it last, by its place in the lineage."""
        return f"sampled by {self.recipe.lineage.runs[at]}" if self.recipe.lineage and at >= 0 else "left for a later round"


def admit(recipe: Recipe) -> Admission:
    """Decide on every prompt of the file: exact repetitions, what overlaps an evaluation set, near-duplicates of a prompt that
    stays, what is held out, what other rounds take. Raises InputError where a file is bad or a round of the lineage is gone,
    and EmptyStage where nothing is left to sample."""
    named, contamination = _evaluation(recipe.prompts)
    keys, fates, came, other, share = array("Q"), array("b"), array("q"), array("q"), array("d")

    def texts() -> Iterator[list[str]]:
        for batch in batched(_read(recipe), BATCH):
            for prompt, answers in batch:
                keys.append(_key(prompt.prompt_id))
                fates.append(HELD_OUT if is_held_out(prompt, recipe.prompts.holdout, recipe.seed) else SAMPLED)
                came.append(answers)
            yield [_text(prompt) for prompt, _ in batch]

    with cluster() if recipe.prompts.workers > 1 else nullcontext() as ray:
        for found, shares in _overlaps(recipe, contamination, texts(), ray):
            other.extend(found)
            share.extend(shares)
        made = Admission(recipe, {}, Counter(), np.array(fates, np.int8), np.array(other, np.int64), np.array(share), named)
        first = _first(np.array(keys, np.uint64))
        made.fates[made.other >= 0] = CONTAMINATED
        repeated = first != np.arange(len(first))
        made.fates[repeated], made.other[repeated] = DUPLICATE, first[repeated]
        _near_duplicates(made, ray)
    made = replace(made, reused=_other_rounds(made, np.array(keys, np.uint64)))
    _count(made)
    if isinstance(recipe.sample.engine, Given):
        made.answers.update(compress(came, made.fates == SAMPLED))
    return made


def _overlaps(
    recipe: Recipe, contamination: Contamination | None, texts: Iterator[list[str]], ray: Any
) -> Iterator[tuple[Iterable[int], Iterable[float]]]:
    """Of some texts at a time, in their order, which evaluation text each holds too much of (-1: none), and how much (0-1)."""
    if contamination is None:
        return (([-1] * len(batch), [0.0] * len(batch)) for batch in texts)
    if ray is None:
        return map(contamination.overlaps, texts)
    return on_ray.overlaps(ray, contamination, texts, recipe.prompts.workers)


def _near_duplicates(made: Admission, ray: Any) -> None:
    """Mark what is too like an earlier prompt that stays."""
    threshold, workers = made.recipe.prompts.near_duplicates, made.recipe.prompts.workers
    staying = made.fates <= HELD_OUT
    if threshold == 1 or not staying.any():
        return

    def texts() -> Iterator[tuple[list[str], list[str]]]:
        for batch in batched(compress(_prompts(made.recipe), staying), BATCH):
            yield [_text(prompt) for prompt in batch], [_salt(prompt) for prompt in batch]

    if ray is None:
        twins = near_duplicates(texts, threshold)
    else:
        twins = on_ray.near_duplicates(ray, list(on_ray.stored(ray, texts())), workers, threshold)
    rows, dropped = np.flatnonzero(staying), twins.of >= 0
    like = rows[dropped]
    made.fates[like], made.other[like], made.share[like] = NEAR_DUPLICATE, rows[twins.of[dropped]], twins.similarity[dropped]


def _other_rounds(made: Admission, keys: npt.NDArray[np.uint64]) -> int | None:
    """Leave to other rounds what this one does not take: it prefers what no round has sampled, and then what was sampled the
    longest ago; among equals, by their ids, which are hashes. Returns `reused`. Raises InputError."""
    lineage, rounds = made.recipe.lineage, made.recipe.rounds
    if lineage is None or rounds.reused:
        return None
    rows = np.flatnonzero(made.fates == SAMPLED)
    last = np.zeros(len(rows), np.int64)
    for at, run in enumerate(lineage.runs, 1):
        last[np.isin(keys[rows], _sampled_by(run))] = at
    order = np.lexsort((keys[rows], last))
    taken, left = np.split(order, [rounds.share(lineage.round, len(rows))])
    made.fates[rows[left]], made.other[rows[left]] = OTHER_ROUND, last[left] - 1
    reused = int(np.count_nonzero(last[taken]))
    if reused:
        log.warning("%d of the %d prompts of this round were sampled in an earlier one: no others are left", reused, len(taken))
    return reused


def _sampled_by(run: str) -> npt.NDArray[np.uint64]:
    """The keys of the prompts that a run has sampled. Raises InputError where it is gone."""
    stage = RunDir(run).stage("sample")
    if stage.manifest is None:
        raise InputError(
            f"{stage} is gone, so nobody knows which prompts this round should not take again",
            "Put it back, or set rounds.reused = true.",
        )
    return np.array([_key(id) for id in stage.column("prompt_id")], np.uint64)


def lineage_inputs(recipe: Recipe) -> dict[str, Any]:
    """What decides which prompts a round takes, with content hashes of what earlier rounds sampled; empty where they do not
    share the prompts."""
    if recipe.lineage is None or recipe.rounds.reused:
        return {}
    share = {"round": recipe.lineage.round, "count": recipe.rounds.count, "prompts": recipe.rounds.prompts}
    return {"rounds": {**share, "sampled": [RunDir(run).stage("sample").digest for run in recipe.lineage.runs]}}


def _count(made: Admission) -> None:
    """Fill `counts`. Raises EmptyStage."""
    fates = FATES if made.reused is not None else FATES[:OTHER_ROUND]
    counts = dict(zip(fates, np.bincount(made.fates, minlength=len(fates)).tolist(), strict=True))
    made.counts.update({"read": sum(counts.values()), **counts})
    if not counts["prompts"]:
        lost = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
        raise EmptyStage(
            f"No prompt to sample in {made.recipe.prompts.path}: {made.counts['read']} read{lost and f' ({lost})'}",
            "Check the file, and limit, holdout, near_duplicates and decontaminate under [prompts].",
        )


def evaluation_hashes(prompts: Prompts) -> dict[str, str | None]:
    """Content hashes of the evaluation sets, by path; None for one that is not there."""
    against = prompts.decontaminate.against if prompts.decontaminate else []
    return {path: prompts_hash(Prompts(path=path)) for path in against}


def _evaluation(prompts: Prompts) -> tuple[list[str], Contamination | None]:
    """Where each evaluation text stands; and what tells of others which of those they hold too much of."""
    wanted = prompts.decontaminate
    if wanted is None:
        return [], None
    named: list[str] = []
    texts: list[str] = []
    for path, hash in evaluation_hashes(prompts).items():
        found = list(evaluation_texts(path)) if hash else []
        if not found:
            what = "No text in the evaluation set" if hash else "No evaluation set at"
            raise InputError(f"{what} {path}", "Mend prompts.decontaminate.against.")
        named += [where for where, _ in found]
        texts += [text for _, text in found]
    return named, Contamination(texts, wanted.n, wanted.share)


def _read(recipe: Recipe) -> Iterator[tuple[Prompt, int]]:
    """The file's prompts, each with the number of answers that came with it."""
    if isinstance(recipe.sample.engine, Given):
        return ((prompt, len(answers)) for prompt, answers in read_given(recipe.prompts))
    return ((prompt, 0) for prompt in read_prompts(recipe.prompts))


def _prompts(recipe: Recipe) -> Iterator[Prompt]:
    return (prompt for prompt, _ in _read(recipe))


def _key(prompt_id: str) -> int:
    """64 bits of a prompt's id, which is a hash of 128."""
    return int(prompt_id[:16], 16)


def _first(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """For each key, where it stands first."""
    _, first, of = np.unique(keys, return_index=True, return_inverse=True)
    return first[of]


def _text(prompt: Prompt) -> str:
    """What is compared: all that is said but by the system, whose words many prompts share."""
    return "\n".join(said(turn["content"], turn.get("tool_calls")) for turn in prompt.prompt if turn["role"] != "system")


def _salt(prompt: Prompt) -> str:
    """What must be equal for two prompts to be alike at all: system prompt, tools, and the chat template's variables."""
    systems = [turn["content"] for turn in prompt.prompt if turn["role"] == "system"]
    return content_id([systems, prompt.tools, prompt.chat_template_kwargs])
