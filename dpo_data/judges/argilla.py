"""People rank the answers, in Argilla: what is missing there is pushed, and what they have answered is collected.

A prompt is done where enough people have answered it, or nobody is left to ask. What is done is given; the others await, and
the run goes on when it is started again.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from dpo_data.argilla.access import access
from dpo_data.argilla.client import Client
from dpo_data.argilla.dataset import Dataset, Layout, Question, open_dataset, open_workspace
from dpo_data.argilla.exchange import NOTHING, Response, Standing, count, is_answered, push, read
from dpo_data.argilla.records import Record, body, check, records_of, scores_in
from dpo_data.argilla.team import annotators, gather, names_of
from dpo_data.errors import TemplateError, Unfinished
from dpo_data.judges.people import Combine, Said, entry, together, weights_of
from dpo_data.rows import Ranking, Sample, content_id
from dpo_data.seams import Engines, Settings, abstention, once
from dpo_data.spool import Spool
from dpo_data.templates import read_text, text_hash

LONGEST_GUIDELINES = 10_000
"""Characters that Argilla takes."""
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=190)]


class Argilla(Settings):
    """People answer in Argilla's web UI. `dataset`: its name there, to which the number of answers is added; `home`: the folder
    of this machine's own Argilla, if ARGILLA_API_URL names no other one.

    `question`: the answers are ranked all at once, rated 1–5 each, or compared two by two. `min_submitted`: how many people
    answer each prompt; `annotators`: people who get an account where they have none. `suggest`: the scores that the answers
    came with are filled in beforehand, which sways people. `combine` and `weights`: see `people`. `markdown`: whether texts are
    shown as Markdown, in which HTML tags are not seen, or as they are.
    `enough`, a share of the prompts, or `deadline`, which names its time zone: once reached, what is open is left undecided.
    """

    incidental = frozenset({"home", "annotators", "enough", "deadline"})
    type: Literal["argilla"] = "argilla"
    dataset: Name
    workspace: Name = "dpo-data"
    home: str = "argilla-data"
    question: Question = "ranking"
    comment: bool = False
    guidelines: str = "prompts/guidelines.md"
    min_submitted: int = Field(1, ge=1)
    annotators: list[Annotated[str, Field(min_length=1)]] = []
    suggest: bool = False
    combine: Combine = "borda"
    weights: Literal["equal", "agreement"] = "equal"
    enough: float = Field(1.0, gt=0, le=1)
    deadline: AwareDatetime | None = None
    markdown: bool = True

    def build(self, sampler: Settings, seed: int, engines: Engines) -> "ArgillaJudge":
        return ArgillaJudge(f"argilla:{self.dataset}", self, seed, engines)

    def inputs(self) -> dict[str, str]:
        return {"guidelines": text_hash(self.instructions())}

    def calls(self, n: int) -> int:
        return 0

    def records(self, n: int) -> int:
        """How many records are made of a prompt with n answers."""
        return n * (n - 1) // 2 if self.question == "pairwise" else 1

    def ready(self) -> None:
        """Raises ArgillaError where there is no Argilla to ask, or it does not know the key."""
        with closing(Client(access(Path(self.home)))) as client:
            client.check()

    def instructions(self) -> str:
        """The text of the guidelines. Raises TemplateError."""
        text = read_text(self.guidelines, "guidelines", "prompts/guidelines.md").strip()
        if not 0 < len(text) <= LONGEST_GUIDELINES:
            raise TemplateError(
                f"{self.guidelines} has {len(text):,} characters, and Argilla shows 1 to {LONGEST_GUIDELINES:,}", "Change it."
            )
        return text


@dataclass(frozen=True, slots=True)
class Verdict:
    """What people said of a prompt so far. `awaits`: the page where it awaits an answer, None where it is done. `lacks`: why no
    ranking can be made of what was said, None where one can."""

    said: list[Said]
    awaits: str | None
    lacks: str | None


@dataclass(frozen=True, slots=True)
class Board:
    """What stands in Argilla: the datasets by the number of answers that a record shows, the records by external id, the user
    ids of those who are there to answer, and the names of users by id."""

    datasets: dict[int, Dataset]
    records: dict[str, Standing]
    team: set[str]
    names: dict[str, str]


@dataclass
class ArgillaJudge:
    """Keeps nothing between two runs: what people say is in Argilla."""

    name: str
    settings: Argilla
    seed: int
    engines: Engines = field(repr=False)

    def rank(self, groups: Iterable[Sample]) -> Iterator[Ranking]:
        """Nothing is pushed before every group has come, and fits. Raises InputError, ArgillaError; and Unfinished where some
        await an answer, after those that are done were given."""
        with closing(Spool[Sample]()) as asked:
            prompts = 0
            sizes: set[int] = set()
            for group in groups:
                if len(group.completions) < 2:
                    yield abstention(group, self.name, "fewer than two answers came, so there is nothing to compare")
                    continue
                check(group, self.settings.question, self.settings.markdown)
                asked.put(group)
                prompts += 1
                sizes.add(self._shown(group))
            if prompts:
                with closing(Client(access(Path(self.settings.home)))) as client:
                    board = self._exchange(client, asked, sizes)
                yield from self._collect(asked, board, prompts)

    def close(self) -> None:
        pass

    def _shown(self, group: Sample) -> int:
        """How many answers a record of a prompt shows."""
        return 2 if self.settings.question == "pairwise" else len(group.completions)

    def _exchange(self, client: Client, asked: Spool[Sample], sizes: set[int]) -> Board:
        """Make and push what is missing, and read what was answered."""
        client.check()
        workspace = open_workspace(client, self.settings.workspace)
        gather(client, workspace, self.settings.annotators, Path(self.settings.home))
        datasets = {n: open_dataset(client, workspace, self._layout(n)) for n in sorted(sizes)}
        records: dict[str, Standing] = {}
        for dataset in datasets.values():
            records |= self._synchronized(client, dataset, asked)
        team = set(annotators(client, workspace)) or {one.user for standing in records.values() for one in standing.responses}
        return Board(datasets, records, team, names_of(client, workspace))

    def _layout(self, n: int) -> Layout:
        of = self.settings
        return Layout(f"{of.dataset}-{n}", n, of.question, of.comment, of.markdown, of.min_submitted, of.instructions())

    def _synchronized(self, client: Client, dataset: Dataset, asked: Spool[Sample]) -> dict[str, Standing]:
        """What stands in a dataset, once all that is missing was pushed. Where all was pushed before and nobody has answered,
        the records are not read: so a look is cheap."""

        def records() -> Iterator[Record]:
            ours = (group for group in asked if self._shown(group) == dataset.layout.n)
            return (record for group in ours for record in records_of(group, self.settings.question, self.seed))

        def synchronize() -> dict[str, Standing]:
            there = read(client, dataset)
            push(client, dataset, records(), there, self.settings.suggest)
            return there

        bodies = [content_id(body(record, dataset, self.settings.suggest)) for record in records()]
        pushed = f"{dataset.id} has {content_id(bodies)}"
        if not is_answered(client, dataset) and count(client, dataset) >= len(bodies):
            once(self.engines, pushed, lambda: len(synchronize()), lasting=True)
            return {}
        there = synchronize()
        once(self.engines, pushed, lambda: len(there), lasting=True)
        return there

    def _collect(self, asked: Spool[Sample], board: Board, prompts: int) -> Iterator[Ranking]:
        """The rankings of the prompts that are done; or of all, where it is time to leave the others undecided."""
        of = self.settings
        verdicts = [self._verdict(group, board) for group in asked]
        awaits = [verdict.awaits for verdict in verdicts if verdict.awaits]
        total = max(prompts, int(once(self.engines, f"{self.name}: prompts", lambda: prompts)))
        done = total - len(awaits)
        over = done >= of.enough * total - 1e-9 or bool(of.deadline and datetime.now(UTC) >= of.deadline)
        weights = None
        if of.weights == "agreement" and over:
            weights = once(self.engines, f"{self.name}: weights", lambda: weights_of(verdict.said for verdict in verdicts))
        if over or of.weights == "equal":  # weights hang on all answers
            for group, verdict in zip(asked, verdicts, strict=True):
                if over or not verdict.awaits:
                    yield self._ranking(group, verdict, weights)
        if not over:
            pages = " and ".join(sorted(set(awaits)))
            raise Unfinished(f"{len(awaits)} of {total} await annotation at {pages}", "Run again to collect.")

    def _verdict(self, group: Sample, board: Board) -> Verdict:
        """What people said of a prompt. It is done where each of its records was answered by as many as it takes, or has nobody
        left to ask."""
        least, said = self.settings.min_submitted, list[Said]()
        awaits, answered = False, list[int]()
        for record in records_of(group, self.settings.question, self.seed):
            standing = board.records.get(record.id, NOTHING)
            given = [one for one in standing.responses if one.status != "draft"]
            heard = [self._said(one, standing, board.names) for one in given]
            answered.append(sum(one.status == "submitted" for one in heard))
            nobody_left = len(board.team) >= least and board.team <= {one.user for one in given}
            awaits = awaits or not (answered[-1] >= least or nobody_left)
            said += heard
        lacks = None if max(answered) >= least and not awaits else f"{min(answered)} of {least} people answered"
        if discarded := {one.annotator for one in said if one.status == "discarded"}:
            lacks = lacks and f"{lacks}, and {len(discarded)} discarded it"
        return Verdict(said, board.datasets[self._shown(group)].url if awaits else None, lacks)

    def _said(self, response: Response, standing: Standing, names: dict[str, str]) -> Said:
        """A response as the transcript tells it. One that was submitted without a whole answer is as one that was discarded."""
        question = self.settings.question
        submitted = response.status == "submitted"
        scores = scores_in(response.values, standing.order, question) if submitted else None
        prefilled = scores is not None and scores == scores_in(standing.suggested, standing.order, question)
        return Said(
            names.get(response.user, response.user),
            "discarded" if scores is None else "submitted",
            standing.order,
            scores,
            prefilled if standing.suggested else None,
            response.seconds,
            f"{response.at.isoformat()}Z",
            response.values.get("comment") or None,
        )

    def _ranking(self, group: Sample, verdict: Verdict, weights: dict[str, float] | None) -> Ranking:
        if verdict.lacks:
            transcript = json.dumps([entry(one) for one in verdict.said], ensure_ascii=False)
            return abstention(group, self.name, verdict.lacks, transcript)
        return together(group, self.name, verdict.said, self.settings.combine, weights)
