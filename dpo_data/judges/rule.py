"""A function that scores an answer: a built-in one, or `module:function` of your own.

It may be anybody's code, so it runs in child processes, and an answer that it cannot score in time is not judged.
"""

import inspect
import json
import os
import queue
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from dpo_data.child import Child
from dpo_data.errors import EngineError, RecipeError
from dpo_data.functions import find_function, function_hash, require_allowed
from dpo_data.judges.program import SECONDS
from dpo_data.judges.rewards import BUILT_IN
from dpo_data.provenance import file_hash
from dpo_data.rows import Message, Ranking, Sample
from dpo_data.seams import Engines, Settings
from dpo_data.share import find
from dpo_data.stream import in_order

Scorer = Callable[[list[Message], str, str | None], float | None]
"""Called with the prompt's messages, a completion's text, and the prompt's reference answer. Higher is better; None or NaN
means "cannot tell"."""

Judged = tuple[float | None, str | None]
"""An answer's score; or None, and why it has none."""


class Rule(Settings):
    """`rule` is the name of a built-in rule, or `module:function`. It is called with the prompt's messages and a completion's
    text, with `args` by their names, and with `reference` where it takes one: the prompt's reference answer, or None.

    It runs in child processes, about one a core. An answer for which it takes longer than `time_limit` seconds, or which ends
    its process, is not judged: the child is killed with all that it started, and the next answers go on in a new one. A process
    that a rule leaves running ends with the answer, and so does what the rule keeps in memory.
    """

    type: Literal["rule"] = "rule"
    rule: str
    args: dict[str, Any] = {}
    time_limit: float = Field(10.0, gt=0, le=86_400)

    def build(self, sampler: Settings, seed: int, engines: Engines) -> "RuleJudge":
        return RuleJudge(self)

    def inputs(self) -> dict[str, str]:
        """The content hash of the file that holds a rule of your own, or a schema."""
        self.check()
        if self.rule not in BUILT_IN:
            hash = function_hash(self.rule, "rule")
            return {"rule": hash} if hash else {}
        schema = self.args.get("schema")
        return {"schema": file_hash(find(schema))} if isinstance(schema, str) else {}

    def calls(self, n: int) -> int:
        return 0

    @property
    def plain_args(self) -> dict[str, Any]:
        """The args as JSON values, as a child gets them."""
        args: dict[str, Any] = self.model_dump(mode="json")["args"]
        return args

    def check(self) -> None:
        """Raises RecipeError where the rule is not there, is code that is not allowed, or cannot be called with its args in
        its time."""
        if self.rule == "unit_test":
            require_allowed("The rule 'unit_test' runs answers and their tests as code")
        find_rule(self.rule, self.plain_args)
        if self.rule == "unit_test" and self.args.get("seconds", SECONDS) + 1 > self.time_limit:
            raise RecipeError(
                f"The rule's time_limit of {self.time_limit:g} s would end a test before its own limit of "
                f"{self.args.get('seconds', SECONDS):g} s does",
                "Make time_limit longer than args.seconds by a second or more.",
            )


def find_rule(rule: str, args: Mapping[str, Any]) -> Scorer:
    """A built-in rule, or the function at `module:function`, modules of the working folder included; bound to its args. Raises
    RecipeError, with its signature where the args do not fit it."""
    if rule not in BUILT_IN and ":" not in rule:
        raise RecipeError(f"No built-in rule {rule!r}", f"Use one of {', '.join(BUILT_IN)}, or module:function.")
    function = BUILT_IN.get(rule) or find_function(rule, "rule")
    takes_reference = _fit(rule, function, args)

    def score(messages: list[Message], text: str, reference: str | None) -> float | None:
        return function(messages, text, **args, **({"reference": reference} if takes_reference else {}))

    return score


