"""Samples and their rankings become candidate pairs, a table at a time: joined by id, each text once, picked by the strategy.

All that is done for every answer is done on Arrow columns; only a prompt's picking, and prompts in which a text repeats, are
looked at one by one.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpo_data.config import Pair
from dpo_data.dedup import normalised
from dpo_data.length_control import Control, Measures, characters, measure
from dpo_data.rows import DroppedPair
from dpo_data.strategies import STRATEGIES, Candidates, Picks
from dpo_data.tables import MESSAGES, SCHEMAS, SOMETIMES, as_table, one_chunk

CARRIED = ("prompt_id", "prompt", "source", *SOMETIMES)
"""What a pair has of its prompt."""

COMPLETION = "completions.list.element."
LENGTH_COLUMNS = ["prompt_id", "error", *(COMPLETION + name for name in ("completion_id", "text", "finish_reason"))]
SAMPLE_COLUMNS = [*CARRIED, *LENGTH_COLUMNS[1:], *(COMPLETION + name for name in ("n_tokens", "model", "tool_calls"))]
RANK_COLUMNS = ["prompt_id", "judge", "completion_ids", "scores", "abstained"]
"""What `lengths` reads of Sample rows, and `form` of Sample and Ranking rows: of a completion some fields, by their path in a
Parquet file. A file of an older version may lack some of what is carried."""

SAME = ("identical", "all judged answers are the same text")


@dataclass(frozen=True, slots=True)
class Formed:
    """What some prompts gave: `pairs` (schema of PreferencePair), and `drops`, the prompts without one (of DroppedPair)."""

    pairs: pa.Table
    drops: pa.Table


def form(samples: pa.Table, rankings: pa.Table, settings: Pair, schema: pa.Schema, control: Control | None = None) -> Formed:
    """The pairs that the strategy picks, in the order of the prompts, in this `schema` of PreferencePair. `control`: takes the
    length out of the scores first."""
    samples, rankings = samples.combine_chunks(), rankings.combine_chunks()
    row, reasons, answers, able = _joined(samples, rankings)
    judged = np.bincount(answers.prompts[able], minlength=len(samples))
    cut_off = set(answers.prompts[able & ~answers.whole].tolist())
    if not settings.reject_truncated:
        able &= answers.whole
    if control is not None:
        answers.scores[able] = control.applied(answers.scores[able], answers.prompts[able], answers.lengths(able))
    able = _once(answers, able)
    order = answers.ranked(np.flatnonzero(able))
    scores, whole, ids = answers.scores[order].tolist(), answers.whole[order].tolist(), samples["prompt_id"].to_pylist()
    bounds = np.searchsorted(answers.prompts[order], np.arange(len(samples) + 1)).tolist()
    pick = STRATEGIES[settings.strategy]
    chosen: list[int] = []
    rejected: list[int] = []
    for prompt, (start, end) in enumerate(pairwise(bounds)):
        picks: Picks = []
        if end - start > 1:
            picks = pick(Candidates(ids[prompt], scores[start:end], whole[start:end]), settings)
            chosen += [start + i for i, _ in picks]
            rejected += [start + j for _, j in picks]
        if not picks:
            few = ("unranked", "fewer than two answers have a score") if judged[prompt] < 2 else None
            cut = ("truncated", "fewer than two answers are whole") if prompt in cut_off else None
            reasons.setdefault(prompt, few or (_out_of_reach(settings) if end - start > 1 else None) or cut or SAME)
    pairs = _pairs(samples, rankings, row, answers, order[chosen], order[rejected], schema)
    return Formed(pairs, _drops(samples, rankings, row, reasons))


def lengths(samples: pa.Table, rankings: pa.Table, settings: Pair, wanted: float) -> Measures:
    """Length and score of the answers that may be in a pair. `wanted`: how many twos of them a prompt gives; see `measure`."""
    samples, rankings = samples.combine_chunks(), rankings.combine_chunks()
    _, _, answers, able = _joined(samples, rankings)
    if not settings.reject_truncated:
        able &= answers.whole
    ids = samples["prompt_id"].to_pylist()
    return measure(ids, answers.prompts[able], answers.lengths(able), answers.scores[able], wanted)


def dropped(pairs: pa.Table, names: list[str], reasons: list[str]) -> pa.Table:
    """Pairs in the schema of DroppedPair, each with the filter that dropped it and the reason."""
    columns = {name: one_chunk(pairs[name]) for name in pairs.schema.names}
    columns |= {"filter": pa.array(names, pa.string()), "reason": pa.array(reasons, pa.string())}
    return as_table(columns, SCHEMAS[DroppedPair], len(pairs))


@dataclass(frozen=True, slots=True)
class _Answers:
    """All answers of some prompts, flat: which prompt each is of, and its score (NaN: not judged)."""

    prompts: np.ndarray
    flat: pa.StructArray
    scores: np.ndarray
    whole: np.ndarray

    def ranked(self, at: np.ndarray) -> np.ndarray:
        """Those answers by prompt, then highest score first, then greater id first."""
        keys = pa.table({"prompt": self.prompts[at], "score": self.scores[at], "id": self.flat.field("completion_id").take(at)})
        by = [("prompt", "ascending"), ("score", "descending"), ("id", "descending")]
        found: np.ndarray = at[pc.sort_indices(keys, sort_keys=by).to_numpy()]
        return found

    def lengths(self, able: np.ndarray) -> np.ndarray:
        """The lengths of those answers, in characters."""
        found: np.ndarray = characters(self.flat.field("text"))[able]
        return found


def _joined(samples: pa.Table, rankings: pa.Table) -> tuple[pa.Array, dict[int, tuple[str, str]], _Answers, np.ndarray]:
    """Each prompt's row in the rankings, why some prompts have no scores, all answers, and which of them are judged."""
    row = pc.index_in(samples["prompt_id"], value_set=rankings["prompt_id"]).combine_chunks()
    reasons = _undecided(samples, rankings, row)
    answers = _answers(samples, rankings)
    return row, reasons, answers, ~np.isnan(answers.scores) & ~np.isin(answers.prompts, list(reasons))


