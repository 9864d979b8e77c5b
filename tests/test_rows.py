"""Rows survive the way to Parquet and back, and ids depend on content alone."""

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_data.candidates import dropped
from dpo_data.rows import (
    Completion,
    DroppedPair,
    DroppedPrompt,
    PreferencePair,
    Prompt,
    Ranking,
    Sample,
    batched,
    completion_ids,
    content_id,
    in_share,
    prompt_id,
    request_seed,
)
from dpo_data.tables import SCHEMAS, SOMETIMES, from_table, schema_of, to_table

text = st.text(max_size=20)
number = st.floats(allow_nan=False)
arguments = st.dictionaries(text, st.none() | st.booleans() | text | st.lists(st.integers()), max_size=2)
calls = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("function"), "function": st.fixed_dictionaries({"name": text, "arguments": arguments})}
    )
)
plain = st.lists(st.fixed_dictionaries({"role": text, "content": text}), max_size=3)
messages = st.lists(st.fixed_dictionaries({"role": text, "content": text}, optional={"tool_calls": calls}), max_size=3)
tools = st.none() | st.lists(st.dictionaries(text, text, max_size=2), max_size=2)
kwargs = st.none() | st.dictionaries(text, st.booleans() | text | st.lists(st.integers()), min_size=1, max_size=2)
tokens = st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=4)
completion = st.builds(
    Completion,
    text,
    st.integers(0, 2**31 - 1),
    text,
    st.none() | text,
    st.none() | st.integers(0, 2**31 - 1),
    st.none() | number,
    text,
    st.none() | calls.filter(bool),
    st.none() | number,
    tokens,
)


