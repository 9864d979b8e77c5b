"""What judges were asked and what they answered: kept so that nothing is paid for twice, counted, and limited.

A call is known by the hash of its rendered messages, its model and its settings. So a run that was killed asks nobody again,
and a fork takes along what was paid for. One SQLite file in the run directory, in which each answer is written as it comes; and
beside the answers, what was decided once for all prompts of a stage.
"""

import json
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from dpo_data import chat_template
from dpo_data.errors import OverBudget, RecipeError
from dpo_data.models import engine_revision
from dpo_data.rows import content_id
from dpo_data.seams import Completed, Engine, Output, Request, Sampling, Settings

MILLION = 1_000_000
CHARACTERS_A_TOKEN = 4
"""What a token is taken for where an engine does not count them: about right for English, too many for Chinese."""

_OUTPUT = [field.name for field in fields(Output) if field.name != "token_ids"]  # nobody trains on a judge's tokens

_TABLES = """
CREATE TABLE IF NOT EXISTS calls (
    key TEXT PRIMARY KEY, stage TEXT, model TEXT NOT NULL, outputs TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER, completion_tokens INTEGER NOT NULL, cost REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decisions (
    key TEXT PRIMARY KEY, stage TEXT NOT NULL, lasting INTEGER NOT NULL, decision TEXT NOT NULL
) WITHOUT ROWID;
"""


