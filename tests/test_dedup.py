"""Equal and nearly equal texts: every kernel against plain Python, in many scripts, and the same however a stream is cut."""

import random
import string
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_data.dedup import Contamination, keys, near_duplicates, normalised, repeats, repetition, similarity, within
from dpo_data.dedup import near as near_module
from dpo_data.dedup.shingles import shingles, units
from dpo_data.dedup.text import ALONE, LETTERS, folded

SAMPLES = [
    "Hello,  World!\n\nHow are you? ",
    "你好，世界。我们今天去北京大学学习机器学习。",
    "これはペンです。カタカナー・テスト",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "مرحبا بالعالم، كيف حالك؟",
    "mixed 中文 text，with 日本語 and English ไทย words",
    "👩‍🚀 rocket 🚀🚀 to the 🌙!",
    "Straße İstanbul ΣΊΣΥΦΟΣ ǅ ﬁ Å Å e\u0301",
    "x = -5; y = 5% of #3 & C++ (a\\b) don't 3.14",
    "\x1c\x1d tabs\tand\u2003wide\u00a0spaces\x85 \x00 nul",
    "...!?",
    " \n ",
    "",
    "𠀀𠀁 rare Han 𝒳 math \U000e0020",
]
WORDS = [
    "a",
    "B",
    "cat",
    "dog,",
    "(the",
    "end.",
    "...",
    "-",
    "中",
    "文字",
    "ไทย",
    "é",
    "É",
    "e\u0301",
    "ß",
    "🙂",
    "12345678",
    "C#",
]
PIECES = st.one_of(st.sampled_from([*SAMPLES, *WORDS]), st.text(max_size=12), st.text("aA \n\t!", max_size=20))
TEXTS = st.lists(PIECES, max_size=8).map(" ".join)
FEW = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
quick = settings(max_examples=60, deadline=None)


def is_alone(character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in ALONE) or 0x20000 <= code < 0x40000


def is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("P") and character not in LETTERS


def plain_units(text: str) -> list[str]:
    found = []
    for word in normalised(text).split(" "):
        spaced = "".join(f" {c} " if is_alone(c) and not is_mark(c) else c for c in word)
        for run in spaced.split(" "):
            marks = "".join(c for c in run if is_mark(c))
            if found_run := run.strip(marks or " "):
                found.append(found_run)
    marks = "".join(c for c in normalised(text) if is_mark(c))
    return found or [marks] * bool(marks)


@cache
def plain_shingles(text: str, n: int) -> list[tuple[str, ...]]:
    found = plain_units(text)
    return [tuple(found[at : at + n]) for at in range(max(1, len(found) - n + 1))] if found else []


def plain_similarity(a: str, b: str, n: int) -> float:
    one, other = set(plain_shingles(a, n)), set(plain_shingles(b, n))
    return len(one & other) / len(one | other) if one | other else 1.0


def same_partition(numbers: Iterable[Any], values: Iterable[Any]) -> bool:
    """Whether two sequences are equal at the same places."""
    pairs = set(zip(numbers, values, strict=True))
    return len(pairs) == len({number for number, _ in pairs}) == len({value for _, value in pairs})


def shapes(texts: list[str]) -> Iterator[Any]:
    """The same texts in every form in which Arrow may bring them."""
    yield texts
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        yield pa.array(texts, kind)
    yield pa.array(["before", *texts, "after"]).slice(1, len(texts))
    yield pa.chunked_array([texts[:3], [], texts[3:]], pa.string())
    yield pa.chunked_array([pa.array(["é", *texts]).slice(1)])
    yield pa.array(texts).dictionary_encode()


@quick
@given(st.lists(TEXTS, max_size=12))
def test_keys_are_equal_where_normalised_texts_are(texts: list[str]) -> None:
    assert same_partition(keys(texts), map(normalised, texts))


@quick
@given(st.lists(st.text("aAbB \n\t\x0b\x1f,", max_size=30), max_size=20))
def test_keys_of_ascii_at_every_length(texts: list[str]) -> None:
    assert same_partition(keys(texts), map(normalised, texts))
    assert (keys(texts) == keys([normalised(text) for text in texts])).all()
    assert (keys(texts) == np.concatenate([np.zeros(0, np.uint64), *(keys([text]) for text in texts)])).all()


def test_every_ascii_character_and_every_white_space() -> None:
    texts = [
        f"abcdefghi{chr(code)}{tail}" for code in [*range(128), 0x85, 0xA0, 0x2003, 0x3000] for tail in ("", "z", "zzzzzzzzz")
    ]
    assert same_partition(keys(texts), map(normalised, texts))


