"""What sampling is measured on: a Llama of random weights, and prompts of made-up words."""

import json
import random
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import log
from pathlib import Path
from typing import Any

from dpo_data.formats.prompts import Prompts, read_prompts
from dpo_data.rows import Message

SEED = 0
SHARD = 256
"""Answers in a shard: the rows of a shard by default, where n is 1."""
SPREAD = 0.8
"""σ of the log-normal lengths of prompts."""


@dataclass(frozen=True)
class Setting:
    """What is sampled, by what. `sizes` are a LlamaConfig's; `prompt` is the median of words of a prompt, `answer` the mean of
    tokens of an answer; `answers` is how many a round has; `args` are vLLM's engine arguments, the same for every way."""

    sizes: dict[str, int]
    vocabulary: int
    prompt: int
    answer: int
    max_tokens: int
    answers: int
    args: dict[str, Any]
    rounds: int = 3
    workers: int = 1


@dataclass(frozen=True)
class Job:
    """What every way does in a round: answer the prompts of the file `path` n times each. `texts` and `ids` are the prompts as
    the chat template renders them, and as tokens, by prompt_id."""

    n: int
    path: Path
    messages: dict[str, list[Message]]
    texts: dict[str, str]
    ids: dict[str, list[int]]
    sampling: dict[str, Any]
    shard_size: int


def make_model(setting: Setting, folder: Path) -> Path:
    """Write a Llama of random weights, and a tokenizer learnt from made-up text. Its logits are nearly flat: input and output
    tables differ, lest it repeat itself."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dpo_data.demo.model import build_tokenizer

    torch.manual_seed(SEED)
    dice = random.Random(SEED)
    tokenizer = build_tokenizer([_text(dice, setting, 100) for _ in range(setting.vocabulary)], setting.vocabulary)
    config = LlamaConfig(
        **setting.sizes,
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    dtype = getattr(torch, setting.args["dtype"])
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_job(setting: Setting, model: str, folder: Path, n: int, prompts: int) -> Job:
    """Fresh prompts in a file, and the settings with which each is answered n times."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    folder.mkdir()
    dice = random.Random(str(folder.name))
    path = folder / "prompts.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(prompts):
            words = 1 + int(min(10.0, dice.lognormvariate(0, SPREAD)) * setting.prompt)
            file.write(json.dumps({"prompt": _text(dice, setting, words)}) + "\n")
    bias = log(len(tokenizer) / setting.answer)
    sampling: dict[str, Any] = {"n": n, "temperature": 1.0, "top_k": -1, "top_p": 0.95, "max_tokens": setting.max_tokens}
    messages = {prompt.prompt_id: prompt.prompt for prompt in read_prompts(Prompts(path=str(path)))}
    texts, ids = (
        {
            id: tokenizer.apply_chat_template(turns, tokenize=tokens, add_generation_prompt=True, return_dict=False)
            for id, turns in messages.items()
        }
        for tokens in (False, True)
    )
    sampling["logit_bias"] = {str(tokenizer.eos_token_id): bias}
    return Job(n, path, messages, texts, ids, sampling, max(8, SHARD // n))


def _text(dice: random.Random, setting: Setting, words: int) -> str:
    """Made-up words, the n-th as frequent as 1/n (Zipf)."""
    known, weights = _words(setting.vocabulary)
    return " ".join(dice.choices(known, cum_weights=weights, k=words))


@cache
def _words(count: int) -> tuple[list[str], list[float]]:
    """The words, and their weights added up."""
    dice = random.Random(SEED)
    syllables = [first + then for first in "bdfgklmnprstvz" for then in "aeiou"]
    words = {"".join(dice.choices(syllables, k=dice.randint(1, 4))) for _ in range(count)}
    return dice.sample(sorted(words), len(words)), list(accumulate(1 / at for at in range(1, len(words) + 1)))
