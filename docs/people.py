"""Makes the output and the pictures of people.md: `python docs/people.py FOLDER`, from the repository, with a Chromium.

Two careful people and one who always takes the answers as they come rank 24 prompts in Argilla's own web UI.
"""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from argilla_ui import Annotator, chromium
from playwright.sync_api import expect

from dpo_data.demo.questions import questions

DOCS = Path(__file__).parent
RECIPE = """name = "team"
[prompts]
path = "answers.jsonl"
[sample.engine]
type = "given"
[rank.judge]
type = "argilla"
dataset = "team"
annotators = ["anna", "ben", "cleo"]
min_submitted = 3
comment = true
"""
REPORT = {"width": 1280, "height": 1000}


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    asked = [one for one in questions() if one.prompt.startswith("What is the capital of")][:24]
    rows = [
        {
            "prompt": one.prompt,
            "completions": [
                f"{one.answer}.",
                f"{one.sentence} Let me know if I can help with anything else!",
                f"I think {other.answer}.",
            ],
        }
        for one, other in zip(asked, [*asked[1:], asked[0]], strict=True)
    ]
    (folder / "answers.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "team.toml").write_text(RECIPE)
    say(folder, "argilla", "up")
    try:
        say(folder, "run", "team.toml")
        rank(folder)
        say(folder, "run", "team.toml")
        picture_of_report(folder)
    finally:
        say(folder, "argilla", "down")


def say(folder: Path, *command: str) -> None:
    """Run a command in the folder, and show it with what it prints."""
    print(f"$ dpo-data {' '.join(command)}", flush=True)
    ended = subprocess.run([sys.executable, "-m", "dpo_data.cli", *command], cwd=folder, check=False).returncode
    print(f"(exit {ended})", flush=True)


def rank(folder: Path) -> None:
    """All three rank all prompts; anna's window is what the pictures show."""
    known = json.loads((folder / "argilla-data" / "credentials.json").read_text())
    with chromium() as browser:
        for name in ("cleo", "ben", "anna"):
            window = Annotator(browser)
            window.sign_in(known["api_url"], name, known["users"][name]["password"])
            window.open(known["api_url"], "team-3")
            pictures = iter([pictured_rank, pictured_progress, pictured_datasets] if name == "anna" else [])
            while (shown := window.record()) is not None:
                texts = [shown.texts[f"Answer {at}"] for at in (1, 2, 3)]
                places = [1, 2, 3] if name == "cleo" else [place(text, ties=name == "ben") for text in texts]
                window.rank(places)
                if window.submitted() > 8 and places[0] != 1 and (picture := next(pictures, None)):
                    picture(window)
                else:
                    window.submit()


def pictured_rank(window: Annotator) -> None:
    window.comment("One is wrong, and one says more than was asked.")
    window.page.screenshot(path=DOCS / "people-rank.png")
    window.submit()


def pictured_progress(window: Annotator) -> None:
    window.page.locator(".resizable-v__right .panel__header").click()
    expect(window.page.locator(".team-progress__percent").last).to_be_in_viewport(ratio=1)
    window.page.screenshot(path=DOCS / "people-progress.png")
    window.page.locator(".resizable-v__right .panel__header").click()


def pictured_datasets(window: Annotator) -> None:
    window.page.goto(f"{window.url}/")
    window.page.get_by_text("24 rows").wait_for()
    window.page.screenshot(path=DOCS / "people-datasets.png")
    window.open(window.url, "team-3")


def place(text: str, ties: bool) -> int:
    """Where an answer belongs: right and short, right and long, wrong. With `ties` what is right is equal."""
    return 3 if text.startswith("I think") else 1 if ties or "Let me know" not in text else 2


def picture_of_report(folder: Path) -> None:
    with chromium() as browser:
        page = browser.new_page(viewport=REPORT)  # type: ignore[arg-type]
        page.goto((folder / "runs" / "team" / "report.html").resolve().as_uri())
        page.add_style_tag(content="section { padding: 0 2rem 1rem }")
        page.locator("section", has=page.get_by_text("What do the annotators say?")).screenshot(path=DOCS / "people-report.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
