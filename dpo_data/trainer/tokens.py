"""Each pair as token ids: the answers as they were sampled where that is known, else as the chat template renders them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dpo_data.errors import TrainError
from dpo_data.files import read_rows, read_table
from dpo_data.rows import Message, PreferencePair, Sample

SIDES = ("chosen", "rejected")
KNOWN = ("completion_id", "text", "finish_reason", "token_ids", "logprob")


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion whose tokens are known; see rows.Completion."""

    completion_id: str
    text: str
    finish_reason: str | None
    token_ids: list[int]
    logprob: float | None


def read_pairs(path: str) -> list[PreferencePair]:
    return list(read_rows(Path(path), PreferencePair))


def read_answers(shards: list[str], pairs: Iterable[PreferencePair]) -> dict[str, Answer]:
    """The answers of these pairs whose tokens are known, by id. One shard of samples is in memory at a time."""
    wanted = pa.array({id for pair in pairs for id in (pair.chosen_id, pair.rejected_id)}, pa.string())
    found: dict[str, Answer] = {}
    for shard in shards:
        completions = read_table(Path(shard), [f"completions.list.element.{name}" for name in KNOWN])["completions"]
        rows = pc.list_flatten(completions.combine_chunks())
        if "token_ids" not in [field.name for field in rows.type]:
            continue  # samples of a release that kept none
        some = rows.filter(pc.is_in(rows.field("completion_id"), wanted))
        found |= {row["completion_id"]: Answer(**row) for row in some.to_pylist() if row["token_ids"]}
    return found


def tokenize(pairs: Iterable[PreferencePair], answers: Mapping[str, Answer], tokenizer: Any, ends: set[int]) -> Any:
    """The pairs as a Dataset that a DPOTrainer need not tokenise: `prompt_ids`, `chosen_ids`, `rejected_ids`; `length`, the
    tokens of the prompt and the longer answer; and `logprob_chosen`, `logprob_rejected`, the sums in nats that came with
    sampled answers, None with rendered ones. `ends` are the tokens that end an answer. Raises TrainError."""
    from datasets import Dataset

    ids, text = pa.list_(pa.int32()), pa.string()
    schema = pa.schema(
        [("prompt_id", text), ("chosen_id", text), ("rejected_id", text)]
        + [("prompt_ids", ids), ("chosen_ids", ids), ("rejected_ids", ids), ("length", pa.int32())]
        + [(f"sampled_{side}", pa.bool_()) for side in SIDES]
        + [(f"logprob_{side}", pa.float64()) for side in SIDES]
    )
    return Dataset(pa.Table.from_pylist([_row(pair, answers, tokenizer, ends) for pair in pairs], schema=schema))


def fitting(pairs: Any, limit: int | None) -> tuple[Any, int, int]:
    """The pairs of `tokenize` whose longer side fits into `limit` tokens, the longest of them (or the shortest of all, where
    none fits), and how many do not fit. Cutting an answer's end takes its end token away, so such a pair is left out whole."""
    lengths = pairs["length"][:]
    keep = [at for at, length in enumerate(lengths) if limit is None or length <= limit]
    longest = max((lengths[at] for at in keep), default=min(lengths, default=0))
    kept = pairs.data.table.take(pa.array(keep, pa.int64()))
    return type(pairs)(kept), longest, len(lengths) - len(keep)


def _row(pair: PreferencePair, answers: Mapping[str, Answer], tokenizer: Any, ends: set[int]) -> dict[str, Any]:
    asked = render(pair, [], tokenizer)
    row: dict[str, Any] = {name: getattr(pair, name) for name in ("prompt_id", "chosen_id", "rejected_id")}
    for side in SIDES:
        turns, answer = getattr(pair, side), answers.get(row[f"{side}_id"])
        sampled = answer is not None and _is_whole(answer, turns, ends)
        row[f"{side}_ids"] = answer.token_ids if answer and sampled else continued(pair, turns, asked, tokenizer)
        row |= {f"sampled_{side}": sampled, f"logprob_{side}": answer.logprob if answer and sampled else None}
    longer = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    return {**row, "prompt_ids": asked, "length": len(asked) + longer}


def _is_whole(answer: Answer, turns: list[Message], ends: set[int]) -> bool:
    """Whether these are the tokens of the pair's answer, with the end token of one that stopped by itself. A stop string or
    somebody's correction makes others of them."""
    ended = answer.finish_reason != "stop" or answer.token_ids[-1] in ends
    return ended and len(turns) == 1 and turns[0]["content"] == answer.text


def continued(row: PreferencePair | Sample, turns: list[Message], asked: list[int], tokenizer: Any) -> list[int]:
    """What an answer adds to the prompt's tokens. Raises TrainError where the two together do not begin with the prompt."""
    whole = render(row, turns, tokenizer)
    both = zip(asked, [*whole, *[None] * len(asked)], strict=False)
    at = next((at for at, (one, other) in enumerate(both) if one != other), None)
    if at is None:
        return whole[len(asked) :]
    there = repr(tokenizer.decode([whole[at]])) if at < len(whole) else "nothing"
    raise TrainError(
        f"The chat template renders prompt {row.prompt_id} otherwise once an answer follows: token {at} of the prompt is "
        f"{tokenizer.decode([asked[at]])!r}, and then {there}, so DPO would train on a prompt that is never sampled from",
        "Set chat_template_kwargs that make both the same (such as enable_thinking = false), or name another template by "
        "train.chat_template; answers that `sample` kept the tokens of need neither.",
    )


def render(row: PreferencePair | Sample, turns: list[Message], tokenizer: Any) -> list[int]:
    """The tokens of the prompt, with an answer's turns behind it or, without, ready for the answer."""
    from jinja2 import TemplateError

    kwargs = getattr(row, "chat_template_kwargs", None) or {}
    try:
        ids = tokenizer.apply_chat_template(
            row.prompt + turns, tools=row.tools, tokenize=True, add_generation_prompt=not turns, return_dict=False, **kwargs
        )
    except TemplateError as error:
        raise TrainError(
            f"The chat template refuses prompt {row.prompt_id}: {error}",
            "Name another one by train.chat_template, or drop such pairs with the filter fits.",
        ) from None
    return list(ids)