class Prices(Protocol):
    """What a model's tokens cost, a million of them."""

    @property
    def input(self) -> float: ...
    @property
    def output(self) -> float: ...
    @property
    def cached(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Spent:
    """Calls and their tokens; what took none, as a person's answer, is no call. `cached_tokens` of the
    `prompt_tokens` had been read before; None where no engine told. `cost` is in the unit of the prices, 0 where there are
    none."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Ledger:
    """The calls of one run, as `stage` makes them. Its `engine` makes engines whose answers are kept, and so does itself.

    `max_tokens` and `max_cost` hold for the run's own calls, of all stages and attempts; what a fork took along is free.
    `basis` is a hash of what decides the stage's rows: what was decided on another one is not found.
    """

    def __init__(
        self,
        path: Path,
        stage: str,
        prices: Mapping[str, Prices] | None = None,
        max_tokens: int | None = None,
        max_cost: float | None = None,
        basis: str = "",
    ):
        self._path, self._stage, self._prices, self._basis = path, stage, prices or {}, basis
        self._max_tokens, self._max_cost = max_tokens, max_cost
        self.tokens_here = 0
        """Tokens of the calls of this attempt alone."""

    def engine(self, settings: Settings) -> Engine:
        """An engine of these settings that answers from the ledger what it can. It starts with the first request that is new.
        Raises RecipeError where a cost is limited and the price of a server's model is not known; a model at hand is free."""
        model = model_of(settings)
        if self._max_cost is not None and hasattr(settings, "base_url") and model not in self._prices:
            raise RecipeError(
                f"rank.max_cost limits what {model!r} may cost, and no price is known",
                f'Give it a table [prices."{model}"] with input and output, for a million tokens.',
            )
        return _Kept(settings, model, self)

    def __call__(self, settings: Settings) -> Engine:
        return self.engine(settings)

    def once(self, key: str, decide: Callable[[], Any], lasting: bool = False) -> Any:
        """What `decide` says, as JSON; or what it said before, in this stage and on the same basis. Where two processes
        decide at the same time, the one that is done first has its way."""
        key, select = content_id([self._stage, self._basis, key]), "SELECT decision FROM decisions WHERE key = ?"
        found = self._calls.execute(select, (key,)).fetchone()
        if not found:
            row = (key, self._stage, lasting, json.dumps(decide()))
            self._calls.execute("INSERT OR IGNORE INTO decisions VALUES (?, ?, ?, ?)", row)
            found = self._calls.execute(select, (key,)).fetchone()
        return json.loads(found[0])

    def decide_anew(self) -> None:
        """Forget the stage's decisions, but for lasting ones: where none of its rows is written, none stands on them."""
        if self._path.exists():
            self._calls.execute("DELETE FROM decisions WHERE stage = ? AND NOT lasting", (self._stage,))

    @cached_property
    def _calls(self) -> sqlite3.Connection:
        """Opened by the first call, so that a judge that asks nobody leaves no file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        calls = sqlite3.connect(self._path, isolation_level=None, timeout=60)
        calls.execute("PRAGMA journal_mode = WAL")  # an answer is safe from kill -9 as soon as it is written
        calls.execute("PRAGMA synchronous = NORMAL")
        calls.executescript(_TABLES)
        return calls

    @cached_property
    def _spent(self) -> Spent:
        return self.spent()

    def spent(self, stage: str | None = None) -> Spent:
        """What this run has paid for: for one stage, or for all."""
        if not self._path.exists():
            return Spent()
        which = "stage = ?" if stage else "stage IS NOT NULL"
        summed = ("prompt_tokens + completion_tokens > 0", "prompt_tokens", "cached_tokens", "completion_tokens", "cost")
        query = f"SELECT {', '.join(f'sum({of})' for of in summed)} FROM calls WHERE {which}"
        calls, prompt, cached, completion, cost = self._calls.execute(query, (stage,) if stage else ()).fetchone()
        return Spent(calls or 0, prompt or 0, cached, completion or 0, cost or 0.0)

    def close(self) -> None:
        if "_calls" in self.__dict__:
            self._calls.close()

    def find(self, key: str, id: str) -> Completed | None:
        """The kept answer to a call, under the request's id."""
        row = self._calls.execute("SELECT outputs FROM calls WHERE key = ?", (key,)).fetchone()
        return Completed(id, [Output(**output) for output in json.loads(row[0])]) if row else None

    def keep(self, key: str, model: str, request: Request, answer: Completed) -> None:
        """Write down an answer, and what it cost. A failure is no answer, and may be asked again."""
        if answer.error or not answer.outputs:
            return
        prompt = _tokens(answer.n_prompt_tokens, "".join(turn["content"] for turn in request.messages))
        completion = sum(_tokens(output.n_tokens, output.text) for output in answer.outputs)
        cost = self._cost(model, prompt, answer.n_cached_tokens or 0, completion)
        outputs = json.dumps([{name: getattr(output, name) for name in _OUTPUT} for output in answer.outputs])
        so_far = self._spent
        self.tokens_here += prompt + completion
        row = (key, self._stage, model, outputs, prompt, answer.n_cached_tokens, completion, cost)
        self._calls.execute("INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._spent = replace(
            so_far,
            calls=so_far.calls + (prompt + completion > 0),
            prompt_tokens=so_far.prompt_tokens + prompt,
            completion_tokens=so_far.completion_tokens + completion,
            cost=so_far.cost + cost,
        )

    def forget(self, key: str) -> None:
        """Take out an answer, as if it had never come."""
        self._calls.execute("DELETE FROM calls WHERE key = ?", (key,))
        self.__dict__.pop("_spent", None)

    def over(self, on_the_way: int) -> str | None:
        """Why no further call may be made now: which limit it would break. Calls on the way count as the mean of those so far,
        so the first one goes alone."""
        if (self._max_tokens or self._max_cost) and on_the_way and not self._spent.calls:
            return "what a call takes is not known yet"
        share = 1 + (on_the_way + 1) / max(1, self._spent.calls)
        if self._max_tokens is not None and self._spent.tokens * share > self._max_tokens:
            return f"{self._spent.tokens:,} tokens of rank.max_tokens_total = {self._max_tokens:,} are used"
        if self._max_cost is not None and self._spent.cost * share > self._max_cost:
            return f"{self._spent.cost:.4g} of rank.max_cost = {self._max_cost:g} is spent"
        return None

    def _cost(self, model: str, prompt: int, cached: int, completion: int) -> float:
        price = self._prices.get(model)
        if price is None:
            return 0.0
        again = price.input if price.cached is None else price.cached
        return ((prompt - cached) * price.input + cached * again + completion * price.output) / MILLION


def inherit(old: Path, new: Path) -> None:
    """Take along what another run has paid for. It is not the new run's own spending, and what was decided stays behind."""
    if not old.exists():
        return
    new.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(old)) as theirs, closing(sqlite3.connect(new)) as ours:
        theirs.backup(ours)
        ours.executescript(f"{_TABLES} UPDATE calls SET stage = NULL; DROP TABLE decisions;")  # an empty file has no tables


