"""What drops a pair: each filter by example and near miss, what its quick look may not overlook, how a recipe changes it."""

import json
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_data.config import Recipe, dump, parse
from dpo_data.errors import RecipeError, TrainError
from dpo_data.filters import DEFAULTS, Filters, Trainer, inputs, screen
from dpo_data.filters.boilerplate import Cutoff, Identity, Refusal
from dpo_data.filters.columns import Columns, count_bytes
from dpo_data.filters.fits import Fits
from dpo_data.filters.length import Empty, Length, LengthGap
from dpo_data.filters.private import Private
from dpo_data.filters.python import Python
from dpo_data.filters.repetition import Repetition
from dpo_data.filters.same import Identical, NearIdentical
from dpo_data.filters.scores import Margin, Tie
from dpo_data.filters.script import Script
from dpo_data.rows import PreferencePair
from dpo_data.tables import MESSAGES, SCHEMAS, schema_of, to_table

REAL = Path(__file__).parents[2] / "shared" / "data"
PLAIN = SCHEMAS[PreferencePair]
WITH_TOOLS = schema_of(PreferencePair, tools=True)
WITH_CALLS = pa.schema([pa.field(f.name, MESSAGES) if f.type == PLAIN.field("prompt").type else f for f in PLAIN])


def pair(
    chosen: Any = "Paris.", rejected: Any = "It is Rome, I think.", prompt: Any = "What is the capital of France?", **more: Any
) -> PreferencePair:
    """A pair that no filter drops, but for what is changed: a text is the one message of its side."""
    known: dict[str, Any] = {
        **dict(prompt_id="0" * 32, chosen_id="1" * 32, rejected_id="2" * 32, score_chosen=2.0, score_rejected=1.0, margin=1.0),
        **dict(
            n_tokens_chosen=10, n_tokens_rejected=10, judge="rule:x", model_chosen="m", model_rejected="m", source="s", flags=[]
        ),
    }
    sides = {"prompt": ("user", prompt), "chosen": ("assistant", chosen), "rejected": ("assistant", rejected)}
    turns = {side: [{"role": role, "content": said}] if isinstance(said, str) else said for side, (role, said) in sides.items()}
    return PreferencePair(**{**known, **turns, **more})


def reason(table: Any, of: PreferencePair, trainer: Trainer | None = None) -> str | None:
    """What one filter says of one pair, by its quick look and by itself: they must not contradict each other."""
    built = table.build(trainer)
    told = screen(to_table([of], PreferencePair, WITH_TOOLS if of.tools else WITH_CALLS), {"it": (table, built)}).reasons[0]
    assert told == built.reason(of)
    return told


def test_a_plain_pair_is_dropped_by_nothing() -> None:
    assert [reason(table, pair()) for table in DEFAULTS.values()] == [None] * len(DEFAULTS)


@pytest.mark.parametrize(
    ("margin", "told"),
    [(1.0, None), (1e-9, None), (0.0, "both score 2"), (-1.0, "the chosen answer scores 2, less than the rejected one's 3")],
)
def test_tie(margin: float, told: str | None) -> None:
    assert reason(Tie(), pair(score_rejected=2.0 - margin, margin=margin)) == told


def test_a_margin_that_is_no_number_is_a_tie() -> None:
    assert reason(Tie(), pair(margin=float("nan"), score_chosen=float("nan"))) == "both score nan"


def test_margin() -> None:
    assert reason(Margin(), pair(margin=1e-9)) is None
    assert reason(Margin(least=0.5), pair(margin=0.3)) == "the margin 0.3 is below 0.5"
    assert reason(Margin(least=0.5), pair(margin=0.5)) is None


def calling(**arguments: Any) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    return [{"role": "assistant", "content": "", "tool_calls": [call]}]


@pytest.mark.parametrize(
    ("chosen", "rejected", "same"),
    [
        ("Paris", " paris\n", True),
        ("Café au lait", "cafe\u0301  AU lait", True),
        ("STRASSE", "straße", True),
        ("", "  ", True),
        ("4", "5", False),
        ("ice cream", "icecream", False),
    ],
)
def test_identical(chosen: str, rejected: str, same: bool) -> None:
    assert reason(Identical(), pair(chosen, rejected)) == ("chosen and rejected are the same text" if same else None)


