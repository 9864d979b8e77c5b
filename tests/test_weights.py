"""What is trained: an adapter, one to go on from, one on weights in 4 bits, or all weights; and where training reports to."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inside import Died, Inside
from test_sft import history, within  # noqa: F401
from test_train import Made, made, pairs, silent, weights  # noqa: F401

from dpo_data.config import Recipe
from dpo_data.demo.model import tiny_llama
from dpo_data.errors import TrainError
from dpo_data.rundir import RunDir
from dpo_data.train import train
from dpo_data.trainer.weights import load, new_adapter

GoingOn = Callable[[str], tuple[Recipe, RunDir]]


@pytest.fixture
def going_on(made: Made, tiny_model: str) -> GoingOn:  # noqa: F811
    """A recipe whose policy is the tiny model with an adapter that an earlier run trained; and a run with pairs."""

    def make(adapter: str, **settings: Any) -> tuple[Recipe, RunDir]:
        recipe, run = made(pairs(16), [], epochs=2, save_steps=1, args={"logging_steps": 1}, **settings)
        assert recipe.train is not None
        sample = recipe.sample.model_copy(update={"engine": _engine(tiny_model, adapter)})
        own = recipe.train.model_copy(update={"model": None})
        return recipe.model_copy(update={"sample": sample, "train": own}), run

    return make


def _engine(model: str, adapter: str) -> Any:
    from dpo_data.engines.vllm import Vllm

    return Vllm(model=model, adapter=adapter)


def adapted(model: str, adapter: Path) -> Any:
    """The weights of a model with an adapter in them."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().state_dict()


@pytest.mark.slow
def test_an_adapter_is_trained_on(made: Made, going_on: GoingOn, within: type[Inside], tiny_model: str) -> None:  # noqa: F811
    """The reference is the policy with the adapter that it came with; what is saved is one adapter on the same base. Killed and
    gone on with, it ends as one that was not, which two adapters in a checkpoint would prevent."""
    recipe, first = made(pairs(16), [], epochs=2)
    train(recipe, first, silent)
    adapter = first.stage("train").path / "model"
    before = weights(first)

    recipe, whole = going_on(str(adapter))
    train(recipe, whole, silent)
    assert history(whole, "loss")[0] == pytest.approx(math.log(2), abs=1e-3)
    after, folder = weights(whole), whole.stage("train").path / "model"
    assert after.keys() == before.keys() and not any(after[name].equal(before[name]) for name in after if "lora_B" in name)
    assert not [path for path in folder.iterdir() if path.is_dir()]

    recipe, broken = going_on(str(adapter))
    within.ends_at = ("train", 3)
    with pytest.raises(Died):
        train(recipe, broken, silent)
    within.ends_at = None
    assert train(recipe, broken, silent)["resumed_at"] == 2
    for name, value in weights(broken).items():
        assert value.equal(after[name]), name


@pytest.mark.slow
def test_all_weights_take_the_adapter_in(made: Made, going_on: GoingOn, within: type[Inside], tiny_model: str) -> None:  # noqa: F811
    """By the method `full`, a policy with an adapter is trained as one model, and its adapter is in what is saved."""
    import torch

    recipe, first = made(pairs(16), [], epochs=2)
    train(recipe, first, silent)
    adapter = first.stage("train").path / "model"
    recipe, run = going_on(str(adapter), method="full", learning_rate=1e-12)
    train(recipe, run, silent)
    expected = adapted(tiny_model, adapter)
    for name, value in weights(run).items():
        assert torch.allclose(value, expected[name], atol=1e-6), name


@pytest.mark.slow
def test_four_bits(made: Made, within: type[Inside], tiny_model: str) -> None:  # noqa: F811
    """The base is quantized and an adapter trained on it, in full precision for the base as it is."""
    pytest.importorskip("bitsandbytes")
    recipe, run = made(pairs(16), [], epochs=2, method="qlora", args={"logging_steps": 1})
    manifest = train(recipe, run, silent)
    assert manifest["reference"]["why_computed"] == "the reference's weights are those in 4 bits"
    losses = history(run, "loss")
    assert losses[-1] < losses[0]
    assert all("lora" in name for name in weights(run)) and any("up_proj.lora_B" in name for name in weights(run))


