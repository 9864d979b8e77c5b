"""The child's side of the reward model: conversations come in, and the logit that is each one's score goes out.

vLLM's pooling runner works where it can, else transformers, in batches of similar length. Both read the same token ids, and
both give what transformers gives for one conversation by itself, to rounding.
"""

from collections.abc import Callable
from importlib.util import find_spec
from itertools import count
from typing import Any

from dpo_data.child import Parent
from dpo_data.engines.vllm_child import Steps, cpu_defaults, keep_answering, line, smaller, token_ids
from dpo_data.errors import EngineError

Encode = Callable[[dict[str, Any]], list[int]]
"""A request's token ids. Raises ValueError where the model cannot take it."""

BATCH_TOKENS = {"cuda": 16384, "cpu": 1024}
"""What a batch holds where the recipe does not say: a CPU's caches make larger ones slower."""
WINDOW = 1024
"""Conversations that wait in the child for transformers: enough that there are always some of similar length."""


def serve(parent: Parent) -> None:
    """Load the model with the settings that come first, then score conversations for as long as the parent lives."""
    keep_answering(parent, load)


def load(settings: dict[str, Any]) -> Steps:
    """The model in vLLM or in transformers. Raises EngineError where it is none that gives one score."""
    from transformers import AutoConfig, AutoTokenizer

    where = {"revision": settings["revision"], "trust_remote_code": settings["args"].get("trust_remote_code", False)}
    config = AutoConfig.from_pretrained(settings["model"], **where)
    label = which_label(settings["model"], config, settings["label"])
    tokenizer = AutoTokenizer.from_pretrained(settings["model"], **where)
    tokenizer.chat_template = settings["chat_template"] or tokenizer.chat_template
    if not tokenizer.chat_template:
        raise EngineError(
            f"{settings['model']} has no chat template, so its conversations have no form",
            "Name a Jinja file with rank.judge.template, or use a reward model that was trained on conversations.",
        )
    why_not = "the recipe says so" if settings["backend"] == "transformers" else unsupported(settings)
    if why_not is None:
        return Pooling(settings, config, tokenizer, label)
    if settings["backend"] == "vllm":
        raise EngineError(
            f"vLLM cannot score with {settings['model']}: {why_not}",
            "Leave rank.judge.backend at auto, or set it to transformers; vLLM is in the extras gpu and cpu.",
        )
    return Batches(settings, config, tokenizer, label, why_not)


def which_label(model: str, config: Any, label: int | None) -> int:
    """The index of the label whose logit is the score. Raises EngineError where that is not clear, or where there is none."""
    architectures = config.architectures or []
    if any(name.endswith(("ForCausalLM", "ForConditionalGeneration")) for name in architectures):
        raise EngineError(
            f"{model} is {', '.join(architectures)}: it generates text, and gives no score",
            "Name a reward model, as Skywork/Skywork-Reward-V2-Qwen3-0.6B; or let it judge with type = 'pairwise'.",
        )
    names = [str(config.id2label[at]) for at in sorted(config.id2label)]
    if label is None and len(names) > 1:
        raise EngineError(
            f"{model} gives {len(names)} scores ({', '.join(names[:8])}), and which one is meant is not said",
            "Name it with rank.judge.label, counted from 0; or use a reward model, which has one.",
        )
    if label is not None and label >= len(names):
        raise EngineError(f"{model} has no label {label}: it has {len(names)}, counted from 0", "Mend rank.judge.label.")
    return label or 0


def unsupported(settings: dict[str, Any]) -> str | None:
    """Why vLLM cannot take the model; None where it can."""
    if find_spec("vllm") is None:
        return "vLLM is not installed"
    from vllm.engine.arg_utils import EngineArgs

    try:
        config = EngineArgs(**_vllm_args(settings)).create_engine_config().model_config
    except Exception as error:  # by version and model: ValueError, ImportError, or what a model's own config raises
        return line(error)
    names = ", ".join(config.architectures)
    if config.architecture.startswith("Transformers"):  # vLLM's wrapper of them reads the first token, not the last
        return f"vLLM has no {names} of its own"
    scores = config.convert_type == "classify" or config.architecture.endswith("ForSequenceClassification")
    return None if scores else f"vLLM takes {names} for no classifier"