def _answers(samples: pa.Table, rankings: pa.Table) -> _Answers:
    lists = one_chunk(samples["completions"])
    flat = pc.list_flatten(lists)
    ids, judged = flat.field("completion_id"), pc.list_flatten(one_chunk(rankings["completion_ids"]))
    scores = pc.list_flatten(one_chunk(rankings["scores"]))
    if not ids.equals(judged):
        scores = scores.take(pc.index_in(ids, value_set=judged))
    cut = pc.fill_null(pc.equal(flat.field("finish_reason"), "length"), False)
    return _Answers(
        pc.list_parent_indices(lists).to_numpy(),
        flat,
        np.array(pc.fill_null(scores, np.nan)),
        ~cut.to_numpy(zero_copy_only=False),
    )


def _undecided(samples: pa.Table, rankings: pa.Table, row: pa.Array) -> dict[int, tuple[str, str]]:
    """The prompts that have no scores at all, with filter and reason."""
    errors, abstained = samples["error"].to_pylist(), one_chunk(rankings["abstained"]).take(row).to_pylist()
    reasons = {at: ("unsampled", error) for at, error in enumerate(errors) if error is not None}
    for at in np.flatnonzero(row.is_null().to_numpy(zero_copy_only=False)).tolist():
        reasons.setdefault(at, ("unranked", "the judge gave no ranking"))
    for at, reason in enumerate(abstained):
        if reason is not None:
            reasons.setdefault(at, ("abstained", reason))
    return reasons


