# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Every field of a config.json with ten wrong values: every command that reads it names the file and the field."""

import itertools
import json

import pytest
import typer
from transformers import CONFIG_MAPPING

from hf_securerouter import cli
from hf_securerouter.config_fields import wrong_field
from tests.support.commands import run
from tests.tiny import FAMILIES, VOCABULARY, family_config, noisy_classifier, pool_model


NAN, INF = float("nan"), float("inf")
# Ten wrong values of each kind of field, and the fields of that kind.
WRONG = {
    "size": [None, "7", "", -1, 0, 1.5, NAN, True, [7], 10**12],
    "count": [None, "7", "", -1, {}, 1.5, NAN, True, [7], 10**12],
    "length": ["7", "", -1, 0, 1, 1.5, NAN, True, [7], 10**12],
    "number": [None, "7", "", -0.1, NAN, INF, True, [0.1], {"a": 1}, -INF],
    "number or null": ["0.5", "", -0.1, NAN, INF, True, [0.1], {"a": 1}, -INF, 1.5],
    "token or null": ["7", "", -1, 1.5, NAN, True, {"a": 1}, 10**12, [-1], ["a"]],
    "bool": [None, "yes", "true", "", 1, 0, 1.5, NAN, [True], {"a": True}],
    "choice": ["nonsense", "", "Quota", 1, 0, 1.5, NAN, True, ["gelu"], {"a": "gelu"}],
    "list": ["nonsense", "", 1, 0, 1.5, NAN, True, {"a": 1}, [[]], [None, None]],
    "names": ["no", 1, NAN, True, ["bad", "good"], {}, {"bad": "good"}, {"0": 1}, {"1": "b"}, {"0": ["b"]}],
    "numbers": ["no", 1, NAN, True, ["bad"], {}, {"bad": "good"}, {"bad": None}, {"bad": -1}, {"bad": 0.5}],
    "config": [None, "bert", 1, NAN, True, {}, [], ["bert"], {"model_type": "nonsense"}, {"hidden_size": 8}],
    "configs": [None, "bert", 1, NAN, True, {}, [], ["bert"], [{"model_type": "nonsense"}], [{"hidden_size": 8}]],
    "text": [1, 0, -1, 1.5, NAN, True, [], ["a"], {}, {"a": "b"}],
}
FIELDS = {
    "size": "hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings vocab_size "
    "type_vocab_size dim n_layers n_heads hidden_dim embedding_size num_hidden_groups inner_group_num "
    "relative_attention_num_buckets router_hidden_size",
    "count": "chunk_size_feed_forward",
    "length": "max_length",
    "number": "alpha beta temperature min_temperature temperature_annealing_rate routing_lambda router_dropout "
    "initializer_range layer_norm_eps hidden_dropout_prob attention_probs_dropout_prob classifier_dropout_prob "
    "dropout attention_dropout seq_classif_dropout qa_dropout",
    "number or null": "classifier_dropout summary_last_dropout",
    "token or null": "pad_token_id bos_token_id eos_token_id router_shares_expert",
    "bool": "is_decoder add_cross_attention use_cache is_encoder_decoder output_attentions output_hidden_states "
    "return_dict tie_word_embeddings sinusoidal_pos_embds tie_weights_",
    "choice": "router_objective routing_privacy temperature_annealing expert_costs_source problem_type dtype "
    "hidden_act activation model_type",
    "list": "expert_costs quotas expert_mpc expert_max_lengths architectures",
    "names": "id2label",
    "numbers": "label2id",
    "config": "router_config",
    "configs": "expert_configs",
    "text": "transformers_version",
}
KIND = {name: kind for kind, names in FIELDS.items() for name in names.split()}


def fields(values):
    """The path of every field of a config, of its router's and of its first expert's."""
    for name, value in values.items():
        if name == "expert_configs":
            yield from ((name, 0, *rest) for rest in fields(value[0]))
        if name == "router_config":
            yield from ((name, *rest) for rest in fields(value))
        yield (name,)


def edited(values, path, wrong):
    """A config with one wrong value, as JSON."""
    whole = json.loads(json.dumps(values))
    *parents, name = path
    inner = whole
    for parent in parents:
        inner = inner[parent]
    inner[name] = wrong
    return json.dumps(whole)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """A pool and a plain classifier, with a file of texts."""
    folder = tmp_path_factory.mktemp("saved")
    for name, model in (("pool", pool_model(("bert", "distilbert"))), ("plain", noisy_classifier("bert", 16, 2))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "in.jsonl").write_text('{"text": "good"}\n')
    return folder


@pytest.fixture
def one_app(monkeypatch):
    """The command line, built once and not for every call."""
    built = typer.main.get_command(cli.app)
    monkeypatch.setattr("typer.testing._get_command", lambda app: built)


def commands(folder, model):
    """Every command that reads a checkpoint, as arguments; `card` reads the folder of a plain classifier too."""
    texts = ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    return [
        ["predict", model, *texts],
        ["predict", model, *texts, "--encrypted"],
        ["check", model],
        ["share", model, str(folder / "shares")],
        ["profile", "--architecture", model],
        ["card", model],
    ]