def _vllm_args(settings: dict[str, Any]) -> dict[str, Any]:
    """Engine arguments, those of the recipe over ours. A length of −1 is as long as the model takes and memory holds. A smaller
    batch has fewer tokens only where the recipe says how many, or that a conversation may be read in several steps."""
    cpu = {**cpu_defaults(), "dtype": "float32"} if cpu_defaults() else {}
    model, revision = settings["model"], settings["revision"]
    ours = {"model": model, "revision": revision, "tokenizer_revision": revision, "runner": "pooling", "max_model_len": -1}
    args = {**ours, **cpu, **settings["args"]}
    in_steps = {"enable_chunked_prefill": "max_num_batched_tokens" in args}
    return {**args, **smaller({**in_steps, **args})} if settings.get("smaller") else args


def _encoder(tokenizer: Any, limit: int, ending: int | None = None) -> Encode:
    """Token ids of whole conversations, up to `limit`; without those at the end that equal `ending`."""

    def encode(message: dict[str, Any]) -> list[int]:
        ids = token_ids(tokenizer, message, add_generation_prompt=False)
        if len(ids) > limit:
            raise ValueError(f"{len(ids):,} tokens, and the model takes {limit:,} here")
        while ids and ids[-1] == ending:
            ids.pop()
        if not ids:
            raise ValueError("the chat template makes no token of it")
        return ids

    return encode


def _pad(config: Any) -> int | None:
    """The token that transformers looks for to find a conversation's end; None where it cannot occur."""
    text = config.get_text_config()
    pad: int | None = text.pad_token_id
    return pad if pad is not None and 0 <= pad < text.vocab_size else None


class Pooling:
    """vLLM, below `LLM.classify`, so that conversations can join while others run."""

    def __init__(self, settings: dict[str, Any], config: Any, tokenizer: Any, label: int):
        from vllm import LLM

        self._engine = LLM(**_vllm_args(settings)).llm_engine
        self._label = label
        ours = self._engine.vllm_config
        # Of a conversation that ends with the pad token, transformers reads the token before it, as in training; vLLM the last.
        last = ours.model_config.pooler_config.seq_pooling_type == "LAST"
        limit = min(tokenizer.model_max_length, ours.model_config.max_model_len)
        self._encode = _encoder(tokenizer, limit, _pad(config) if last else None)
        self._window = 4 * ours.scheduler_config.max_num_seqs
        self.live = 0

    @property
    def started(self) -> dict[str, Any]:
        return {"window": self._window, "backend": "vLLM"}

    def accept(self, message: dict[str, Any]) -> dict[str, Any] | None:
        from vllm import PoolingParams

        try:
            prompt: Any = {"prompt_token_ids": self._encode(message)}
            # Without its activation: a sigmoid makes all good answers 1.0.
            self._engine.add_request(message["id"], prompt, PoolingParams(task="classify", use_activation=False))
        except Exception as error:  # this conversation's own fault, of whatever type the template or vLLM raises
            return _failed(message["id"], error)
        self.live += 1
        return None

    def step(self) -> list[dict[str, Any]]:
        finished = [output for output in self._engine.step() if output.finished]
        self.live -= len(finished)
        return [self._completed(output) for output in finished]

    def _completed(self, done: Any) -> dict[str, Any]:
        score = done.outputs.data.flatten().tolist()[self._label]
        return _scored(done.request_id, score, len(done.prompt_token_ids), done.num_cached_tokens)