def test_a_tool_call_is_part_of_an_answer() -> None:
    assert reason(Identical(), pair(chosen=calling(at="Rome"), rejected=calling(at="Paris"))) is None
    assert reason(Identical(), pair(chosen=calling(at="Rome"), rejected=calling(at="Rome")))
    assert reason(Empty(), pair(chosen=calling())) is None


@pytest.mark.parametrize("nothing", ["", " \n\t", "\u3000\u00a0"])
def test_empty(nothing: str) -> None:
    assert reason(Empty(), pair(nothing)) == "the chosen answer is empty"
    assert reason(Empty(), pair(rejected=nothing)) is None


def test_length_is_of_both_answers_and_needs_a_count() -> None:
    table = Length(least=2, most=9)
    assert reason(table, pair(n_tokens_chosen=2, n_tokens_rejected=9)) is None
    assert reason(table, pair(n_tokens_chosen=1, n_tokens_rejected=9)) == "the chosen answer has 1 tokens, fewer than 2"
    assert reason(table, pair(n_tokens_chosen=2, n_tokens_rejected=10)) == "the rejected answer has 10 tokens, more than 9"
    assert reason(table, pair(n_tokens_chosen=None, n_tokens_rejected=None)) is None


def test_length_gap() -> None:
    table = LengthGap(most=100)
    assert reason(table, pair(n_tokens_chosen=5, n_tokens_rejected=106)) == "5 tokens against 106: a gap of 101, more than 100"
    assert reason(table, pair(n_tokens_chosen=106, n_tokens_rejected=6)) is None
    assert reason(table, pair(n_tokens_chosen=None, n_tokens_rejected=106)) is None


@pytest.mark.parametrize(
    ("answer", "phrase"),
    [
        ("I'm sorry, but I can't help with that.", "I'm sorry, but I can't help"),
        ("I’m  SORRY, but I cannot\nassist you.", "I’m SORRY, but I cannot assist"),
        ("Thank you for asking. Unfortunately, I cannot provide medical advice.", "I cannot provide"),
        ("I apologize, but as a polite being, I won't answer this.", "I apologize, but as a polite being, I won't answer"),
        ("I must respectfully decline.", "I must respectfully decline"),
        ("对不起，我无法回答那个请求，因为它包含不当内容。", "对不起，我无法"),
        ("我无法回答这个问题。", "我无法回答"),
    ],
)
def test_refusal(answer: str, phrase: str) -> None:
    assert reason(Refusal(), pair(answer)) == f"the chosen answer declines: “{phrase}”"
    assert reason(Refusal(), pair(rejected=answer)) is None, "a refusal may be rejected"


@pytest.mark.parametrize(
    "answer",
    [
        "Many assistants say \"I'm sorry, but I can't help with that\" when they are asked for a weapon.",
        "They decline with “No. I cannot answer that.” and nothing more.",
        "I'm sorry to hear that you are bored! Let us play chess.",
        "I apologize for the confusion. The answer is 12.",
        "I can't help but notice how green the hills are.",
        "Dear Ms Wu,\n\nI am sorry, but I cannot offer you the flat.",
        "I cannot give the exact number, but it is about nine million.",
        "我无法提供鹿能屏住呼吸的确切时间，但可能会持续几秒钟到一分钟左右。",
        "根据提供的证据，我们无法确定这句话是否正确。",
        "A long story. " * 40 + "I cannot answer more than this.",
    ],
)
def test_what_only_looks_like_a_refusal(answer: str) -> None:
    assert reason(Refusal(), pair(answer)) is None


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I have no feelings.",
        "Well, as an AI, I enjoy nothing.",
        "Hello! I'm ChatGPT, at your service.",
        "I am a large language model, trained by OpenAI.",
        "I was created by a team of researchers at Anthropic.",
        "作为一个AI语言模型，我没有个人观点。",
        "我是通义千问，很高兴为您服务。",
        "作为人工智能，我没有感情。",
    ],
)
def test_identity(answer: str) -> None:
    told = reason(Identity(), pair(answer))
    assert told and told.startswith("the chosen answer speaks of itself: “")


