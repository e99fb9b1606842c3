# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Loader arguments reach every loader of every member, and are never saved, logged or shown."""

import logging

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hf_securerouter import SecureRouterForSequenceClassification, SecureRouterValueError, pool
from hf_securerouter.errors import UnknownArgumentError
from hf_securerouter.loading import LOADER_ARGUMENTS, Loading
from tests.tiny import family_config


build = SecureRouterForSequenceClassification.from_expert_pretrained
TOKEN = "hf_" + "NeverToBeSeen" * 2
COSTS = {"expert_costs": [1.0, 2.0]}


@pytest.fixture
def folders(tmp_path, tokenizer):
    """A router and two experts; one of the experts lies in a subfolder."""
    for name in ("router", "plain", "repository/inner"):
        auto = AutoModel if name == "router" else AutoModelForSequenceClassification
        names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
        auto.from_config(family_config("bert", **names)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return [str(tmp_path / name) for name in ("router", "plain", "repository")]


@pytest.fixture
def calls(monkeypatch):
    """What every loader was called with: (loader, checkpoint, keywords)."""
    seen = []

    def record(owner, name, kind):
        original = getattr(owner, name)

        def recorded(checkpoint, *args, **kwargs):
            seen.append((kind, str(checkpoint).rsplit("/", 1)[-1], kwargs))
            return original(checkpoint, *args, **kwargs)

        monkeypatch.setattr(owner, name, recorded)

    for auto in (AutoConfig, AutoTokenizer, AutoModel, AutoModelForSequenceClassification):
        record(auto, "from_pretrained", auto.__name__)
    record(pool, "cached_file", "file")
    record(pool, "find_adapter_config_file", "adapter")
    return seen


def test_loader_arguments_reach_every_loader_each_members_over_the_common_ones(folders, calls, tmp_path):
    router, *experts = folders
    common = {
        "token": TOKEN,
        "cache_dir": str(tmp_path / "cache"),
        "local_files_only": True,
        "trust_remote_code": False,
    }
    own = [{"revision": "v2"}, {"subfolder": "inner", "token": TOKEN + "2", "attn_implementation": "eager"}]
    model = build(router, experts, router_kwargs={"revision": "v1"}, expert_kwargs=own, **common, **COSTS)
    wanted = {"router": common | {"revision": "v1"}, "plain": common | own[0], "repository": common | own[1]}
    kinds = {"AutoConfig", "AutoTokenizer", "file", "adapter"}
    for name, given in wanted.items():
        called = {kind: kwargs for kind, checkpoint, kwargs in calls if checkpoint == name}
        assert called.keys() == kinds | {"AutoModel" if name == "router" else "AutoModelForSequenceClassification"}
        for kind, kwargs in called.items():
            for argument, value in given.items():
                takes = argument not in ("trust_remote_code", "attn_implementation") or kind.startswith("AutoModel")
                if takes or (argument == "trust_remote_code" and kind.startswith("Auto")):
                    assert kwargs[argument] == value, (name, kind, argument)
    implementations = [expert.config._attn_implementation for expert in model.experts]
    assert implementations == ["sdpa", "eager"]


def test_attention_of_the_pool_is_that_of_every_member(folders):
    model = build(folders[0], folders[1:2], attn_implementation="eager", expert_costs=[1.0])
    members = (model, model.router.encoder, *model.experts)
    assert [member.config._attn_implementation for member in members] == ["eager"] * 3


def test_a_token_is_neither_saved_nor_logged(folders, tmp_path):
    lines = []
    handler = logging.Handler(level=0)
    handler.emit = lambda record: lines.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in (None, "transformers", "huggingface_hub", "hf_securerouter")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
    secrets = {"token": TOKEN, "proxies": {"https": f"http://user:{TOKEN}@proxy:3128"}}
    own = [None, {"subfolder": "inner", "token": TOKEN}]
    model = build(folders[0], folders[1:], expert_kwargs=own, router_kwargs={"token": TOKEN}, **secrets, **COSTS)
    out = tmp_path / "out"
    model.save_pretrained(out, token=TOKEN)
    SecureRouterForSequenceClassification.from_pretrained(out, token=TOKEN).save_pretrained(tmp_path / "again")
    model.to_mpc(max_length=8).save_shares(tmp_path / "shares")
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)
    written = [path for name in ("out", "again", "shares") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert len(written) > 10 and lines
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert not [line for line in lines if TOKEN in line]
    assert TOKEN not in repr(model.config) + repr(model) + repr(Loading(secrets))
    saved = (out / "config.json").read_text()
    assert not [name for name in LOADER_ARGUMENTS if f'"{name}"' in saved]


def test_a_token_is_not_shown_by_an_error(folders, monkeypatch):
    for wrong in (f"{TOKEN}\n", f"{TOKEN} x", "", 7, f"{TOKEN}é"):
        with pytest.raises(SecureRouterValueError, match="`token` of .* is no token") as caught:
            build(folders[0], folders[1:2], token=wrong)
        assert TOKEN not in str(caught.value)
    with pytest.raises(UnknownArgumentError, match="did you mean `token`") as caught:
        build(folders[0], folders[1:2], tokn=TOKEN)
    assert TOKEN not in str(caught.value)

    def refuse(*args, **kwargs):
        raise OSError(f"403 for the token {TOKEN}")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(SecureRouterValueError, match="403 for the token ...") as caught:
        build(folders[0], folders[1:2], token=TOKEN)
    assert TOKEN not in str(caught.value) and caught.value.__cause__ is None and caught.value.__suppress_context__


def test_loader_arguments_that_a_pool_cannot_take_are_refused_with_a_remedy(folders):
    for name in ("device_map", "quantization_config", "load_in_8bit", "state_dict", "weights_only", "use_auth_token"):
        for given in ({name: "x"}, {"router_kwargs": {name: "x"}}, {"expert_kwargs": [{name: "x"}]}):
            with pytest.raises(SecureRouterValueError, match=f"`{name}` cannot be passed to the members of a pool: ."):
                build(folders[0], folders[1:2], **given)


def test_wrong_loader_arguments_of_a_member_are_refused(folders):
    cases = (
        ({"router_kwargs": {"revison": "v1"}}, "`router_kwargs` does not know `revison` .did you mean `revision`"),
        ({"expert_kwargs": [{"alpha": 1.0}]}, r"`expert_kwargs\[0\]` does not know `alpha`"),
        ({"expert_kwargs": [{}, {}]}, "`expert_kwargs` should be a list with .* each of the 1 experts, got 2"),
        ({"expert_kwargs": {"token": TOKEN}}, "`expert_kwargs` should be a list"),
        ({"router_kwargs": "main"}, "`router_kwargs` should be a dict"),
        ({"router_kwargs": {"dtype": "float16"}}, "`router_kwargs` holds a dtype"),
        ({"label2id": {"a": 0}}, "does not know `label2id`"),
        ({"expert_configs": []}, "does not know `expert_configs`"),
    )
    for given, message in cases:
        with pytest.raises(SecureRouterValueError, match=message):
            build(folders[0], folders[1:2], **given)


def test_dtype_is_taken_under_both_names_and_checked(folders):
    for given in ({"dtype": "torch.bfloat16"}, {"torch_dtype": torch.bfloat16}):
        model = build(folders[0], folders[1:2], expert_costs=[1.0], **given)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for given in ({"dtype": "auto"}, {"dtype": torch.int64}, {"dtype": "float8_e4m3fn"}, {"dtype": 16}):
        with pytest.raises(SecureRouterValueError, match="`dtype` should be float32"):
            build(folders[0], folders[1:2], **given)
    with pytest.raises(SecureRouterValueError, match="pass `dtype` only"):
        build(folders[0], folders[1:2], dtype="float32", torch_dtype="float16")


def test_members_are_loaded_and_pools_saved_without_bars(folders, tmp_path, capfd):
    loading = {"router_kwargs": None, "expert_kwargs": [None, {"subfolder": "inner"}]}
    capfd.readouterr()
    build(router=folders[0], experts=folders[1:], **COSTS, **loading).save_pretrained(tmp_path / "pool")
    assert "it/s" not in capfd.readouterr().err
    SecureRouterForSequenceClassification.from_pretrained(tmp_path / "pool")
    assert "Loading weights" in capfd.readouterr().err  # one model, as with transformers
