"""An adapter and its base become whole weights, in a child process that gives the memory of both back when it ends."""

import logging
import sys
from typing import Any

from dpo_data.child import Parent
from dpo_data.trainer.weights import merged


def work(parent: Parent) -> None:
    """Do the one job that the parent sends, and tell it of the end."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    merge(parent.receive())
    parent.send({"done": True})
    parent.receive()  # the parent closes when it has read the last word


def merge(job: dict[str, Any]) -> None:
    """Write `model` at `revision` with `adapter` in it into `folder`, in the number format of the base."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(job["model"], revision=job["revision"], dtype="auto")
    merged(base, job["adapter"]).save_pretrained(job["folder"])
