"""A run's report says what its keys mean, works on a run that is half done, and is a page that can do no harm."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from argilla_ui import chromium
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from dpo_data import pipeline
from dpo_data.config import Evaluate, Recipe, parse
from dpo_data.errors import DpoDataError
from dpo_data.evaluation.summary import summary
from dpo_data.report import last_words, percent, report
from dpo_data.report.evaluation import _two, differences, marked
from dpo_data.report.schema import Part, Report
from dpo_data.rows import Completion, PreferencePair, Ranking, Sample
from dpo_data.rundir import RunDir

Make = Callable[..., Recipe]

HARM = "<script>alert(1)</script><img/src=x/onerror=alert(2)>"


def echo_run(folder: Path, **judge: Any) -> tuple[Recipe, RunDir]:
    """A run of the echo engine, to pairs: 60 prompts, the first one twice, some held out, all with markup in them."""
    path = folder / "prompts.jsonl"
    texts = [f"Name {at + 2} rivers in {HARM} please, if you can" for at in range(60)]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in [texts[0], *texts]))
    recipe = parse(
        {
            "name": "test",
            "prompts": {"path": str(path), "holdout": 0.2},
            "sample": {"n": 4, "max_tokens": 8, "shard_size": 8, "engine": {"type": "echo"}},
            "rank": {"judge": judge},
            "pair": {"test": 0.2},
        }
    )
    run = RunDir(folder / "run")
    for name in pipeline.stages_of(recipe):
        pipeline.run_stage(name, recipe, run, lambda stage, done, total: None)
    return recipe, run


def judged(run: RunDir, samples: dict[str, list[Sample]], rankings: list[Ranking]) -> None:
    """Puts an evaluation with these answers and verdicts in the place of the run's own."""
    stage = run.stage("evaluate")
    shutil.rmtree(stage.path, ignore_errors=True)
    stage.open({}, {})
    for who, rows in samples.items():
        stage.write(f"{who}.parquet", rows, Sample)
    stage.write("rank.parquet", rankings, Ranking)
    stage.finish(**summary(samples, rankings, Evaluate(), {}).model_dump(mode="json"))


def train(run: RunDir) -> None:
    """What training leaves, with a log in TRL's form."""
    stage = run.stage("train").open({}, {})
    metrics = {"rewards/chosen": 0.1, "rewards/rejected": -0.2, "rewards/margins": 0.3, "rewards/accuracies": 0.9}
    logged = [{"step": 5, "loss": 0.69, "logps/chosen": -20.5, **metrics}, {"step": 10, "loss": 0.55, **metrics}]
    held_out = {"loss": 0.45, "rewards/accuracies": 0.8}
    told = {"step": 10, **{f"eval_{name}": value for name, value in held_out.items()}}
    stage.write_text("metrics.json", json.dumps([*logged, {**logged[-1], "step": 15, "loss": 0.41}, told]))
    stage.finish(
        model="m", model_revision=None, pairs=30, too_long=1, max_length=50, precision="fp32", device="cpu", steps=15,
        resumed_at=0, held_out=held_out,
    )  # fmt: skip


def evaluate(run: RunDir, prompts: int) -> None:
    """What evaluation leaves: the base model scores 1 and 3, the trained one always 3."""

    def answers(who: str, at: int) -> list[Completion]:
        return [Completion(f"{who}{at}{i}", i, f"{who} {HARM}", "stop", 3, -1.0, who) for i in range(2)]

    samples = {
        who: [Sample(f"{at:02d}", [{"role": "user", "content": "?"}], "x", answers(who, at), None) for at in range(prompts)]
        for who in ("base", "trained")
    }
    both = [base.completions + trained.completions for base, trained in zip(*samples.values(), strict=True)]
    rankings = [
        Ranking(f"{at:02d}", "j", [c.completion_id for c in of_prompt], [1.0, 3.0, 3.0, 3.0], None, "[]")
        for at, of_prompt in enumerate(both)
    ]
    stage = run.stage("evaluate").open({}, {})
    for who, rows in samples.items():
        stage.write(f"{who}.parquet", rows, Sample)
    stage.write("rank.parquet", rankings, Ranking)
    settings = Evaluate(thresholds={"concise and correct": 3, "correct": 1})
    stage.finish(**summary(samples, rankings, settings, run.stage("train").manifest or {}).model_dump(mode="json"))


