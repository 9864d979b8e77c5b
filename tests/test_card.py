"""The card tells the run's own numbers, and no text that it shows can pass for Markdown, front matter or a secret's place."""

import json
import random
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from dpo_data import pipeline
from dpo_data.audit import audit
from dpo_data.card.dataset import dataset_card, size_category
from dpo_data.card.markdown import code, fenced
from dpo_data.card.withheld import nameless, withheld
from dpo_data.config import Recipe, dump
from dpo_data.dataset import gather
from dpo_data.judges.people import Said, entry
from dpo_data.report import facts
from dpo_data.rows import PreferencePair, Ranking
from dpo_data.rundir import RunDir

NASTY = "```\n---\nconfigs: []\n---\n# A heading | of `mine`\n~~~\n<script>x</script> {{ front }}"
Make = Callable[..., Recipe]
Carded = Callable[..., tuple[str, RunDir, Recipe]]


@pytest.fixture
def carded(tmp_path: Path, recipe: Make) -> Carded:
    """Makes a run up to its pairs, and its card."""

    def make(**tables: Any) -> Any:
        asked = {"repo_id": "tester/pairs", "license": "cc-by-4.0", "language": ["en", "de"]}
        made, run = recipe(40, **{"publish": asked, "pair": {"test": 0.2}, **tables}), RunDir(tmp_path / "run")
        for stage in ("sample", "rank", "pair"):
            pipeline.run_stage(stage, made, run, lambda *_: None)
        (tmp_path / "out").mkdir()
        return dataset_card(made, run, gather(run, tmp_path / "out", judgments=True), "v1"), run, made

    return make


def front(text: str) -> dict[str, Any]:
    """The front matter, as the Hub's clients find it."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found
    data: dict[str, Any] = yaml.safe_load(found[1])
    return data


def sections(text: str) -> dict[str, str]:
    """The card's parts by their headings."""
    parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_front_matter_is_what_the_hub_reads(carded: Carded) -> None:
    found = front(carded()[0])
    assert (found["license"], found["language"], found["pretty_name"]) == ("cc-by-4.0", ["en", "de"], "test")
    assert found["size_categories"] == ["n<1K"] and found["task_categories"] == ["text-generation"]
    assert set(found["tags"]) == {"preference", "dpo", "dpo-data"}
    configs = {one["config_name"]: one for one in found["configs"]}
    assert [name for name, one in configs.items() if one.get("default")] == ["default"]
    assert configs["default"]["data_files"] == [
        {"split": "train", "path": "default/train-*.parquet"},
        {"split": "test", "path": "default/test-*.parquet"},
    ]
    assert configs["ranked"]["data_files"] == [{"split": "train", "path": "ranked/train-*.parquet"}]


def test_a_split_without_rows_is_not_there(carded: Carded) -> None:
    found = front(carded(pair={"test": 0.0})[0])
    assert [one["split"] for one in found["configs"][0]["data_files"]] == ["train"]


def test_it_tells_the_runs_own_numbers(carded: Carded) -> None:
    text, run, made = carded(rank={"judge": {"type": "pairwise"}})
    told = sections(text)
    for step in facts.funnel(run):
        assert f" | {step.count} |" in told["What became of the prompts"], step
    assert told["What became of the prompts"].count("\n|") == 2 + len(facts.funnel(run))
    found = audit(made, run)
    assert found and found.ties and found.order[0].flipped and found.order[0].flipped.value
    flips = f"{100 * found.order[0].flipped.value:.0f} % of what `pairwise:echo` said of {found.order[0].flipped.count} twos"
    assert flips in told["What to know before training"]
    assert f"{100 * found.ties.value:.0f} % of all twos" in told["What to know before training"]
    words = facts.pairs(run)[0].summary()
    assert words
    assert f"the longer one in {100 * words.chosen_longer:.0f} % of the pairs" in told["What to know before training"]
    how = told["How it was made"]
    assert "`echo` (160)" in how and "`temperature = 0.8`" in how and "`seed = 0`" in how
    recipe = run.stage("rank").recipe
    assert recipe and f"template `{recipe['inputs']['template']}`" in how
    assert "**Decontamination**: none." in how
    assert 'load_dataset("tester/pairs", "ranked", revision="v1")' in told["How to load it"]
    example = json.loads(told["An example"].split("```")[1].removeprefix("json"))
    assert example["prompt_id"] == next(run.stage("pair").rows(PreferencePair, "train.parquet")).prompt_id
    assert dump(made).strip() in told["The recipe"]
    assert "`cc-by-4.0`" in told["Licences"] and "not the truth" in told["Known limits and biases"]


def test_it_says_what_was_decontaminated(carded: Carded, tmp_path: Path, prompts: Callable[[int], str]) -> None:
    evaluation = tmp_path / "evaluation.jsonl"
    evaluation.write_text(json.dumps({"prompt": "Question 3: name 5 rivers"}) + "\n")
    against = {"against": [str(evaluation)], "n": 3, "share": 0.9}
    text, run, _ = carded(prompts={"path": prompts(40), "near_duplicates": 1, "decontaminate": against})
    assert run.stage("sample").require()["contaminated"] == 1
    assert (
        f"**Decontamination** against `{evaluation}`: 1 prompts were dropped, which hold at least 90 % of the 3-grams" in text
    )


def test_it_is_the_same_card_each_time(carded: Carded, tmp_path: Path) -> None:
    text, run, made = carded()
    (tmp_path / "again").mkdir()
    assert dataset_card(made, run, gather(run, tmp_path / "again", judgments=True), "v1") == text


