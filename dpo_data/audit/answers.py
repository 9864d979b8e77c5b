"""Answers and what the judge made of them, joined by id, as arrays of one row a prompt."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpo_data.audit.families import family
from dpo_data.files import read_table
from dpo_data.length_control import characters
from dpo_data.tables import one_chunk

COMPLETION = "completions.list.element."
SAMPLE_COLUMNS = ["prompt_id", "source", *(COMPLETION + name for name in ("completion_id", "text", "model"))]
RANK_COLUMNS = ["prompt_id", "completion_ids", "scores", "abstained", "transcript"]

MOST_TWOS = 2_000_000
"""How many twos of answers are in memory at once."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Some prompts' answers, arrays of shape (prompts, answers) padded with NaN: the judge's scores (NaN: not judged), lengths
    without thinking in characters, and whether the judge's own family gave the answer (1, 0, NaN: not known)."""

    scores: np.ndarray
    lengths: np.ndarray
    own: np.ndarray


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard's answers, its rankings as they are read, and where each of their prompts came from."""

    answers: list[Answers]
    rankings: pa.Table
    sources: list[str]


def shards(sampled: Path, ranked: list[Path], own: str | None) -> Iterator[Shard]:
    """Each shard of rankings with the samples of the same name, which lie in `sampled`. `own`: the judge's family."""
    for path in ranked:
        rankings = read_table(path, RANK_COLUMNS).combine_chunks()
        samples = read_table(sampled / path.name, SAMPLE_COLUMNS)
        at = pc.index_in(one_chunk(rankings["prompt_id"]), value_set=one_chunk(samples["prompt_id"]))
        sources = one_chunk(samples["source"]).take(at).to_pylist()
        yield Shard(list(_answers(samples, rankings, own)), rankings, sources)


def _answers(samples: pa.Table, rankings: pa.Table, own: str | None) -> Iterator[Answers]:
    """The answers in the rankings' order: those prompts together that hold about as many twos as memory should."""
    given = pc.list_flatten(one_chunk(samples["completions"]))
    ids = one_chunk(rankings["completion_ids"])
    judged = pc.list_flatten(ids)
    at = pc.index_in(judged, value_set=given.field("completion_id"))
    flat = {
        "scores": np.array(pc.fill_null(pc.list_flatten(one_chunk(rankings["scores"])), np.nan)),
        "lengths": _taken(characters(given.field("text")).astype(float), at),
        "own": _taken(_own(given.field("model"), own), at),
    }
    sizes = pc.list_value_length(ids).to_numpy(zero_copy_only=False)
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        widest = int(sizes[start:].max())
        stop = min(len(sizes), start + max(1, MOST_TWOS // max(1, widest * (widest - 1) // 2)))
        some, first = sizes[start:stop], ends[start] - sizes[start]
        place = np.arange(widest) < some[:, None]
        padded = {name: np.full(place.shape, np.nan) for name in flat}
        for name, values in flat.items():
            padded[name][place] = values[first : ends[stop - 1]]
        yield Answers(**padded)
        start = stop


def _taken(values: np.ndarray, at: pa.Array) -> np.ndarray:
    found: np.ndarray = np.append(values, np.nan)[pc.fill_null(at, len(values)).to_numpy()]
    return found


def _own(models: pa.Array, own: str | None) -> np.ndarray:
    coded = models.dictionary_encode()
    families = [family(model) for model in coded.dictionary.to_pylist()]
    is_own = np.array([np.nan if None in (own, one) else float(one == own) for one in families] or [np.nan])
    found: np.ndarray = is_own[coded.indices.to_numpy()]
    return found
