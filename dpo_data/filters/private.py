"""The filter private: personal data and secrets in a prompt or an answer.

A quick look finds candidates by their form; a library that knows the numbering plans then says whether one is real. Names and
postal addresses have no form, and are not looked for.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import Field

from dpo_data.filters.columns import Columns, Mask, matches
from dpo_data.filters.screen import FilterTable, Screen, Trainer
from dpo_data.filters.secrets import SECRET, is_secret
from dpo_data.rows import PreferencePair

Kind = Literal["e-mail", "phone", "card", "iban", "id", "secret"]


class Private(FilterTable):
    """Drops a pair with personal data or a secret in its prompt, its chosen or its rejected answer. `kinds` are looked for.
    `regions`: the countries, as ISO 3166 codes, whose phone numbers are known without their +code."""

    type: Literal["private"] = "private"
    kinds: list[Kind] = Field(["e-mail", "phone", "card", "iban", "id", "secret"], min_length=1)
    regions: list[str] = ["US", "CN"]

    def build(self, trainer: Trainer | None) -> Screen:
        looks = [(kind, re.compile(FORMS[kind], re.ASCII)) for kind in self.kinds]

        def reason(pair: PreferencePair) -> str | None:
            for place, text in _texts(pair):
                for kind, form in looks:
                    if any(self._is_real(kind, text, found) for found in form.finditer(text)):
                        return f"{NAMES[kind]} in {place}"
            return None

        def suspects(pairs: Columns) -> Mask:
            form = "|".join(f"(?:{FORMS[kind]})" for kind in self.kinds)
            return matches(pairs.whole, form)

        return Screen(reason, suspects)

    def _is_real(self, kind: Kind, text: str, found: re.Match[str]) -> bool:
        if kind == "phone":
            return _is_phone(text, found, self.regions)
        if kind not in ("e-mail", "secret") and _is_part(text, found.start(), found.end()):
            return False
        return CHECKS[kind](found[0])


FORMS: dict[Kind, str] = {
    "e-mail": r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}",
    "phone": r"\+?\(?[0-9](?:[ .()/-]{0,3}[0-9]){7,}",
    "card": r"[0-9](?:[ -]?[0-9]){12,18}",
    "iban": r"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?",
    "id": r"[0-9]{3}-[0-9]{2}-[0-9]{4}|[0-9]{17}[0-9Xx]",
    "secret": SECRET,
}
"""What a candidate looks like, for Python and RE2 alike. `id`: a US social security number, a Chinese resident's number."""

NAMES: dict[Kind, str] = {
    **{"e-mail": "e-mail", "phone": "phone number", "card": "card number", "iban": "bank account"},
    **{"id": "personal id number", "secret": "key or token"},
}


def _texts(pair: PreferencePair) -> Iterator[tuple[str, str]]:
    yield "prompt", "\n".join(turn["content"] for turn in pair.prompt)
    yield "chosen", pair.chosen[-1]["content"]
    yield "rejected", pair.rejected[-1]["content"]


def _is_part(text: str, start: int, end: int) -> bool:
    """Whether digits are a part of something longer: a decimal, an identifier, a path, an amount."""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    return bool(re.search(r"[A-Za-z0-9_=%#$&/\\*^]$|\d[.,]$", before) or re.match(r"[A-Za-z0-9_=%/\\*^]|[.,]\d", after))


PLACEHOLDERS = re.compile(
    r"(?:^|\.)(?:example|domain|yourdomain|mydomain|yourcompany|company|companyname|email|mail|test|sample|website|yourwebsite|acme|foo|bar"
    r"|xyz|abc|abc\w*|xyz\w*|server|host|organization|university|school|business|provider)\.[a-z.]+$|\.(?:example|test|invalid|local|localhost)$"
)
"""Domains that stand for any domain: those that RFC 2606 reserves, and those that people write in their place."""

# fmt: off
ROLES = frozenset({
    "abuse", "admin", "billing", "careers", "contact", "customer", "customerservice", "editor", "enquiries", "feedback",
    "git", "hello", "help", "hr", "info", "inquiries", "jobs", "mail", "marketing", "media", "news", "newsletter",
    "no-reply", "noreply", "office", "orders", "postmaster", "press", "privacy", "root", "sales", "security", "service",
    "services", "support", "team", "webmaster", "user", "username", "name", "email", "yourname", "your.name", "your-name",
    "your_name", "youremail", "your.email", "someone", "somebody", "example", "me", "you",
})
# fmt: on
"""Mailboxes of nobody in person: a function of an organisation (RFC 2142 among others), or a word for any name."""