def model_of(settings: Any) -> str:
    """How an engine of these settings is called: its adapter, or its model, or its type where it has neither."""
    return getattr(settings, "adapter", None) or getattr(settings, "model", None) or str(settings.type)


class _Kept:
    """An engine that looks into the ledger first. The engine behind it starts with the first call that is new."""

    def __init__(self, settings: Any, model: str, ledger: Ledger):
        self.model = model
        self._settings, self._ledger = settings, ledger
        self._engine: Engine | None = None
        self._who: list[Any] = []
        self._takes_tokens: bool = getattr(settings, "takes_tokens", True)

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        """As any engine. Of requests that say the same, one is asked. Raises OverBudget, once what is on the way has come."""
        asked: dict[str, list[Request]] = {}
        keys: dict[str, str] = {}
        known: deque[Completed] = deque()
        held: str | None = None
        exhausted = False

        def new() -> Iterator[Request | None]:
            nonlocal exhausted, held
            for request in requests:
                if request is None:
                    yield None
                    continue
                key = self._key(request, sampling)
                if key in asked:
                    asked[key].append(request)
                elif found := self._ledger.find(key, request.id):
                    known.append(found)
                    if len(known) >= 64:
                        yield None
                else:
                    while held := self._ledger.over(len(asked)) if self._takes_tokens else None:
                        yield None
                    asked[key], keys[request.id] = [request], key
                    yield request
            exhausted = True

        source = new()
        while not exhausted:
            first = next(source, None)
            if first:
                for answer in self._started().complete(chain([first], source), sampling):
                    key = keys.pop(answer.id)
                    askers = asked.pop(key)
                    self._ledger.keep(key, self.model, askers[0], answer)
                    known.extend(replace(answer, id=asker.id) for asker in askers)
                    yield from _drained(known)
                if asked:  # the engine owes answers, and whoever asks must hear of it
                    return
            elif not known and held:
                raise OverBudget(held, "Raise it and run again: what was answered is kept, and nobody is asked twice.")
            elif not known:  # what comes next hangs on an answer that was given already
                return
            yield from _drained(known)

    def forget(self, request: Request, sampling: Sampling) -> None:
        """Take out the answer to a request, which was a mistake: it may be asked again."""
        self._ledger.forget(self._key(request, sampling))

    def close(self) -> None:
        if self._engine:
            self._engine.close()

    def _started(self) -> Engine:
        self._engine = self._engine or self._settings.build()
        return self._engine

    def _key(self, request: Request, sampling: Sampling) -> str:
        """Greedy answers do not hang on a seed."""
        if not self._who:
            table = self._settings.deciding(*type(self._settings).model_fields)
            self._who = [table, engine_revision(self._settings), *filter(None, [chat_template.of(self._settings)])]
        seed = None if sampling.get("temperature") == 0 else request.seed
        asked = [request.messages, request.tools, request.schema, *filter(None, [request.chat_template_kwargs])]
        return content_id([*asked, dict(sampling), seed, *self._who])


def _drained(known: deque[Completed]) -> Iterator[Completed]:
    while known:
        yield known.popleft()


def _tokens(counted: int | None, text: str) -> int:
    return -(-len(text) // CHARACTERS_A_TOKEN) if counted is None else counted