@quick
@given(st.lists(TEXTS, max_size=8))
def test_units_are_those_of_plain_python(texts: list[str]) -> None:
    found = units(texts)
    assert np.diff(found.ends).tolist() == [len(plain_units(text)) for text in texts]
    assert same_partition(found.hashes, [unit for text in texts for unit in plain_units(text)])


def test_units_of_many_scripts() -> None:
    assert plain_units("Hello, world! 你好，世界。ไท") == ["hello", "world", "你", "好", "世", "界", "ไ", "ท"]
    assert plain_units("(-5) isn't 5%… C#; a - b") == ["-5", "isn't", "5%", "c#", "a", "-", "b"]
    assert plain_units("?!") == ["?!"] and plain_units(" ") == []
    found = units(SAMPLES)
    assert np.diff(found.ends).tolist() == [len(plain_units(text)) for text in SAMPLES]
    assert same_partition(found.hashes, [unit for text in SAMPLES for unit in plain_units(text)])


@quick
@given(st.lists(FEW, max_size=6), st.integers(1, 6))
def test_shingles_are_runs_of_units(texts: list[str], n: int) -> None:
    assert same_partition(shingles(texts, n).hashes, [run for text in texts for run in plain_shingles(text, n)])


def test_arrow_arrays_of_any_form() -> None:
    backwards, wanted = SAMPLES[::-1], plain_similarities(SAMPLES, SAMPLES[::-1])
    for texts, others in zip(shapes(SAMPLES), shapes(backwards), strict=True):
        assert (keys(texts) == keys(SAMPLES)).all() and (keys(others) == keys(backwards)).all()
        assert (units(texts).hashes == units(SAMPLES).hashes).all()
        assert similarity(texts, others).tolist() == wanted
        assert similarity(texts, backwards).tolist() == wanted
        assert near_duplicates(lambda texts=texts: [texts, texts]).of[len(SAMPLES) :].tolist() == [
            at if plain_units(text) else -1 for at, text in enumerate(SAMPLES)
        ]


def plain_similarities(a: list[str], b: list[str]) -> list[float]:
    return [plain_similarity(one, other, 3) for one, other in zip(a, b, strict=True)]


def test_nulls_are_empty_and_no_texts_are_fine() -> None:
    assert (keys(pa.array([None, "", "a"])) == keys(["", " ", "A"])).all()
    assert folded([None, "É", None]).to_pylist() == ["", "é", ""]
    for none in ([], pa.array([], pa.string()), pa.chunked_array([], pa.string())):
        assert (
            len(keys(none)) == len(similarity(none, none)) == len(repetition(none)[0]) == len(within(none, np.zeros(1)).of) == 0
        )
        assert len(near_duplicates(lambda none=none: [none]).of) == len(Contamination(["a b"]).overlaps(none)[0]) == 0
    assert len(near_duplicates(lambda: []).of) == 0


def test_a_text_of_a_megabyte() -> None:
    text = " ".join(random.Random(1).choices(string.ascii_lowercase, k=500_000))
    other = text.upper() + " end"
    assert same_partition(keys([text, text.upper().replace(" ", "\n\t"), other]), "aab")
    assert similarity([text], [other], 3)[0] == plain_similarity(text, other, 3)
    assert near_duplicates(lambda: [[text, "b", other]], n=9).of.tolist() == [-1, -1, 0]
    assert Contamination([text]).overlaps([other])[0].tolist() == [0]


@quick
@given(st.lists(st.tuples(FEW, FEW), max_size=6), st.integers(1, 5))
def test_similarity_is_exact(pairs: list[tuple[str, str]], n: int) -> None:
    a, b = [one for one, _ in pairs], [other for _, other in pairs]
    assert similarity(a, b, n).tolist() == [plain_similarity(one, other, n) for one, other in pairs]


@quick
@given(st.lists(st.lists(FEW, max_size=7), max_size=5), st.sampled_from([0.2, 0.5, 0.8, 1.0]), st.integers(1, 4))
def test_within_keeps_the_first_of_its_like(groups: list[list[str]], threshold: float, n: int) -> None:
    offsets = np.cumsum([0, *map(len, groups)])
    texts = [text for group in groups for text in group]
    wanted = [
        twin for first, group in zip(offsets, groups, strict=False) for twin in plain_twins(group, threshold, n, int(first))
    ]
    found = within(texts, offsets, threshold, n)
    assert list(zip(found.of.tolist(), found.similarity.tolist(), strict=True)) == wanted


