# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Conversion: every problem at once, the manifest, the shared weights, and the client."""

import copy
import json
import warnings

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForSequenceClassification,
    BertTokenizer,
)

from hf_securerouter import SecureRouterForSequenceClassification, SecureRouterValueError, SecureRouterWarning
from hf_securerouter import to_mpc as public_to_mpc
from hf_securerouter.mpc.conversion.client import Labels
from hf_securerouter.mpc.conversion.description import Options
from hf_securerouter.mpc.conversion.validation import ConversionError, validate
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.models.manifest import Manifest
from hf_securerouter.mpc.protocols import load_protocol
from hf_securerouter.mpc.protocols.crypten.fixed_point import from_fixed_point, to_fixed_point
from hf_securerouter.mpc_friendly import use_functions
from tests.support.reference import reference
from tests.tiny import FAMILIES, MAX_POSITIONS, VOCABULARY, family_config, modern_config, pool_config, pool_model


def quiet(model, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecureRouterWarning)
        return to_mpc(model, *args, **{"protocol": "crypten"} | options)


def paths(model, *args, **options):
    return [problem.path for problem in validate(model, *args, options=Options(**options))]


def test_a_good_pool_has_no_problems(model, tokenizer):
    assert validate(model, tokenizer) == []
    crypten = Options(protocol="crypten", max_length=8, provider="tfp", routing_privacy="revealed")
    assert validate(model, None, crypten) == []
    assert paths(model, None, provider="tfp") == ["provider"]


def test_all_problems_are_listed_at_once(tokenizer):
    model = SecureRouterForSequenceClassification(
        pool_config(
            ("bert", "bert", "bert", "bert"),
            expert_mpc=[{}, {}, {"softmax": "2quad", "hidden_act": "quadratic"}, {}],
        )
    ).eval()
    model.experts[0].config.hidden_act = "mish"
    model.experts[1].config.model_type = "funnel"
    with torch.no_grad():
        model.experts[3].classifier.bias[0] = float("nan")
    large = BertTokenizer(vocab=VOCABULARY | {"more": len(VOCABULARY)})
    arguments = {"tokenizer": large, "max_length": MAX_POSITIONS + 1, "device": "cuda", "provider": "magic"}
    arguments |= {"protocol": "crypten", "routing_privacy": "quota"}
    expected = {
        "routing_privacy",
        "experts.0.config.hidden_act",
        "experts.1",
        "experts.2.softmax",
        "experts.2.hidden_act",
        "experts.3.classifier.bias",
        "device",
        "provider",
        "max_length",
        *(f"experts.{index}.config.max_position_embeddings" for index in range(4)),
        *(f"experts.{index}.config.vocab_size" for index in range(4)),
        "router.encoder.config.max_position_embeddings",
        "router.encoder.config.vocab_size",
    }
    chosen = {name: value for name, value in arguments.items() if name != "tokenizer"}
    problems = validate(model, arguments.get("tokenizer"), Options(**chosen))
    assert {problem.path for problem in problems} == expected
    with pytest.raises(ConversionError) as raised:
        to_mpc(model, **arguments)
    message = str(raised.value)
    assert isinstance(raised.value, SecureRouterValueError) and isinstance(raised.value, ValueError)
    for problem in problems:
        assert problem.path in message and problem.reason in message and problem.remedy in message


def test_protocol_and_length_are_checked(model, tokenizer):
    assert paths(model, protocol="magic") == ["protocol"]
    assert (
        paths(model, max_length=1) == paths(model, max_length="8") == paths(model, max_length=True) == ["max_length"]
    )
    unpadded = copy.deepcopy(tokenizer)
    unpadded.pad_token = None
    assert paths(model, unpadded) == ["tokenizer.pad_token"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quotas": [1.5, 1, 1]}, r"`quotas`: it should hold 3 counts .* got \[1.5, 1, 1\]"),
        ({"quotas": 3}, "`quotas`: it should hold 3 counts .* got 3"),
        ({"routing_privacy": "revealed", "routing_lambda": "x"}, "`routing_lambda`: it should be at least 0, got 'x'"),
        (
            {"tokenizer": "bert"},
            "it is a name, not a tokenizer. Pass `AutoTokenizer.from_pretrained..bert..`",
        ),
    ],
)
def test_an_option_of_another_kind_is_named(model, options, message):
    with pytest.raises(ConversionError, match=message):
        to_mpc(model, **options)


