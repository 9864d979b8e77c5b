"""The filter script: an answer in a writing that the prompt did not ask for."""

import re
import unicodedata
from collections import Counter
from typing import Literal

import numpy as np
import pyarrow.compute as pc

from dpo_data.filters.columns import Columns, Mask, as_mask, count_bytes, matches, sizes
from dpo_data.filters.screen import FilterTable, Screen, Trainer
from dpo_data.rows import PreferencePair

SCRIPTS: dict[str, str] = {
    **{"LATIN": "Latin", "FULLWIDTH": "Latin", "CJK": "Han", "HIRAGANA": "Han", "KATAKANA": "Han", "HANGUL": "Hangul"},
    **{"CYRILLIC": "Cyrillic", "GREEK": "Greek", "ARABIC": "Arabic", "HEBREW": "Hebrew", "ARMENIAN": "Armenian"},
    **{"DEVANAGARI": "Devanagari", "BENGALI": "Bengali", "GURMUKHI": "Gurmukhi", "GUJARATI": "Gujarati", "TAMIL": "Tamil"},
    **{"TELUGU": "Telugu", "KANNADA": "Kannada", "MALAYALAM": "Malayalam", "SINHALA": "Sinhala", "THAI": "Thai", "LAO": "Lao"},
    **{"MYANMAR": "Myanmar", "KHMER": "Khmer", "TIBETAN": "Tibetan", "GEORGIAN": "Georgian", "ETHIOPIC": "Ethiopic"},
    **{"MONGOLIAN": "Mongolian"},
}
"""The first word of a letter's Unicode name, and its script. Chinese and Japanese count as one, for they share a script."""

# fmt: off
ScriptName = Literal[
    "Latin", "Han", "Hangul", "Cyrillic", "Greek", "Arabic", "Hebrew", "Armenian", "Devanagari", "Bengali", "Gurmukhi",
    "Gujarati", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Myanmar", "Khmer", "Tibetan", "Georgian",
    "Ethiopic", "Mongolian",
]
# fmt: on

WEIGHTS = {"Han": 3, "Hangul": 3}
"""A Chinese sentence with one English name in it has more Latin letters than signs of its own."""

LETTERS = 20
"""An answer with fewer letters than this is a name, a formula or a sign: it has no script of its own."""


class Script(FilterTable):
    """Drops a pair whose chosen answer is mostly in a script of which its prompt has no letter; unless the prompt names a
    language or a script, or the rejected answer is in that script too. Code is not counted. With `allowed`, that list alone
    counts: an answer mostly in any other script is dropped."""

    type: Literal["script"] = "script"
    allowed: list[ScriptName] = []

    def build(self, trainer: Trainer | None) -> Screen:
        return Screen(self._reason, lambda pairs: pairs.all() if self.allowed else _suspects(pairs))

    def _reason(self, pair: PreferencePair) -> str | None:
        script = main_script(pair.chosen[-1]["content"])
        if script is None:
            return None
        if self.allowed:
            return None if script in self.allowed else f"the chosen answer is in {script} script, which is not allowed"
        prompt = "\n".join(turn["content"] for turn in pair.prompt)
        if script in letters(prompt) or _LANGUAGE.search(prompt) or main_script(pair.rejected[-1]["content"]) == script:
            return None
        asked = letters(prompt).most_common(1)
        return f"the chosen answer is in {script} script, the prompt in {asked[0][0]}" if asked else None


def letters(text: str) -> Counter[str]:
    """How many letters of each script a text has, a sign of a script that writes syllables or words for as many as it tells."""
    names = Counter(unicodedata.name(sign, "").partition(" ")[0] for sign in text if sign.isalpha())
    counts: Counter[str] = Counter()
    for name, count in names.items():
        if script := SCRIPTS.get(name):
            counts[script] += count * WEIGHTS.get(script, 1)
    return counts


def main_script(text: str) -> str | None:
    """The script of most letters of a text without its code; None where the letters are few."""
    counts = letters(_CODE.sub(" ", text))
    return max(counts, key=lambda script: (counts[script], script == "Latin")) if counts.total() >= LETTERS else None


_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_LANGUAGE = re.compile(
    r"translat|transliterat|\blanguages?\b|bilingual|pinyin|romaji|\b(?:english|chinese|mandarin|cantonese|japanese|korean|russian"
    r"|ukrainian|bulgarian|serbian|greek|arabic|persian|farsi|urdu|hebrew|hindi|bengali|punjabi|gujarati|marathi|nepali|tamil|telugu"
    r"|kannada|malayalam|sinhala|thai|lao|burmese|khmer|tibetan|georgian|armenian|amharic|mongolian|french|german|spanish|portuguese"
    r"|italian|dutch|polish|czech|turkish|vietnamese|indonesian|malay|swedish|latin|cyrillic|hanzi|kanji|hiragana|katakana|hangul)\b"
    r"|翻译|翻譯|译成|译为|语言|[中英日法德俄韩汉藏]文|[汉英日法德俄韩粤]语|西班牙|葡萄牙|阿拉伯|意大利|翻訳|英語|日本語|中国語|韓国語"
    r"|번역|영어|한국어|일본어|중국어|перев[её]д|язык|по-английски|английск"
    r"|traduc|traduis|übersetz|auf englisch|en inglés|en anglais",
    re.IGNORECASE,
)
"""A prompt that speaks of a language may ask for it."""


def _suspects(pairs: Columns) -> Mask:
    """All but the pairs whose chosen answer is surely in a script that the prompt has: told by the lead bytes of its UTF-8. No
    letter weighs more than it has bytes."""
    chosen, prompt = pairs.text("chosen"), pairs.prompt
    ascii_letter = matches(prompt, "[A-Za-z]")
    suspects = ~(as_mask(pc.string_is_ascii(chosen)) & ascii_letter)
    at = np.flatnonzero(suspects)
    chosen, prompt = chosen.take(at), prompt.take(at)
    total = sizes(chosen)
    plain = count_bytes(chosen, _bytes(range(0x80)))
    latin = count_bytes(chosen, _LATIN)
    code = matches(chosen, "`")
    clear = ascii_letter[at] & (latin >= total - plain) & ~code
    for leads, width, weight in _SURE:
        own = count_bytes(chosen, _bytes(leads))
        clear |= (weight * own > latin + total - plain - width * own) & (count_bytes(prompt, _bytes(leads)) > 0) & ~code
    suspects[at[clear]] = False
    return suspects


def _bytes(wanted: range | bytes) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    table[list(wanted)] = 1
    return table


_LATIN = _bytes(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_SURE = ((range(0xE5, 0xEA), 3, 3), (range(0xD0, 0xD2), 2, 1), (range(0xEB, 0xED), 3, 3))
"""Lead bytes all of whose characters are letters of one script, their length and weight: Han U+5000–9FFF, Cyrillic U+0400–047F,
Hangul U+B000–CFFF."""