@pytest.mark.slow
def test_four_bits_give_the_same_gradients_after_the_reference(
    made: Made,  # noqa: F811
    tiny_model: str,
    tmp_path: Path,
) -> None:
    """On a CPU with AVX512-BF16, bitsandbytes has a form of the weights for inference that takes no gradient."""
    import torch
    from peft import get_peft_model
    from transformers import AutoTokenizer

    pytest.importorskip("bitsandbytes")
    base = tmp_path / "base"
    tiny_llama(AutoTokenizer.from_pretrained(tiny_model), hidden=192).save_pretrained(base)  # widths that it has the form for
    recipe, _ = made([], [], method="qlora")
    assert recipe.train is not None
    settings = recipe.train.model_dump(mode="json")
    job = {"model": str(base), "revision": None, "adapter": None, "settings": settings}
    torch.manual_seed(0)
    model = get_peft_model(load(job, bf16=False), new_adapter(job)).train()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    torch.manual_seed(1)
    before = gradients()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    model.train()
    torch.manual_seed(1)
    after = gradients()
    assert before.keys() == after.keys() and before
    for name, gradient in before.items():
        assert torch.allclose(gradient, after[name], atol=1e-6), name


@pytest.mark.slow
def test_without_bitsandbytes(
    made: Made,  # noqa: F811
    within: type[Inside],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    recipe, run = made(pairs(8), [], method="qlora")
    with pytest.raises(TrainError, match=r"'qlora' needs bitsandbytes, which does not run here: .*Install the extra `qlora`"):
        train(recipe, run, silent)
    assert "hint: 8 pairs are few" in caplog.text, "what is unusual is said before it begins"


@pytest.mark.slow
def test_tensorboard_draws_what_is_logged(made: Made, within: type[Inside]) -> None:  # noqa: F811
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, run = made(pairs(16), [], epochs=2, report_to="tensorboard", args={"logging_steps": 1})
    train(recipe, run, silent)
    events = EventAccumulator(str(run.logs / "tensorboard"))
    events.Reload()
    drawn = [event.value for event in events.Scalars("train/loss")]
    assert drawn == pytest.approx(history(run, "loss"), rel=1e-6) and len(drawn) == 4
    assert "train/rewards/margins" in events.Tags()["scalars"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"report_to": "mlfow"}, r"'train\.report_to' is 'mlfow': mlfow is not supported, only .*mlflow"),
        ({"report_to": ["tensorboard", "neptune"]}, r"names 'neptune', which is not installed\. Run `pip install neptune`"),
        (
            {"loss": "sigmoidd"},
            r"TRL refuses the loss: .*sigmoidd\. Should be one of \['sigmoid', .*Mend train\.loss",
        ),
        ({"loss": "simpo", "args": {"simpo_gama": 1}}, r"simpo_gama.*\[train\.args\]; see CPOConfig"),
        ({"sft": {"args": {"paking": True}}}, r"paking.*\[train\.sft\.args\]; see SFTConfig"),
    ],
)
def test_what_is_refused_says_what_is_known(
    made: Made,  # noqa: F811
    within: type[Inside],  # noqa: F811
    settings: dict[str, Any],
    expected: str,
) -> None:
    recipe, run = made(pairs(8), [], **settings)
    with pytest.raises(TrainError, match=expected):
        train(recipe, run, silent)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["orpo", "simpo"])
def test_a_loss_without_a_reference_is_trained_whole(made: Made, within: type[Inside], loss: str) -> None:  # noqa: F811
    recipe, run = made(pairs(16), pairs(20)[16:], loss=loss, args={"logging_steps": 1})
    manifest = train(recipe, run, silent)
    losses = history(run, "loss")
    assert "reference" not in manifest and losses[-1] < losses[0] and manifest["pairs"] == 16
    assert 0 <= manifest["held_out"]["rewards/accuracies"] <= 1