def test_functions_that_a_family_has_not_are_one_reason_more(tokenizer):
    expert = AutoModelForSequenceClassification.from_config(modern_config())
    use_functions(expert, softmax="2quad")
    with pytest.raises(ConversionError, match="`softmax` of a modernbert should be the exact one") as found:
        to_mpc(expert, tokenizer, network="moon")
    assert [problem.path for problem in found.value.problems] == ["network", "model"]


def test_decoders_relative_positions_adapters_and_quantised_weights_are_refused(model):
    model.experts[0].config.is_decoder = True
    model.experts[1].config.position_embedding_type = "relative_key"
    model.experts[2].config.quantization_config = {"bits": 4}
    model.experts[2]._hf_peft_config_loaded = True
    assert paths(model) == [
        "experts.0.config.is_decoder",
        "experts.1.config.position_embedding_type",
        "experts.2",
        "experts.2",
    ]


def test_a_model_without_values_or_with_quantised_layers_is_refused(model):
    with torch.device("meta"):
        empty = SecureRouterForSequenceClassification(model.config)
    model.router.dense = torch.nn.Module()
    model.router.dense.weight = lambda: torch.zeros(8, 8)  # a method, as in PyTorch's quantised layers
    for wrong, reason in ((empty, "only shapes"), (model, "quantised")):
        with pytest.raises(ConversionError, match=reason) as caught:
            to_mpc(wrong, max_length=8)
        assert [problem.path for problem in caught.value.problems] == ["model"]


def test_the_reference_warns_once_at_construction(model, tokenizer):
    with pytest.warns(SecureRouterWarning, match="inherits CrypTen's random generator") as caught:
        to_mpc(model, tokenizer, protocol="crypten")
    assert len(caught) == 1
    with pytest.warns(SecureRouterWarning, match="party 0 make all correlated randomness") as caught:
        to_mpc(model, tokenizer, protocol="crypten", provider="tfp")
    assert len(caught) == 2


def test_manifest_is_public_and_complete(model, tokenizer):
    secure = quiet(model, tokenizer)
    manifest = secure.manifest
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    assert manifest.roles == ("party0", "party1", "dealer")
    assert quiet(model, provider="tfp").manifest.roles == ("party0", "party1")
    assert manifest.max_length == MAX_POSITIONS
    assert quiet(model, max_length=9).manifest.max_length == 9
    assert [spec.num_layers for spec in manifest.experts] == [1, 2, 3]
    assert manifest.router.head.num_outputs == 3 and manifest.router.head.activation == "relu"
    assert all(spec.head.num_outputs == 2 and spec.head.activation == "tanh" for spec in manifest.experts)


def test_max_length_defaults_to_the_shortest_limit(tokenizer):
    assert quiet(pool_model(max_length=10), tokenizer).manifest.max_length == 10
    shorter = BertTokenizer(vocab=VOCABULARY, model_max_length=7)
    assert quiet(pool_model(max_length=10), shorter).manifest.max_length == 7


def test_a_pool_reads_no_more_on_shares_than_in_clear(tokenizer):
    with pytest.raises(ConversionError, match="it is 16, and the pool cuts texts at 10 tokens") as found:
        quiet(pool_model(max_length=10), tokenizer, max_length=16)
    assert [problem.path for problem in found.value.problems] == ["max_length"]
    assert quiet(pool_model(max_length=10), tokenizer, max_length=10).manifest.max_length == 10


