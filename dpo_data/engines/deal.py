"""Which worker gets which requests: dealt out as they are wanted, redone when a worker dies, doubled when one is slow."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator

from dpo_data.seams import Completed, Request

TRIES = 2
"""The least deaths of a worker that a request has taken part in, the last of them alone, when it is set aside."""
PARTS = 8
"""In so many groups what a dead worker had is tried again. So a death by chance costs so many rounds at most; and one request
that kills, among thousands, five deaths until it is alone: each costs the start of an engine."""


class Deal:
    """One stream of requests among several workers, which are known by a number.

    What a worker had when it died is suspect. Suspects are given out in groups, one at a time, to a worker that has nothing
    else; a group of which it dies again is cut into smaller ones, down to a single request: so the one that kills is known from
    those that were beside it. Each request is answered once, whoever is first.
    """

    def __init__(self, requests: Iterable[Request | None]):
        self._source = iter(requests)
        self._given: dict[int, dict[str, Request]] = {}
        """By worker, what it has and nobody has answered; oldest first."""
        self._holders: dict[str, set[int]] = {}
        self._deaths: Counter[str] = Counter()
        self._suspects: deque[list[Request]] = deque()
        self._tests: set[int] = set()
        """The workers that have a group of suspects."""
        self._careful: set[int] = set()
        """Workers that have died: they see to the suspects, so that the others need not."""
        self.more = True
        """Whether there may be requests to give at once."""
        self._exhausted = False

    @property
    def over(self) -> bool:
        """Whether all is answered, or all that is ready: then the rest hangs on an answer that was given already."""
        return not (self.more or self._holders or self._suspects)

    def held(self, worker: int) -> int:
        """How many requests a worker has."""
        return len(self._given.get(worker, ()))

    def give(self, worker: int, most: int) -> list[Request]:
        """What a worker is to do next: new requests, in their order; or suspects; or, as soon as there are no more requests
        at all, half of what another has, which is then done by both."""
        if worker in self._tests:
            return []
        if worker in self._careful and self._suspects:
            return self._test(worker)
        fresh = list(self._fresh(most))
        if fresh or self.held(worker):
            return self._hand(worker, fresh)
        if self._suspects:
            return self._test(worker)
        return self.double(worker) if self._exhausted else []

    def double(self, worker: int) -> list[Request]:
        """Give a worker the newer half of what the one with the most has to itself: this it has hardly begun."""
        alone = [
            [request for id, request in given.items() if self._holders[id] == {other}]
            for other, given in self._given.items()
            if other != worker and other not in self._tests
        ]
        longest = max(alone, key=len, default=[])
        return self._hand(worker, longest[len(longest) // 2 :])

    def answered(self, answers: Iterable[Completed]) -> list[Completed]:
        """The answers that are the first to their requests."""
        first = []
        for answer in answers:
            holders = self._holders.pop(answer.id, None)
            if holders is None:
                continue
            for holder in holders:
                self._take_back(holder, answer.id)
            first.append(answer)
        if first:
            self.more = not self._exhausted
        return first

    def died(self, worker: int, cause: str) -> list[Completed]:
        """A worker is gone: what only it had will be given out again. Returns what is set aside instead."""
        given = self._given.pop(worker, {})
        aside: list[Completed] = []
        suspects: list[Request] = []
        for id, request in given.items():
            self._deaths[id] += 1
            self._holders[id].discard(worker)
            if self._holders[id]:
                continue
            del self._holders[id]
            if len(given) == 1 and self._deaths[id] >= TRIES:
                told = f"set aside after {self._deaths[id]} tries, each of which ended its worker: {cause}"
                aside.append(Completed(id, [], told))
            else:
                suspects.append(request)
        size = max(1, -(-len(suspects) // PARTS))
        self._suspects.extend(suspects[at : at + size] for at in range(0, len(suspects), size))
        self._tests.discard(worker)
        self._careful.add(worker)
        if aside:
            self.more = not self._exhausted
        return aside

    def _fresh(self, most: int) -> Iterator[Request]:
        """At most so many of the requests that are ready now."""
        while self.more and most > 0:
            try:
                request = next(self._source)
            except StopIteration:
                self.more, self._exhausted = False, True
                return
            if request is None:
                self.more = False
                return
            most -= 1
            yield request

    def _test(self, worker: int) -> list[Request]:
        """Give a worker a group of suspects, where it has nothing else."""
        if self.held(worker):
            return []
        self._tests.add(worker)
        return self._hand(worker, self._suspects.popleft())

    def _hand(self, worker: int, requests: list[Request]) -> list[Request]:
        for request in requests:
            self._given.setdefault(worker, {})[request.id] = request
            self._holders.setdefault(request.id, set()).add(worker)
        return requests

    def _take_back(self, worker: int, id: str) -> None:
        del self._given[worker][id]
        if not self._given[worker]:
            self._tests.discard(worker)