def sides(turns: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    names = {str: ("chosen_id", "rejected_id", "judge", "model_chosen", "model_rejected")}
    known = dict.fromkeys(names[str], text) | dict.fromkeys(("score_chosen", "score_rejected", "margin"), number)
    count = st.none() | st.integers(0, 2**31 - 1)
    return {**known, "chosen": turns, "rejected": turns, "n_tokens_chosen": count, "n_tokens_rejected": count}


flags = st.lists(text, max_size=2)
BUILDERS: dict[type, st.SearchStrategy[Any]] = {
    Prompt: st.builds(Prompt, text, messages, text, tools, st.none() | text, kwargs),
    DroppedPrompt: st.builds(DroppedPrompt, text, messages, text, text, text, tools, st.none() | text, kwargs),
    Sample: st.builds(
        Sample, text, messages, text, st.lists(completion, max_size=3), st.none() | text, tools, st.none() | text, kwargs
    ),
    Ranking: st.builds(Ranking, text, text, st.lists(text, max_size=4), st.lists(st.none() | number), st.none() | text, text),
    PreferencePair: st.builds(
        PreferencePair,
        prompt_id=text,
        prompt=plain,
        source=text,
        flags=flags,
        tools=st.none(),
        chat_template_kwargs=st.none(),
        **sides(plain),
    ),
    DroppedPair: st.builds(
        DroppedPair,
        prompt_id=text,
        prompt=messages,
        source=text,
        flags=flags,
        filter=text,
        reason=text,
        tools=tools,
        chat_template_kwargs=kwargs,
        **{name: st.none() | one for name, one in sides(messages).items()},
    ),
}


def test_every_row_type_on_disk_is_tried() -> None:
    assert BUILDERS.keys() == SCHEMAS.keys()


@pytest.mark.parametrize("of", [{"tools": True}, {"chat_template_kwargs": True}, dict.fromkeys(SOMETIMES, True)], ids=str)
def test_pairs_of_a_run_that_has_more_survive_it_too(of: dict[str, bool]) -> None:
    turns, more = messages if "tools" in of else plain, {"tools": tools, "chat_template_kwargs": kwargs}
    known = {name: one if name in of else st.none() for name, one in more.items()}

    @given(
        st.lists(
            st.builds(PreferencePair, prompt_id=text, prompt=turns, source=text, flags=flags, **known, **sides(turns)),
            max_size=3,
        )
    )
    def check(made: list[Any]) -> None:
        table = to_table(made, PreferencePair, schema_of(PreferencePair, **of))
        table.validate(full=True)
        assert list(from_table(table, PreferencePair)) == made
        drops = from_table(dropped(table, ["f"] * len(made), ["r"] * len(made)), DroppedPair)
        wanted = [(row.prompt, row.chosen, row.tools, row.chat_template_kwargs) for row in made]
        assert [(row.prompt, row.chosen, row.tools, row.chat_template_kwargs) for row in drops] == wanted

    check()


def test_datasets_reads_the_turns_of_a_run_with_tools_as_they_were() -> None:
    from datasets import Dataset

    call = {"type": "function", "function": {"name": "look", "arguments": {"at": [1, None]}}}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    said = [{"role": "assistant", "content": "!"}]
    pair = PreferencePair(
        "p", turns, said, said, "a", "b", 1.0, 0.0, 1.0, None, 1, "j", "m", "m", "s", [], [{"type": "function"}]
    )
    read = Dataset(to_table([pair], PreferencePair, schema_of(PreferencePair, tools=True)))[0]
    assert (read["prompt"], read["chosen"], read["tools"]) == (turns, said, '[{"type": "function"}]')


def test_a_table_without_a_place_for_tool_calls_refuses_them() -> None:
    turns = [{"role": "assistant", "content": "", "tool_calls": []}]
    pair = PreferencePair("p", turns, turns, turns, "a", "b", 1.0, 0.0, 1.0, None, 1, "j", "m", "m", "s", [])
    with pytest.raises(ValueError, match="prompt calls tools"):
        to_table([pair], PreferencePair)


@pytest.mark.parametrize("kind", BUILDERS, ids=lambda kind: kind.__name__)
def test_rows_survive_the_round_trip(kind: type) -> None:
    @given(st.lists(BUILDERS[kind], max_size=4))
    def check(made: list[Any]) -> None:
        table = to_table(made, kind)
        table.validate(full=True)
        assert table.schema.equals(SCHEMAS[kind])
        assert list(from_table(table, kind)) == made

    check()


def test_a_file_of_an_older_version_is_read_without_what_came_later() -> None:
    now = SCHEMAS[Sample]
    answer = pa.struct([field for field in now.field("completions").type.value_type if field.name != "token_ids"])
    at = now.get_field_index("completions")
    before = now.set(at, pa.field("completions", pa.list_(answer), nullable=False))
    before = before.remove(before.get_field_index("chat_template_kwargs"))
    row = Sample("p", [], "s", [Completion("c", 0, "t", "stop", 1, -1.0, "m", None, 0.5)], None, [{"type": "function"}])
    table = pa.Table.from_pylist(to_table([row], Sample).select(before.names).to_pylist(), schema=before)
    assert list(from_table(table, Sample)) == [row]


def test_datasets_reads_the_variables_of_the_chat_template_as_objects() -> None:
    from datasets import Dataset

    turns = [{"role": "user", "content": "?"}]
    given: list[Any] = [{"enable_thinking": False, "style": ["a", None]}, None]
    pairs = [
        PreferencePair("p", turns, turns, turns, "a", "b", 1.0, 0.0, 1.0, None, 1, "j", "m", "m", "s", [], None, one)
        for one in given
    ]
    read = Dataset(to_table(pairs, PreferencePair, schema_of(PreferencePair, chat_template_kwargs=True)))
    assert [row["chat_template_kwargs"] for row in read] == [given[0], {}], "TRL unpacks it, so it is an object in every row"
    assert read[0]["prompt"] == turns


@pytest.mark.parametrize(
    "said", ["naïve 👩‍👩‍👧‍👦 \U0010ffff", "\x00\x1f\u2028\ufeff", "e\u0301 is not é", "ab" * 10**6], ids=range(4)
)
def test_any_character_survives(said: str) -> None:
    row = Ranking("p", "j", [said], [None], said, said)
    assert list(from_table(to_table([row], Ranking), Ranking)) == [row]


def test_half_of_a_surrogate_pair_is_refused_and_never_written() -> None:
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        to_table([Ranking("p", "j", [], [], None, "\ud83d")], Ranking)


def test_a_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid):
        to_table([Sample("p", [], "s", [Completion("c", 2**31, "", None, None, None, "m")], None)], Sample)