@pytest.mark.parametrize(
    "answer",
    [
        "ChatGPT was created by OpenAI in 2022.",
        "As an AI researcher, I would begin with the data.",
        'The phrase "As an AI language model" annoys many.',
        "A language model predicts the next token.",
        "作为人工智能的一个分支，机器学习发展很快。",
        "作为一个家庭，享受每一刻。",
    ],
)
def test_what_only_speaks_of_machines(answer: str) -> None:
    assert reason(Identity(), pair(answer)) is None


def test_an_answer_may_be_who_the_prompt_says_it_is() -> None:
    said = "I am Qwen, created by Alibaba Cloud."
    assert reason(Identity(), pair(said, prompt="Who are you?"))
    assert reason(Identity(), pair(said, prompt="You are Qwen, made by Alibaba. Who are you?")) is None


@pytest.mark.parametrize(
    "answer",
    [
        "As of my last update in September 2021, it was in force.",
        "My knowledge cutoff is 2023.",
        "Note that I don't have access to real-time information.",
        "然而，我无法获取最新的实时数据。",
    ],
)
def test_cutoff(answer: str) -> None:
    told = reason(Cutoff(), pair(answer))
    assert told and told.startswith("the chosen answer excuses itself with its training: “")


@pytest.mark.parametrize(
    "answer", ["The cutoff of the filter is 40 Hz.", "截至2021年4月，香港有160家持牌银行。", "Add training data."]
)
def test_what_is_no_cutoff(answer: str) -> None:
    assert reason(Cutoff(), pair(answer)) is None


def test_phrases_of_your_own_are_found_anywhere() -> None:
    table = Refusal(also=["no can (do)"])
    assert reason(table, pair("Well well. NO  CAN (do), friend.")) == "the chosen answer declines: “NO CAN (do)”"
    assert reason(table, pair("no can do")) is None


CHINESE = "法国的首都是巴黎，它位于塞纳河畔，是该国最大的城市。"
RUSSIAN = "Столица Франции называется Париж, и она стоит на Сене."
ENGLISH = "The capital of France is Paris, which lies on the Seine."


@pytest.mark.parametrize(
    ("prompt", "chosen", "told"),
    [
        ("What is the capital of France?", CHINESE, "the chosen answer is in Han script, the prompt in Latin"),
        ("法国的首都是哪里？", ENGLISH, "the chosen answer is in Latin script, the prompt in Han"),
        ("What is the capital of France?", RUSSIAN, "the chosen answer is in Cyrillic script, the prompt in Latin"),
        (
            "フランスの首都はどこですか。",
            "فرنسا عاصمتها باريس وهي مدينة كبيرة",
            "the chosen answer is in Arabic script, the prompt in Han",
        ),
        ("Translate into Chinese: The capital is Paris.", CHINESE, None),
        ("请翻译：法国的首都是巴黎。", ENGLISH, None),
        ("What does 巴黎 mean?", CHINESE, None),
        ("1 + 1 = ?", ENGLISH, None),
        ("What is the capital of France?", "巴黎", None),
        (
            "写一个排序函数。",
            "```python\nprint(sorted([3, 1, 2, 5, 9, 7]), 'and that is all of it')\n```\n这样就可以了，希望对你有帮助。",
            None,
        ),
        ("谁写了这首歌？", "这首歌由 Kenny Ascher 和 Paul Williams 创作，由 Helen Reddy 演唱，非常有名。", None),
        (
            "What is it?",
            f"```\n{'sort the list ' * 20}\n```\n{CHINESE}",
            "the chosen answer is in Han script, the prompt in Latin",
        ),
        ("这是什么？", f"{CHINESE} {ENGLISH * 3}", "the chosen answer is in Latin script, the prompt in Han"),
        ("フランスの首都はどこですか。", "ふらんすのしゅとはパリです。", None),
    ],
)
def test_script(prompt: str, chosen: str, told: str | None) -> None:
    assert reason(Script(), pair(chosen, prompt=prompt)) == told


def test_a_script_that_both_answers_use_was_asked_for() -> None:
    assert reason(Script(), pair(CHINESE, CHINESE + RUSSIAN[:5])) is None