def plain_twins(texts: list[str], threshold: float, n: int, first: int = 0, empty: float = 1.0) -> list[tuple[int, float]]:
    """Greedy: each text's most similar kept one before it, the first of several."""
    found: list[tuple[int, float]] = []
    for at, text in enumerate(texts):
        best = (-1, 0.0)
        for other in range(at):
            share = plain_similarity(texts[other], text, n) if plain_units(text) or plain_units(texts[other]) else empty
            if found[other][0] < 0 and share >= threshold and share > best[1]:
                best = (first + other, share)
        found.append(best)
    return found


def test_within_a_large_group() -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choices(string.ascii_lowercase, k=30)) for _ in range(150)]
    texts += [f"{text} more" for text in texts]
    assert within(texts, np.array([0, 300])).of.tolist() == [-1] * 150 + list(range(150))


def test_within_says_what_is_wrong_with_offsets() -> None:
    for offsets in ([0, 1], [1, 2], [0, 2, 1, 2], []):
        with pytest.raises(ValueError, match="offsets"):
            within(["a", "b"], np.array(offsets))
    with pytest.raises(ValueError, match="2 texts beside 1"):
        similarity(["a", "b"], ["c"])


@quick
@given(st.lists(FEW, max_size=6), st.integers(1, 5))
def test_repetition_counts_what_came_before(texts: list[str], n: int) -> None:
    counts, shares = repetition(texts, n)
    grams = [plain_shingles(text, n) for text in texts]
    assert counts.tolist() == [len(plain_units(text)) for text in texts]
    assert shares.tolist() == [(len(one) - len(set(one))) / max(1, len(one)) for one in grams]


@quick
@given(st.lists(st.lists(FEW, max_size=6), max_size=6), st.sampled_from([1, 2]))
def test_repeats_over_batches(batches: list[list[str]], threads: int) -> None:
    seen: set[str] = set()
    wanted = [[normalised(text) in seen or bool(seen.add(normalised(text))) for text in batch] for batch in batches]
    assert [one.tolist() for one in repeats(batches, threads)] == wanted


def test_repeats_of_more_than_a_table_holds() -> None:
    batches = [pa.array(np.arange(at, at + 30_000)).cast(pa.string()) for at in range(0, 150_000, 15_000)]
    found = np.concatenate(list(repeats(batches)))
    assert found.sum() == 9 * 15_000 and not found[:30_000].any() and found[30_000:45_000].all()


@quick
@given(st.lists(FEW, max_size=6), st.lists(FEW, max_size=8), st.integers(1, 5), st.sampled_from([0.1, 0.5, 2 / 3, 1.0]))
def test_contamination_is_counted_for_each_evaluation_text(tests: list[str], texts: list[str], n: int, share: float) -> None:
    of, held = Contamination(tests, n, share).overlaps(texts)
    for at, text in enumerate(texts):
        shares = [plain_held(text, test, n) for test in tests]
        most = max(shares, default=0.0)
        assert (of[at], held[at]) == ((shares.index(most), most) if most >= share else (-1, 0.0))


def plain_held(text: str, test: str, n: int) -> float:
    wanted = set(plain_shingles(test, n))
    size = min(n, len(plain_units(test)))
    return len(wanted & set(plain_shingles(text, size))) / len(wanted) if wanted else 0.0


def test_contamination_where_all_evaluation_texts_begin_alike() -> None:
    start = "choose the best answer to the following question and explain it in detail"
    tests = [f"{start} q{at} " + " ".join(f"w{at}x{word}" for word in range(20)) for at in range(300)]
    found = Contamination(tests)
    assert found.index.starts[-1] < 300 * 18  # what all have in common is no way in
    assert found.overlaps([start, f"{start} now", f"so {tests[7]}", "other"])[0].tolist() == [-1, -1, 7, -1]
    with pytest.raises(ValueError, match="share"):
        Contamination(["a"], share=0)