def test_ids_never_change() -> None:
    """These literals join rows of runs on people's disks: a change here orphans them."""
    assert prompt_id([{"role": "user", "content": "Hello"}]) == "1bf0609a3f7873a6269fbca88ca9bff8"
    assert completion_ids("p", "m", {"n": 2, "temperature": 0.8}, 2) == [
        "446219394f2225759d805c72b5cadd1d",
        "11c4984354eed0da9f16dedcdc3806fc",
    ]
    assert request_seed(0, "p") == 1949970263


def test_a_prompt_is_its_tools_and_variables_too() -> None:
    asked, tool = [{"role": "user", "content": "a"}], [{"type": "function"}]
    forms: list[Any] = [(None, None), (tool, None), (None, {"x": 1}), (tool, {"x": 1}), (None, {"x": 2}), (None, {"y": 1})]
    assert len({prompt_id(asked, *form) for form in forms}) == len(forms)
    assert prompt_id(asked) == prompt_id(asked, [], {})
    assert prompt_id(asked, None, {"x": 1, "y": 2}) == prompt_id(asked, None, {"y": 2, "x": 1})


def test_a_prompt_is_its_roles_and_contents_in_their_order() -> None:
    one, two = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    ids = {prompt_id(turns) for turns in ([one], [two], [one, two], [two, one], [{"role": "user", "content": "ab"}])}
    assert len(ids) == 5
    assert prompt_id([one]) == prompt_id([{"content": "a", "role": "user", "name": "Ada"}])


def test_a_completion_is_its_prompt_model_settings_and_index() -> None:
    base = completion_ids("p", "m", {"temperature": 1.0, "seed": 0}, 3)
    assert base == completion_ids("p", "m", {"seed": 0, "temperature": 1.0}, 3), "the order of settings means nothing"
    assert base[:2] == completion_ids("p", "m", {"temperature": 1.0, "seed": 0}, 2), "an index is the same whatever comes after"
    others = (("q", "m", {"temperature": 1.0, "seed": 0}), ("p", "n", {"temperature": 1.0, "seed": 0}))
    for prompt, model, sampling in (*others, ("p", "m", {"temperature": 0.9, "seed": 0}), ("p", "m", {"temperature": 1.0})):
        assert not set(base) & set(completion_ids(prompt, model, sampling, 3))


@given(st.text(alphabet=st.characters(categories=["L", "Cs", "So"])))
def test_any_text_has_an_id(said: str) -> None:
    assert content_id(said) == content_id(said)
    assert content_id(said) != content_id(f"{said}!")


@given(st.lists(st.text(), min_size=1, unique=True), st.integers(), st.randoms())
def test_a_seed_knows_no_position(ids: list[str], seed: int, chance: Any) -> None:
    before = {one: request_seed(seed, content_id(one)) for one in ids}
    chance.shuffle(ids)
    assert before == {one: request_seed(seed, content_id(one)) for one in ids}
    assert all(0 <= one < 2**31 for one in before.values())


def test_other_seeds_give_other_seeds() -> None:
    assert len({request_seed(seed, f"p{at}") for seed in range(30) for at in range(30)}) > 890


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.99])
def test_a_share_is_met_and_its_members_stay(share: float) -> None:
    ids = [content_id(at) for at in range(20_000)]
    inside = {one for one in ids if in_share(one, share, "salt")}
    assert abs(len(inside) - share * len(ids)) <= 4 * math.sqrt(len(ids) * share * (1 - share))
    assert inside <= {one for one in ids if in_share(one, min(share + 0.1, 1.0), "salt")}, "a larger share keeps the smaller"
    if 0.1 <= share <= 0.5:
        both = inside & {one for one in ids if in_share(one, share, "pepper")}
        assert abs(len(both) / len(ids) - share * share) < 0.02, "another salt draws anew"


@given(st.lists(st.integers()), st.integers(1, 9))
def test_batches_keep_all_rows_in_order(given_rows: list[int], size: int) -> None:
    batches = list(batched(given_rows, size))
    assert [row for batch in batches for row in batch] == given_rows
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(batches)