def test_allowed_scripts_are_the_only_ones() -> None:
    assert (
        reason(Script(allowed=["Latin"]), pair(CHINESE, prompt="翻译"))
        == "the chosen answer is in Han script, which is not allowed"
    )
    assert reason(Script(allowed=["Han", "Latin"]), pair(CHINESE)) is None


WORDS = "one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
TALK = " ".join(f"{one} {other}" for one in WORDS for other in WORDS)


@pytest.mark.parametrize(
    ("chosen", "rejected", "similar"),
    [
        (TALK, TALK.replace("twelve one", "twelve won"), True),
        ("Yes.", "Yes!", True),
        (CHINESE * 9, CHINESE * 8 + CHINESE[:-1], True),
        (TALK, TALK.replace("one", "won"), False),
        ("4", "5", False),
        ("Yes", "No", False),
        ("It is 4.", "It is 5.", False),
        (TALK + " = 42", TALK + " = 43", False),
        (TALK, " ".join(reversed(TALK.split())), False),
    ],
)
def test_near_identical(chosen: str, rejected: str, similar: bool) -> None:
    told = reason(NearIdentical(), pair(chosen, rejected))
    assert (told is not None) == similar
    assert told is None or (told.startswith("chosen and rejected are ") and told.endswith("% the same 3-grams"))


def test_near_identical_by_hand() -> None:
    told = pair("a b c d e f g", "a b c d e f h")  # 3-grams: 4 shared, 1 of each
    assert reason(NearIdentical(similarity=0.66), told) == "chosen and rejected are 67% the same 3-grams"
    assert reason(NearIdentical(similarity=0.67), told) is None
    assert reason(NearIdentical(n=1, similarity=0.75), told) == "chosen and rejected are 75% the same 1-grams"


LOOP = "and then we go home again " * 20


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_repetition(side: str) -> None:
    told = reason(Repetition(), pair(**{side: LOOP}))
    assert told == f"95% of the 4-grams of the {side} answer came before in it"  # 117 n-grams, of which 6 are new
    told = reason(Repetition(), pair(**{side: f"{TALK} {LOOP}"}))
    assert told and told.endswith(f"of the end of the {side} answer came before in it"), "a loop at the end of a long answer"
    assert reason(Repetition(), pair(**{side: "谢谢你" * 20}))


@pytest.mark.parametrize("answer", [TALK, "ha ha ha ha ha ha ha ha", "row row row your boat " * 3, CHINESE + RUSSIAN + ENGLISH])
def test_what_may_be_repeated(answer: str) -> None:
    assert reason(Repetition(), pair(answer, answer)) is None


KEY = "hf" + "_QwErTyUiOpAsDfGhJkLzXcVbNmQaZwSxEd"
TOKEN = "AK" + "IA" + "QX7T2M9R4L8K3V6W"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Write to jana.novotna83@seznam.cz today.", "e-mail"),
        ("Call me at +44 20 7228 6191.", "phone number"),
        ("My number is (415) 867-5309.", "phone number"),
        ("手机：13867251934，随时联系。", "phone number"),
        ("Card 4539 1488 0343 6467, exp 12/27", "card number"),
        ("IBAN CH93 0076 2011 6238 5295 7 please", "bank account"),
        ("SSN: 536-90-4399", "personal id number"),
        ("身份证 11010519491231002X", "personal id number"),
        (f"export TOKEN={KEY}", "key or token"),
        (f"aws_access_key_id = {TOKEN}", "key or token"),
    ],
)
def test_private(text: str, what: str) -> None:
    assert reason(Private(), pair(text)) == f"{what} in chosen"
    assert reason(Private(), pair(rejected=text)) == f"{what} in rejected"
    assert reason(Private(), pair(prompt=text)) == f"{what} in prompt"


