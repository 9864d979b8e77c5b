"""The order of training: batches of pairs that are equally long, so that little is padded."""

from collections.abc import Iterator, Sequence
from typing import Any


def by_length(lengths: Sequence[int], batch_size: int, seed: int) -> Any:
    """A torch Sampler over pairs of these lengths, in tokens; `set_epoch` gives every epoch an order of its own.

    Pairs are shuffled, and sorted by length within spans of up to 50 batches, by transformers; the batches are then shuffled,
    lest each span go from long to short. The longest comes first, so that memory that does not suffice shows at once. The order
    hangs on seed and epoch alone, so a training that goes on takes the same one.
    """
    from torch.utils.data import Sampler

    class ByLength(Sampler):  # type: ignore[misc]
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return len(lengths)

        def __iter__(self) -> Iterator[int]:
            return iter(order(lengths, batch_size, seed, self.epoch))

    return ByLength()


def order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[int]:
    """One epoch's order: the longest batch first, and one that is not full last."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    dice = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    indices = get_length_grouped_indices(list(lengths), batch_size, generator=dice)
    batches = [indices[at : at + batch_size] for at in range(0, len(indices), batch_size)]
    middle = batches[1 : len(indices) // batch_size]
    rest = batches[max(1, len(indices) // batch_size) :]
    shuffled = [middle[at] for at in torch.randperm(len(middle), generator=dice).tolist()]
    return [index for batch in (batches[:1], shuffled, rest) for one in batch for index in one]