def ends_with_one_block(done, *named):
    """A failed command says what, where and what to do in one block, without a result or a traceback."""
    assert done.exit_code == 2 and done.stdout == "", (done.exit_code, done.stderr)
    assert "Traceback" not in done.stderr and done.stderr.count("securerouter: ") == 1, done.stderr
    said = done.stderr[done.stderr.index("securerouter: ") :]
    assert len(said.splitlines()) <= 3 and max(map(len, said.splitlines())) < 400, said
    for name in named:
        assert name in said, (name, said)


@pytest.mark.parametrize("model", ["pool", "plain"])
def test_every_wrong_value_ends_with_the_file_and_the_field(saved, one_app, model):
    path = saved / model / "config.json"
    whole = path.read_text()
    values = json.loads(whole) | {"label2id": {"bad": 0, "good": 1}, "id2label": {"0": "bad", "1": "good"}}
    values["problem_type"] = None
    if model == "pool":
        values |= {"router_shares_expert": None, "quotas": [1, 1], "expert_max_lengths": [8, 8]}
    turns = itertools.cycle(commands(saved, str(saved / model)))  # a field's ten values meet each of the six commands
    try:
        for field in fields(values):
            for wrong in WRONG[KIND[field[-1]]]:
                path.write_text(edited(values, field, wrong))
                ends_with_one_block(run(*next(turns)), str(path), field[-1])
    finally:
        path.write_text(whole)


def test_a_misspelt_field_is_refused_with_the_nearest(saved, one_app):
    path = saved / "pool/config.json"
    whole = path.read_text()
    try:
        path.write_text(edited(json.loads(whole), ["routing_lamda"], 0.5))
        for command in commands(saved, str(saved / "pool")):
            ends_with_one_block(run(*command), f"{path}, field `routing_lamda`", "did you mean `routing_lambda`")
    finally:
        path.write_text(whole)


def test_configs_as_transformers_writes_them_are_right():
    for family in FAMILIES:
        for config in (family_config(family), CONFIG_MAPPING[family]()):
            assert wrong_field(json.loads(config.to_json_string(use_diff=False))) is None, family
    for name, fields in (("hidden_size", {"num_attention_heads": 3}), ("dim", {"n_heads": 3})):
        family = "bert" if name == "hidden_size" else "distilbert"
        config = json.loads(family_config(family).to_json_string(use_diff=False)) | fields
        assert wrong_field(config) == (*fields, f"should divide `{name}`, 16, got 3")
    padded = {"model_type": "bert", "vocab_size": len(VOCABULARY), "pad_token_id": len(VOCABULARY)}
    assert wrong_field(padded) == ("pad_token_id", f"should be below `vocab_size`, {len(VOCABULARY)}, got 27")


def test_cut_missing_and_mistyped_files_are_named(saved, one_app):
    """Each file of a checkpoint: gone, empty, cut, of another kind, or a folder."""
    for model in ("pool", "plain"):
        turns = itertools.cycle(commands(saved, str(saved / model))[: -1 if model == "plain" else None])
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            path = saved / model / name
            whole = path.read_bytes()
            for damaged in (None, b"", whole[: len(whole) // 2], b"[1, 2]", b"\xff\xfe", "folder"):
                path.unlink()
                if damaged == "folder":
                    path.mkdir()
                elif damaged is not None:
                    path.write_bytes(damaged)
                for _ in range(2):
                    command = next(turns)
                    reads_it = not name.startswith("tokenizer") or command[0] != "profile"
                    if not reads_it or (name == "tokenizer_config.json" and damaged is None):  # may be missing
                        continue
                    ends_with_one_block(run(*command), name)
                if damaged == "folder":
                    path.rmdir()
                path.write_bytes(whole)


def test_the_folders_of_roles_are_named_too(saved, one_app):
    shares = saved / "roles"
    assert run("share", str(saved / "pool"), str(shares), "--max-length", "8").exit_code == 0
    texts = ["--input", str(saved / "in.jsonl"), "--output", str(saved / "out.jsonl")]
    here = ["--listen", "127.0.0.1:0", "--timeout", "0.1"]
    commands = {
        "client": ["--party0", "127.0.0.1:1", "--party1", "127.0.0.1:1", "--timeout", "0.1", *texts],
        "dealer": here,
        "party0": [*here, "--dealer", "127.0.0.1:1"],
    }
    for role, options in commands.items():
        command = [role.rstrip("0"), str(shares / role), *options]
        assert run(*command).exit_code == 1  # nobody is there: nothing that the user can mend in a file
        for path in sorted((shares / role).iterdir()):
            whole = path.read_bytes()
            for damaged in (None, b"", whole[: len(whole) // 2], b"[1, 2]"):
                path.unlink(missing_ok=True)
                if damaged is not None:
                    path.write_bytes(damaged)
                ends_with_one_block(run(*command), str(shares / role))
            path.write_bytes(whole)
