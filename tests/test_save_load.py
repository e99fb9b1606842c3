# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Saving and loading: safetensors, shards, Auto classes, pipelines, code on the Hub, and what is pushed there."""

import json
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

import hf_securerouter
from hf_securerouter import SecureRouterConfig, SecureRouterForSequenceClassification, SecureRouterValueError
from hf_securerouter.model_card import SecureRouterModelCardData
from tests.tiny import FAMILIES, pool_model


def same_weights(first, second):
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(tmp_path, batch, family):
    model = pool_model((family, "bert"), num_labels=3)
    model.save_pretrained(tmp_path)
    loaded = SecureRouterForSequenceClassification.from_pretrained(tmp_path)
    assert same_weights(model, loaded) and loaded.config.to_diff_dict() == model.config.to_diff_dict()
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_auto_classes_load_it(checkpoint, model, batch):
    assert isinstance(AutoConfig.from_pretrained(checkpoint), SecureRouterConfig)
    loaded = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    assert isinstance(loaded, SecureRouterForSequenceClassification) and not loaded.training
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_weights_are_one_safetensors_file(checkpoint, model, tmp_path):
    files = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert files == {"config.json", "model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json"}
    assert load_file(f"{checkpoint}/model.safetensors").keys() == model.state_dict().keys()


def test_sharded_round_trip(model, tmp_path, batch):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert same_weights(model, loaded)


def test_saving_again_leaves_no_shard_of_the_earlier_checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"config.json", "model.safetensors", "README.md", "notes.txt"}
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()


def test_failed_write_leaves_the_earlier_checkpoint(model, tmp_path, monkeypatch, batch):
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    torch.nn.init.zeros_(model.router.out_proj.weight)

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail)
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_saving_onto_a_file_is_refused(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SecureRouterValueError, match="`save_directory` should be a folder"):
        model.save_pretrained(tmp_path / "file")


def test_only_the_main_process_writes(model, tmp_path):
    model.save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16"])
def test_dtype_override_reaches_every_weight(checkpoint, dtype, batch):
    loaded = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in loaded.parameters()} == {wanted}
    assert all(expert.config.dtype is wanted for expert in loaded.experts)


def test_half_precision_checkpoint_loads_as_it_is_and_in_float32(model, tmp_path):
    model.to(torch.float16).save_pretrained(tmp_path)
    load = AutoModelForSequenceClassification.from_pretrained
    assert {parameter.dtype for parameter in load(tmp_path).parameters()} == {torch.float16}
    full = load(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}
    assert torch.equal(full.router.dense.weight, model.router.dense.weight.float())


def test_attention_override_reaches_every_member(checkpoint):
    loaded = AutoModelForSequenceClassification.from_pretrained(checkpoint, attn_implementation="eager")
    assert {m.config._attn_implementation for m in (loaded.router.encoder, *loaded.experts)} == {"eager"}


def test_other_label_count_gives_new_heads_when_asked_for(checkpoint, batch):
    loaded = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=5, ignore_mismatched_sizes=True)
    assert loaded(**batch).logits.shape == (12, 5)
    assert [expert.config.num_labels for expert in loaded.experts] == [5, 5, 5]


def test_label_names_override_reaches_every_expert(checkpoint):
    names = {0: "bad", 1: "good"}
    loaded = AutoModelForSequenceClassification.from_pretrained(checkpoint, id2label=names)
    assert loaded.config.id2label == names and all(expert.config.id2label == names for expert in loaded.experts)


def test_config_fields_can_be_overridden(checkpoint):
    loaded = AutoModelForSequenceClassification.from_pretrained(checkpoint, routing_lambda=0.5)
    assert loaded.config.routing_lambda == 0.5


def test_loading_info_is_returned_when_asked_for(checkpoint):
    loaded, info = SecureRouterForSequenceClassification.from_pretrained(checkpoint, output_loading_info=True)
    assert isinstance(loaded, SecureRouterForSequenceClassification) and not info["missing_keys"]


def test_problem_type_is_kept(tmp_path, batch):
    model = pool_model(num_labels=1)
    model(**batch, labels=torch.rand(12))
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).problem_type == "regression"