@pytest.mark.parametrize(
    "text",
    [
        "Write to jane@example.com, john@test.invalid or your.name@yourdomain.com.",
        "Mail support@bigshop.com, or clone git@github.com:owner/repo.git",
        "Columns a@d.co and react@18.2.0",
        "Call (212) 555-0123, 123-456-7890, +44 20 7946 0958 or 1-800-273-8255.",
        "Pi is 3.14159265358979323846, and e is 2.718281828459045.",
        "In 2019-2020, 1990 - 1995 - 2000, on 2023-01-15 at 10.15, 192.168.100.200",
        "There were 15000000000 stars, 16666579378 of them red.",
        "Test with 4242 4242 4242 4242 or 4111111111111111; order 4539148803436468.",
        "GB82 WEST 1234 5698 7654 32 is an example.",
        "SSN 123-45-6789 and 000-12-3456; part 536-90-43991",
        "OPENAI_API_KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "AKIAIOSFODNN7EXAMPLE",
        "https://shop.com/item/13867251934?ref=4155552671",
        "file_415-867-5309, 13415-867-5309",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
    ],
)
def test_what_only_looks_private(text: str) -> None:
    assert reason(Private(), pair(text)) is None


def test_what_is_private_is_for_the_recipe_to_say() -> None:
    mail = "Write to jana.novotna83@seznam.cz."
    assert reason(Private(kinds=["phone"]), pair(mail)) is None
    czech = "Call 601 234 987."
    assert reason(Private(), pair(czech)) is None
    assert reason(Private(regions=["CZ"]), pair(czech)) == "phone number in chosen"


def test_a_flag_keeps_the_pair() -> None:
    table = Private(action="flag")
    made = screen(
        to_table([pair("Write to jana.novotna83@seznam.cz."), pair()], PreferencePair), {"private": (table, table.build(None))}
    )
    assert made.names == made.reasons == [None, None]
    assert made.flags == [["private: e-mail in chosen"], []]


def test_fits_counts_as_the_trainer_does(tiny_model: str) -> None:
    from transformers import AutoTokenizer

    from dpo_data.trainer.tokens import fitting, tokenize

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = [pair("word " * n, "no " * (2 * n), prompt="Say it. " * 9) for n in (1, 10, 40, 90)]
    _, longest, left_out = fitting(tokenize(rows, {}, tokenizer, {tokenizer.eos_token_id}), 10_000)
    assert left_out == 0
    told = [reason(Fits(), row, Trainer(tiny_model, None, longest - 1)) for row in rows]
    assert told == [None] * 3 + [f"prompt and rejected answer have {longest} tokens, more than {longest - 1}"]
    assert [reason(Fits(), row, Trainer(tiny_model, None, longest)) for row in rows] == [None] * 4


def test_fits_takes_the_model_at_its_word(tiny_model: str) -> None:
    positions = json.loads((Path(tiny_model) / "config.json").read_text())["max_position_embeddings"]
    told = reason(Fits(), pair("word " * positions), Trainer(tiny_model))
    assert told and told.endswith(f"more than {positions}")


def test_fits_reads_no_tokenizer_for_short_pairs_and_nothing_where_nothing_is_trained() -> None:
    nowhere = Trainer("no/such-model", None, 4096)
    table = Fits()
    assert screen(to_table([pair()], PreferencePair), {"fits": (table, table.build(nowhere))}).names == [None]
    assert reason(Fits(), pair("word " * 100_000)) is None


def test_fits_counts_in_a_chat_template_of_ones_own_and_with_its_variables(tiny_model: str, tmp_path: Path) -> None:
    file = tmp_path / "long.jinja"
    file.write_text("{% if long %}{{ 'word ' * 200 }}{% endif %}{% for m in messages %}{{ m.content }}\n{% endfor %}")
    table, trainer = Fits(), Trainer(tiny_model, None, 100, str(file))
    with_variables = schema_of(PreferencePair, chat_template_kwargs=True)
    rows = [pair(chat_template_kwargs=one) for one in (None, {"long": True}, {"long": False})]
    told = screen(to_table(rows, PreferencePair, with_variables), {"fits": (table, table.build(trainer))}).reasons
    assert told[0] is None is told[2] and str(told[1]).endswith("tokens, more than 100")


def test_fits_needs_a_chat_template(tiny_model: str, tmp_path: Path) -> None:
    for file in Path(tiny_model).iterdir():
        if file.suffix != ".jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(TrainError, match="no chat template"):
        reason(Fits(), pair("word " * 900), Trainer(str(tmp_path), None, 100))


