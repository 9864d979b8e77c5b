"""The child's side of the perplexity: a model, texts, and how well it expects each token from those before it."""

import logging
import sys
from collections.abc import Iterator
from typing import Any

from dpo_data.child import Parent


def work(parent: Parent) -> None:
    """Score the texts under the two models that the parent names, one after the other."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    jobs = [parent.receive(), parent.receive()]
    texts = parent.receive()["texts"]
    for job in jobs:
        parent.send({"parts": _score(job, texts, parent)})
    parent.receive()  # the parent closes when it has read the last word


def _score(job: dict[str, Any], texts: list[str], parent: Parent) -> list[tuple[float, int]]:
    """Of each stretch of each text, the sum of negative log-likelihoods in nats, and its tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(job["model"], revision=job["revision"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], revision=job["revision"], dtype=dtype)
    if job["adapter"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, job["adapter"])
    model = model.to("cuda" if cuda else "cpu").eval()
    window = min(job["window"], getattr(model.config, "max_position_embeddings", None) or job["window"])
    parts: list[tuple[float, int]] = []
    with torch.inference_mode():
        for done, text in enumerate(texts, 1):
            ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0].to(model.device)
            for begin, first, end in stretches(len(ids), window):
                logits = model(ids[begin:end][None]).logits[0, first - begin - 1 : -1].float()
                loss = torch.nn.functional.cross_entropy(logits, ids[first:end], reduction="sum")
                parts.append((float(loss), end - first))
            parent.send({"done": done})
    return parts


def stretches(length: int, window: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end) of each pass over a text of so many tokens: those from `begin` to `end` are seen, at most `window`,
    and those from `first` on are scored. Every token but the text's first is scored once, with half a window or more before
    it where the text has that."""
    first, step = 1, max(1, window // 2)
    while first < length:
        end = min(length, window if first == 1 else first + step)
        yield max(0, end - window), first, end
        first = end
