"""The trained model on the Hub: by its tag it loads as it was trained, with a card of its own numbers, and nothing goes out
that a gate holds back."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import later_stages
import pytest
import yaml
from hub import TOKEN, Fault, HubServer
from hub.clients import in_client
from markdown_it import MarkdownIt
from test_publish import ended, files_of, start, until

from dpo_data import pipeline, weights
from dpo_data.card.markdown import prose
from dpo_data.card.model import model_card
from dpo_data.config import Lineage, Recipe
from dpo_data.errors import GateClosed, NotReady, PublishError, RecipeError
from dpo_data.evaluation import verdict
from dpo_data.evaluation.schema import Estimate, Evaluation, Perplexity
from dpo_data.report.changes import changes
from dpo_data.rundir import RunDir

BASE = "tester/base"
Make = Callable[..., Recipe]
Trained = Callable[..., tuple[Recipe, RunDir]]
Published = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def adapters(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What train leaves as `model`, twice: an adapter of its own on the tiny model, the tokenizer, and what TRL puts beside."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("trained") / "model"
        torch.manual_seed(seed)
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora)
        model.peft_config["default"].base_model_name_or_path = BASE
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
        (folder / "README.md").write_text("TRL's own card")
        (folder / "training_args.bin").write_bytes(b"a pickle")
        made.append(folder)
    return made


@pytest.fixture
def trained(
    tmp_path: Path, recipe: Make, adapters: list[Path], tiny_model: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> Trained:
    """Makes a run whose model is trained and evaluated, in a folder of that name. Its base is on the hub. Keywords go into
    [publish], `tables` replace whole ones."""
    shutil.rmtree(hub.root, ignore_errors=True)
    there = {path.name: path.read_bytes() for path in Path(tiny_model).iterdir()}
    card = b"---\nlicense: apache-2.0\n---\n# The base\n"
    hub.repo(BASE, "models").create(False, "tester", {**there, "README.md": card})
    commit = hub.repo(BASE, "models").resolve("main")

    def make(name: str = "one", adapter: int = 0, tables: Mapping[str, Any] | None = None, **publish: Any) -> Any:
        asked = {"repo_id": "tester/pairs", "model_repo_id": "tester/model", **publish}
        given = {"prompts": {"path": recipe(60).prompts.path, "holdout": 0.3}, "train": {"model": BASE, "beta": 0.2}}
        made, run = recipe(60, **{**given, "publish": asked, **(tables or {})}), RunDir(tmp_path / name)
        for stage in ("sample", "rank", "pair"):
            pipeline.run_stage(stage, made.model_copy(update={"train": None}), run, lambda *_: None)
        later_stages.trained(run, adapters[adapter], BASE, commit)
        later_stages.evaluated(run, thresholds={"fine": 3})
        return made, run

    return make


@pytest.fixture
def push(tmp_path: Path, hub: HubServer) -> Published:
    """`dpo-data publish`, in a process of its own."""

    def run(recipe: Recipe, to: RunDir) -> subprocess.CompletedProcess[str]:
        begun = start(hub, tmp_path, recipe, to)
        out, err = begun.communicate(timeout=240)
        assert TOKEN not in out + err and not [path for path in files_of(to.path) if TOKEN.encode() in path.read_bytes()]
        return subprocess.CompletedProcess("publish", begun.returncode, out, err)

    return run


Loaded = tuple[list[float], str]
"""The first logits of some text's last token, and that text as the tokenizer's chat template has it."""


def load(base: str | None, base_revision: str | None, *wanted: tuple[str, str, str | None]) -> list[Loaded]:
    """Of each (class, model, revision) what the card says to load; of an adapter with that base."""
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = []
    for kind, name, revision in wanted:
        at = {"revision": revision} if revision else {}
        if kind == "PeftModel":
            model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, revision=base_revision), name, **at)
        else:
            model = {"Auto": AutoModelForCausalLM, "AutoPeft": AutoPeftModelForCausalLM}[kind].from_pretrained(name, **at)
        tokenizer = AutoTokenizer.from_pretrained(name, **at)
        text = tokenizer.apply_chat_template([{"role": "user", "content": "What is 1 plus 2?"}], tokenize=False)
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0, -1, :20]
        found.append((logits.tolist(), text))
    return found


def front(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found
    data: dict[str, Any] = yaml.safe_load(found[1])
    return data


@pytest.mark.slow
def test_an_adapter_and_merged_weights_load_by_their_tags_as_they_were_trained(
    trained: Trained, push: Published, hub: HubServer, adapters: list[Path], tiny_model: str, tmp_path: Path
) -> None:
    first, second = trained("one", 0), trained("two", 1, merged=True, repo_id=None)
    said = ended(push(*first))
    assert f"at {hub.url}/datasets/tester/pairs/tree/one and at {hub.url}/tester/model/tree/one, " in said
    ended(push(*second))
    stored = hub.repo("tester/model", "models")
    one, two = (run.stage("publish").require() for _, run in (first, second))
    assert stored.meta["private"] is True and len(stored.history(stored.resolve("main"))) == 3, "one commit a run"
    assert stored.meta["tags"] == {"one": one["model"]["commit"], "two": two["model"]["commit"]}
    assert "commit" not in two and two["urls"] == [f"{hub.url}/tester/model/tree/two"], "no dataset, no commit of it"
    assert sorted(os.listdir(second[1].stage("publish").path)) == ["manifest.json", "model.md", "recipe.json"]
    adapter, merged = (set(stored.tree(of["model"]["commit"])) - {".gitattributes"} for of in (one, two))
    assert adapter == {file["path"] for file in one["model"]["pushed"]} | {"README.md"}
    assert {"curves.png", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= adapter
    assert not [path for path in merged if "adapter" in path], "what would be loaded on top of them is gone"
    for path, entry in stored.tree(two["model"]["commit"]).items():
        content = stored.blob(entry.sha256 or entry.oid).read_bytes()
        assert path == "README.md" or str(tmp_path).encode() not in content, "no path of this machine"
    wanted = [("PeftModel", "tester/model", "one"), ("AutoPeft", "tester/model", "one"), ("Auto", "tester/model", "two")]
    commit = first[1].stage("train").require()["model_revision"]
    found = in_client(hub.environment(tmp_path / "fresh"), load, BASE, commit, *wanted)
    here = load(tiny_model, None, *(("PeftModel", str(adapter), None) for adapter in adapters))
    assert found[:2] == [here[0], here[0]] and found[2][1] == here[1][1]
    assert found[2][0] == pytest.approx(here[1][0], abs=1e-5) and here[0][0] != pytest.approx(here[1][0], abs=1e-2)
    card = (second[1].stage("publish").path / "model.md").read_text()
    assert front(card)["library_name"] == "transformers" and "PeftModel" not in card and "**Pairs**: not published" in card


def forgets(run: RunDir, path: str) -> None:
    """Put into what was evaluated that the perplexity of that text rose."""
    file = run.stage("evaluate").path / "manifest.json"
    manifest = json.loads(file.read_text())
    found = Evaluation(**{name: manifest[name] for name in Evaluation.model_fields})
    rise = Estimate(value=0.1, low=0.05, high=0.15)
    found = found.model_copy(
        update={"perplexity": Perplexity(path=path, texts=1, tokens=100, base=10.0, trained=11.0, rise=rise)}
    )
    told = {**found.model_dump(mode="json"), "worse": verdict.worse(found, [])}
    file.write_text(json.dumps({**manifest, **told}))


def test_the_card_tells_the_runs_own_numbers_and_no_secret(trained: Trained, push: Published, hub: HubServer) -> None:
    tables = {
        "gates": {"min_win_rate": 0.5},
        "train": {"model": BASE, "beta": 0.2},
        "audit": {"groups": {"north": ["annabel"]}},
    }
    recipe, run = trained(tables=tables)
    forgets(run, f"{Path.home()}/notes.txt")
    ended(push(recipe, run))
    card, evaluated = (run.stage("publish").path / "model.md").read_text(), run.stage("evaluate").require()
    stored, manifest = hub.repo("tester/model", "models"), run.stage("publish").require()["model"]
    tree = stored.tree(manifest["commit"])
    assert stored.blob(tree["README.md"].oid).read_text() == card
    assert front(card) == {
        "base_model": BASE,
        "datasets": ["tester/pairs"],
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["dpo", "trl", "preference", "dpo-data"],
    }
    assert f"({hub.url}/datasets/tester/pairs/tree/one) at the tag `one`" in card
    assert "| `beta` | `0.2` |" in card and "| `lora.r` | `16` |" in card and "![Training curves" in card
    assert stored.blob(tree["curves.png"].sha256 or tree["curves.png"].oid).read_bytes().startswith(b"\x89PNG")
    assert f"**{prose(evaluated['verdict'].capitalize())}.**" in card
    lines = changes(evaluated)
    assert lines[0].name == "comparisons won" and "points (" in lines[0].by and lines[0].before != lines[0].after
    for row in lines:
        assert f"| {row.before} | {row.after} | {row.by} |" in card, row.name
    assert f"| `min_win_rate` | ≥ 0.5 | {evaluated['trained']['win_rate']:.4g} |" in card
    worse = card.partition("### What got worse")[2].partition("##")[0]
    told = [sentence.replace(f"{Path.home()}/", "~/") for sentence in evaluated["worse"]]
    assert len(told) > 1 and all(f"- {prose(sentence)}\n" in worse for sentence in told)
    assert "perplexity of \\~/notes.txt: 10 → 11" in worse and str(Path.home()) not in card, "no path of this machine"
    dataset = (run.stage("publish").path / "README.md").read_text()
    assert f"[tester/model]({hub.url}/tester/model/tree/one)" in dataset, "the dataset links back"
    for text in (card, dataset):
        assert "(withheld)" in text and not re.search("annabel", text)
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("\n---\n", 1)[1])
    assert sum(token.type == "heading_open" for token in tokens) == 10 and sum(t.type == "table_open" for t in tokens) == 3


def test_the_bases_licence_is_the_models(trained: Trained, tmp_path: Path) -> None:
    """As the base's card has it, here one in a folder, which is no name for others to load it by."""
    recipe, run = trained()
    file, base = run.stage("train").path / "manifest.json", tmp_path / "base"
    base.mkdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "model": str(base)}))
    named = {"license": "other", "license_name": "own", "license_link": "https://example.com/terms"}
    unknown = ("license: [", "license: two words", "tags: []")
    heads = {"license: mit": {"license": "mit"}, yaml.safe_dump(named): named} | {
        head: {"license": "other"} for head in unknown
    }
    for head, licence in heads.items():
        (base / "README.md").write_text(f"---\n{head}\n---\n# Base\n")
        card = model_card(recipe, run, ["model.safetensors"], "v1")
        found = front(card)
        assert {name: value for name, value in found.items() if name.startswith("license")} == licence
        assert "base_model" not in found and "which is not on the Hub" in card
        assert ("is not known here" in card) == (head in unknown)


