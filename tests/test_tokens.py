"""Pairs as token ids: what was sampled, what is rendered, what is refused; how they are packed; in which order they come."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_data.errors import TrainError
from dpo_data.rows import Completion, PreferencePair, Sample
from dpo_data.rundir import RunDir
from dpo_data.trainer.batches import order
from dpo_data.trainer.scoring import pack
from dpo_data.trainer.tokens import fitting, read_answers, tokenize

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not quick %}<s>{% endif %}{% endif %}"
)
"""Opens the thinking of an answer that is to come, and shows none in one that is there; `quick` leaves it out."""


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def a_pair(chosen: str = "Paris", rejected: str = "It is Paris.", **changes: Any) -> PreferencePair:
    said = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    rest: dict[str, Any] = dict(zip(("n_tokens_chosen", "n_tokens_rejected"), (None, None), strict=True))
    rest |= {"judge": "rule", "model_chosen": "tiny", "model_rejected": "tiny", "source": "made", "flags": []}
    return PreferencePair("p1", prompt, *said, "c1", "r1", 1.0, 0.0, 1.0, **{**rest, **changes})


def sampled(tmp_path: Path, *completions: Completion) -> list[str]:
    """A shard of samples with these completions."""
    stage = RunDir(tmp_path / "run").stage("sample").open({}, {})
    return [str(stage.write(stage.shard(0).name, [Sample("p1", a_pair().prompt, "made", list(completions), None)], Sample))]


def made(tmp_path: Path, tokenizer: Any, pair: PreferencePair, *completions: Completion) -> dict[str, Any]:
    answers = read_answers(sampled(tmp_path, *completions), [pair])
    return dict(tokenize([pair], answers, tokenizer, {tokenizer.eos_token_id})[0])


def completion(id: str, text: str, ids: list[int], reason: str = "stop", logprob: float | None = -3.5) -> Completion:
    return Completion(id, 0, text, reason, len(ids), logprob, "tiny", token_ids=ids)


def spelled(tokenizer: Any, text: str) -> list[int]:
    """The text letter by letter: tokens that the tokenizer itself would never choose for it."""
    return [one for letter in text for one in tokenizer(letter, add_special_tokens=False)["input_ids"]]


def test_answers_are_as_sampled_where_that_is_known(tmp_path: Path, tokenizer: Any) -> None:
    ids = [*spelled(tokenizer, "Paris"), tokenizer.eos_token_id]
    row = made(tmp_path, tokenizer, a_pair(), completion("c1", "Paris", ids))
    assert row["chosen_ids"] == ids and (row["sampled_chosen"], row["logprob_chosen"]) == (True, -3.5)
    assert (row["sampled_rejected"], row["logprob_rejected"]) == (False, None)
    turns = a_pair().prompt
    prompt = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(turns + a_pair().rejected, tokenize=True, return_dict=False)
    assert row["prompt_ids"] == prompt and prompt + row["rejected_ids"] == whole
    assert row["length"] == len(prompt) + max(len(ids), len(whole) - len(prompt))


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_that_stopped_ends_with_its_end_token(tmp_path: Path, tokenizer: Any, reason: str) -> None:
    """One that a stop string ended has none, and is rendered; one that was cut is as it is."""
    ids = spelled(tokenizer, "Paris")
    row = made(tmp_path, tokenizer, a_pair(), completion("c1", "Paris", ids, reason))
    assert row["sampled_chosen"] == (reason == "length")
    assert (row["chosen_ids"][-1] == tokenizer.eos_token_id) == (reason == "stop")


def test_a_corrected_answer_is_rendered(tmp_path: Path, tokenizer: Any) -> None:
    ids = [*spelled(tokenizer, "Parish"), tokenizer.eos_token_id]
    row = made(tmp_path, tokenizer, a_pair(), completion("c1", "Parish", ids))
    assert not row["sampled_chosen"] and tokenizer.decode(row["chosen_ids"], skip_special_tokens=True) == "Paris"


def test_samples_of_a_release_that_kept_no_tokens_are_rendered(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow.parquet as pq

    (shard,) = sampled(tmp_path, completion("c1", "Paris", [5, 6]))
    table = pq.read_table(shard)
    kind = table.schema.field("completions").type.value_type
    import pyarrow as pa

    old = pa.list_(pa.struct([field for field in kind if field.name != "token_ids"]))
    rows = [[{k: v for k, v in one.items() if k != "token_ids"} for one in row] for row in table["completions"].to_pylist()]
    pq.write_table(table.set_column(table.schema.get_field_index("completions"), "completions", pa.array(rows, old)), shard)
    assert read_answers([shard], [a_pair()]) == {}


def test_a_prompt_that_changes_once_it_is_answered_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    """As templates of reasoning models have it; sampled tokens need no such promise, nor does a variable that mends it."""
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = THINKING
    with pytest.raises(TrainError, match=r"prompt p1 otherwise .* is '<s>', and then .*Set chat_template_kwargs") as raised:
        made(tmp_path, other, a_pair())
    assert "\n" not in str(raised.value)
    row = made(tmp_path, other, a_pair(chat_template_kwargs={"quick": True}))
    assert tokenizer.decode(row["chosen_ids"]) == "Paris<|im_end|>"
    answers = [
        completion(id, text, [*spelled(other, text), other.eos_token_id])
        for id, text in (("c1", "Paris"), ("r1", "It is Paris."))
    ]
    row = made(tmp_path, other, a_pair(), *answers)
    assert row["sampled_chosen"] and row["sampled_rejected"] and other.decode(row["prompt_ids"][-1:]) == "<s>"


def test_what_does_not_fit_is_left_out_whole(tokenizer: Any) -> None:
    pairs = tokenize([a_pair(), a_pair(chosen="Paris " * 50)], {}, tokenizer, set())
    limit = pairs["length"][0]
    kept, longest, left_out = fitting(pairs, limit)
    assert (len(kept), longest, left_out) == (1, limit, 1) and kept[0] == pairs[0]
    assert fitting(pairs, 3)[1:] == (limit, 2) and fitting(pairs, None)[2] == 0


TOKENS = st.lists(st.integers(1, 3), min_size=1, max_size=6)


@given(st.lists(st.tuples(TOKENS, TOKENS, TOKENS), min_size=1, max_size=4))
def test_a_pair_packed_is_two_rows_that_see_only_themselves(pairs: list[tuple[list[int], ...]]) -> None:
    import torch

    rows = [prompt + answer for side in (1, 2) for prompt, answer in ((pair[0], pair[side]) for pair in pairs)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    packed = pack(ids, (ids > 0).long())
    flat, positions, width = packed.input_ids.flatten(), packed.positions.flatten(), packed.input_ids.size(1)
    for at, row in enumerate(rows):
        places = packed.places[at, : len(row)]
        assert flat[places].tolist() == row and positions[places].tolist() == list(range(len(row)))
        own = places - at % len(pairs) * width
        sees = packed.mask[at % len(pairs), 0]
        for to, place in enumerate(own.tolist()):
            assert sees[place].nonzero().flatten().tolist() == own[: to + 1].tolist()
        both = [len(rows[one]) for one in (at % len(pairs), at % len(pairs) + len(pairs))]
        shared = next(
            (
                k
                for k, (a, b) in enumerate(zip(rows[at % len(pairs)], rows[at % len(pairs) + len(pairs)], strict=False))
                if a != b
            ),
            min(both),
        )
        assert width >= sum(both) - shared


LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=200)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_has_every_pair_once_and_the_longest_first(lengths: list[int], size: int, seed: int, epoch: int) -> None:
    found = order(lengths, size, seed, epoch)
    assert sorted(found) == list(range(len(lengths)))
    assert max(lengths) in [lengths[at] for at in found[:size]]
    assert order(lengths, size, seed, epoch) == found


def test_batches_pad_little_and_differ_by_epoch() -> None:
    import random

    dice = random.Random(0)
    lengths = [int(dice.lognormvariate(5, 0.7)) + 1 for _ in range(803)]
    found = order(lengths, 8, 0, 0)

    def padded(indices: list[int]) -> int:
        return sum(8 * max(lengths[one] for one in indices[at : at + 8]) for at in range(0, len(indices), 8))

    assert padded(found) < 1.15 * sum(lengths) < padded(list(range(len(lengths)))) / 1.5
    assert order(lengths, 8, 0, 1) != found != order(lengths, 8, 1, 0)
    firsts = [lengths[found[at]] for at in range(0, 800, 8)]
    assert sorted(firsts, reverse=True) != firsts  # not from long to short