def test_weights_and_embeddings_are_the_whole_model(model, batch):
    model.config.routing_lambda = 0.25
    batch["token_type_ids"][:, 3:] = 1
    secure = quiet(model)
    encoded = secure.client.tokenize(batch)
    embedded = secure.client.embed(encoded)
    with torch.no_grad():
        output = model(**batch)
        experts = [expert(**batch).logits for expert in model.experts]
    for member, spec in secure.manifest.members.items():
        weights = {
            name.removeprefix(f"{member}."): values
            for name, values in secure.weights.items()
            if name.startswith(f"{member}.")
        }
        got = reference(weights, spec, embedded[member], encoded["attention_mask"]).float()
        if member == "router":
            costs = torch.tensor(model.config.expert_costs)
            expected = output.router_logits - 0.25 * (costs - costs.min())
            assert torch.equal(got.argmax(-1), output.expert_indices)
        else:
            expected = experts[int(member.split(".")[1])]
        assert torch.allclose(got, expected, atol=1e-5)


def test_conversion_copies(model):
    secure = quiet(model)
    before = {name: values.clone() for name, values in secure.weights.items()}
    embedded = secure.client.embed(secure.client.tokenize({"input_ids": torch.ones(1, 4, dtype=torch.long)}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(secure.weights[name], values) for name, values in before.items())
    again = secure.client.embed(secure.client.tokenize({"input_ids": torch.ones(1, 4, dtype=torch.long)}))
    assert torch.equal(embedded["router"], again["router"])


def test_half_precision_models_are_embedded_in_float32(model):
    secure = quiet(model.to(torch.bfloat16))
    embedded = secure.client.embed(secure.client.tokenize({"input_ids": torch.ones(1, 4, dtype=torch.long)}))
    assert all(values.dtype == torch.float32 for values in [*embedded.values(), *secure.weights.values()])


def test_a_plain_classifier_is_a_pool_of_one(tokenizer):
    model = BertForSequenceClassification(family_config("bert", num_labels=1)).eval()
    secure = quiet(model, tokenizer)
    assert secure.manifest.router is None and len(secure.manifest.experts) == 1
    assert secure.client.labels(torch.tensor([[0.5], [-2.0]])) == [0.5, -2.0]


@pytest.mark.parametrize("protocol", ["masked", "crypten"])
def test_several_labels_at_once_change_the_client_only(model, tokenizer, protocol):
    options = {"protocol": protocol, "routing_privacy": "revealed"}
    single = quiet(model, tokenizer, **options)
    model.config.problem_type = "multi_label_classification"
    several = quiet(model, tokenizer, **options)
    assert several.manifest == single.manifest
    assert all(torch.equal(several.weights[name], values) for name, values in single.weights.items())
    names, logits = model.config.id2label, torch.tensor([[2.0, 1.0], [-1.0, 0.5], [-2.0, -1.0]])
    assert single.client.labels(logits) == [names[0], names[1], names[1]]
    assert several.client.labels(logits) == [[names[0], names[1]], [names[1]], []]
    torch.testing.assert_close(several.client.labels.probabilities(logits), logits.sigmoid())
    torch.testing.assert_close(single.client.labels.probabilities(logits), logits.softmax(1))


@pytest.mark.parametrize(
    ("fields", "problem_type"),
    [
        ({"num_labels": 1}, "regression"),
        ({"num_labels": 2, "problem_type": "regression"}, "regression"),
        ({"num_labels": 1, "problem_type": "multi_label_classification"}, "multi_label_classification"),
        ({"num_labels": 2}, "single_label_classification"),
    ],
)
def test_labels_follow_the_problem_type(fields, problem_type):
    labels = Labels.of(family_config("bert", **fields))
    assert labels.problem_type == problem_type
    assert (labels.probabilities(torch.zeros(1, 2)) is None) == (problem_type == "regression")


@pytest.mark.parametrize("option", [{"routing_privacy": "revealed"}, {"routing_lambda": 0.0}, {"quotas": [1]}])
def test_a_plain_classifier_has_no_options_of_a_pool(option):
    (name,) = option
    model = BertForSequenceClassification(family_config("bert"))
    assert paths(model) == [] and paths(model, **option) == [name]


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForTokenClassification, AutoModelForMultipleChoice])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_a_classifier_has_a_problem(family, auto):
    model = auto.from_config(family_config(family))
    (problem,) = validate(model)
    assert problem.path == "model" and type(model).__name__ in problem.reason
    assert problem.remedy.endswith("ForSequenceClassification")