def test_pipeline_gives_the_softmax_of_the_logits(tmp_path, tokenizer):
    model = pool_model(id2label={0: "negative", 1: "positive"})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path), top_k=None)
    texts = ["the film was great", "a dull movie but not very bad ."]
    for text, found in zip(texts, classify(texts), strict=True):
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        expected = dict(zip(("negative", "positive"), logits.softmax(dim=0).tolist(), strict=True))
        assert {entry["label"]: pytest.approx(entry["score"], abs=1e-5) for entry in found} == expected


def test_pipeline_on_a_regression_model_gives_the_value(tokenizer):
    model = pool_model(num_labels=1, problem_type="regression")
    found = pipeline("text-classification", model=model, tokenizer=tokenizer)("the film was great")
    assert found[0]["score"] == pytest.approx(
        model(**tokenizer("the film was great", return_tensors="pt")).logits.item()
    )


def run_without_the_package(code, *arguments):
    """Runs code in a Python that has no hf_securerouter: only what a checkpoint itself brings."""
    blocked = textwrap.dedent(
        """
        import importlib.abc, sys

        class Block(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "hf_securerouter":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Block())
        """
    )
    command = [sys.executable, "-c", blocked + textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def remote_code(model, tokenizer, tmp_path, monkeypatch):
    """A checkpoint that carries the code of its classes."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(SecureRouterConfig, "_auto_class", None)
    monkeypatch.setattr(SecureRouterForSequenceClassification, "_auto_class", None)
    SecureRouterConfig.register_for_auto_class()
    SecureRouterForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    folder = tmp_path / "remote"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_code_travels_with_the_checkpoint(remote_code, model, tokenizer):
    auto_map = json.loads((remote_code / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_securerouter.SecureRouterConfig",
        "AutoModelForSequenceClassification": "modeling_securerouter.SecureRouterForSequenceClassification",
    }
    result = run_without_the_package(
        """
        import sys
        from transformers import pipeline
        classify = pipeline("text-classification", model=sys.argv[1], trust_remote_code=True)
        print(type(classify.model).__module__, classify("the film was great")[0]["score"])
        try:
            classify.model.to_mpc()
        except ImportError as error:
            print(error)
        classify.model.save_pretrained(sys.argv[1] + "-again")
        """,
        str(remote_code),
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    module, score = lines[0].split()
    expected = model(**tokenizer("the film was great", return_tensors="pt")).logits.softmax(dim=1).max().item()
    assert module.startswith("transformers_modules.") and float(score) == pytest.approx(expected, abs=1e-5)
    assert "pip install hf_securerouter" in lines[1]


def test_code_is_not_run_without_trust(remote_code):
    result = run_without_the_package(
        """
        import sys
        from transformers import AutoModelForSequenceClassification
        AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=False)
        """,
        str(remote_code),
    )
    assert result.returncode != 0 and "trust_remote_code" in result.stderr


def test_installed_package_is_used_instead_of_remote_code(remote_code):
    loaded = AutoModelForSequenceClassification.from_pretrained(remote_code, trust_remote_code=True)
    assert type(loaded) is SecureRouterForSequenceClassification


class Hub:
    """Stands in for the Hub: records what would have been sent there."""

    def __init__(self, folder):
        self.folder, self.created, self.commits = folder, [], []
        self.readme = {None: None}  # by branch

    def create_repo(self, api, repo_id, **kwargs):
        self.created.append((repo_id, kwargs))
        return type("RepoUrl", (), {"repo_id": repo_id})()

    def create_commit(self, api, repo_id, operations, **kwargs):
        files = {op.path_in_repo: open(op.path_or_fileobj, "rb").read() for op in operations}
        self.commits.append((repo_id, files, kwargs))
        return "commit"

    def download(self, api, repo_id, filename, revision=None, **kwargs):
        if revision not in self.readme:
            raise RevisionNotFoundError("no such branch", response=SimpleNamespace(headers={}, request=None))
        if self.readme[revision] is None:
            raise EntryNotFoundError("no README.md")
        path = self.folder / filename
        path.write_text(self.readme[revision])
        return str(path)


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    hub = Hub(tmp_path_factory.mktemp("hub"))
    monkeypatch.setattr(HfApi, "create_repo", lambda api, *a, **k: hub.create_repo(api, *a, **k))
    monkeypatch.setattr(HfApi, "create_commit", lambda api, *a, **k: hub.create_commit(api, *a, **k))
    monkeypatch.setattr(HfApi, "hf_hub_download", lambda api, *a, **k: hub.download(api, *a, **k))
    # Some versions of transformers call the client through a function of their own module.
    monkeypatch.setattr("transformers.utils.hub.create_commit", HfApi().create_commit, raising=False)
    monkeypatch.setattr("transformers.utils.hub.create_branch", lambda *a, **k: None, raising=False)
    monkeypatch.setattr(HfApi, "create_branch", lambda *a, **k: None)
    return hub


def test_push_to_hub_sends_the_checkpoint_and_its_card(model, hub):
    model.push_to_hub("org/router", commit_message="first", private=True, tags=["finance"])
    assert hub.created == [("org/router", {"private": True, "token": None, "exist_ok": True})]
    ((repo_id, files, commit),) = hub.commits
    assert repo_id == "org/router" and commit["commit_message"] == "first"
    assert set(files) == {"config.json", "model.safetensors", "README.md"}
    card = files["README.md"].decode()
    assert "securerouter" in card and "finance" in card and "pipeline_tag: text-classification" in card


def test_training_arguments_are_not_pushed(model, hub, tmp_path):
    (tmp_path / "training_args.bin").write_bytes(b"pickle")
    (tmp_path / "optimizer.pt").write_bytes(b"pickle")
    model.save_pretrained(tmp_path, push_to_hub=True, repo_id="org/router")
    ((_, files, _),) = hub.commits
    assert set(files) == {"config.json", "model.safetensors", "README.md"}
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "training_args.bin").exists()


def test_push_keeps_a_card_that_a_person_wrote(model, hub):
    hub.readme[None] = "---\nlicense: mit\n---\n# My own words\n"
    model.push_to_hub("org/router")
    ((_, files, _),) = hub.commits
    assert "# My own words" in files["README.md"].decode() and "license: mit" in files["README.md"].decode()


@pytest.mark.parametrize("branch, words", [("v2", "# The words of v2"), ("new", "# The words of main")])
def test_push_keeps_the_card_of_its_branch_or_of_the_one_that_a_new_branch_begins_with(model, hub, branch, words):
    hub.readme |= {None: "# The words of main\n", "v2": "# The words of v2\n"}
    model.push_to_hub("org/router", revision=branch)
    ((_, files, commit),) = hub.commits
    assert files["README.md"].decode() == f"{words}\n" and commit["revision"] == branch


def test_shards_are_pushed(model, hub):
    model.push_to_hub("org/router", max_shard_size="20KB")
    ((_, files, _),) = hub.commits
    assert "model.safetensors.index.json" in files and sum(name.endswith(".safetensors") for name in files) > 1


def test_saving_and_pushing_at_once_pushes_the_same_shards(model, hub, tmp_path):
    model.save_pretrained(tmp_path / "router", push_to_hub=True, max_shard_size="20KB", commit_message="all")
    ((repo_id, files, commit),) = hub.commits
    assert repo_id == "router" and commit["commit_message"] == "all"
    assert set(files) == {path.name for path in (tmp_path / "router").iterdir()}


def test_saving_and_pushing_at_once_pushes_the_same_card(model, hub, tmp_path):
    model.model_card_data = SecureRouterModelCardData(license="apache-2.0")
    model.save_pretrained(tmp_path)
    again = SecureRouterForSequenceClassification.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path, push_to_hub=True, repo_id="org/router")
    ((_, files, _),) = hub.commits
    card = (tmp_path / "README.md").read_text()
    assert files["README.md"].decode() == card and "license: apache-2.0" in card


def test_package_exports_its_public_names():
    assert all(hasattr(hf_securerouter, name) for name in hf_securerouter.__all__)
    assert hf_securerouter.__version__ == "0.1.0"
