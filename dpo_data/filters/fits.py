"""The filter fits: a pair that is longer than its trainer takes."""

import json
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from dpo_data import chat_template
from dpo_data.errors import TrainError
from dpo_data.filters.columns import SIDES, Columns, Mask, as_mask, sizes
from dpo_data.filters.screen import FilterTable, Screen, Trainer
from dpo_data.models import find_model
from dpo_data.rows import PreferencePair

TEMPLATE, TURN = 512, 32
"""More tokens than a chat template adds to a conversation, a system message of its own included, and to each turn."""


class Fits(FilterTable):
    """Drops a pair whose prompt with its longer answer, in the trainer's chat template, has more tokens than
    `train.max_length`, or than the model can take. Where the recipe trains nothing, every pair fits."""

    type: Literal["fits"] = "fits"

    def build(self, trainer: Trainer | None) -> Screen:
        if trainer is None:
            return Screen(lambda pair: None, Columns.none)
        measure = _Measure(trainer)
        return Screen(measure.reason, measure.suspects)


class _Measure:
    """Conversations in tokens, as the trainer counts them. The tokenizer is read when the first pair may be too long."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._lock = Lock()

    def suspects(self, pairs: Columns) -> Mask:
        """In the tokenizers of chat models a token is at least one byte. What a template makes of tools, or of variables of its
        own, cannot be told."""
        if self.limit is None:
            return pairs.none()
        if pairs.have_more:
            return pairs.all()
        longer = np.maximum(*(self._most_tokens(pairs, side) for side in SIDES))
        turns = pc.list_value_length(pairs.column("prompt")).to_numpy() + 1
        too_long: Mask = sizes(pairs.prompt) + longer + TURN * turns + TEMPLATE > self.limit
        return too_long

    def _most_tokens(self, pairs: Columns, side: str) -> npt.NDArray[np.float64]:
        """An answer has no more tokens than bytes; nor many more than were sampled, if the trainer's own model sampled it."""
        most = sizes(pairs.text(side)).astype(np.float64)
        own = as_mask(pc.equal(pairs.column(f"model_{side}"), self._trainer.model))
        return np.where(own, np.fmin(most, 1.25 * pairs.numbers(f"n_tokens_{side}") + TURN), most)

    def reason(self, pair: PreferencePair) -> str | None:
        from jinja2 import TemplateError

        if self.limit is None:
            return None
        try:
            with self._lock:  # a tokenizer cannot be used by two threads at once
                lengths = {
                    side: len(
                        self._tokenizer.apply_chat_template(
                            pair.prompt + answer,
                            tools=pair.tools,
                            tokenize=True,
                            return_dict=False,
                            **pair.chat_template_kwargs or {},
                        )
                    )
                    for side, answer in zip(SIDES, (pair.chosen, pair.rejected), strict=True)
                }
        except TemplateError as error:
            return f"the trainer's chat template refuses it: {error}"
        longer = max(lengths, key=lengths.__getitem__)
        if lengths[longer] <= self.limit:
            return None
        return f"prompt and {longer} answer have {lengths[longer]} tokens, more than {self.limit}"

    @cached_property
    def limit(self) -> int | None:
        """`max_length`, or how many positions the model has; None where it does not say."""
        if self._trainer.max_length:
            return self._trainer.max_length
        model, revision = find_model(self._trainer.model, self._trainer.revision), self._trainer.revision
        folder = Path(model)
        if not folder.is_dir():
            from huggingface_hub import hf_hub_download

            folder = Path(hf_hub_download(model, "config.json", revision=revision)).parent
        told: int | None = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
        if told is None:
            from transformers import AutoConfig

            told = getattr(AutoConfig.from_pretrained(model, revision=revision), "max_position_embeddings", None)
        return told

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        model, revision = self._trainer.model, self._trainer.revision
        tokenizer = AutoTokenizer.from_pretrained(find_model(model, revision), revision=revision)
        if self._trainer.chat_template:
            tokenizer.chat_template = chat_template.read(self._trainer.chat_template)
        if not tokenizer.chat_template:
            raise TrainError(
                f"{model} has no chat template, so its prompts have no form",
                "Name a Jinja file with train.chat_template, or use an instruct model.",
            )
        return tokenizer
