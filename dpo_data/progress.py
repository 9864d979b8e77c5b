"""Progress bars in a terminal, one a stage; none where nobody watches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpo_data.seams import Progress


@contextmanager
def bars() -> Iterator[Progress]:
    """A Progress that draws a bar for each stage it hears of."""
    from tqdm import tqdm

    open_bars: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in open_bars:
            open_bars[stage] = tqdm(total=total, desc=f"{stage:<16}", unit=" rows", dynamic_ncols=True, disable=None)
        bar = open_bars[stage]
        bar.total = total
        bar.update(done - bar.n)

    try:
        yield progress
    finally:
        for bar in open_bars.values():
            bar.close()
