# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Every architecture: embeddings, weights and spec together reproduce the model, in clear and on shares."""

import json
import warnings

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.activations import ACT2FN

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.lengths import padded_right
from hf_securerouter.mpc.conversion.clear_encoder import ClearEncoder
from hf_securerouter.mpc.conversion.validation import validate
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.models import EncoderSpec, architecture_for, supported_model_types
from hf_securerouter.mpc.models.architecture import ACTIVATIONS
from hf_securerouter.mpc.protocols.masked.encoder import MaskedEncoder
from hf_securerouter.mpc.protocols.masked.folding import fold_weights, weight_shapes
from hf_securerouter.mpc.protocols.masked.ring_widths import Bounds, RingWidths
from hf_securerouter.mpc.ring.randomness import Csprng, new_seed
from hf_securerouter.mpc_friendly import use_functions
from tests.support.harness import Input, run
from tests.support.reference import reference
from tests.tiny import FAMILIES, FIXED_ATTENTION, MAX_POSITIONS, VOCABULARY, family_config, pool_model


CASES = {
    "bert": ("bert", {"hidden_act": "relu"}),
    "bert_one_token_type": ("bert", {"type_vocab_size": 1}),
    "distilbert": ("distilbert", {}),
    "distilbert_sinusoidal_relu": ("distilbert", {"sinusoidal_pos_embds": True, "activation": "relu"}),
    "roberta": ("roberta", {"pad_token_id": 1, "max_position_embeddings": MAX_POSITIONS + 2, "layer_norm_eps": 1e-5}),
    "roberta_two_token_types": ("roberta", {"type_vocab_size": 2}),
    "electra": ("electra", {}),
    "electra_one_layer": ("electra", {"num_hidden_layers": 1}),
    "electra_same_width": ("electra", {"embedding_size": 16}),
    "albert": ("albert", {"hidden_act": "gelu", "num_hidden_layers": 3}),
    "albert_same_width": ("albert", {"hidden_act": "gelu", "embedding_size": 16}),
    "albert_groups": ("albert", {"hidden_act": "gelu", "num_hidden_groups": 2, "inner_group_num": 2}),
    "deberta": ("deberta-v2", {}),
    "deberta_c2p_of_its_own": ("deberta-v2", {"pos_att_type": "c2p", "share_att_key": False}),
    "deberta_p2c_without_buckets": ("deberta-v2", {"pos_att_type": "p2c", "position_buckets": -1}),
    "deberta_all_of_its_own": ("deberta-v2", {"share_att_key": False, "norm_rel_ebd": "none", "type_vocab_size": 2}),
    "deberta_absolute_positions": ("deberta-v2", {"position_biased_input": True, "max_relative_positions": 6}),
    "deberta_content_only": ("deberta-v2", {"pos_att_type": None, "num_hidden_layers": 1}),
    "mpnet": ("mpnet", {}),
    "mpnet_padding_of_its_own": ("mpnet", {"pad_token_id": 1, "num_hidden_layers": 3}),
}


