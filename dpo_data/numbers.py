"""Numbers as people read them."""


def percent(share: float) -> str:
    """A share (0–1) as whole per cent; a share that is neither none nor all never reads as 0 % or 100 %."""
    if 0 < share < 0.01:
        return "<1 %"
    return ">99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3.5 min, 2.1 h."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min")):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 3600:.1f} h"


def number(value: float | None) -> str:
    """A number to four figures; None is what was not finite."""
    if value is None:
        return "not finite"
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", "−")