OWN = """
from dpo_data.rows import PreferencePair

def rude(pair: PreferencePair) -> str | None:
    return "the chosen answer is rude" if "fool" in pair.chosen[-1]["content"] else None

def breaks(pair):
    return pair.nothing

def says_true(pair):
    return True

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `my_filters` in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_filters", raising=False)
    (tmp_path / "my_filters.py").write_text(OWN)
    return tmp_path


def test_a_filter_of_your_own(own: Path) -> None:
    table = Python(function="my_filters:rude")
    assert reason(table, pair("You fool.")) == "the chosen answer is rude"
    assert reason(table, pair()) is None


def test_the_file_of_your_own_filter_is_an_input(own: Path) -> None:
    filters = {**DEFAULTS, "rude": Python(function="my_filters:rude"), "refusal": False}
    before = inputs(filters)
    (own / "my_filters.py").write_text(OWN + "# changed\n")
    assert before.keys() == {"my_filters:rude"} and inputs(filters) != before
    assert inputs(DEFAULTS) == {}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "breaks",
            r"The filter my_filters:breaks failed on the pair of prompt 0{32}: AttributeError: .*nothing.* Mend my_f",
        ),
        ("says_true", r"The filter my_filters:says_true returned True for the pair of prompt 0{32}, neither a reason nor None"),
    ],
)
def test_your_own_filter_neither_drops_nor_keeps_by_accident(own: Path, function: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Python(function=f"my_filters:{function}").build(None).reason(pair())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("my_filters:missing", "cannot be imported: AttributeError"),
        ("no_such_module:rude", "cannot be imported: ModuleNotFoundError"),
        ("my_filters:number", "is int, not a function"),
    ],
)
def test_your_own_filter_must_be_there(own: Path, function: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Python(function=function).build(None)


def test_the_first_reason_names_the_drop_and_ends_the_looking(own: Path) -> None:
    tables = {"tie": Tie(), "rude": Python(function="my_filters:rude"), "breaks": Python(function="my_filters:breaks")}
    built = {name: (table, table.build(None)) for name, table in tables.items()}
    rows = [pair("fool", margin=0.0), pair("fool"), pair("fool", margin=0.0)]
    made = screen(to_table(rows, PreferencePair), built)  # whatever reached `breaks` would end this
    assert made.names == ["tie", "rude", "tie"]
    assert made.reasons == ["both score 2", "the chosen answer is rude", "both score 2"]


def test_no_pairs_are_no_trouble() -> None:
    built = {name: (table, table.build(None)) for name, table in DEFAULTS.items()}
    for schema in (PLAIN, WITH_TOOLS, WITH_CALLS):
        assert screen(to_table([], PreferencePair, schema), built) == ([], [], [])


FRAGMENTS = st.sampled_from(
    [
        *(
            "I'm sorry, but I can't help",
            "As an AI language model,",
            "I am ChatGPT",
            "as of my last update",
            "我无法回答",
            "作为人工智能，",
            '"',
            "“",
            "”",
        ),
        *(
            "jana@seznam.cz",
            "+44 20 7228 6191",
            "415-867-5309",
            "4539148803436467",
            "536-90-4399",
            "CH9300762011623852957",
            KEY,
            TOKEN,
        ),
        *(
            CHINESE,
            RUSSIAN,
            ENGLISH,
            "안녕하세요 반갑습니다 여러분",
            "`code`",
            "```",
            "translate",
            "the same words again and again ",
            "ſorry",
            "K",
            "İ",
            "1",
        ),
        *(" ", "\n", ". ", ", ", "\u3000", "\x0b", "\x1c", "", "e\u0301", "ß"),
    ]
)
TEXTS = st.lists(FRAGMENTS | st.text(max_size=12), max_size=6).map("".join) | st.builds(
    str.__mul__, FRAGMENTS, st.integers(0, 40)
)
COUNTS = st.none() | st.integers(0, 5000)
PAIRS = st.builds(
    pair,
    TEXTS,
    TEXTS,
    TEXTS,
    margin=st.sampled_from([0.0, 0.2, 1.0, float("nan"), -1.0]),
    n_tokens_chosen=COUNTS,
    n_tokens_rejected=COUNTS,
)
SOME = {
    **DEFAULTS,
    **dict(margin=Margin(least=0.5), length=Length(least=3, most=4000), length_gap=LengthGap(most=1000, action="flag")),
    **dict(private=Private(action="flag"), allowed=Script(allowed=["Latin", "Han"]), refusal=Refusal(also=["again", "ß"])),
}


def one_by_one(row: PreferencePair, built: dict[str, Any]) -> tuple[str | None, str | None, list[str]]:
    """What the filters say of a pair when nothing is spared."""
    flags: list[str] = []
    for name, (table, one) in built.items():
        told = one.reason(row)
        if told and table.action == "drop":
            return name, told, flags
        flags += [f"{name}: {told}"] if told else []
    return None, None, flags


@given(st.lists(PAIRS, max_size=6), st.sampled_from([PLAIN, WITH_TOOLS, WITH_CALLS]))
@example([pair("x" * 7, "x" * 7), pair(" x", "x ")], PLAIN)
@settings(max_examples=150)
def test_the_quick_look_overlooks_nothing(rows: list[PreferencePair], schema: pa.Schema) -> None:
    built = {name: (table, table.build(None)) for name, table in SOME.items()}
    made = screen(to_table(rows, PreferencePair, schema), built)
    assert list(zip(*made, strict=True)) == [one_by_one(row, built) for row in rows]


@given(PAIRS)
@settings(max_examples=150)
def test_each_quick_look_alone_overlooks_nothing(row: PreferencePair) -> None:
    """Earlier filters hide a pair from later ones, so each is tried by itself."""
    columns = Columns(to_table([row], PreferencePair))
    for name, table in SOME.items():
        built = table.build(None)
        assert built.suspects(columns)[0] or built.reason(row) is None, name


@given(
    st.lists(st.tuples(TEXTS, st.integers(1, 3)), max_size=6),
    st.integers(0, 6),
    st.sampled_from([PLAIN, WITH_TOOLS, WITH_CALLS]),
)
def test_columns_are_the_texts_of_the_rows(given: list[tuple[str, int]], skip: int, schema: pa.Schema) -> None:
    rows = [replace(pair(text, text[::-1]), prompt=[{"role": "user", "content": text}] * turns) for text, turns in given]
    columns = Columns(to_table(rows, PreferencePair, schema).slice(skip))
    assert columns.text("chosen").to_pylist() == [row.chosen[-1]["content"] for row in rows[skip:]]
    assert columns.prompt.to_pylist() == ["\n".join(turn["content"] for turn in row.prompt) for row in rows[skip:]]


@given(st.lists(st.text(max_size=9)), st.integers(0, 5), st.binary(min_size=1))
def test_bytes_are_counted_text_by_text(texts: list[str], skip: int, wanted: bytes) -> None:
    table = np.zeros(256, np.uint8)
    table[list(wanted)] = 1
    counts = count_bytes(pa.array(texts, pa.large_string()).slice(skip), table)
    assert counts.tolist() == [sum(byte in wanted for byte in text.encode()) for text in texts[skip:]]


@pytest.fixture
def filters(recipe: Callable[..., Recipe]) -> Callable[..., dict[str, Any]]:
    """The filters of a recipe that changes these."""
    return lambda **changes: recipe(pair={"filters": changes}).pair.filters


def test_all_filters_are_on_by_default(recipe: Callable[..., Recipe]) -> None:
    assert recipe().pair.filters == DEFAULTS
    assert {type(table) for table in DEFAULTS.values()} == {
        *(
            Tie,
            Margin,
            Identical,
            Empty,
            Length,
            LengthGap,
            NearIdentical,
            Repetition,
            Refusal,
            Identity,
            Cutoff,
            Script,
            Private,
            Fits,
        )
    }
    assert {table.action for table in DEFAULTS.values()} == {"drop"}


def test_a_recipe_turns_filters_off_changes_them_and_adds_its_own(filters: Callable[..., dict[str, Any]]) -> None:
    given = {"refusal": False, "margin": {"least": 0.5}, "tie": True, "rude": {"type": "python", "function": "a.b:c"}}
    made = filters(**given)
    assert made == {**DEFAULTS, "refusal": False, "margin": Margin(least=0.5), "rude": Python(function="a.b:c")}
    assert list(made) == [*DEFAULTS, "rude"], "the order is that of the defaults, whatever the recipe's is"


def test_filters_survive_toml(recipe: Callable[..., Recipe]) -> None:
    made = recipe(
        pair={"filters": {"refusal": False, "rude": {"type": "python", "function": "a:b"}, "script": {"allowed": ["Thai"]}}}
    )
    again = parse(tomllib.loads(dump(made)))
    assert again == made and list(again.pair.filters) == list(made.pair.filters)


def test_filters_decide_the_pairs(recipe: Callable[..., Recipe]) -> None:
    told = recipe(pair={"filters": {"refusal": False}}).deciding("pair")["pair"]["filters"]
    assert told["refusal"] is False and told["length_gap"] == {"type": "length_gap", "action": "drop", "most": 2048}
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"refusl": False},
            "There is no filter 'refusl' in [pair.filters]. Did you mean 'refusal'? One of your own names its type.",
        ),
        ({"qqqq": {}}, "There is no filter 'qqqq' in [pair.filters]. There are tie, margin, "),
        ({"length": {"mst": 3}}, "Unknown key 'pair.filters.length.mst' in the recipe. Did you mean 'most'?"),
        ({"length": {"least": 5, "most": 3}}, "most is 3, below least, which is 5"),
        ({"length": {"least": "x"}}, "'pair.filters.length.least' in the recipe is 'x'"),
        ({"tie": "off"}, "The filter 'tie' is 'off', neither a table nor true nor false. Write tie = false to turn it off"),
        ({"private": {"action": "keep"}}, "'pair.filters.private.action' in the recipe is 'keep'"),
        ({"rude": {"type": "pyton"}}, "'pair.filters.rude.type' in the recipe is 'pyton'. Use one of 'tie', "),
        ({"rude": {"type": "python"}}, "the recipe lacks 'pair.filters.rude.function'. Add it."),
        (
            {"rude": {"type": "python", "func": "a:b"}},
            "Unknown key 'pair.filters.rude.func' in the recipe. Did you mean 'function'?",
        ),
    ],
)
def test_a_mistaken_filter_is_told_in_one_line(filters: Callable[..., Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        filters(**given)
    assert message in str(error.value)


def test_the_docs_tell_every_filter_and_default() -> None:
    from pydantic import TypeAdapter

    page = (Path(__file__).parents[1] / "docs" / "dropped.md").read_text()
    for name, table in TypeAdapter(Filters).dump_python(DEFAULTS, mode="json").items():
        row = next((line for line in page.splitlines() if line.startswith(f"| `{name}` |")), "")
        assert row, name
        for key, value in table.items():
            if key not in ("type", "action"):
                assert f"`{key} = {json.dumps(value)}`" in row, (name, key)


def real(which: str) -> list[PreferencePair]:
    file = REAL / f"dpo_{which}_demo.json"
    if not file.exists():
        pytest.skip(f"no real pairs at {file}")
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    return [
        pair(
            one["chosen"]["value"],
            one["rejected"]["value"],
            prompt=[{"role": roles[turn["from"]], "content": turn["value"]} for turn in one["conversations"]],
        )
        for one in json.loads(file.read_text())
    ]


@pytest.mark.parametrize(("which", "most"), [("en", 0.04), ("zh", 0.08)])
def test_of_real_pairs_few_are_dropped_and_for_what_they_say(which: str, most: float) -> None:
    rows = real(which)
    built = {name: (table, table.build(None)) for name, table in DEFAULTS.items()}
    made = screen(to_table(rows, PreferencePair), built)
    counts = Counter(name for name in made.names if name)
    assert 0 < counts.total() <= most * len(rows), counts
    assert counts["identity"] >= 4 and counts["refusal"] >= 1
    assert counts["private"] == counts["script"] == counts["length"] == 0
    assert list(zip(*made, strict=True)) == [one_by_one(row, built) for row in rows]
