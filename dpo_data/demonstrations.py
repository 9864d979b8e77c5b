"""Answers to imitate: what `[train.sft] path` names, as rows of samples."""

from dpo_data.errors import InputError
from dpo_data.formats.prompts import Prompts, read_given
from dpo_data.formats.shapes import Answer
from dpo_data.rows import Completion, Sample, answered, content_id


def demonstrations(prompts: Prompts) -> list[Sample]:
    """Each of the prompts with its answers, or with the best of those that have a score; with an error where it has none.
    Raises InputError where no prompt has one, or the file cannot be read."""
    rows = []
    for prompt, answers in read_given(prompts):
        completions = [_completion(prompt.prompt_id, at, one) for at, one in enumerate(best(answers))]
        rows.append(answered(prompt, completions, None if answers else "no answer came with this prompt"))
    if not any(row.completions for row in rows):
        raise InputError(
            f"{prompts.path} holds no answers to fine-tune on", "Give each prompt one: a `completion`, or its last turn."
        )
    return rows


def best(answers: list[Answer]) -> list[Answer]:
    """The answer of the highest score, the first of those that share it; all of them where none has a score."""
    scored = [answer for answer in answers if answer.score is not None]
    return [max(scored, key=lambda answer: answer.score or 0.0)] if scored else answers


def _completion(prompt_id: str, at: int, one: Answer) -> Completion:
    id = content_id([prompt_id, at, one.text])
    return Completion(id, at, one.text, one.finish_reason, one.n_tokens, None, one.model, one.tool_calls, one.score)
