# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Nothing is ignored in silence: who is given an argument that it does not know says so, and names the nearest."""

import importlib
import inspect
import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_securerouter import SecureRouterConfig, SecureRouterForSequenceClassification, SecureRouterValueError, to_mpc
from hf_securerouter import recipes as recipes_map
from hf_securerouter.errors import UnknownArgumentError
from hf_securerouter.known_arguments import nearest, refuses_unknown
from hf_securerouter.mpc.deployment.remote_session import RemoteSession
from hf_securerouter.mpc.deployment.save_shares import save_shares
from hf_securerouter.mpc.secure_model import SecureModel
from hf_securerouter.mpc.sessions.local import LocalSession
from hf_securerouter.mpc.sessions.session import Session
from tests.tiny import pool_config


def refused(call, name, near, *args):
    """Calls with an argument of that name, and expects the error that names it and the nearest known one."""
    with pytest.raises(UnknownArgumentError, match=f"`{name}` \\(did you mean `{near}`"):
        call(*args, **{name: 1})


def test_nearest_is_by_spelling_whatever_the_case():
    assert nearest("routing_lamda", ["alpha", "routing_lambda"]) == "routing_lambda"
    assert nearest("ALPHA", ["alpha"]) == "alpha" and nearest("zzz", ["alpha"]) is None


def test_a_refusal_is_a_value_error_and_a_type_error():
    @refuses_unknown
    def function(colour=None):
        return colour

    assert function(colour=3) == 3 and list(inspect.signature(function).parameters) == ["colour"]
    for kind in (SecureRouterValueError, TypeError):
        with pytest.raises(kind, match="`color` \\(did you mean `colour`"):
            function(color="secret")
    with pytest.raises(UnknownArgumentError) as caught:
        function(color="secret")
    assert "secret" not in str(caught.value)


def test_entry_points_name_the_nearest_argument(model, batch, tmp_path):
    build = SecureRouterForSequenceClassification.from_expert_pretrained
    refused(build, "expert_cost", "expert_costs", "router", ["expert"])
    refused(build, "tokn", "token", "router", ["expert"])
    refused(SecureRouterForSequenceClassification, "expert", "experts", pool_config())
    for call in (to_mpc, model.to_mpc):
        refused(call, "protocl", "protocol", *([model] if call is to_mpc else []))
        refused(call, "quota", "quotas", *([model] if call is to_mpc else []))
    refused(SecureModel.local_session, "timout", "timeout", None)
    refused(SecureModel.save_shares, "foldr", "folder", None)
    refused(LocalSession, "batchsize", "batch_size", None)
    refused(RemoteSession, "time_out", "timeout", None)
    refused(Session.__call__, "input", "inputs", None)
    refused(save_shares, "foldr", "folder", None)
    refused(model.save_pretrained, "max_shard_sise", "max_shard_size", tmp_path)


def test_every_recipe_of_the_map_names_the_nearest_argument():
    tried = 0
    for module, names in re.findall(r"^\| `(\w+)` \| (.*) \|$", recipes_map.__doc__, flags=re.MULTILINE):
        home = importlib.import_module(f"hf_securerouter.recipes.{module}")
        for name in re.findall(r"`(\w+)`", names.split(":")[0]):
            recipe = getattr(home, name)
            kinds = {kind.__name__ for kind in getattr(recipe, "__mro__", [])}
            if not inspect.isroutine(recipe) and not inspect.isclass(recipe) or kinds & {"Protocol", "tuple"}:
                continue
            parameters = list(inspect.signature(recipe).parameters)
            with pytest.raises(UnknownArgumentError, match=f"did you mean `{parameters[0]}`"):
                recipe(**{parameters[0] + "x": 1})
            tried += 1
    assert tried > 30


def test_config_refuses_a_field_that_it_does_not_know(tmp_path):
    refused(SecureRouterConfig, "routing_lamda", "routing_lambda")
    for name in ("token", "trust_remote_code", "expert_cost", "num_beams", "Alpha"):
        with pytest.raises(UnknownArgumentError, match=f"`{name}`"):
            SecureRouterConfig(**{name: "hf_secret"})
    config = pool_config()
    with pytest.raises(UnknownArgumentError, match="did you mean `routing_lambda`"):
        config.routing_lamda = 2.0
    config.favourite = 3
    with pytest.raises(StrictDataclassError, match="`favourite`"):
        config.save_pretrained(tmp_path)


