"""An annotator before Argilla's own web UI, in a headless Chromium: signs in, reads a record, answers by mouse and keyboard.

Every step waits for what it brings about: the server's reply, or what the page shows next. Nothing sleeps.
"""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, Locator, Page, Response, Route, ViewportSize, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WINDOW = ViewportSize(width=1280, height=800)
PATIENCE = 30_000
"""How long the page may take for a step, in milliseconds: the machine may be busy."""
expect.set_options(timeout=PATIENCE)
RECORD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium, Playwright's own is not needed; skips the test, and says so, where there is none."""
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM HERE: install chromium or google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Shown:
    """The record on the page: its id at the server, and its texts by the titles of their fields."""

    id: str
    texts: dict[str, str]


class Annotator:
    """One person at a browser window of their own, which reaches the server at `url` and nothing else. `outside` is what the
    page asked of others: web fonts."""

    def __init__(self, browser: Browser) -> None:
        context = browser.new_context(viewport=WINDOW)
        context.set_default_timeout(PATIENCE)
        context.route("**/*", self._inside)
        self.page: Page = context.new_page()
        self.url = ""
        self.outside: list[str] = []

    def _inside(self, route: Route) -> None:
        if route.request.url.startswith(f"{self.url}/"):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def sign_in(self, url: str, username: str, password: str) -> None:
        self.url = url.rstrip("/")
        self.page.goto(f"{self.url}/sign-in")
        self.page.locator("input[type=text]").fill(username)
        self.page.locator("input[type=password]").fill(password)
        self.page.locator("button[type=submit]").click()
        self.page.wait_for_url(re.compile(r"^(?!.*sign-in)"))
        expect(self.page.get_by_text("Your datasets")).to_be_visible()

    def open(self, url: str, dataset: str) -> None:
        """Open a dataset by its id, or by its name in the list of datasets; its first pending record is shown."""
        self.url = url.rstrip("/")
        if RECORD_ID.match(dataset):
            self.page.goto(f"{self.url}/dataset/{dataset}/annotation-mode")
        else:
            self.page.goto(f"{self.url}/")
            self.page.get_by_text(dataset, exact=True).first.click()
        self._settled()

    def _settled(self) -> None:
        """Wait for a record, or the word that none is left."""
        expect(self._content().first.or_(self._empty())).to_be_visible()

    def _content(self, record: str = "") -> Locator:
        """The texts of the record on the page; of this one, if it is named."""
        return self.page.locator(".record [id^=fields-content-]" + (f"[id$='{record}']" if record else ""))

    def _empty(self) -> Locator:
        return self.page.locator(".wrapper__text").first

    # What is on the page.

    def record(self) -> Shown | None:
        """The record shown, or None where the queue is empty."""
        if not self._content().first.is_visible():
            return None
        texts = {}
        for part in self.page.locator(".record .fields > div").all():
            title = part.locator(".chat__title, .text_field_component__title-content").first.inner_text().strip()
            bubbles = part.locator(".chat__bubble")
            texts[title] = (bubbles if bubbles.count() else part.locator("[id^=fields-content-]")).first.inner_text().strip()
        return Shown(self._id(), texts)

    def _id(self) -> str:
        found = RECORD_ID.search(self._content().first.get_attribute("id") or "")
        assert found
        return found[0]

    def ranks(self) -> list[int | None]:
        """The rank that each answer has on the page, in the order of the answers: None where it is in no slot."""
        slots = self.page.locator(".draggable__slot")
        placed: dict[str, int] = {}
        for at in range(slots.count()):
            for card in slots.nth(at).locator("[id^=answer_]:not([id$=-span])").all():
                placed[card.get_attribute("id") or ""] = at + 1
        return [placed.get(f"answer_{at}") for at in range(1, slots.count() + 1)]

    def total(self) -> int:
        """How many records are in the queue that is shown."""
        if not self._content().first.is_visible():
            return 0
        return int(re.sub(r"\D", "", self.page.get_by_label("Total Records").inner_text()))

    def submitted(self) -> int:
        """How many this annotator has submitted, as the page counts."""
        return int(self.page.locator(".status-counter__counter").first.inner_text())

    def progress(self) -> str:
        """What share of the dataset all together have done, as `50.00%`."""
        return self.page.locator("#team-progress-percent").inner_text().strip()

    def awaits_progress(self, submitted: int, done: str) -> None:
        """Wait until the page says so. It asks the server when it is opened, which counts a moment after an answer: so it is
        opened again and again."""
        until = time.monotonic() + PATIENCE / 1000
        while (self.submitted(), self.progress()) != (submitted, done):
            assert time.monotonic() < until, f"{self.submitted()} submitted, {self.progress()} done"
            self.page.reload()
            self._settled()

    # What the annotator does.

    def rank(self, ranks: list[int]) -> None:
        """Give each answer its rank, in the order of the answers: click its card, press the slot's number. The page gathers
        digits for 300 ms, for slots above 9; Escape ends that at once."""
        for at, rank in enumerate(ranks, 1):
            self.page.locator(f"#answer_{at}").click()
            self.page.keyboard.press("Escape")
            self.page.keyboard.type(str(rank))
            expect(self.page.locator(".draggable__slot").nth(rank - 1).locator(f"#answer_{at}")).to_be_visible()
            self.page.keyboard.press("Escape")

    def rate(self, ratings: list[int]) -> None:
        """Rate each answer, in their order."""
        for at, rating in enumerate(ratings, 1):
            self._choose(f"rating_{at}", str(rating))

    def prefer(self, better: str) -> None:
        """Choose between two answers: "Answer 1", "Answer 2" or the tie, by the words on the page."""
        self._choose("better", better)

    def _choose(self, question: str, option: str) -> None:
        self.page.get_by_label(f"Question: {question}", exact=True).locator("label").get_by_text(option, exact=True).click()

    def comment(self, text: str) -> None:
        self.page.get_by_label("Question: comment").locator("[contenteditable]").click()
        self.page.keyboard.type(text)

    def submit(self) -> None:
        """Submit, and see the next record, or that none is left."""
        self._answer("submit", "submitted")

    def discard(self) -> None:
        self._answer("discard", "discarded")

    def _answer(self, button: str, status: str) -> None:
        before = self._id()
        self._saved(button, status)
        expect(self._content(before)).to_have_count(0)
        self._settled()

    def save_draft(self) -> None:
        """Save what is answered so far; the record stays on the page."""
        self._saved("draft", "draft")

    def _saved(self, button: str, status: str) -> None:
        """Press a button of the form and wait until the server has taken the answer, with that status."""

        def taken(response: Response) -> bool:
            return "/responses" in response.url and response.request.method in ("POST", "PUT")

        with self.page.expect_response(taken) as waited:
            self.page.locator(f".button--{button}").click()
        assert waited.value.ok and waited.value.json()["status"] == status

    def queue(self, status: str) -> None:
        """Show another queue of the annotator's own: pending, draft, discarded or submitted."""
        self.page.get_by_label("Filter Records by Status").get_by_role("button").first.click()
        with self._searched():
            self.page.locator(f".filter-status li.option.{status}").click()

    def search(self, words: str) -> None:
        """Search the texts of the queue shown."""
        box = self.page.locator(".search-area__input")
        if not box.is_visible():
            self.page.locator(".search-area__icon").first.click()
        box.fill(words)
        with self._searched():
            box.press("Enter")

    def only(self, name: str, value: str) -> None:
        """Filter the queue shown by a value of the metadata that annotators may see."""
        self.page.locator(".filters__filter-button button").click()
        self.page.locator(".metadata-filter button").first.click()
        panel = self.page.locator(".metadata-filter .dropdown__content")
        panel.locator(".category__item").get_by_text(name, exact=True).click()
        with self._searched():
            panel.get_by_text(value).first.click()

    @contextmanager
    def _searched(self) -> Iterator[None]:
        """Wait until the page shows the first of the records that come anew, and their number."""
        with self.page.expect_response(lambda response: "/records/search" in response.url and response.ok) as waited:
            yield
        found = waited.value.json()
        if found["items"]:
            expect(self._content(found["items"][0]["record"]["id"]).first).to_be_visible()
            expect(self.page.get_by_label("Total Records")).to_have_text(f"of {found['total']}")
        else:
            expect(self._empty()).to_be_visible()