def planted(count: int, seed: int = 5) -> tuple[list[str], dict[int, int]]:
    """Texts of about 60 words; some are earlier ones with up to four words in place of others, and which these are."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(3000)]
    texts: list[str] = []
    origin: dict[int, int] = {}
    for at in range(count):
        words = rng.choices(vocabulary, k=rng.randint(40, 80))
        if at > 100 and rng.random() < 0.3:
            source = rng.randrange(at)
            origin[at] = origin.get(source, source)
            words = texts[origin[at]].split()
            for _ in range(rng.choice([0, 1, 1, 2, 3, 8])):
                words[rng.randrange(len(words))] = rng.choice(vocabulary)
        texts.append(" ".join(words))
    return texts, origin


def in_batches(texts: list[str], size: int) -> Callable[[], Iterator[pa.Array]]:
    return lambda: (pa.array(texts[at : at + size]) for at in range(0, len(texts), size))


def test_near_duplicates_are_found_and_nothing_else() -> None:
    texts, origin = planted(20_000)
    of, alike = near_duplicates(in_batches(texts, 3000), threads=2)
    for row in np.flatnonzero(of >= 0).tolist():
        twin = int(of[row])
        assert twin < row and of[twin] < 0
        assert alike[row] == plain_similarity(texts[twin], texts[row], 5) >= 0.8
    due = [row for row, source in origin.items() if of[source] < 0 and plain_similarity(texts[source], texts[row], 5) >= 0.8]
    assert len(due) > 2500 and np.mean(of[due] >= 0) >= 0.99
    assert not alike[of < 0].any()


def test_near_duplicates_whatever_the_batches_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, _ = planted(1500)
    texts += SAMPLES + SAMPLES
    of, alike = near_duplicates(in_batches(texts, 1000), threads=1)
    for size, threads in ((1, 2), (7, 1), (333, 2), (10_000, 2)):
        again = near_duplicates(in_batches(texts, size), threads=threads)
        assert (again.of == of).all() and (again.similarity == alike).all()
    monkeypatch.setattr("dpo_data.dedup.text.SLICE", 5000)
    assert (near_duplicates(in_batches(texts, 400)).of == of).all()


@quick
@given(st.lists(TEXTS, max_size=10), st.integers(1, 4))
def test_equal_units_are_near_duplicates_in_any_script(texts: list[str], n: int) -> None:
    found = near_duplicates(lambda: [texts], 1.0, n, threads=1)
    assert list(zip(found.of.tolist(), found.similarity.tolist(), strict=True)) == plain_twins(texts, 1.0, n, empty=0.0)


def test_a_twin_that_is_not_its_buckets_first_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"w{at}" for at in range(60)]
    first, second = words[:52] + [f"x{at}" for at in range(8)], words
    third = [*words[:59], "other"]
    texts = [" ".join(one) for one in (first, second, third)]
    assert plain_similarity(texts[0], texts[1], 5) < 0.8 > plain_similarity(texts[0], texts[2], 5)
    of, alike = near_duplicates(lambda: [texts])
    assert of.tolist() == [-1, -1, 1] and alike[2] == plain_similarity(texts[1], texts[2], 5)
    monkeypatch.setattr(near_module, "HOLDERS", 1)
    starts = near_module._held(np.zeros((5, 20), np.int32), 1).starts
    assert starts.tolist() == [0, 1]


def test_texts_from_one_template() -> None:
    """Crowded buckets of texts that have much in common, but too little to be near-duplicates."""
    rng = random.Random(2)
    start = [f"s{at}" for at in range(60)]
    texts = [" ".join(start + [f"{rng.random():.9f}" for _ in range(30)]) for _ in range(3000)]
    texts += [f"{text} end" for text in texts[:50]]
    of = near_duplicates(in_batches(texts, 500)).of
    assert (of[:3000] < 0).all() and of[3000:].tolist() == list(range(50))


def test_salts_keep_texts_apart() -> None:
    texts = ["the same words in each of these texts"] * 4
    for salts in (np.array([1, 2, 1, 0], np.uint64), ["a", "b", "a", ""], pa.array(["a", "b", "a", None])):
        batches = [(texts[:2], salts[:2]), (texts[2:], salts[2:])]
        assert near_duplicates(lambda batches=batches: batches).of.tolist() == [-1, -1, 0, -1]


def test_near_duplicates_needs_the_same_texts_twice() -> None:
    batches = iter([[["a b", "a b"]], [["a b"]]])
    with pytest.raises(ValueError, match="2 texts were read at first, 1 the second time"):
        near_duplicates(lambda: next(batches))
    with pytest.raises(ValueError, match="threshold"):
        near_duplicates(lambda: [], 0)


def test_texts_that_share_nothing_are_read_once() -> None:
    batches = iter([[["one text and no other", "something else that is unlike it"]]])
    assert near_duplicates(lambda: next(batches)).of.tolist() == [-1, -1]


def test_an_error_of_the_stream_reaches_the_reader() -> None:
    def texts() -> Iterator[list[str]]:
        yield ["a"]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        near_duplicates(texts)