Whole = tuple[Recipe, RunDir, dict[str, Any]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run with every stage, and its report; not to be changed."""
    recipe, run = echo_run(tmp_path_factory.mktemp("whole"), type="rule", rule="concise")
    train(run)
    evaluate(run, run.stage("sample").require()["held_out"])
    return recipe, run, report(recipe, run)


@pytest.fixture
def copy(whole: Whole, tmp_path: Path) -> tuple[Recipe, RunDir]:
    """The same run, to change."""
    shutil.copytree(whole[1].path, tmp_path / "run")
    return whole[0], RunDir(tmp_path / "run")


def test_a_whole_run(whole: Whole) -> None:
    _, run, told = whole
    assert told == json.loads((run.path / "report.json").read_text())
    assert told["evaluate"]["base"]["score"] == 0.5 and told["evaluate"]["trained"]["score"] == 1.0
    rows = {name: sum(1 for _ in run.stage("pair").rows(PreferencePair, f"{name}.parquet")) for name in ("train", "test")}
    assert {name: told["pairs"][name] for name in rows} == rows
    assert told["lengths"]["words"]["chosen"]["count"] == rows["train"] + rows["test"] == told["scores"]["margin"]["count"]
    assert told["lengths"]["words"]["chosen_longer"] == 0.0  # the judge prefers fewer words
    assert told["lengths"]["tokens"] == told["lengths"]["words"]  # the echo engine's tokens are words
    assert told["train"]["first"]["loss"] == 0.69 and told["train"]["last"]["loss"] == 0.41
    assert told["train"]["held_out"] == {"loss": 0.45, "rewards/accuracies": 0.8}
    assert set(told["timings"]) == {"sample", "rank", "pair", "train", "evaluate"}
    assert (run.path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(told["examples"]["pairs"]) == 6 and told["examples"]["evaluate"][0]["score_base"] == 1.0


def test_the_same_run_gives_the_same_files(whole: Whole, copy: tuple[Recipe, RunDir]) -> None:
    files = ("report.json", "report.html", "curves.png")
    for name in files:
        (copy[1].path / name).unlink()
    report(*copy)
    assert [(copy[1].path / name).read_bytes() for name in files] == [(whole[1].path / name).read_bytes() for name in files]


def test_last_words_tell_the_headline_first(whole: Whole) -> None:
    _, run, told = whole
    pairs, seconds = told["pairs"], sum(told["timings"].values())
    dropped = ", ".join(f"{count} {name}" for name, count in pairs["dropped"].items())
    assert last_words(told, run).splitlines() == [
        "concise and correct    50 % → 100 %",
        "correct               100 % → 100 %",
        "comparisons won        25 % →  75 %",
        "words an answer         2.0 →   2.0",
        "verdict               better: 75 % of comparisons won, 95 % interval 75–75 %",
        "got worse             nothing measured",
        f"pairs                 {pairs['train']} train, {pairs['test']} test",
        f"dropped               {sum(pairs['dropped'].values())} ({dropped})",
        f"time                  {seconds:.1f} s",
        f"report                {run.path}/report.html",
    ]


@pytest.mark.parametrize("finished", [0, 1, 2, 3, 4])
def test_a_run_that_is_half_done(copy: tuple[Recipe, RunDir], finished: int) -> None:
    made, run = copy
    names = [name for name in pipeline.STAGES if name != "publish"]
    for name in names[finished:]:
        (run.stage(name).path / "manifest.json").unlink()
    told = report(made, run)
    assert [told["stages"][name]["state"] for name in names] == ["complete"] * finished + ["begun"] * (5 - finished)
    found = [bool(told[key]) for key in ("funnel", "audit", "pairs", "train", "evaluate")]
    assert found == [True] * finished + [False] * (5 - finished)
    assert "not finished" in last_words(told, run)
    assert told["name"] in (run.path / "report.html").read_text()


@pytest.mark.parametrize("name", ["sample", "rank", "pair", "train"])
def test_a_stage_in_the_middle_that_is_redone(copy: tuple[Recipe, RunDir], name: str) -> None:
    made, run = copy
    (run.stage(name).path / "manifest.json").unlink()
    told = report(made, run)
    assert (told["train"] is None, told["evaluate"] is None) == ((True, True) if name == "train" else (False, False))
    assert told["name"] in (run.path / "report.html").read_text()


def test_an_empty_folder_has_a_report_too(recipe: Make, tmp_path: Path) -> None:
    told = report(recipe(), RunDir(tmp_path / "new"))
    assert {stage["state"] for stage in told["stages"].values()} == {"not begun"}
    assert "No stage has begun" in (tmp_path / "new" / "report.html").read_text()


def test_a_pairwise_judge_is_audited(tmp_path: Path) -> None:
    made, run = echo_run(tmp_path, type="pairwise")
    entries = [entry for text in run.stage("rank").column("transcript") for entry in json.loads(text)]
    asked = [entry for entry in entries if entry["verdicts"] != [None, None]]
    told = report(made, run)
    (order,) = told["audit"]["order"]
    assert order["asked"] == order["flipped"]["count"] == len(asked) > 0 and order["unread"] == 0
    assert 0 < order["flipped"]["value"] == pytest.approx(sum(entry["flipped"] for entry in asked) / len(asked))
    assert told["audit"]["calls"]["calls"] > 0
    page = (run.path / "report.html").read_text()
    assert "Can the judge be trusted?" in page and "its verdict changes with the order" in page and "tokens written" in page


def test_a_rule_has_few_figures_and_the_page_shows_no_others(whole: Whole) -> None:
    _, run, told = whole
    found = told["audit"]
    assert [key for key, value in found.items() if not value and key != "abstained"] == [
        "abstentions", "own_family", "order", "members", "people", "annotation", "route", "warnings",
    ]  # fmt: skip
    assert found["longer_wins"]["high"] < found["longer_wins"]["expected"] == 0.5  # the judge prefers fewer words
    assert found["length"]["high"] < found["length"]["expected"] == 0
    page = (run.path / "report.html").read_text()
    section = page[page.index("Can the judge be trusted?") : page.index("Lengths and scores")]
    assert "50 % without bias; clearly less" in section.replace("\u00a0", " ")
    for absent in ("Gates", "why it abstained", "shown first", "its judges agree", "agree with people", "the judging took"):
        assert absent not in section


def test_an_interval_is_drawn_where_it_lies(whole: Whole) -> None:
    _, run, told = whole
    ties = told["audit"]["ties"]
    page = (run.path / "report.html").read_text()
    row = page[page.index("two answers score the same") :]
    left, width = re.search(r'class="span" style="left:([\d.]+)%;width:([\d.]+)%"', row).groups()  # type: ignore[union-attr]
    dot = re.search(r'class="dot" style="left:([\d.]+)%"', row).group(1)  # type: ignore[union-attr]
    assert float(left) == pytest.approx(100 * ties["low"], abs=0.01)
    assert float(left) + float(width) == pytest.approx(100 * ties["high"], abs=0.02)
    assert float(dot) == pytest.approx(100 * ties["value"], abs=0.01)


def test_a_loss_that_is_not_a_number_is_null(copy: tuple[Recipe, RunDir]) -> None:
    made, run = copy
    metrics = run.stage("train").path / "metrics.json"
    metrics.write_text(metrics.read_text().replace("0.41", "NaN"))
    report(made, run)
    told = json.loads((run.path / "report.json").read_text(), parse_constant=pytest.fail)
    assert told["train"]["last"]["loss"] is None
    assert "not finite" in (run.path / "report.html").read_text()


def test_a_lost_row_is_an_error(copy: tuple[Recipe, RunDir]) -> None:
    made, run = copy
    stage = run.stage("evaluate")
    rows = list(stage.rows(Sample, "trained.parquet"))
    stage.write("trained.parquet", [replace(rows[0], prompt_id="another"), *rows[1:]], Sample)
    with pytest.raises(DpoDataError, match="answer different prompts"):
        report(made, run)


@pytest.mark.parametrize(
    ("share", "words"), [(0, "0 %"), (0.004, "<1 %"), (0.456, "46 %"), (0.994, ">99 %"), (1, "100 %"), (0.05, "5 %")]
)
def test_some_is_never_none_or_all(share: float, words: str) -> None:
    assert percent(share) == words


# The page


class Page(HTMLParser):
    """Every tag of a page, and every attribute that loads or runs something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.links.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def test_the_page_loads_nothing(whole: Whole) -> None:
    html = (whole[1].path / "report.html").read_text()
    page = Page(html)
    assert "svg" in page.tags
    assert not page.tags & {"link", "iframe", "object", "embed", "base"}
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "@import" not in html and html.count("url(") == html.count("url(#")


def test_markup_in_an_answer_is_text(whole: Whole) -> None:
    told = whole[2]
    shown = [example["chosen"] for example in told["examples"]["pairs"]] + [told["examples"]["evaluate"][0]["base"]]
    assert any(HARM in text for text in shown)
    page = Page((whole[1].path / "report.html").read_text())
    assert not page.tags & {"script", "img"} and not page.handlers


def test_plots_take_the_page_s_colours(whole: Whole) -> None:
    html = (whole[1].path / "report.html").read_text()
    plots = html[html.index("<figure") : html.rindex("</figure>")]
    assert plots.count("var(--accent)") > 4 and "var(--ink)" in plots
    assert "#000000" not in plots and "#1b1b1f" not in plots


# Before and after


def words() -> st.SearchStrategy[str]:
    return st.text(st.sampled_from("ab .\n<>&é,"), max_size=40)


@given(words(), words())
def test_differences_lose_nothing(before: str, after: str) -> None:
    left, right = differences(before, after)
    assert "".join(text for text, _ in left) == before and "".join(text for text, _ in right) == after
    common = [[word for text, only in side if not only for word in text.split()] for side in (left, right)]
    assert "".join(common[0]) == "".join(common[1])
    if before == after:
        assert not any(only for _, only in (*left, *right))


def test_what_one_side_alone_says_is_marked() -> None:
    told = marked("The capital of France is Paris, I think.", "Paris")
    assert told["base"] == "<del>The capital of France is </del>Paris<del>, I think.</del>" and told["trained"] == "Paris"
    assert marked("<b>1</b> & 2", "<b>1</b> & 3") == {
        "base": "&lt;b&gt;1&lt;/b&gt; &amp; <del>2</del>",
        "trained": "&lt;b&gt;1&lt;/b&gt; &amp; <ins>3</ins>",
    }


def scored(run: RunDir, scores: list[tuple[float | None, float | None]]) -> None:
    """An evaluation in which the base's and the trained model's one answer to each prompt have these scores."""
    samples: dict[str, list[Sample]] = {"base": [], "trained": []}
    rankings = []
    for at, of in enumerate(scores):
        for who, score in zip(samples, of, strict=True):
            answer = Completion(f"{who}{at}", 0, f"{who} says {score}", "stop", 3, -1.0, who)
            samples[who].append(Sample(f"{at:02d}", [{"role": "user", "content": f"prompt {at}"}], "x", [answer], None))
        rankings.append(Ranking(f"{at:02d}", "j", [f"base{at}", f"trained{at}"], list(of), None, "[]"))
    judged(run, samples, rankings)


def test_the_most_improved_come_first_and_then_the_most_harmed(copy: tuple[Recipe, RunDir]) -> None:
    made, run = copy
    count = run.stage("sample").require()["held_out"]
    moves: list[tuple[float | None, float | None]] = [(1.0, 1.0 + at) for at in range(1, 7)] + [
        (9.0, 8.0),
        (9.0, 1.0),
        (None, 1.0),
    ]
    scored(run, moves + [(1.0, 1.0)] * (count - len(moves)))
    shown = report(made, run)["examples"]["evaluate"]
    assert [(one["moved"], one["change"]) for one in shown] == [
        ("improved", 6.0), ("improved", 5.0), ("improved", 4.0), ("improved", 3.0), ("harmed", -8.0), ("harmed", -1.0),
    ]  # fmt: skip
    assert shown[0]["prompt"][0]["content"] == "prompt 5" and shown[0]["trained"] == "trained says 7.0"
    page = (run.path / "report.html").read_text()
    assert "Of 6 prompts that are answered better" in page and "Of 2 prompts that are answered worse" in page
    assert "No prompt is answered worse" not in page


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_the_two_answers_shown_differ_as_the_means_do(before: list[int], after: list[int]) -> None:
    sides = [
        [(Completion(f"{score}", at, "", "stop", 1, None, "m"), float(score)) for at, score in enumerate(of)]
        for of in (before, after)
    ]
    change = fmean(after) - fmean(before)
    ours, theirs = (int(one.completion_id) for one in _two(*sides, change))
    if change:
        assert (theirs - ours) * change > 0
    else:
        assert abs(theirs - ours) == min(abs(a - b) for a in after for b in before)


def test_a_page_says_so_where_nothing_was_harmed(copy: tuple[Recipe, RunDir]) -> None:
    made, run = copy
    count = run.stage("sample").require()["held_out"]
    scored(run, [(1.0, 2.0)] * count)
    told = report(made, run)
    page = (run.path / "report.html").read_text()
    assert "No prompt is answered worse than before" in page and "Nothing that was measured." in page
    assert "Not measured, since the recipe does not ask for it: what it forgot (evaluate.perplexity)" in page
    assert told["evaluate"]["verdict"] == "better: 100 % of comparisons won, 95 % interval 100–100 %"
    assert "verdict           better: 100 % of comparisons won" in last_words(told, run)


def test_a_page_says_so_where_the_model_is_not_shown_to_be_better(copy: tuple[Recipe, RunDir]) -> None:
    made, run = copy
    count = run.stage("sample").require()["held_out"]
    scored(run, [(1.0, 2.0), *[(2.0, 1.0)] * 2, *[(1.0, 1.0)] * (count - 3)])
    report(made, run)
    page = " ".join((run.path / "report.html").read_text().split())
    assert '<p class="verdict unsure"> Not shown to be better: ' in page
    assert "2 prompts are answered worse than before, which may be chance, and 1 better" in page


def summarized(run: RunDir) -> dict[str, str]:
    """The first section's questions and their answers, as one reads them."""
    page = re.sub(r"<wbr>", "", (run.path / "report.html").read_text())
    section = page.partition('<section id="summary">')[2].partition("</section>")[0]
    both = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", section, re.DOTALL)
    return {question: " ".join(unescape(re.sub(r"<[^>]+>", " ", answer)).split()) for question, answer in both}


def test_the_first_section_answers_its_questions(whole: Whole) -> None:
    _, run, told = whole
    pairs, count, ties = told["pairs"], told["evaluate"]["prompts"], told["audit"]["ties"]["value"]
    answers = summarized(run)
    assert list(answers) == [
        "What data?", "How good is it?", "What did training do?", "Is the model better?", "By how much?",
        "How sure is that?", "What got worse?",
    ]  # fmt: skip
    data, good, training, better, much, sure, worse = answers.values()
    assert f"{pairs['train'] + pairs['test']} pairs of a chosen and a rejected answer, {pairs['test']} of them kept" in data
    assert f"from 61 prompts with 4 answers each by echo. {sum(pairs['dropped'].values())} prompts and pairs" in data
    assert good.startswith(f"rule:concise ranked the answers. It abstains on 0 % of prompts and ties {percent(ties)} of twos.")
    assert training.startswith(
        "m saw 30 pairs in 15 steps; the loss went from 0.69 to 0.41, and of the test pairs it tells 80 %"
    )
    assert better == "Better: 75 % of comparisons won, 95 % interval 75–75 %."
    assert much.startswith("Concise and correct: 50 % → 100 %, +50 points (+50 to +50). Correct: 100 % → 100 %, +0 points")
    assert f"{count} prompts are answered better than before, 0 worse, 0 the same." in much
    assert sure.startswith(f"{4 * count} comparisons on {count} held-out prompts, 50 % of them ties.")
    assert worse.startswith("Nothing that was measured.")


def test_a_model_that_answers_little_is_told_of_everywhere(copy: tuple[Recipe, RunDir]) -> None:
    """The rule could score none of its answers to five prompts, and at two it failed."""
    made, run = copy
    count = run.stage("sample").require()["held_out"]
    scored(run, [(2.0, None)] * 5 + [(2.0, 2.0)] * (count - 5))
    stage, error = run.stage("evaluate"), {"kind": "error", "error": "the rule returned None"}
    rankings = [
        replace(row, transcript=json.dumps([{**error, "completion_id": id} for id in row.completion_ids[1:]]))
        for row in stage.rows(Ranking, "rank.parquet")
    ]
    samples = {who: list(stage.rows(Sample, f"{who}.parquet")) for who in ("base", "trained")}
    samples["trained"][-2:] = [replace(row, completions=[], error="lost") for row in samples["trained"][-2:]]
    stage.write("trained.parquet", samples["trained"], Sample)
    stage.write("rank.parquet", rankings, Ranking)
    stage.finish(**summary(samples, rankings, Evaluate(n=1), {}).model_dump(mode="json"))
    told = report(made, run)
    assert [(one["moved"], one["change"], one["score_trained"]) for one in told["examples"]["evaluate"]] == [
        ("harmed", None, None)
    ] * 4
    answers, page = summarized(run), " ".join((run.path / "report.html").read_text().split()).replace("\u00a0", " ")
    assert answers["Is the model better?"].startswith("Worse: ") and "Of 7 prompts that are answered worse" in page
    judged = percent((count - 7) / count)
    assert f"Fewer answers that were judged: 100 % → {judged}." in answers["What got worse?"]
    assert "More prompts without any answer: 0 → 2" in answers["What got worse?"]
    row = page.partition('<span class="name">answers that were judged')[2].partition("</div>")[0]
    assert f"<s>100 %</s> {judged}</span>" in row
    row = page.partition('<span class="name">prompts without any answer')[2].partition("</div>")[0]
    assert "<s>0</s> 2</span>" in row


def test_markup_in_a_marked_answer_does_nothing_in_a_browser(whole: Whole) -> None:
    with chromium() as browser:
        page = browser.new_page()
        alarms: list[str] = []
        page.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
        page.goto((whole[1].path / "report.html").as_uri())
        assert "<script>alert(1)</script>" in page.locator("#evaluation").inner_text()
        assert page.locator("#evaluation ins").count() > 0 and page.locator("#evaluation :is(script, img)").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        page.set_viewport_size({"width": 380, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), "on a phone too"
        assert not alarms


# The schema


@pytest.mark.parametrize("kind", Part.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_key_says_what_it_is(kind: type[BaseModel]) -> None:
    assert kind.model_fields
    assert not [name for name, field in kind.model_fields.items() if not field.description]


def test_an_unknown_key_is_refused(whole: Whole) -> None:
    told = json.loads(json.dumps(whole[2]))
    Report.model_validate(told)
    for at in (
        told,
        told["pairs"],
        told["evaluate"]["base"],
        told["lengths"]["words"]["chosen"],
        told["audit"],
        told["audit"]["ties"],
    ):
        at["surprise"] = 1
        with pytest.raises(ValidationError, match="surprise"):
            Report.model_validate(told)
        del at["surprise"]
