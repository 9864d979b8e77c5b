"""DPO held to its formula, in float64, on rows read back from the Parquet, with no line of ours, TRL's or peft's in between."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dpo_data.config import Recipe
from dpo_data.models import model_revision
from dpo_data.rows import Completion, DroppedPair, PreferencePair, Sample, content_id, prompt_id
from dpo_data.rundir import RunDir
from dpo_data.train import _job

BETA = 0.1
QUESTIONS = [
    "What is the capital of France?",
    "Name a colour.",
    "What does a dog say, and why does it say so at night?",
    "Hello!",
    "How many metres are in a kilometre, and how many of those in a mile?",
    "Count.",
]

pytestmark = pytest.mark.slow


def rendered(question: str, tokenizer: Any) -> list[int]:
    """The tiny model's prompt, written out by hand."""
    text = f"<|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n"
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def logprob(model: Any, weights: dict[str, Any], prompt: list[int], answer: list[int]) -> Any:
    """log π(answer | prompt) in nats: one sequence, no padding, a plain log-softmax."""
    import torch

    logits = torch.func.functional_call(model, weights, (torch.tensor([prompt + answer]),)).logits[0]
    logs = torch.log_softmax(logits, -1)
    return sum(logs[at, token] for at, token in enumerate(answer, len(prompt) - 1))


def loss(model: Any, policy: dict[str, Any], reference: dict[str, Any], rows: list[tuple[list[int], ...]]) -> Any:
    """Equation 7 of arXiv 2305.18290: −log σ(β log π/π_ref (chosen) − β log π/π_ref (rejected)), averaged over the pairs."""
    import torch

    total: Any = 0.0
    for prompt, *answers in rows:
        chosen, rejected = (
            logprob(model, policy, prompt, answer) - logprob(model, reference, prompt, answer).detach() for answer in answers
        )
        total = total - torch.log(torch.sigmoid(BETA * chosen - BETA * rejected))
    return total / len(rows)


@pytest.fixture(scope="module")
def plain(tiny_model: str) -> tuple[Any, dict[str, Any], Any]:
    """The tiny model in float64, its weights by name, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    return model, weights, AutoTokenizer.from_pretrained(tiny_model)


Made = Callable[..., tuple[dict[str, Any], RunDir]]


@pytest.fixture
def made(recipe: Callable[..., Recipe], plain: tuple[Any, dict[str, Any], Any], tiny_model: str, tmp_path: Path) -> Made:
    """A run whose samples hold token ids that were drawn at random, and their log-probs; and the job of training on it."""
    import torch

    model, weights, tokenizer = plain

    def answer(question: str, index: int, dice: Any) -> Completion:
        ids = [5 + int(torch.randint(700, (1,), generator=dice)) for _ in range(2 + 3 * index + len(question) % 5)]
        ids += [tokenizer.eos_token_id]
        sure = float(logprob(model, weights, rendered(question, tokenizer), ids).detach())
        text = tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(f"{content_id(question)}-{index}", index, text, "stop", len(ids), sure, tiny_model, token_ids=ids)

    def make(off: float = 0.0, known: bool = True, **settings: Any) -> tuple[dict[str, Any], RunDir]:
        dice = torch.Generator().manual_seed(0)
        samples, pairs = [], []
        for question in QUESTIONS:
            prompt = [{"role": "user", "content": question}]
            two = [answer(question, index, dice) for index in range(2)]
            two = [replace(one, logprob=one.logprob + off if one.logprob is not None and known else None) for one in two]
            samples.append(Sample(prompt_id(prompt), prompt, "made", two, None))
            said = [[{"role": "assistant", "content": one.text}] for one in two]
            ids = [one.completion_id for one in two]
            pairs.append(
                PreferencePair(
                    prompt_id(prompt), prompt, *said, *ids, 1.0, 0.0, 1.0, None, None, "rule", *[tiny_model] * 2, "made", []
                )
            )
        run = RunDir(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        sampled, paired = (run.stage(name).open({}, {}) for name in ("sample", "pair"))
        sampled.write(sampled.shard(0).name, samples, Sample)
        policy = {"revision": model_revision(tiny_model), "adapter": None, "dtype": "float32", "quantization": None}
        sampled.finish(policy={**policy, "template": content_id(tokenizer.chat_template), "logprobs": "raw_logprobs"})
        for name, rows in (("train", pairs[:-1]), ("test", pairs[-1:])):
            paired.write(f"{name}.parquet", rows, PreferencePair)
        paired.write("dropped.parquet", [], DroppedPair)
        paired.finish()
        run.stage("train").open({}, {})
        engine = {"type": "vllm", "model": tiny_model}
        wanted = recipe(
            4,
            sample={"n": 2, "max_tokens": 8, "engine": engine},
            train={"beta": BETA, "batch_size": 2, "precision": "fp32", **settings},
        )
        return _job(wanted, run), run

    return make


def from_disk(run: RunDir, tokenizer: Any) -> list[tuple[list[int], ...]]:
    """Prompt, chosen and rejected of each pair as token ids, joined by id from what `sample` and `pair` wrote."""
    samples = pq.read_table(run.stage("sample").shard(0)).to_pylist()
    ids = {one["completion_id"]: one["token_ids"] for row in samples for one in row["completions"]}
    pairs = pq.read_table(run.stage("pair").path / "train.parquet").to_pylist()
    return [
        (rendered(pair["prompt"][-1]["content"], tokenizer), ids[pair["chosen_id"]], ids[pair["rejected_id"]]) for pair in pairs
    ]


def in_training(job: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The trainer as the child makes it, and its pairs in the order of the file as one batch."""
    from dpo_data.trainer.child import chat_tokenizer, make_trainer, prepare

    tokenizer = chat_tokenizer(job)
    pairs = prepare(job, tokenizer)
    trainer, facts = make_trainer(job, pairs, tokenizer, False, [])
    return trainer, trainer.data_collator(list(trainer.train_dataset)), {**pairs.facts, **facts}