def test_config_refuses_what_loading_it_is_given(tmp_path):
    pool_config().save_pretrained(tmp_path)
    for load in (SecureRouterConfig.from_pretrained, AutoConfig.from_pretrained):
        refused(load, "routing_lamda", "routing_lambda", tmp_path)
    with pytest.raises(UnknownArgumentError, match="`favourite`"):
        SecureRouterConfig.from_pretrained(tmp_path, favourite=3)
    assert SecureRouterConfig.from_pretrained(tmp_path, token="hf_x", revision="main", alpha=0.5).alpha == 0.5
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"routing_privcy": "revealed"}))
    with pytest.raises(UnknownArgumentError, match="did you mean `routing_privacy`"):
        AutoConfig.from_pretrained(tmp_path)


def test_config_keeps_what_transformers_and_the_hub_put_there(tmp_path):
    fields = {
        "auto_map": {"AutoConfig": "a.B"},
        "use_cache": False,
        "pad_token_id": 0,
        "task_specific_params": {"a": 1},
    }
    pool_config(**fields).save_pretrained(tmp_path)
    loaded = SecureRouterConfig.from_pretrained(tmp_path)
    assert loaded.auto_map == {"AutoConfig": "a.B"} and loaded.task_specific_params == {"a": 1}
    loaded.use_cache = loaded.tie_word_embeddings = True
    loaded.save_pretrained(tmp_path)


def test_model_refuses_what_loading_it_is_given(checkpoint):
    for load in (
        SecureRouterForSequenceClassification.from_pretrained,
        AutoModelForSequenceClassification.from_pretrained,
    ):
        refused(load, "routing_lamda", "routing_lambda", checkpoint)
        assert load(checkpoint, routing_lambda=2.0, token="hf_x").config.routing_lambda == 2.0


def test_forward_refuses_what_it_does_not_know(model, batch):
    for name, near in (("label", "labels"), ("token_type_id", "token_type_ids"), ("expert_logit", "expert_logits")):
        refused(model.forward, name, near, *batch.values())
    for name in ("routing_lamda", "special_tokens_mask", "idx"):
        with pytest.raises(UnknownArgumentError, match=f"`{name}`"):
            model(**batch, **{name: torch.zeros(12)})


ASKED = {
    "output_attentions": True,
    "output_hidden_states": True,
    "position_ids": torch.arange(12)[None],
    "inputs_embeds": torch.zeros(12, 12, 16),
    "past_key_values": (),
    "use_cache": True,
    "cache_position": torch.arange(12),
    "head_mask": torch.ones(1),
    "num_items_in_batch": torch.tensor(3),
    "is_causal": True,
    "cu_seq_lens_q": torch.zeros(2),
}


def test_forward_refuses_what_a_pool_cannot_give(model, batch):
    plain = model(**batch)
    for name, value in ASKED.items():
        with pytest.raises(SecureRouterValueError, match=f"`{name}` cannot be used with a pool: ."):
            model(**batch, **{name: value})
        torch.testing.assert_close(model(**batch, **{name: None}).logits, plain.logits)
    asked_for_nothing = {"output_attentions": False, "use_cache": False, "output_router_logits": True}
    torch.testing.assert_close(model(**batch, **asked_for_nothing).logits, plain.logits)
    assert model(**batch, output_router_logits=True).router_logits is not None


def test_forward_refuses_what_its_config_asks_for(model, batch):
    for name in ("output_hidden_states", "output_attentions"):
        model.set_attn_implementation("eager")
        setattr(model.config, name, True)
        with pytest.raises(SecureRouterValueError, match=f"`{name}` of the config cannot"):
            model(**batch)
        model(**batch, **{name: False})
        setattr(model.config, name, False)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of the tracer itself
def test_tracing_is_refused_with_the_reason(model, batch):
    inputs = (batch["input_ids"], batch["attention_mask"])
    with pytest.raises(SecureRouterValueError, match="cannot be traced.*`model.router`"):
        torch.jit.trace(model, inputs, strict=False)
    with pytest.raises(Exception, match="cannot be traced"):
        torch.export.export(model, inputs)