def test_the_base_of_a_later_round_is_named_as_it_was(trained: Trained, tmp_path: Path) -> None:
    """Where a round before has trained whole weights, its folder is what this one's were made from, and the base is older."""
    (tmp_path / "base").mkdir()
    first, run = trained(tables={"train": {"model": "round-1/4-train/model", "method": "full"}})
    recipe = first.model_copy(update={"lineage": Lineage(base=str(tmp_path / "base"), round=2)})
    (run.stage("evaluate").path / "recipe.json").write_text(json.dumps({"inputs": {"base": "sha256:1+sha256:2"}}))
    card = model_card(recipe, run, ["model.safetensors"], "v1")
    assert f"{tmp_path}/base`, which is not on the Hub, revision `sha256:1`." in card


def test_an_adapter_stands_on_what_it_was_trained_on(trained: Trained, tiny_model: str) -> None:
    recipe, run = trained(tables={"train": {"model": tiny_model}})
    assert weights.base(recipe, run) == (tiny_model, None)
    file = run.stage("train").path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base": "sft"}))
    assert weights.base(recipe, run) == (str(run.stage("train").path / "sft"), None), "after fine-tuning, that"


class TestNothingGoesOut:
    def test_where_a_gate_after_evaluate_does_not_hold(
        self, trained: Trained, hub: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        recipe, run = trained(tables={"gates": {"min_win_rate": 0.99}})
        asked = len(hub.lines())
        with pytest.raises(GateClosed, match=r"is not published: min_win_rate = 0.99, and it is 0\.\d+"):
            pipeline.run_stage("publish", recipe, run, lambda *_: None)
        assert len(hub.lines()) == asked and not run.stage("publish").path.exists(), "the Hub is asked nothing"
        assert json.loads((run.path / "report.json").read_text())["gates"][0]["holds"] is False

    def test_before_it_is_evaluated(self, trained: Trained, hub: HubServer) -> None:
        recipe, run = trained()
        shutil.rmtree(run.stage("evaluate").path)
        with pytest.raises(NotReady, match="5-evaluate is not complete"):
            pipeline.run_stage("publish", recipe, run, lambda *_: None)
        assert not hub.lines()

    def test_into_a_public_repository(self, trained: Trained, push: Published, hub: HubServer) -> None:
        recipe, run = trained()
        hub.repo("tester/model", "models").create(False, "tester", {})
        done = push(recipe, run)
        assert done.returncode == 4
        assert (
            "tester/model is public, and publish.private is true. Make it private in its settings on the Hub, name another "
            in done.stderr
        )
        assert "publish.model_repo_id" in done.stderr
        assert not hub.lines("/commit/") and not hub.lines("PUT"), "the pairs neither"

    @pytest.mark.parametrize("train", [{}, {"sft": {}}])
    def test_of_an_adapter_whose_base_nobody_else_has(
        self, recipe: Make, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: dict[str, Any]
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        given = {"train": {"model": BASE if train else tiny_model, **train}}
        made = recipe(publish={"model_repo_id": "tester/model"}, **given)
        with pytest.raises(PublishError, match=r"An adapter serves nobody without its base.* Set publish\.merged = true"):
            pipeline.run(made, RunDir(tmp_path / "new"))
        assert not RunDir(tmp_path / "new").stage("sample").path.exists(), "and not after hours"
        whole = recipe(publish={"model_repo_id": "tester/model"}, train={**given["train"], "method": "full"})
        pipeline.ready(whole, RunDir(tmp_path / "new"))


@pytest.mark.slow
def test_killed_while_the_model_is_uploaded_it_goes_on(
    trained: Trained, push: Published, hub: HubServer, tmp_path: Path
) -> None:
    hub.hub.faults.append(Fault(match="^PUT .*/models/", kind="slow", delay=60, times=1))
    recipe, run = trained()
    begun = start(hub, tmp_path, recipe, run)
    until(lambda: bool(hub.lines("PUT /_storage/put/models/")))
    time.sleep(0.1)
    begun.send_signal(signal.SIGKILL)
    begun.communicate()
    assert len(hub.lines("/commit/")) == 1 and not run.stage("publish").manifest, "the dataset's alone"
    uploads = len(hub.lines("PUT /_storage/put/datasets/"))
    hub.hub.faults.extend(
        [Fault(match="POST /api/models/.*/commit/", status=503), Fault(match="POST /api/models/.*/tag/", status=502)]
    )
    ended(push(recipe, run))
    assert len(hub.lines("PUT /_storage/put/datasets/")) == uploads, "what is stored is not sent again"
    commits = [entry["line"] for entry in hub.hub.log if "/commit/" in entry["line"]]
    assert [line.split("/")[2] for line in commits] == ["datasets", "models", "models"]
    manifest = run.stage("publish").require()
    assert hub.repo("tester/pairs").meta["tags"] == {"one": manifest["commit"]}
    assert hub.repo("tester/model", "models").meta["tags"] == {"one": manifest["model"]["commit"]}


def test_a_recipe_that_trains_nothing_has_no_model_to_publish(recipe: Make) -> None:
    with pytest.raises(RecipeError, match=r"publish\.model_repo_id asks for a trained model"):
        recipe(publish={"model_repo_id": "tester/model"})
    with pytest.raises(RecipeError, match=r"names no repository\. Set publish\.repo_id, publish\.model_repo_id, or both"):
        recipe(publish={})


def test_what_a_push_of_a_model_may_delete() -> None:
    ours = ["adapter_config.json", "adapter_model.safetensors", "model-00001-of-00002.safetensors", "config.json", "curves.png"]
    ours += ["model.safetensors.index.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
    others = ["README.md", "notes.txt", "gguf/model.gguf", "pytorch_model.bin", "checkpoints/model.safetensors", "eval.json"]
    assert [weights.is_ours(path) for path in ours + others] == [True] * len(ours) + [False] * len(others)