class Batches:
    """transformers, in batches of similar length. `batch_tokens` bounds a batch, its padding included."""

    def __init__(self, settings: dict[str, Any], config: Any, tokenizer: Any, label: int, why: str):
        import torch
        from transformers import AutoModelForSequenceClassification

        cuda = torch.cuda.is_available()
        # The default attention leaves out the soft capping of scores (Gemma 2), which moves the logit by hundredths.
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
        attention = {"attn_implementation": "eager"} if capped else {}
        args = {"dtype": "auto" if cuda else torch.float32, **attention, **settings["args"]}
        model, told = AutoModelForSequenceClassification.from_pretrained(
            settings["model"], revision=settings["revision"], output_loading_info=True, **args
        )
        if told["missing_keys"]:
            raise EngineError(
                f"{settings['model']} holds no {', '.join(sorted(told['missing_keys'])[:3])}: its scores would be random",
                "Name a model that was trained to score, as Skywork/Skywork-Reward-V2-Qwen3-0.6B.",
            )
        self._model = model.eval() if "device_map" in args or not cuda else model.eval().cuda()
        self._model.config.use_cache = False  # no token follows that would read it
        self._label, self._why = label, why
        budget = settings["batch_tokens"] or BATCH_TOKENS["cuda" if cuda else "cpu"]
        self._budget = budget // 2 if settings.get("smaller") else budget
        longest = getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
        self._encode = _encoder(tokenizer, min(tokenizer.model_max_length, longest))
        self._pad = _pad(config)
        self._waiting: dict[str, list[int]] = {}

    @property
    def live(self) -> int:
        return len(self._waiting)

    @property
    def started(self) -> dict[str, Any]:
        return {"window": WINDOW, "backend": f"transformers ({self._why})"}

    def accept(self, message: dict[str, Any]) -> dict[str, Any] | None:
        try:
            self._waiting[message["id"]] = self._encode(message)
        except Exception as error:  # this conversation's own fault, of whatever type the template raises
            return _failed(message["id"], error)
        return None

    def step(self) -> list[dict[str, Any]]:
        ids = like_the_oldest({id: len(tokens) for id, tokens in self._waiting.items()}, self._budget)
        rows = [self._waiting.pop(id) for id in ids]
        return [_scored(id, score, len(row)) for id, row, score in zip(ids, rows, self._score(rows), strict=True)]

    def _score(self, rows: list[list[int]]) -> list[float]:
        """The logits of token ids, padded on the right, where every model counts the same positions as without padding.

        transformers reads the last token that is not the config's pad token, and refuses a batch where the config has none.
        Then any token will do that ends no conversation of the batch.
        """
        import torch

        filler = self._pad
        if filler is None:
            ends = {row[-1] for row in rows}
            filler = next(token for token in count() if token not in ends)
            self._model.config.get_text_config().pad_token_id = filler
        longest = max(map(len, rows))
        ids = torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        device = self._model.device
        with torch.inference_mode():
            logits = self._model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        scores: list[float] = logits[:, self._label].float().tolist()
        return scores


def like_the_oldest(lengths: dict[str, int], budget: int) -> list[str]:
    """The first of the ids, and those nearest to it in length, as many as `budget` holds once all are padded to the longest.
    So little is padded, and nobody waits for ever."""
    oldest = lengths[next(iter(lengths))]
    batch: list[str] = []
    longest = 0
    for id in sorted(lengths, key=lambda id: abs(lengths[id] - oldest)):
        longest = max(longest, lengths[id])
        if batch and longest * (len(batch) + 1) > budget:
            break
        batch.append(id)
    return batch


def _scored(id: str, score: float, n_tokens: int, n_cached: int | None = None) -> dict[str, Any]:
    output = {"text": "", "finish_reason": None, "score": score}
    return {"id": id, "outputs": [output], "error": None, "n_prompt_tokens": n_tokens, "n_cached_tokens": n_cached}


def _failed(id: str, error: Exception) -> dict[str, Any]:
    return {"id": id, "outputs": [], "error": line(error)}
