"""What scoring a batch costs: logits at the answers' tokens alone, and a prompt once for its two answers."""

from typing import Any, NamedTuple

LOGPROBS = {"fp32": 1e-5, "bf16": 2e-2}
GRADIENTS = {"fp32": 1e-4, "bf16": 1e-1}
"""How far a pass with shared prompts may be from one without, as the norm of the difference in that of the whole: some tens of
times what rounding does. A mask that a model does not heed is off by about 1."""

WORTH = 0.9
"""Sharing is left where it keeps more than this of a batch's tokens: attention to a mask costs more than attention to all."""


def score_answers_alone() -> None:
    """Have TRL compute logits where an answer's token follows, on every device. It does so where Triton runs; elsewhere it
    computes them at every position, prompt and padding included, and puts zeros there. Acts on this process."""
    from trl.trainer import utils

    assert hasattr(utils, "_use_triton"), "TRL decides elsewhere which positions it scores"
    utils._use_triton = lambda device: True  # the kernels, which do need Triton, ask for themselves


def share_prompts(trainer: Any, precision: str) -> str | None:
    """Run each pair as one sequence: the tokens that its two sides begin with, the rest of the chosen, and the rest of the
    rejected, which sees nothing of the chosen's. First the log-probs and gradients of the longest and the shortest pairs are
    compared with those of the plain pass. Returns why all is left as it was; None where prompts are shared from now on.

    TRL's loss sees no difference: the backbone takes chosen rows above rejected ones, and gives back hidden states likewise.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention = causal.config.get_text_config()._attn_implementation
    if attention != "sdpa":
        return f"attention by {attention!r} takes no mask of one's own"
    backbone = causal.base_model
    plain = backbone.forward
    probe = _probe(trainer)
    expected = _scored(trainer, causal, probe)
    backbone.forward = sharing(plain, worth=1.0)
    try:
        found = _scored(trainer, causal, probe)
        why = _difference(expected, found, precision)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        IndexError,
    ) as error:  # a backbone that takes no mask or positions of one's own
        why = f"the model cannot: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    backbone.forward = plain if why else sharing(plain)
    return why


class Packed(NamedTuple):
    """B pairs as one sequence each, of up to S tokens: `input_ids` and `positions` (B, S); `mask` (B, 1, S, S), true where a
    token (the third axis) sees another; and `places` (2B, T), where in the B · S tokens those of the 2B rows are."""

    input_ids: Any
    positions: Any
    mask: Any
    places: Any


def sharing(plain: Any, worth: float = WORTH) -> Any:
    """The forward of a backbone, for rows of which the first half are chosen and the second rejected, padded on the right."""
    import torch

    def forward(input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        packed = pack(input_ids, attention_mask)
        if packed.input_ids.numel() > worth * input_ids.numel():
            return plain(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        out = plain(input_ids=packed.input_ids, attention_mask=packed.mask, position_ids=packed.positions, **kwargs)
        hidden = out.last_hidden_state.flatten(0, 1)
        out.last_hidden_state = torch.index_select(hidden, 0, packed.places.flatten()).view(*input_ids.shape, -1)
        return out

    return forward


def pack(input_ids: Any, attention_mask: Any) -> Packed:
    """Put the two rows of each pair behind one another, the tokens that both begin with once."""
    import torch

    chosen, rejected = input_ids.chunk(2)
    long, other = (half.sum(1, keepdim=True) for half in attention_mask.chunk(2))
    at = torch.arange(input_ids.size(1), device=input_ids.device)[None]
    shared = ((chosen == rejected) & (at < long) & (at < other)).long().cumprod(1).sum(1, keepdim=True)
    width = int((long + other - shared).max())
    to = torch.arange(width, device=input_ids.device)[None]
    first = to < long  # in the chosen row, else in what the rejected one has of its own
    positions = torch.where(first, to, to - long + shared).clamp(max=input_ids.size(1) - 1)
    packed = torch.where(first, chosen.gather(1, positions), rejected.gather(1, positions))
    seen = (
        first[:, :, None] | (to < shared)[:, None] | ~first[:, None]
    )  # the rejected's own tokens see none of the chosen's own
    mask = (to[:, None] <= to[..., None]) & seen
    rows = torch.arange(len(chosen), device=input_ids.device)[:, None] * width
    places = torch.cat([at.expand_as(chosen), torch.where(at < shared, at, at - shared + long)]).clamp(max=width - 1)
    return Packed(packed, positions, mask[:, None], places + torch.cat([rows, rows]))


def _probe(trainer: Any) -> Any:
    """A batch of the longest and the shortest pairs."""
    lengths = trainer.train_dataset["length"][:]
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    some = trainer.train_dataset.select(sorted({*by_length[:2], *by_length[-2:]}))
    return trainer._prepare_inputs(trainer.data_collator(list(some)))


def _scored(trainer: Any, causal: Any, batch: Any) -> tuple[Any, list[Any]]:
    """The log-prob of every answer's token, and what the first step of DPO takes gradients of, all of the chosen's less all of
    the rejected's, by some of the lowest weights that are trained: everything above has a part in those."""
    import torch

    embeddings = causal.get_input_embeddings().weight
    trained = [one for one in trainer.model.parameters() if one.requires_grad and one.ndim > 1 and one is not embeddings]
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with trainer.accelerator.autocast():
        scored = trainer.model(**inputs, labels=labels, fused_lm_head=True).log_probs
    chosen, rejected = scored.sum(1).chunk(2)
    gradients = torch.autograd.grad((chosen - rejected).sum(), trained[:8], allow_unused=True)
    return scored.detach(), [one.detach() for one in gradients if one is not None]


def _difference(expected: tuple[Any, list[Any]], found: tuple[Any, list[Any]], precision: str) -> str | None:
    """What two passes over the same batch disagree in, if they do."""
    for name, ours, theirs, limit in (
        ("log-probs", [found[0]], [expected[0]], LOGPROBS[precision]),
        ("gradients", found[1], expected[1], GRADIENTS[precision]),
    ):
        off = sum(float((one - other).float().pow(2).sum()) for one, other in zip(ours, theirs, strict=True)) ** 0.5
        whole = sum(float(one.float().pow(2).sum()) for one in theirs) ** 0.5
        if not off <= limit * whole:
            return f"{name} differ by {off / whole if whole else off:.1e} of their size, more than {limit:g}"
    return None
