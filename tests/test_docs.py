# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The pages for readers: their code runs, their commands, links and files exist, and their lines can be read.

Code runs on tiny checkpoints in the place of those that it names, page by page and block by block. The README's
session is one of real processes; in the other pages both parties are threads, to save half a minute each.
"""

import dataclasses
import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import datasets
import pytest
import torch
from transformers import BertModel, ModernBertModel
from typer.testing import CliRunner

from hf_securerouter import SecureRouterClient, SecureRouterForSequenceClassification, cli
from hf_securerouter.families import FAMILIES
from hf_securerouter.mpc.models import architecture
from hf_securerouter.mpc.net.cost import Cost
from hf_securerouter.mpc.protocols import base
from hf_securerouter.mpc.secure_model import SecureModel
from hf_securerouter.mpc.sessions.session import Answer, Session, SessionError
from hf_securerouter.recipes.arguments import RunArguments
from hf_securerouter.recipes.cotrained_pool import CotrainArguments
from hf_securerouter.trainer import SecureRouterTrainingArguments
from tests.support import ROOT
from tests.support.clear_servers import Servers
from tests.support.conversation import Conversation
from tests.tiny import family_config, modern_config, noisy_classifier, pool_model


README_BYTES, PROSE = 9216, 400
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
OTHERS = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "model_cards/README.md", "model_cards/NOTES.md"]
OWN = (RunArguments, CotrainArguments)
ETTIN = {"jhu-clsp/ettin-encoder-17m": 1, "jhu-clsp/ettin-encoder-150m": 2}
CHECKPOINTS = {"prajjwal1/bert-tiny": 1, "google-bert/bert-base-uncased": 2, "google-bert/bert-large-uncased": 3}
CSV = 'text,label\n"a good film",praise\n"a bad film",complaint\n"the film is slow",other\n"a great film",praise\n'
# What a page tells to make, and so is not there.
EXAMPLES = {"hf_securerouter/mpc/models/camembert.py", "hf_securerouter/mpc/protocols/plain/protocol.py"}
MADE = {"README.md": ["sst2-router"], "docs/quickstart.md": ["my-pool", "bert-router"]}  # pools that a page makes
ANSWERS = {  # what blocks print, page by page
    "README.md": r"^\['LABEL_\d', 'LABEL_\d'\] None \d+$",
    "docs/deployment.md": r"^\[\{'label': 'LABEL_\d', 'score': 0\.\d+\}\]$",
    "docs/encrypted-inference.md": r"^\['LABEL_\d', 'LABEL_\d'\] None \d+$",
    "docs/hub-and-pipelines.md": "",
    "docs/quickstart.md": r"^\['(complaint|other|praise)', '(complaint|other|praise)'\] \d+$",
    "docs/moe.md": r"^\['LABEL_\d'\]$",
    "docs/training.md": r"^3 0 \[1\.0, ",
    "docs/training-in-python.md": r"^\{'eval_reviews_loss': .*'eval_news_routing_cost': ",
    "docs/cotraining.md": r"^\{'hidden_act': 'quadratic', 'softmax': '2quad', 'precision': 'full'\}$",
    "docs/adding-a-gate.md": "",
    "docs/adding-an-architecture.md": "",
    "docs/adding-a-protocol.md": "",
}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def prose(text: str) -> list[str]:
    """The lines that are neither code nor tables."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [line for line in without_code.splitlines() if not line.startswith("|")]


def commands(text: str) -> list[list[str]]:
    """The commands of a page, line by line; continued lines are joined."""
    lines = "".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# Checks, each from a page's text and place to what is wrong with it.


def long_lines(text: str, _) -> list[str]:
    return [line for line in prose(text) if len(line) > PROSE]