def test_a_length_for_generation_is_no_limit_of_a_plain_classifier(tokenizer):
    model = BertForSequenceClassification(family_config("bert")).eval()
    model.config.max_length = 5
    assert public_to_mpc(model, tokenizer=tokenizer).manifest.max_length == MAX_POSITIONS


def test_client_pads_everything_to_the_public_length(model, tokenizer):
    client = quiet(model, tokenizer, max_length=12).client
    encoded = client.tokenize(["good", ("a film", "a movie")])
    assert all(values.shape == (2, 12) for values in encoded.values())
    assert encoded["attention_mask"].sum(-1).tolist() == [3, 7]
    assert client.tokenize(["film " * 40])["attention_mask"].tolist() == [[1] * 12]
    assert encoded["token_type_ids"][1].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    ids = client.tokenize({"input_ids": torch.full((2, 5), 9), "token_type_ids": torch.ones(2, 5, dtype=torch.long)})
    assert ids["input_ids"][0].tolist() == [9] * 5 + [0] * 7
    assert ids["attention_mask"][0].tolist() == ids["token_type_ids"][0].tolist() == [1] * 5 + [0] * 7


@pytest.mark.parametrize(
    "inputs, message",
    [
        ("one text", "list with at least one text, got str"),
        ([], "list with at least one text"),
        (["good", None], r"`inputs\[1\]`"),
        ([("a", "b", "c")], r"`inputs\[0\]`"),
        ([("a", 1)], r"`inputs\[0\]`"),
        ({"input_ids": torch.ones(1, 13, dtype=torch.long)}, "up to 12 tokens"),
        ({"input_ids": torch.ones(13, dtype=torch.long)}, "shape"),
    ],
)
def test_bad_inputs_are_named(model, tokenizer, inputs, message):
    client = quiet(model, tokenizer, max_length=12).client
    with pytest.raises(SecureRouterValueError, match=message):
        client.tokenize(inputs)


def test_texts_need_a_tokenizer(model):
    with pytest.raises(SecureRouterValueError, match="`tokenizer` was not given"):
        quiet(model).client.tokenize(["good"])


def test_shares_of_one_tensor_are_uniform_and_fresh(model):
    sharing = quiet(model).sharing
    values = torch.zeros(4000, 2)
    first, second = (next(sharing.weights({"experts.0.x": values})) for _ in range(2))
    assert set(first) == {"party0", "party1"}  # nothing for the dealer
    for shares in (first, second):
        halves = [shares[party]["experts.0.x"] for party in ("party0", "party1")]
        assert not (halves[0] + halves[1]).any()
        for half in halves:
            # 64 bit positions, each fair: 8000 coins, five standard deviations.
            ones = torch.stack([(half >> bit & 1).double().mean() for bit in range(64)])
            assert (ones - 0.5).abs().max() < 5 * 0.5 / 8000**0.5
    assert not (first["party0"]["experts.0.x"] == second["party0"]["experts.0.x"]).any()


def test_fixed_point_rounds_to_the_nearest():
    values = torch.tensor([-1.5, -(2.0**-16) * 0.6, 2.0**-16 * 0.6, 190.25])
    assert to_fixed_point(values).tolist() == [-98304, -1, 1, 12468224]
    assert torch.equal(from_fixed_point(to_fixed_point(values[[0, 3]])), values[[0, 3]].double())
    negative = -torch.arange(1, 200_000, dtype=torch.int64)
    assert torch.equal(from_fixed_point(negative), negative.double() / 65536)


def test_protocols_are_loaded_by_name():
    with pytest.raises(SecureRouterValueError, match="`protocol` should be one of .*crypten.*, got 'os'"):
        load_protocol("os")
