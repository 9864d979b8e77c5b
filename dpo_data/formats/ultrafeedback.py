"""UltraFeedback: an `instruction` with all its `completions`, each with its `model` and its `overall_score`, the judge's.

https://huggingface.co/datasets/openbmb/UltraFeedback
"""

from typing import Any

from dpo_data.formats.format import Format, Group


def unfit(group: Group) -> str | None:
    """Why the format cannot hold a prompt's answers."""
    sample, ranking = group.sample, group.ranking
    if sample.error:
        return f"it was not sampled: {sample.error}"
    if ranking is None or ranking.abstained:
        return f"it was not ranked: {ranking.abstained if ranking else 'the judge gave no ranking'}"
    if sample.tools or any(answer.tool_calls for answer in sample.completions):
        return "the format has no place for tools"
    if len(sample.prompt) > 1 or sample.prompt[0]["role"] != "user":
        return "the format has place for one user's turn alone"
    return None


def records(group: Group) -> list[dict[str, Any]]:
    """A prompt with all its answers as one record; an answer that was not judged has a score of null."""
    scores = group.scores()
    completions = [
        {
            "model": answer.model,
            "response": answer.text,
            "overall_score": scores.get(answer.completion_id),
            "finish_reason": answer.finish_reason,
            "n_tokens": answer.n_tokens,
        }
        for answer in group.sample.completions
    ]
    return [{"source": group.sample.source, "instruction": group.sample.prompt[0]["content"], "completions": completions}]


ULTRAFEEDBACK = Format(of=Group, records=records, unfit=unfit)