def unknown_options(text: str, _) -> list[str]:
    """Subcommands of `securerouter` and their options that there are none of."""
    wrong = []
    for name, *options in (words[1:] for words in commands(text) if words[0] == "securerouter"):
        done = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"})
        wrong += [name] * (done.exit_code != 0)
        offered = set(re.findall(r"--[a-z][\w-]*", done.output))
        wrong += [f"{name} {option}" for option in options if option.startswith("--") and option not in offered]
    return wrong


def unknown_script_options(text: str, _) -> list[str]:
    """Options of the scripts in commands that neither the script, the recipes nor transformers' arguments name."""
    wrong = []
    for words in commands(text):
        scripts = [
            word for word in words if re.fullmatch(r"(training|tests|docs)/\S+\.py", word) and (ROOT / word).exists()
        ]
        if scripts:
            fields = {
                field.name for kind in (SecureRouterTrainingArguments, *OWN) for field in dataclasses.fields(kind)
            }
            told = re.findall(r"--[a-z][\w-]*", text_of(scripts[0])) + [f"--{name}" for name in fields]
            options = [word for word in words[words.index(scripts[0]) :] if word.startswith("--")]
            wrong += [f"{scripts[0]} {option}" for option in options if option not in told]
    return wrong


def unknown_targets(text: str, _) -> list[str]:
    makefile = text_of("Makefile")
    named = [words[1] for words in commands(text) if words[0] == "make"] + re.findall(r"`make ([a-z-]+)", text)
    return [name for name in named if not re.search(rf"^{name}:", makefile, flags=re.MULTILINE)]


def missing_files(text: str, _) -> list[str]:
    """Files named in the text, and scripts of its commands, that are not there."""
    named = re.findall(r"`((?:\w[\w-]*/)+[\w-]+\.(?:py|md|json|png|svg))`", text)
    named += [
        word for words in commands(text) for word in words if re.fullmatch(r"(training|tests|docs)/\S+\.py", word)
    ]
    bases = [ROOT, ROOT / "hf_securerouter", ROOT / "hf_securerouter" / "mpc"]
    kept = [name for name in named if name not in EXAMPLES and not name.startswith("build/")]
    return [name for name in kept if not any((base / name).exists() for base in bases)]


def dead_links(text: str, place: Path) -> list[str]:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = place / path if path else None
        if "://" in link:
            continue
        if target is not None and not target.exists():
            wrong.append(link)
        elif anchor and anchor not in anchors(text if target is None else target.read_text(encoding="utf-8")):
            wrong.append(link)
    return wrong


BROKEN = {
    long_lines: "- " + "word " * 100,
    unknown_options: "```bash\nsecurerouter demo --jsn\n```",
    unknown_script_options: "```bash\npython training/run_glue.py --task_nam x\n```",
    unknown_targets: "```bash\nmake tests  # all\n```",
    missing_files: "As `tests/test_nothing.py` shows.",
    dead_links: "See [there](README.md#no-such-title).",
}
SOUND = {
    long_lines: "| " + "cell | " * 100 + "\n```\n" + "code " * 100 + "\n```",
    unknown_options: "```bash\nsecurerouter demo --json  # --jsn\n```",
    unknown_script_options: "```bash\npython training/run_glue.py --task_name x --seed 1\n```",
    unknown_targets: "```bash\nmake test\n```\nor `make demo`",
    missing_files: "As `tests/test_docs.py` and `gates/relu.py` show.",
    dead_links: "See [there](README.md#licence), [here](#a-b)\n# A, b",
}


@pytest.mark.parametrize("check", BROKEN)
@pytest.mark.parametrize("page", PAGES + OTHERS)
def test_pages_are_sound(page, check):
    assert check(text_of(page), (ROOT / page).parent) == []


@pytest.mark.parametrize("check", BROKEN)
def test_the_checks_see(check):
    assert check(BROKEN[check], ROOT) and not check(SOUND[check], ROOT)


def test_the_readme_is_one_page():
    assert len(text_of("README.md").encode()) <= README_BYTES


def test_the_index_names_every_page():
    linked = set(re.findall(r"\]\((?:docs/)?([\w-]+\.md)\)", text_of("docs/README.md")))
    assert linked >= {Path(page).name for page in PAGES} - {"README.md"}


