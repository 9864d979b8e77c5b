"""What prompts add to the agreement of raters: for two of them, for one with all others, or for all together."""

import numpy as np

from dpo_data.audit.agreement import VERDICTS, Array, coincidences, table, tau_b_of_orders
from dpo_data.audit.bootstrap import LIMIT
from dpo_data.audit.figures import Tally, alpha_of, kappa_of, tables
from dpo_data.audit.schema import Agreement
from dpo_data.audit.scores import means

WIDTH = 11
TURNED = [0, 1, *(2 + np.arange(9).reshape(3, 3).T.ravel())]


def beside(x: Array, y: Array) -> Array:
    """What each prompt adds for two raters, from their `orders`, shapes (prompts, twos) to (prompts, WIDTH): τ-b, 1 where it is
    defined (else both 0), and the table of their verdicts, flat. Such parts add up, over twos of raters as over prompts."""
    return np.column_stack([*means(tau_b_of_orders(x, y)), table(x, y, VERDICTS).reshape(-1, 9)])


def turned(parts: Array) -> Array:
    """The same parts with the raters the other way round."""
    found: Array = parts[..., TURNED]
    return found


def either(parts: Array) -> Array:
    """The same parts, half of them with the raters the other way round: which annotator is called the first means nothing."""
    found: Array = (parts + turned(parts)) / 2
    return found


def all_together(verdicts: Array) -> Array:
    """The coincidences of all raters' `orders`, shape (prompts, raters, twos) to (prompts, 9)."""
    return coincidences(verdicts, VERDICTS).reshape(-1, 9)


class Agreeing:
    """Tallies of two raters, or of every two of several."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._tau, self._kappa, self._alpha = Tally(limit=limit), tables(kappa_of, limit), tables(alpha_of, limit)

    def add(self, parts: Array, together: Array | None = None) -> None:
        """What each prompt adds, as `beside` gives it. κ and τ are of all twos of raters pooled; so is α, unless the
        coincidences of all raters `together` are given."""
        self._tau.add(*parts[:, :2].T)
        self._kappa.add(*parts[:, 2:].T)
        self._alpha.add(*(parts + turned(parts) if together is None else together)[:, -9:].T)

    def agreement(self) -> Agreement | None:
        """None where nothing was added that two raters judged."""
        found = Agreement(tau=self._tau.figure(), kappa=self._kappa.figure(), alpha=self._alpha.figure())
        return found if found.tau or found.kappa or found.alpha else None
