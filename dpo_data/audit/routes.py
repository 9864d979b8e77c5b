"""The two judges of a cascade beside each other, by the reason why the second was asked."""

from collections.abc import Sequence

from dpo_data.audit.agreeing import Agreeing, beside
from dpo_data.audit.agreement import orders
from dpo_data.audit.entries import Entries, people
from dpo_data.audit.members import Member, padded
from dpo_data.audit.schema import Route

ROUTES = ("calibration", "unsure")


class Routes:
    """Tallies over the prompts that a cascade sent on whole."""

    def __init__(self) -> None:
        self._judges: tuple[str, str] | None = None
        self._people = False
        self._agreeing = {route: Agreeing() for route in ROUTES}

    def add(self, transcripts: Sequence[Entries]) -> None:
        """Take in some prompts' transcripts."""
        sent: dict[str, list[tuple[Member, Member]]] = {route: [] for route in ROUTES}
        for entries in transcripts:
            if len(entries) == 2 and entries[1].get("route") in ROUTES:
                sent[entries[1]["route"]].append((entries[0], entries[1]))
                self._judges = self._judges or (entries[0]["judge"], entries[1]["judge"])
                self._people = self._people or any(people(entries[1]["transcript"]))
        for route, both in sent.items():
            if both:
                self._agreeing[route].add(beside(*orders(padded(both))))

    def route(self) -> Route | None:
        """The figures; None where nothing was sent on whole."""
        if self._judges is None:
            return None
        calibration, unsure = (self._agreeing[route].agreement() for route in ROUTES)
        return Route(judges=self._judges, people=self._people, calibration=calibration, unsure=unsure)