def test_no_text_breaks_out_of_its_place(carded: Carded, tmp_path: Path) -> None:
    file = tmp_path / "nasty.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{at}. {NASTY}"}) + "\n" for at in range(30)))
    sample = {"n": 4, "engine": {"type": "echo"}, "params": {"stop": [NASTY]}}
    text = carded(prompts={"path": str(file), "near_duplicates": 1}, sample=sample)[0]
    assert front(text)["configs"][0]["config_name"] == "default"
    body = text.split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark").parse(body)
    assert sum(token.type == "heading_open" for token in tokens) == 13, "those of the template alone"
    (example,) = (json.loads(token.content) for token in tokens if token.type == "fence" and token.info == "json")
    assert example["prompt"][0]["content"].endswith(NASTY), "and it is shown as it is"
    assert "<script>" not in MarkdownIt().render(body)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip))
def test_code_within_a_line_is_shown_as_it_is(text: str) -> None:
    inline = MarkdownIt("commonmark").parse(f"x {code(text)} y")
    (children,) = (token.children or [] for token in inline if token.type == "inline")
    assert [token.content.split() for token in children if token.type == "code_inline"] == [text.split()]


@given(st.text(st.sampled_from("`~-#\n ab|<"), min_size=1).filter(str.strip))
def test_a_fenced_block_is_shown_as_it_is(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(f"before\n\n{fenced(text, 'toml')}\n\nafter")
    (block,) = (token for token in tokens if token.type == "fence")
    assert (block.content, block.info) == (text.rstrip() + "\n", "toml")
    assert [token.content for token in tokens if token.type == "inline"] == ["before", "after"]


@pytest.mark.parametrize(
    "line",
    [
        'hf_token = "whatever-it-is"',
        "api_key = 'x'",
        'args = { hub_token = "x", size = 3 }',
        'base_url = "https://me:whatever-it-is@host/v1"',
        'note = "sk-abcdefghijklmnop0123"',
    ],
)
def test_what_looks_like_a_secret_is_withheld(line: str) -> None:
    shown = withheld(line)
    assert "(withheld)" in shown and "whatever" not in shown and "sk-" not in shown
    assert withheld(shown) == shown
    ordinary = 'max_tokens = 256\nkey_env = "OPENAI_API_KEY"\npath = "hf://datasets/a/b"\nbase_url = "http://host:8000/v1"\n'
    assert withheld(ordinary) == ordinary


def test_the_home_folder_is_not_named() -> None:
    assert withheld(f'path = "{Path.home()}/prompts.jsonl"') == 'path = "~/prompts.jsonl"'


@pytest.mark.parametrize(
    ("rows", "name"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**6, "1M<n<10M"), (10**12, "n>1T")],
)
def test_size_categories(rows: int, name: str) -> None:
    assert size_category(rows) == name


def test_it_says_how_annotators_agree_and_names_none(carded: Carded, tmp_path: Path) -> None:
    _, run, made = carded(
        rank={"judge": {"type": "cascade", "first": {"type": "rule", "rule": "concise"}, "then": {"type": "pairwise"}}},
        audit={"groups": {"north*": ["annabel"], "south": ["benedict", "cleopatra"]}},
    )
    stage = run.stage("rank")
    ranked = stage.require()
    for path in stage.shards():
        rows = []
        for row in stage.rows(Ranking, path.name):
            dice = random.Random(row.prompt_id)
            scores = dict(zip(row.completion_ids, dice.sample(range(4), 4), strict=True))
            said = [
                entry(Said(who, "submitted", row.completion_ids, {id: side * score for id, score in scores.items()}))
                for who, side in (("annabel", -1.0), ("benedict", 1.0), ("cleopatra", 1.0))
            ]
            rows.append(replace(row, transcript=json.dumps(said)))
        stage.write(path.name, rows, Ranking)
    stage.finish(**{name: ranked[name] for name in ("prompts", "abstained", "judge", "calls")})
    (tmp_path / "again").mkdir()
    text = dataset_card(made, run, gather(run, tmp_path / "again", judgments=False), "v1")
    known = sections(text)["What to know before training"]
    found = audit(made, run)
    assert found and found.annotation and found.annotation.agreement and found.annotation.agreement.alpha
    alpha = f"{found.annotation.agreement.alpha.value:.4g}".replace("-", "−")
    assert (
        f"**People**: 3 ranked; {found.prompts} prompts have the answers of several. Krippendorff's α" in known
        and alpha in known
    )
    assert "**Mind**: The annotators agree little: Krippendorff's α" in known
    assert 'groups."north*"' in text or '"north*" = [' in text
    assert not re.search("annabel|benedict|cleopatra", text)


def test_names_of_annotators_are_withheld_wherever_they_stand() -> None:
    shown = nameless(
        'name = "x"\n[rank.judge]\ntype = "panel"\n[[rank.judge.judges]]\ntype = "terminal"\nannotator = "anna"\n'
        '[[rank.judge.judges]]\ntype = "argilla"\ndataset = "d"\nannotators = ["ben", "cleo"]\n[audit.groups]\nall = ["anna"]\n'
    )
    assert tomllib.loads(shown) == {
        "name": "x",
        "rank": {
            "judge": {
                "type": "panel",
                "judges": [
                    {"type": "terminal", "annotator": "(withheld)"},
                    {"type": "argilla", "dataset": "d", "annotators": ["(withheld)", "(withheld)"]},
                ],
            }
        },
        "audit": {"groups": {"all": ["(withheld)"]}},
    }
