"""The weights that are trained: all of them, or an adapter on them, which a policy may have already."""

from functools import partial
from typing import Any

from dpo_data.errors import TrainError


def load(job: dict[str, Any], bf16: bool) -> Any:
    """The policy to train, as it samples: its model, with its adapter as what is trained or, by the method `full`, merged into
    the weights. All weights are trained in fp32, and computed with in bf16 where that is asked for. Raises TrainError."""
    import torch
    from transformers import AutoModelForCausalLM

    method = job["settings"]["method"]
    dtype = torch.bfloat16 if bf16 and method != "full" else torch.float32
    quantized = {"quantization_config": _four_bits(dtype)} if method == "qlora" else {}
    model = AutoModelForCausalLM.from_pretrained(job["model"], revision=job["revision"], dtype=dtype, **quantized)
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # bitsandbytes would pack the weights when the reference is computed, and give them no gradient ever after
            layer.support_avx512bf16_for_cpu = False
    if not job["adapter"]:
        return model
    if method == "full":
        return merged(model, job["adapter"]).requires_grad_()  # peft froze all that the adapter was on
    return _going_on(model, job["adapter"])


def new_adapter(job: dict[str, Any]) -> Any:
    """A peft LoraConfig by the recipe's `[train.lora]`; None where no adapter is wanted, or the policy has one already."""
    if job["settings"]["method"] == "full" or job["adapter"]:
        return None
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **job["settings"]["lora"])


def merged(model: Any, adapter: str) -> Any:
    """A model with an adapter's folder added into its weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def _going_on(model: Any, adapter: str) -> Any:
    """A model whose adapter is trained on. DPOTrainer then keeps a copy named `ref` as the reference. That one stays out of
    every folder: transformers, which finds two adapters in a checkpoint, would not load the trained one again."""
    from peft import PeftModel

    policy = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    policy.save_pretrained = partial(policy.save_pretrained, selected_adapters=["default"])
    return policy


def _four_bits(dtype: Any) -> Any:
    """QLoRA's weights: NormalFloat of 4 bits, its constants quantized once more (arXiv 2305.14314, section 3). Raises
    TrainError where bitsandbytes is absent, or has nothing for this machine's processor."""
    import torch
    from transformers import BitsAndBytesConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        dequantize_4bit(*quantize_4bit(torch.ones(64, 64, device=device), quant_type="nf4"))
    except Exception as error:  # each processor that it does not know fails in a way of its own
        raise TrainError(
            f"The method 'qlora' needs bitsandbytes, which does not run here: {error}",
            "Install the extra `qlora` (on a machine with a GPU, beside torch's CUDA build), or set train.method = 'lora'.",
        ) from None
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