def _fit(rule: str, function: Callable[..., Any], args: Mapping[str, Any]) -> bool:
    """Whether a rule takes a reference. Raises RecipeError where it does not take these args."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function of C's may not tell
        return False
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes_reference = any(one.name == "reference" and one.kind in by_name for one in signature.parameters.values())
    try:
        signature.bind([], "", **args, **({"reference": None} if takes_reference else {}))
    except TypeError as error:
        raise RecipeError(
            f"The rule {rule!r} cannot be called with these args: {error}",
            f"Its signature is {rule.rpartition(':')[2]}{signature}; messages, text and reference are no args.",
        ) from None
    hints = get_type_hints(function, include_extras=True) if rule in BUILT_IN else {}
    for name in args.keys() & hints.keys():
        try:
            TypeAdapter(hints[name]).validate_python(args[name], strict=True)
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise RecipeError(f"args.{name} of the rule {rule!r} is {args[name]!r}: {why}", "Mend it.") from None
    return takes_reference


class RuleJudge:
    """Scores every answer by itself. Several children work at once, each on the answers to one prompt; the rankings come in the
    order of the prompts."""

    def __init__(self, settings: Rule):
        settings.check()
        self.name = f"rule:{settings.rule}"
        self._benches = [_Bench(settings) for _ in os.sched_getaffinity(0)]
        self._idle: queue.LifoQueue[_Bench] = queue.LifoQueue()
        for bench in self._benches:
            self._idle.put(bench)

    def rank(self, groups: Iterable[Sample]) -> Iterator[Ranking]:
        for bench in self._benches:
            bench.stopped = False
        yield from in_order(self._rank, groups, len(self._benches), self.close)

    def close(self) -> None:
        """Also stops what is being scored."""
        for bench in self._benches:
            bench.stopped = True
            bench.close()

    def _rank(self, group: Sample) -> Ranking:
        bench = self._idle.get()
        try:
            judged = bench.judge(group)
        finally:
            self._idle.put(bench)
        ids = [completion.completion_id for completion in group.completions]
        errors = [
            {"kind": "error", "completion_id": id, "error": error} for id, (_, error) in zip(ids, judged, strict=True) if error
        ]
        scores = [score for score, _ in judged]
        able = sum(score is not None for score in scores)
        why = None if able > 1 else f"{able} of {len(scores)} answers could be scored"
        return Ranking(group.prompt_id, self.name, ids, scores, why, json.dumps(errors))


@dataclass
class _Bench:
    """A child with the rule in it, begun by the first answer, and again after an answer that ended it. `died`: whether one has
    died on the answer that is next."""

    settings: Rule
    child: Child | None = None
    stopped: bool = False
    died: bool = False

    def judge(self, group: Sample) -> list[Judged]:
        """What the rule makes of each of a group's answers."""
        judged: list[Judged] = []
        texts = [completion.text for completion in group.completions]
        while len(judged) < len(texts):
            judged += self._some(group, texts[len(judged) :])
        return judged

    def close(self) -> None:
        child, self.child = self.child, None
        if child:
            child.close()

    def _some(self, group: Sample, texts: list[str]) -> Iterator[Judged]:
        """The first of these answers, up to one that ends the child. An answer on which a child dies is left for a new one: an
        earlier answer may be the cause, or somebody who kills processes. Where that dies on it too, it is not judged."""
        again, self.died = self.died, False
        child = self.child or self._start()
        child.send({"messages": group.prompt, "reference": group.reference, "texts": texts})
        for _ in texts:
            try:
                told = child.receive(self.settings.time_limit)
            except TimeoutError:
                self.close()
                yield None, f"took longer than {self.settings.time_limit:g} s"
                return
            except EngineError:
                self.close()
                if self.stopped:
                    raise
                if again:
                    yield None, f"the rule's process {child.ended}"
                self.died = not again
                return
            again = False
            yield told["score"], told["error"]
            if told["ends"]:
                self.close()
                return

    def _start(self) -> Child:
        self.child = child = Child("dpo_data.judges.rule_child:serve", logger="dpo_data.rule")
        child.send({"rule": self.settings.rule, "args": self.settings.plain_args, "path": sys.path})
        failed = None if self.stopped else child.receive()
        if failed or self.stopped:
            self.close()
            raise RecipeError(failed or "The rule's judge is closed", "Mend the rule, and run again.")
        return child