def moved(trainer: Any) -> None:
    """Put the policy some way from its reference."""
    import torch

    torch.manual_seed(1)
    for value in trainer.model.parameters():
        if value.requires_grad:
            value.data += 0.02 * torch.randn_like(value)


def leaves(trainer: Any) -> dict[str, Any]:
    """What is trained, in float64, by the trainer's own names."""
    trained = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    return {name: value.detach().double().requires_grad_() for name, value in trained.items()}


def policy(base: dict[str, Any], trained: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The policy's weights: what is trained; or with an adapter W + α/r · B · A, as in arXiv 2106.09685, section 4.1."""
    if settings["method"] == "full":
        return trained
    weights = dict(base)
    for name, a in trained.items():
        if ".lora_A." in name:
            b = trained[name.replace(".lora_A.", ".lora_B.")]
            target = name.removeprefix("base_model.model.").replace(".lora_A.default", "")
            weights[target] = base[target] + settings["lora"]["lora_alpha"] / settings["lora"]["r"] * b @ a
    return weights


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_loss_and_gradients_are_those_of_the_formula(
    made: Made, plain: tuple[Any, dict[str, Any], Any], method: str, known: bool, share: bool
) -> None:
    import torch

    model, base, tokenizer = plain
    job, run = made(known=known, method=method, share_prompt=share)
    trainer, batch, facts = in_training(job)
    assert facts["answers"] == {"as_sampled": 12, "rendered": 0}
    assert (facts["reference"]["sampled"], facts["reference"]["computed"]) == ((6, 0) if known else (0, 6))
    assert facts["shared_prompts"]["on"] == share
    rows: list[int] = []
    trainer.model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    first = trainer.compute_loss(trainer.model, batch)
    assert rows == [5 if share else 10]  # a pair is a sequence, or two
    assert float(first.detach()) == pytest.approx(math.log(2), abs=1e-6)

    moved(trainer)
    trainer.model.zero_grad()
    found = trainer.compute_loss(trainer.model, batch)
    found.backward()
    trained = leaves(trainer)
    expected = loss(model, policy(base, trained, job["settings"]), base, from_disk(run, tokenizer))
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    assert abs(float(expected.detach()) - math.log(2)) > 1e-3  # it has moved
    gradients = {name: value.grad for name, value in trainer.model.named_parameters() if value.requires_grad}
    off = torch.cat([(gradients[name].double() - value.grad).flatten() for name, value in trained.items()]).norm()
    assert off <= 1e-5 * torch.cat([value.grad.flatten() for value in trained.values()]).norm()


def test_swapping_negates_the_margin(made: Made) -> None:
    job, _ = made()
    trainer, _, _ = in_training(job)
    moved(trainer)
    other = {"chosen": "rejected", "rejected": "chosen"}
    columns = ("{}_ids", "ref_{}_logps")
    swapped = [
        {**row, **{name.format(side): row[name.format(other[side])] for name in columns for side in other}}
        for row in trainer.train_dataset
    ]
    trainer.model.train()
    for rows in (list(trainer.train_dataset), swapped):
        trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    margin, negated = trainer._metrics["train"]["rewards/margins"][-2:]
    assert margin == pytest.approx(-negated, abs=1e-6) and abs(margin) > 1e-3


def test_a_sampled_logprob_that_is_wrong_is_not_used(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    """A nat off, as other weights would make it: all are computed, and it is said."""
    wrong, _ = made(off=1.0)
    right, _ = made()
    trainers = [in_training(job) for job in (wrong, right)]
    told = [facts["reference"] for _, _, facts in trainers]
    assert (told[0]["sampled"], told[0]["computed"], told[1]["sampled"]) == (0, 6, 6)
    assert told[0]["off_by"] == pytest.approx(1.0, abs=1e-4) and "off by up to 1 nats" in told[0]["why_computed"]
    assert "not the reference's" in caplog.text
    columns = [trainer.train_dataset["ref_chosen_logps"][:] for trainer, _, _ in trainers]
    assert columns[0] == pytest.approx(columns[1], abs=1e-4)
    assert in_training(wrong)[2]["reference"] == told[0], "a training that goes on says so too"


def test_logits_are_computed_for_answers_alone(made: Made) -> None:
    """As many rows reach the head as the batch has answer tokens."""
    from trl.trainer import utils

    job, _ = made()
    trainer, batch, _ = in_training(job)
    scored = utils._ChunkedLogProbFunction.apply
    rows: list[int] = []

    def apply(hidden: Any, *rest: Any) -> Any:
        rows.append(len(hidden))
        return scored(hidden, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils._ChunkedLogProbFunction, "apply", apply)
        trainer.compute_loss(trainer.model, batch)
    assert rows == [int(batch["completion_mask"][:, 1:].sum())]
    assert rows[0] < batch["input_ids"][:, 1:].numel()


def test_training_takes_batches_of_like_length(made: Made) -> None:
    """In the order that `batches` tells, another one each epoch."""
    from dpo_data.trainer.batches import order

    job, _ = made()
    trainer, _, _ = in_training(job)
    sampler = trainer._get_train_sampler()
    lengths = trainer.train_dataset["length"][:]
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        assert list(sampler) == order(lengths, 2, job["seed"], epoch)


def test_the_reference_is_computed_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that goes on reads it back, unless it now computes in another precision."""
    from trl import DPOTrainer

    job, run = made(known=False)
    trainer, _, _ = in_training(job)
    before = trainer.train_dataset["ref_chosen_logps"][:]

    def refuse(*_: Any) -> Any:
        raise AssertionError("it was computed again")

    with monkeypatch.context() as patch:
        patch.setattr(DPOTrainer, "compute_ref_log_probs", refuse)
        again, _, facts = in_training(job)
        assert again.train_dataset["ref_chosen_logps"][:] == before
        assert (facts["reference"]["sampled"], facts["reference"]["computed"]) == (0, 6)
        path = run.stage("train").path / "reference.parquet"
        pq.write_table(pq.read_table(path).replace_schema_metadata({"precision": "bf16"}), path)
        with pytest.raises(AssertionError, match="computed again"):
            in_training(job)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"policy": None}, "nothing tells"),
        ({"dtype": "bfloat16"}, "dtype was bfloat16 in sampling, and is float32 in training"),
        ({"quantization": "fp8"}, "quantization was fp8"),
        ({"logprobs": "processed_logprobs"}, "logprobs was processed_logprobs"),
        ({"template": "another"}, "template was another"),
        ({"revision": "sha256:0"}, "revision was sha256:0"),
    ],
)
def test_the_reference_is_never_guessed(change: dict[str, Any], why: str) -> None:
    from dpo_data.trainer.reference import why_not_sampled

    policy = {"revision": "sha256:1", "adapter": None, "dtype": "float32", "quantization": None, "template": "t"}
    job = {
        "policy": {**policy, "logprobs": "raw_logprobs"},
        "weights": {"revision": "sha256:1"},
        "settings": {"sft": None, "method": "lora"},
    }
    assert why_not_sampled(job, "fp32", "t") is None
    job["policy"] = None if "policy" in change else {**policy, "logprobs": "raw_logprobs", **change}
    assert why in str(why_not_sampled(job, "fp32", "t"))


@pytest.mark.parametrize("args", [{"ld_alpha": 0.5}, {"f_divergence_type": "js_divergence"}, {"sync_ref_model": True}])
def test_what_changes_the_reference_computes_it_each_step(made: Made, args: dict[str, Any]) -> None:
    """TRL then does it as it comes, from weights that were not trained."""
    job, _ = made(method="full", args=args)
    trainer, batch, facts = in_training(job)
    assert "reference" not in facts and trainer.ref_model is not None
    assert float(trainer.compute_loss(trainer.model, batch).detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_a_model_that_sees_no_further_than_a_window_shares_no_prompt(made: Made, tiny_model: str, tmp_path: Path) -> None:
    """Its layers would look at other tokens in a sequence of two answers. The check notices, and training is as before."""
    import shutil

    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path / "windowed"
    shutil.copytree(tiny_model, folder)
    size = len(AutoTokenizer.from_pretrained(tiny_model))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    config = Qwen2Config(vocab_size=size, num_key_value_heads=2, tie_word_embeddings=True, **sizes, **window)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    job, _ = made(model=str(folder))
    _, _, facts = in_training(job)
    assert facts["shared_prompts"]["on"] is False and "log-probs differ" in facts["shared_prompts"]["why_off"]
    assert facts["answers"]["as_sampled"] == 0  # another model's tokens
