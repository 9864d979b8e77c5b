"""A prompt and its answers as plain text, to read and to choose by eye: a file a prompt.

    best:
    worst:

    Q:
      Name a river.

    A[1]:
      The Danube.

Whoever reads it writes numbers after `best:` and `worst:` (several with commas). They come back as scores: 1 for the best, 0
for the worst, none for the others. A line that does not begin with two spaces is structure; a text's own lines begin with
them, so nothing in a text can be mistaken for structure. One blank line before a heading belongs to it.
"""

import re
from typing import Any

from dpo_data.errors import InputError
from dpo_data.formats.format import Format, Group
from dpo_data.formats.values import short
from dpo_data.rows import Message, Sample

_HEADING = re.compile(r"Q(?:\[(?P<role>[^\]\n]+)\])?:|A\[(?P<number>[0-9]{1,9})\]:")
_CHOICE = re.compile(r"(best|worst):(.*)")


def unfit(group: Group) -> str | None:
    """Why the format cannot hold a prompt's answers."""
    sample = group.sample
    if sample.error:
        return f"it was not sampled: {sample.error}"
    if (
        sample.tools
        or any(message.get("tool_calls") for message in sample.prompt)
        or any(c.tool_calls for c in sample.completions)
    ):
        return "the format has no place for tools"
    return None if _read(render(sample).split("\n"), "")[1] == _blocks(sample) else "a text or a role does not come back"


def render(sample: Sample) -> str:
    """A prompt's text file, with the choice left open."""
    headed = [f"{heading}:\n{_indented(text)}\n" for heading, text in _blocks(sample)]
    return "\n".join(["best: \nworst: \n", *headed])


def parse(content: str, where: str) -> dict[str, Any]:
    """A text file as a record of `prompt` and `completions`. Raises InputError where its structure is broken."""
    lines = content.split("\n")
    if "\n" in content and content.count("\r\n") == content.count("\n"):  # an editor gave every line Windows' end
        lines = content.split("\r\n")
    choices, blocks = _read(lines, where)
    prompt: list[Message] = []
    answers: dict[int, str] = {}
    for heading, text in blocks:
        found = _HEADING.fullmatch(f"{heading}:")
        assert found is not None
        if found["number"] is None:
            prompt.append({"role": found["role"] or "user", "content": text})
        elif int(found["number"]) in answers:
            raise InputError(f"{where}: {heading} stands twice", "Number the answers anew.")
        else:
            answers[int(found["number"])] = text
    scores = _scores(choices, answers, where)
    return {"prompt": prompt, "completions": [{"text": text, "score": scores.get(at)} for at, text in answers.items()]}


def _blocks(sample: Sample) -> list[tuple[str, str]]:
    """A file's headings, each with its text."""
    turns = [("Q" if turn["role"] == "user" else f"Q[{turn['role']}]", turn["content"]) for turn in sample.prompt]
    return [*turns, *((f"A[{at}]", answer.text) for at, answer in enumerate(sample.completions, 1))]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))


def _read(lines: list[str], where: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """What stands after `best:` and `worst:`, and each heading with its text."""
    choices: dict[str, str] = {}
    blocks: list[tuple[str, list[str]]] = []
    for number, line in enumerate(lines, 1):
        choice = _CHOICE.fullmatch(line) if not blocks else None
        if choice:
            choices[choice[1]] = choice[2]
        elif _HEADING.fullmatch(line.rstrip()):
            blocks.append((line.rstrip().removesuffix(":"), []))
        elif blocks and (line.startswith("  ") or not line.strip()):
            blocks[-1][1].append(line[2:])
        elif line.strip():
            raise InputError(
                f"{where}, line {number} is neither a heading nor a text's line: {short(line)}",
                "Begin a text's line with two spaces.",
            )
    return choices, [(heading, "\n".join(text[:-1] if text and not text[-1] else text)) for heading, text in blocks]


def _scores(choices: dict[str, str], answers: dict[int, str], where: str) -> dict[int, float]:
    """The score of each answer that was chosen."""
    scores: dict[int, float] = {}
    for name, score in (("best", 1.0), ("worst", 0.0)):
        for part in choices.get(name, "").split(","):
            if not part.strip():
                continue
            if not part.strip().isdecimal() or int(part) not in answers:
                raise InputError(
                    f"{where}: {name} is {short(part.strip())}, no answer's number", f"Write one of 1 to {len(answers)}."
                )
            if int(part) in scores:
                raise InputError(f"{where}: answer {int(part)} is both best and worst", "Choose two different ones.")
            scores[int(part)] = score
    return scores


TEXT = Format(of=Group, records=lambda group: [render(group.sample)], unfit=unfit, suffix="")