def _is_email(found: str) -> bool:
    from email_validator import EmailNotValidError, validate_email

    local, _, domain = found.lower().rpartition("@")
    if local in ROLES or PLACEHOLDERS.search(domain) or len(local) == 1 or domain[1:2] == ".":
        return False
    try:
        validate_email(found, check_deliverability=False)
    except EmailNotValidError:
        return False
    return True


def _is_phone(text: str, found: re.Match[str], regions: list[str]) -> bool:
    """Whether this holds a person's number, grouped as its country groups them. The first region to have one decides.

    Digits alone may be any number, and are taken for a mobile phone's only after a word for it. Numbers that are kept free for
    fiction, and those that are free to call, are nobody's.
    """
    from phonenumbers import Leniency, PhoneNumberMatcher, PhoneNumberType, number_type

    mobile, either = PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE_OR_MOBILE
    anyones = {mobile, either, PhoneNumberType.FIXED_LINE, PhoneNumberType.PERSONAL_NUMBER}
    decided: set[int] = set()
    for region in [None, *regions]:
        for match in PhoneNumberMatcher(found[0], region, leniency=Leniency.EXACT_GROUPING):
            start, end = found.start() + match.start, found.start() + match.end
            if not decided.isdisjoint(range(start, end)):
                continue
            decided.update(range(start, end))
            alone = re.fullmatch(r"\d+(\.\d+)?", match.raw_string)
            wanted = {mobile, either} if alone else anyones
            told = not alone or _CALL.search(text, max(0, start - 24), start)
            if (
                told
                and number_type(match.number) in wanted
                and not _is_fiction(match.number)
                and not _is_part(text, start, end)
            ):
                return True
    return False


_CALL = re.compile(r"tel|phone|mobile|\bcell|\bcall|whatsapp|\bsms\b|wechat|电话|手机|联系|号码|微信|致电|拨打", re.IGNORECASE)

FICTION = {
    1: r"\d{3}555\d{4}",
    44: r"2079460\d{3}|7700900\d{3}|1632960\d{3}|1\d\d4960\d{3}",
    61: r"[2378]5550\d{4}|491570\d{3}",
}
"""By country code, the numbers that regulators keep free for films and books; in North America all of 555."""


def _is_fiction(number: Any) -> bool:
    digits = str(number.national_number)
    kept_free = re.fullmatch(FICTION.get(number.country_code, "(?!)"), digits)
    return bool(kept_free) or re.search(r"123456|0000|(\d)\1{5}", digits) is not None or digits == "13800138000"


# fmt: off
TEST_CARDS = frozenset({
    "4111111111111111", "4242424242424242", "4012888888881881", "4000056655665556", "5555555555554444",
    "5105105105105100", "2223003122003222", "378282246310005", "371449635398431", "6011111111111117", "6011000990139424",
    "30569309025904", "38520000023237", "3530111333300000",
})
# fmt: on
"""Card numbers that payment services publish for trying things out."""


def _is_card(found: str) -> bool:
    from stdnum import luhn

    digits = re.sub(r"\D", "", found)
    brand = re.match(
        r"4\d{15}$|(5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720)\d{12,14}$|3[47]\d{13}$|6(011|5)\d{12,13}$|62\d{14,17}$", digits
    )
    return bool(brand) and luhn.is_valid(digits) and digits not in TEST_CARDS and len(set(digits)) > 3


def _is_iban(found: str) -> bool:
    from stdnum import iban

    return bool(iban.is_valid(found)) and re.sub(r"\s", "", found) not in EXAMPLE_IBANS


EXAMPLE_IBANS = frozenset(
    {"GB82WEST12345698765432", "DE89370400440532013000", "GB29NWBK60161331926819", "FR1420041010050500013M02606"}
)
"""Those by which IBANs are explained everywhere."""


def _is_id(found: str) -> bool:
    from stdnum.cn import ric
    from stdnum.us import ssn

    if "-" in found:
        return bool(ssn.is_valid(found)) and found not in ("123-45-6789", "111-11-1111", "555-55-5555")
    return bool(ric.is_valid(found.upper()))


CHECKS: dict[Kind, Callable[[str], bool]] = {
    "e-mail": _is_email,
    "card": _is_card,
    "iban": _is_iban,
    "id": _is_id,
    "secret": is_secret,
}