def classifier(family, **fields):
    """A classifier with three labels, every parameter of which matters."""
    torch.manual_seed(1)
    fields = {"num_labels": 3, **fields}
    layers = fields.pop("num_hidden_layers", 2)
    model = AutoModelForSequenceClassification.from_config(family_config(family, layers=layers, **fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if getattr(model.config, "sinusoidal_pos_embds", False) and "position_embeddings" in name:
                continue
            noise = torch.randn(parameter.shape)
            if parameter.dim() == 2:
                noise = noise if "embeddings." in name else noise / parameter.shape[1] ** 0.5
            parameter.copy_(noise if parameter.dim() == 2 else 0.1 * noise + (parameter == 1))
    return model


def inputs(model, length=9):
    """Three texts of different length, padded to one, with token types where the model has some."""
    mask = (torch.arange(length) < torch.tensor([length, length - 2, 3])[:, None]).long()
    ids = torch.randint(5, len(VOCABULARY), mask.shape, generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": torch.where(mask.bool(), ids, model.config.pad_token_id), "attention_mask": mask}
    if model.config.model_type != "distilbert" and getattr(model.config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = (torch.arange(length) > 2).long() * mask
    return batch


def clear(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def parts(model, batch, **functions):
    """Spec, embedding output and weights."""
    architecture = architecture_for(model.config.model_type)
    assert architecture.problems(model.config, "model") == []
    embeddings = architecture.embeddings(architecture.encoder(model))
    embedded = architecture.embed(embeddings, batch["input_ids"], batch.get("token_type_ids"))
    return architecture.spec(model.config, **functions), embedded, architecture.weights(model)


@pytest.fixture(params=CASES)
def model(request):
    family, fields = CASES[request.param]
    return classifier(family, **fields)


def test_every_family_is_supported():
    later = ("eurobert", "modernbert", "nomic_bert", "secure_moe", "xlm-roberta")  # tested by themselves
    assert supported_model_types() == tuple(sorted((*FAMILIES, *later, "pooled_encoder")))
    assert {family for family, _ in CASES.values()} == set(FAMILIES)


def test_spec_embeddings_and_weights_are_the_whole_model(model):
    batch = inputs(model)
    spec, embedded, weights = parts(model, batch)
    expected = clear(model, batch)
    assert expected.std(0).max() > 0.1
    assert embedded.dtype == torch.float32
    got = reference(weights, spec, embedded, batch["attention_mask"])
    assert (got - expected).abs().max() < 1e-5
    assert (ClearEncoder(spec, weights)(embedded, batch["attention_mask"]) - got).abs().max() < 1e-12
    assert EncoderSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_float32_copies(model, dtype):
    model = model.to(dtype)
    _, _, weights = parts(model, inputs(model))
    before = {name: values.clone() for name, values in weights.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for name, values in weights.items():
        assert values.dtype == torch.float32 and values.is_contiguous()
        assert torch.equal(values, before[name]), name


def test_client_holds_tables_and_shares_the_rest(model):
    secure = converted(model)
    held = {name.split(".")[0] for name, _ in secure.client.embeddings["experts.0"].named_parameters()}
    assert held <= {"word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"}
    kept = sum(parameter.numel() for parameter in secure.client.embeddings["experts.0"].parameters())
    # The owner computes the tables of positions from these, which it keeps.
    sources = ("rel_embeddings", "pos_key_proj", "pos_query_proj", "encoder.LayerNorm")
    owned = {name: one for name, one in model.named_parameters() if not any(part in name for part in sources)}
    shared = sum(values.numel() for name, values in secure.weights.items() if ".position_" not in name)
    assert kept + shared == sum(parameter.numel() for parameter in owned.values())
    projection = secure.weights.get("experts.0.embedding_projection.weight")
    spec = secure.manifest.experts[0]
    assert (projection is None) == (spec.embedding_size is None)
    assert projection is None or projection.shape == (spec.hidden_size, spec.embedding_size)


def converted(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return to_mpc(model, **options)


def masked(model, batch, **functions):
    """A run of the masked encoder on a batch whose padding rows are copies of the last real row."""
    spec, embedded, weights = parts(model, batch, **functions)
    precision = RingWidths(Bounds(), embedded.shape[1], spec.softmax)
    live = batch["attention_mask"].to(torch.uint8)
    for row, count in enumerate(live.sum(1).tolist()):
        embedded[row, count:] = embedded[row, count - 1]
    encoder, prefix = MaskedEncoder(spec, precision, "experts.0."), "experts.0."
    encoded = fold_weights(spec, weights, precision)
    assert {name: tuple(words.shape) for name, words in encoded.items()} == weight_shapes(spec)
    x = Input.real(embedded, encoder.input_width, precision.bits.hidden)
    pad = Csprng(new_seed(), b"live").ring(live.shape, 1).to(torch.uint8)
    masks = (live ^ pad, pad)
    return run(
        lambda party: encoder.run(party, x(party), party.constant(masks[party.rank])),
        {f"{prefix}{name}": words for name, words in encoded.items()},
    )


def test_masked_logits_equal_clear_ones(model):
    batch = inputs(model)
    assert (masked(model, batch).values - clear(model, batch)).abs().max() < 0.01


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hidden_act, softmax", [("quadratic", "2quad"), ("relu", "2quad"), ("quadratic", "exact")])
def test_masked_logits_of_an_expert_with_other_functions_equal_clear_ones(family, hidden_act, softmax):
    if family in FIXED_ATTENTION and softmax != "exact":
        pytest.skip("its softmax cannot be replaced")
    model = classifier(family, **({"hidden_act": "gelu"} if family == "albert" else {}))
    batch = inputs(model)
    exact = clear(model, batch)
    use_functions(model, hidden_act, softmax)
    expected = clear(model, batch)
    assert (expected - exact).abs().max() > 0.01
    assert (masked(model, batch, hidden_act=hidden_act, softmax=softmax).values - expected).abs().max() < 0.01


def test_a_projection_costs_no_round_and_opens_narrower_rows():
    model = classifier("electra")
    batch = inputs(model)
    narrow = masked(model, batch).plan
    wide = masked(classifier("electra", embedding_size=16), batch).plan
    assert narrow.rounds == wide.rounds
    width = RingWidths(Bounds(), 9).attention_width
    assert 8 * (wide.payload_bytes - narrow.payload_bytes) == pytest.approx(3 * 9 * 8 * width, abs=8)


def test_layers_of_albert_are_shared_by_group():
    def layer_map(**fields):
        return architecture_for("albert").spec(family_config("albert", **fields)).layer_map

    assert layer_map(layers=4) == (0, 0, 0, 0)
    assert layer_map(layers=4, num_hidden_groups=2) == (0, 0, 1, 1)
    assert layer_map(layers=2, inner_group_num=2) == (0, 1, 0, 1)
    assert layer_map(layers=5, num_hidden_groups=3, inner_group_num=2) == (0, 1, 0, 1, 2, 3, 2, 3, 4, 5)


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_positions_of_roberta_follow_its_padding(pad):
    model = classifier("roberta", pad_token_id=pad, max_position_embeddings=MAX_POSITIONS + pad + 1)
    batch = inputs(model)
    secure = converted(model)
    assert secure.manifest.max_length == MAX_POSITIONS
    weights = {name.removeprefix("experts.0."): values for name, values in secure.weights.items()}
    left = {name: values.flip(1) for name, values in batch.items()}
    for given in (batch, left):
        encoded = secure.client.tokenize(given)
        assert encoded["input_ids"].shape == (3, MAX_POSITIONS)
        assert (encoded["input_ids"][encoded["attention_mask"] == 0] == pad).all()
        embedded = secure.client.embed(encoded)["experts.0"]
        got = reference(weights, secure.manifest.experts[0], embedded, encoded["attention_mask"])
        assert (got - clear(model, padded_right(given))).abs().max() < 1e-5
    # Padded with another token, as in a pool whose router has another one, the last position is still in the table.
    secure.client.pad_token_id = pad + 1
    secure.client.embed(secure.client.tokenize(batch))


@pytest.mark.parametrize("pad", [0, 1])
def test_positions_of_mpnet_skip_token_1_whatever_its_padding(pad):
    model = classifier("mpnet", pad_token_id=pad)
    batch = inputs(model)
    batch["input_ids"][0, 3] = 1
    secure = converted(model)
    assert secure.manifest.max_length == MAX_POSITIONS
    weights = {name.removeprefix("experts.0."): values for name, values in secure.weights.items()}
    encoded = secure.client.tokenize(batch)
    embedded = secure.client.embed(encoded)["experts.0"]
    got = reference(weights, secure.manifest.experts[0], embedded, encoded["attention_mask"])
    assert (got - clear(model, batch)).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_in_front_is_refused(family):
    """On shares padding is a copy of a token, so that the first hidden state would be another one than in clear."""
    secure = converted(classifier(family), max_length=9)
    batch = inputs(classifier(family))
    encoded = {name: values.flip(1) for name, values in secure.client.tokenize(batch).items()}
    with pytest.raises(SecureRouterError, match="`attention_mask` starts with padding in 2 of 3 inputs.*on the right"):
        secure.sharing.inputs(secure.client.embed(encoded), encoded["attention_mask"])


@pytest.mark.parametrize("buckets", [16, 64])
def test_other_numbers_of_buckets_are_named(buckets):
    (problem,) = validate(classifier("mpnet", relative_attention_num_buckets=buckets))
    assert problem.path == "model.config.relative_attention_num_buckets"
    assert str(buckets) in problem.reason and "32" in problem.remedy


def test_what_deberta_has_no_counterpart_for_is_named():
    for field, value, remedy in (
        ("conv_kernel_size", 3, "DeBERTa-v3"),
        ("relative_attention", False, "relative_attention=True"),
        ("attention_head_size", 4, "as wide as a hidden state"),
        ("position_buckets", 1, "at least 2 buckets"),
        ("position_buckets", 2 * MAX_POSITIONS - 2, "fewer than twice"),
        ("pooler_hidden_act", "mish", "gelu_new"),
    ):
        model = classifier("deberta-v2")
        setattr(model.config, field, value)
        (problem,) = validate(model)
        assert problem.path == f"model.config.{field}" and remedy in problem.remedy


def test_manifests_without_positions_in_their_scores_do_not_name_them():
    specs = {family: architecture_for(family).spec(family_config(family)).to_dict() for family in FAMILIES}
    for field in ("position_terms", "position_span", "position_limit"):
        assert [family for family, spec in specs.items() if field in spec] == ["deberta-v2"]


def test_manifests_without_a_relative_attention_bias_do_not_name_it():
    specs = {family: architecture_for(family).spec(family_config(family)).to_dict() for family in FAMILIES}
    assert [family for family, spec in specs.items() if "relative_buckets" in spec] == ["mpnet"]


def test_token_types_reach_only_who_has_them():
    pool = pool_model(("bert", "roberta", "distilbert", "electra"))
    client = converted(pool).client
    ids = inputs(pool.experts[0])["input_ids"]
    without, given = (
        client.embed(client.tokenize({"input_ids": ids, "token_type_ids": types}))
        for types in (torch.zeros_like(ids), torch.ones_like(ids))
    )
    changed = {name for name in given if not torch.equal(given[name], without[name])}
    assert changed == {"router", "experts.0", "experts.3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_has_no_counterpart_is_named(family):
    field = "activation" if family == "distilbert" else "hidden_act"
    model = classifier(family)
    setattr(model.config, field, "mish")
    (problem,) = validate(model)
    assert problem.path == f"model.config.{field}" and "'mish'" in problem.reason and "gelu_new" in problem.remedy
    if family == "distilbert":
        return
    model.config.position_embedding_type = "relative_key"
    model.config.is_decoder = True
    fields = [problem.path.removeprefix("model.config.") for problem in validate(model)]
    assert fields == ["hidden_act", "position_embedding_type", "is_decoder"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_variants_of_an_activation_are_within_the_stated_bound(name):
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    assert (ACT2FN[name](x) - ACT2FN[ACTIVATIONS[name]](x)).abs().max() < 5e-4


@pytest.mark.parametrize("protocol, tolerance, shared", [("crypten", 0.02, 2), ("masked", 0.01, None)])
def test_a_session_serves_every_architecture(protocol, tolerance, shared):
    """Each architecture serves an input; an encoder with a projection, an expert's or the router's, routes them."""
    families = ("distilbert", "roberta", "electra", "albert", "mpnet", "deberta-v2")
    if protocol == "crypten":  # of which `protocols/crypten/test_cuda.py` runs the other two
        families = families[:4]
    router = family_config("albert", layers=2, width=16, num_hidden_groups=2) if shared is None else None
    pool = pool_model(families, router_config=router, router_shares_expert=shared)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, len(VOCABULARY), (2000, 8), generator=generator)
    mask = (torch.arange(8) < torch.randint(3, 9, (2000, 1), generator=generator)).long()
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    with torch.no_grad():
        output = pool(**batch)
    margins = output.router_logits.topk(2).values.diff().abs().squeeze(1)
    rows = []
    for index in range(len(families)):
        sure = (output.expert_indices == index) & (margins > 0.2)
        rows += sure.nonzero().squeeze(1)[:1].tolist()
    assert len(rows) == len(families)
    secure = converted(pool, protocol=protocol, max_length=10, routing_privacy="revealed")
    with secure.local_session(timeout=120) as session:
        result = session({name: values[rows] for name, values in batch.items()})
    assert result.expert_indices == list(range(len(families)))
    assert (result.logits - output.logits[rows]).abs().max() < tolerance