def _once(answers: _Answers, able: np.ndarray) -> np.ndarray:
    """Each text of a prompt once: of answers that are equal but for case and white space the one with the least id stays, and
    gets their mean score, in place. Whole and cut-off answers are never the same."""
    from dpo_data.dedup import keys

    at, texts = np.flatnonzero(able), answers.flat.field("text")
    prompts, key = answers.prompts[at], keys(texts if able.all() else texts.take(pa.array(at)))
    key ^= prompts.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # so that a text repeats within its prompt alone
    ordered = np.sort(key)
    again = ordered[1:][np.diff(ordered) == 0]
    able = able.copy()
    for prompt in np.unique(prompts[np.isin(key, again)]).tolist() if len(again) else ():
        groups: dict[Any, list[int]] = defaultdict(list)
        for one in at[slice(*np.searchsorted(prompts, [prompt, prompt + 1]))].tolist():
            answer = answers.flat[one].as_py()
            groups[normalised(answer["text"]), answer["tool_calls"], bool(answers.whole[one])].append(one)
        for group in groups.values():
            stays = min(group, key=lambda one: answers.flat.field("completion_id")[one].as_py())
            answers.scores[stays] = fmean(answers.scores[group].tolist())
            able[[one for one in group if one != stays]] = False
    return able


def _out_of_reach(settings: Pair) -> tuple[str, str] | None:
    """Why `threshold` may pick nothing; None for other strategies."""
    if settings.strategy != "threshold":
        return None
    return "threshold", f"no whole answer scores {settings.chosen_from:g} or more above one of {settings.rejected_to:g} or less"


def _pairs(
    samples: pa.Table,
    rankings: pa.Table,
    row: pa.Array,
    answers: _Answers,
    chosen: np.ndarray,
    rejected: np.ndarray,
    schema: pa.Schema,
) -> pa.Table:
    prompts = answers.prompts[chosen]
    columns = _carried(samples, prompts)
    for side, at in (("chosen", chosen), ("rejected", rejected)):
        of = answers.flat.take(pa.array(at))
        columns |= {side: _said(of), f"{side}_id": of.field("completion_id"), f"score_{side}": answers.scores[at]}
        columns |= {f"n_tokens_{side}": of.field("n_tokens"), f"model_{side}": of.field("model")}
    columns["margin"] = columns["score_chosen"] - columns["score_rejected"]
    columns["judge"] = one_chunk(rankings["judge"]).take(row.take(pa.array(prompts)))
    columns["flags"] = pa.array([[]] * len(chosen), pa.list_(pa.string()))
    return as_table(columns, schema, len(chosen))


def _drops(samples: pa.Table, rankings: pa.Table, row: pa.Array, reasons: dict[int, tuple[str, str]]) -> pa.Table:
    """The prompts that gave no pair: its sides are not known."""
    at = sorted(reasons)
    columns = _carried(samples, at)
    columns["judge"] = one_chunk(rankings["judge"]).take(row.take(pa.array(at, pa.int64())))
    columns["flags"] = pa.array([[]] * len(at), pa.list_(pa.string()))
    columns |= {
        name: pa.array([reasons[one][which] for one in at], pa.string()) for which, name in enumerate(("filter", "reason"))
    }
    return as_table(columns, SCHEMAS[DroppedPair], len(at))


def _carried(samples: pa.Table, at: Any) -> dict[str, Any]:
    """What pairs have of the prompts in these rows."""
    rows = pa.array(at, pa.int64())
    return {name: one_chunk(samples[name]).take(rows) for name in CARRIED if name in samples.column_names}


def _said(answers: pa.StructArray) -> pa.ListArray:
    """Each answer as a conversation of one assistant's turn."""
    turns = pa.StructArray.from_arrays(
        [pa.repeat("assistant", len(answers)), answers.field("text"), answers.field("tool_calls")],
        fields=list(MESSAGES.value_type),
    )
    return pa.ListArray.from_arrays(np.arange(len(answers) + 1, dtype=np.int32), turns, type=MESSAGES)