# Code.


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory, tokenizer):
    """A folder with a tiny checkpoint under each name of the pages, a trained pool, and files of a few lines."""
    folder = tmp_path_factory.mktemp("stand-ins")
    for name, layers in CHECKPOINTS.items():
        BertModel(family_config("bert", layers=layers)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, layers in ETTIN.items():
        ModernBertModel(modern_config(layers)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    three = dict(enumerate(["complaint", "other", "praise"]))
    pools = {
        "sst2-router": pool_model(("bert", "bert")),
        "bert-router": pool_model(("bert", "bert", "bert")),
        "my-router": pool_model(("bert", "bert"), id2label=three, quotas=[2, 2]),
    }
    for name, pool in pools.items():
        pool.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    noisy_classifier("bert", width=16, heads=2).save_pretrained(folder / "my-classifier")
    tokenizer.save_pretrained(folder / "my-classifier")
    for name in ("reviews.csv", "held_out.csv"):
        (folder / name).write_text(CSV)
    (folder / "texts.jsonl").write_text('{"text": "a good film"}\n')
    return folder


class SessionOfThreads(Session):
    """A session whose parties are threads of this process."""

    def __init__(self, secure: SecureModel):
        super().__init__(secure.manifest, secure.client, secure.sharing, timeout=60.0, batch_size=8)
        self.talk = Conversation(secure)

    def _open(self):
        self._channels = {"party0": None}  # of which nothing but its being there is looked at

    def _close(self):
        self._channels = {}

    def _failure(self, role, event):
        return SessionError(f"{role}: {event}")

    def _compare(self, batch, logits, experts):
        pass

    def _query(self, batch):
        done = self.talk(batch["input_ids"], batch["attention_mask"])
        cost = Cost(online_bytes=sum(map(sum, done.lengths)))
        return Answer(done.logits, done.experts, [None] * len(done.logits), cost)


@pytest.fixture
def workplace(stand_ins, tokenizer, tmp_path, monkeypatch):
    """A copy of the stand-ins to work in, and what was pushed."""
    shutil.copytree(stand_ins, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    split = datasets.Dataset.from_dict({"sentence": ["a good film", "a bad film"] * 4, "label": [1, 0] * 4})
    real = datasets.load_dataset

    def load_dataset(*arguments, **options):
        if arguments == ("csv",):
            return real(*arguments, **options, cache_dir=str(tmp_path / "cache"))
        assert (arguments, options) == (("nyu-mll/glue", "sst2"), {})
        return datasets.DatasetDict({"train": split, "validation": split})

    pushed = []
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        SecureRouterForSequenceClassification, "push_to_hub", lambda self, repo_id: pushed.append(repo_id)
    )

    def from_pretrained(cls, folder, **options):
        return cls(Path(folder), Servers(noisy_classifier("bert", width=16, heads=2), tokenizer))

    monkeypatch.setattr(SecureRouterClient, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(SecureRouterClient, "push_to_hub", lambda self, repo_id: None)
    # Pages add to these; what they add goes with them.
    monkeypatch.setattr(base, "PROTOCOLS", base.PROTOCOLS)
    monkeypatch.setitem(FAMILIES, "camembert", None)
    monkeypatch.setitem(architecture._REGISTRY, "camembert", None)
    monkeypatch.setitem(sys.modules, "hf_securerouter.mpc.protocols.plain.protocol", None)
    return pushed


def run_page(page: str) -> None:
    names: dict = {"__name__": "page"}
    for number, block in enumerate(blocks(text_of(page), "python"), 1):
        block = block.replace("max_length=64", "max_length=8")
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def test_every_page_with_code_is_run():
    assert {page for page in PAGES if blocks(text_of(page), "python")} == set(ANSWERS)


@pytest.mark.parametrize("page", ANSWERS)
def test_code_runs_in_the_order_of_its_page(page, workplace, monkeypatch, capsys):
    for name in MADE.get(page, []):
        shutil.rmtree(name, ignore_errors=True)
    if "import peft" in text_of(page):
        pytest.importorskip("peft")
    if page != "README.md":
        monkeypatch.setattr(SecureModel, "local_session", lambda secure, memory=None: SessionOfThreads(secure))
    run_page(page)
    assert re.search(ANSWERS[page], capsys.readouterr().out, flags=re.MULTILINE)
    for name in MADE.get(page, []):
        made = {path.name for path in Path(name).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= made
    assert workplace == (["you/sst2-router"] if page == "docs/hub-and-pipelines.md" else [])


def test_a_block_that_fails_fails_its_page(monkeypatch):
    monkeypatch.setitem(globals(), "text_of", lambda page: "```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_page("a page")


def test_cheap_commands_work(workplace):
    """Measurements run for minutes, and servers until they are stopped; these do not."""
    pages = text_of("docs/hub-and-pipelines.md") + text_of("docs/encrypted-inference.md")
    used = [
        words[1:]
        for words in commands(pages)
        if words[:2] in (["securerouter", "predict"], ["securerouter", "card"]) and "--encrypted" not in words
    ]
    assert [words[:2] for words in used] == [
        ["predict", "sst2-router"],
        ["card", "sst2-router"],
        ["predict", "my-classifier"],
    ]
    for arguments in used:
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 0, done.stderr
        assert arguments[0] == "card" or '"expert"' in Path("labels.jsonl").read_text()


# Pages that are made of something else.


def test_messages_of_the_troubleshooting_page_are_the_packages():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "hf_securerouter").rglob("*.py")]
    everything = "\n".join([*sources, text_of("Makefile")])
    rows = re.findall(r"^\| `(.*?)` \|", text_of("docs/troubleshooting.md"), flags=re.MULTILINE)
    assert len(rows) > 10 and [row for row in rows if row not in everything] == []


def test_the_reference_is_current():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.render(), "run `python docs/make_reference.py`"


POOLS = {"half": "base", "quarter": "base/lower"}
SMALL_POOLS = {"exact": ".", "co-trained": "cotrained", "lower": "lower"}


def result_lines(pools: dict[str, str]) -> list[str]:
    """A table of model_cards/README.md, from the files of results of these pools."""
    cards = ROOT / "model_cards"
    found = {pool: json.loads((cards / folder / "results.json").read_text()) for pool, folder in pools.items()}
    rows = {pool: {row["task"]: row for row in results["tasks"]} for pool, results in found.items()}

    def cell(task, show):
        return " / ".join(show(rows[pool][task]) if task in rows[pool] else "–" for pool in pools)

    def lost(row):
        spread = f" ± {row['spread']['lost']:.2f}" if "spread" in row else ""
        return f"{row['largest_score'] - row['routed_score']:.2f}{spread}"

    lines = []
    for task in sorted({task for own in rows.values() for task in own}):
        links = [
            f"[{pool}]({(Path(folder) / task).as_posix()}/README.md)" if task in rows[pool] else "–"
            for pool, folder in pools.items()
        ]
        cells = [cell(task, lambda row: f"{row['largest_score']:.2f}"), cell(task, lost)]
        cells += [
            cell(task, lambda row, name=name: f"{row[name]:.3f}") for name in ("relative_cost", "relative_bytes")
        ]
        lines.append(f"| {' | '.join([task, *cells, ' / '.join(links)])} |")
    return lines


def test_the_tables_of_results_are_those_of_the_files():
    lines = [line for line in text_of("model_cards/README.md").splitlines() if line.startswith("| ")]
    heads = [index for index, line in enumerate(lines) if line.startswith("| task ")]
    tables = [lines[start + 1 : end] for start, end in zip(heads, [*heads[1:], None], strict=True)]
    assert tables == [result_lines(POOLS), result_lines(SMALL_POOLS)]
