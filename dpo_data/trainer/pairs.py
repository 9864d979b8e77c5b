"""The pairs as TRL is given them."""

import json
from typing import Any


def read(path: str) -> Any:
    """Prompt, chosen, rejected and, where there are some, tools of a pairs file as a Dataset, without the datasets cache."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    columns = [name for name in ("prompt", "chosen", "rejected", "tools") if name in pq.read_schema(path).names]
    return Dataset(pq.read_table(path, columns=columns))


def fitting(pairs: Any, tokenizer: Any, limit: int | None) -> tuple[Any, int, int]:
    """The pairs whose longer side fits into `limit` tokens, the longest of them (or the shortest of all, where none fits), and
    how many do not fit. Cutting an answer's end takes its EOS away, so a pair that does not fit is left out whole."""

    def tools(row: dict[str, Any]) -> list[dict[str, Any]] | None:
        return json.loads(row["tools"]) if row.get("tools") else None

    lengths = [
        max(
            len(tokenizer.apply_chat_template(row["prompt"] + row[side], tools=tools(row), tokenize=True, return_dict=False))
            for side in ("chosen", "rejected")
        )
        for row in pairs
    ]
    keep = [at for at, length in enumerate(lengths) if limit is None or length <= limit]
    longest = max((lengths[at] for at in keep), default=min(lengths, default=0))
    return pairs.select(keep), longest, len(lengths) - len(keep)
