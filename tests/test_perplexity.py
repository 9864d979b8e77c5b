"""The perplexity of a text under real models, against one forward pass a token."""

from pathlib import Path

import pytest

from dpo_data.config import Policy
from dpo_data.evaluation.perplexity import perplexity


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_perplexity_is_that_of_each_token_after_those_before_it(tiny_model: str, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    text = "The capital of France is Paris. What is blue? The sky."
    (tmp_path / "notes.txt").write_text(text)
    (tmp_path / "long.txt").write_text(text * 150)
    ids = tokenizer(text, return_tensors="pt").input_ids

    def by_hand() -> float:
        with torch.inference_mode():
            steps = [model(ids[:, :at]).logits[0, -1].log_softmax(-1)[ids[0, at]] for at in range(1, ids.shape[1])]
        return float(torch.stack(steps).mean().neg().exp())

    base = by_hand()
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))  # adapters of chance
    model.save_pretrained(tmp_path / "adapter")
    trained, adapted = by_hand(), Policy(tiny_model, adapter=str(tmp_path / "adapter"))
    assert abs(trained / base - 1) > 0.001, "there is something to measure"
    told: list[tuple[str, int, int]] = []
    sides = {"base": Policy(tiny_model), "trained": adapted}
    found = perplexity(str(tmp_path / "notes.txt"), sides, lambda *one: told.append(one))
    assert (found.base, found.trained) == (pytest.approx(base, rel=1e-4), pytest.approx(trained, rel=1e-4))
    assert found.rise.value == pytest.approx(trained / base - 1, abs=1e-4) and found.rise.low is None
    assert (found.texts, found.tokens) == (1, ids.shape[1] - 1)
    assert told == [("evaluate perplexity of base", 1, 1), ("evaluate perplexity of trained", 1, 1)]
    long = perplexity(str(tmp_path / "long.txt"), {"base": adapted, "trained": adapted}, lambda *one: None)
    assert long.tokens == tokenizer(text * 150, return_tensors="pt").input_ids.shape[1] - 1
    assert (long.rise.value, long.rise.low, long.rise.high) == (0.0, 0.0, 0.0), "many stretches, each the same"
