# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Experts of reduced precision in clear: rounding, its gradient, ranges, and weights that do not change."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_securerouter import SecureRouterValueError
from hf_securerouter.fixed_point_layers import FixedPointLayerNorm, rounded, truncated
from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.number_format import MARGIN, number_format
from hf_securerouter.range_penalty import range_penalty
from tests.tiny import FAMILIES, family_config, pool_model


NARROW = {"hidden_act": "quadratic", "softmax": "2quad", "precision": "reduced"}
SUPPORTED = ("bert", "distilbert", "roberta", "mpnet")


def expert_of(family="bert", **fields):
    torch.manual_seed(0)
    expert = AutoModelForSequenceClassification.from_config(family_config(family, layers=2, **fields)).eval()
    for parameter in expert.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5
    return expert


def inputs_of(family, batch):
    return {name: part for name, part in batch.items() if family == "bert" or name != "token_type_ids"}


def test_gradients_pass_straight_through():
    for function in (lambda x: rounded(x, 3), lambda x: truncated(x, 3, training=True)):
        x = torch.randn(100, requires_grad=True)
        y = function(x)
        assert torch.equal(y * 8, (y * 8).round()) and not torch.equal(x, y)
        (y * torch.arange(100)).sum().backward()
        assert torch.equal(x.grad, torch.arange(100.0))


def test_truncation_goes_to_one_of_two_neighbours_and_is_right_in_the_mean():
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 41)
    samples = torch.stack([truncated(x, 4, training=True) for _ in range(4000)])
    assert (samples - x).abs().max() < 2**-4
    assert (samples.mean(0) - x).abs().max() < 5 * 2**-5 / 4000**0.5
    assert (rounded(x, 4) - x).abs().max() <= 2**-5
    assert truncated(x, 4, training=False) is x


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_replica_computes_on_its_own_device(family, batch):
    expert = expert_of(family)
    use_functions(expert, **NARROW)
    replicas = {module: module._replicate_for_data_parallel() for module in expert.modules()}
    for module, replica in replicas.items():  # as `nn.DataParallel` does
        replica._modules = {name: part and replicas[part] for name, part in module._modules.items()}
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            setattr(replica, name, None if tensor is None else tensor.to("meta"))
    answer = replicas[expert](input_ids=batch["input_ids"].to("meta")).logits
    assert answer.is_meta and answer.shape == (len(batch["input_ids"]), 2)


@pytest.mark.parametrize("family", SUPPORTED)
def test_an_expert_computes_with_rounded_weights_and_trains_those_below(family, batch):
    expert, exact = expert_of(family), expert_of(family)
    use_functions(exact, "quadratic", "2quad")
    use_functions(expert, **NARROW)
    assert expert.expert_mpc == NARROW
    batch = inputs_of(family, batch)
    change = (expert(**batch).logits - exact(**batch).logits).abs().max()
    assert 1e-5 < change < 0.1
    assert torch.equal(expert(**batch).logits, expert(**batch).logits)
    names, others = (dict(model.named_parameters()) for model in (expert, exact))
    assert names.keys() == others.keys() and expert.state_dict().keys() == exact.state_dict().keys()
    assert all(torch.equal(names[name], others[name]) for name in names)
    expert.train()
    assert not torch.equal(expert(**batch).logits, expert(**batch).logits)  # no two roundings are the same
    expert(**batch).logits.square().sum().backward()
    learning = [name for name, parameter in names.items() if parameter.grad is None or not parameter.grad.any()]
    assert not [name for name in learning if "weight" in name and "embeddings" not in name]


def test_a_pool_keeps_precision_and_plain_weights(tmp_path, batch):
    model = pool_model(expert_mpc=[{}, NARROW, {"precision": "reduced"}])
    found = [expert(**batch).logits for expert in model.experts]
    plain = [expert(**batch).logits for expert in pool_model().experts]
    assert torch.equal(found[0], plain[0]) and not torch.equal(found[2], plain[2])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.expert_mpc == model.config.expert_mpc
    loaded.set_attn_implementation("eager")
    for expert, expected in zip(loaded.experts, found, strict=True):
        torch.testing.assert_close(expert(**batch).logits, expected, atol=1e-6, rtol=1e-6)
    state, other = model.state_dict(), pool_model().state_dict()
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def test_a_config_without_precision_is_full():
    config = pool_model().config.to_dict()
    for chosen in config["expert_mpc"]:
        del chosen["precision"]
    assert type(pool_model().config)(**config).expert_mpc[0]["precision"] == "full"


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in SUPPORTED])
def test_families_without_it_are_refused(family):
    with pytest.raises(SecureRouterValueError, match=f"`precision` 'reduced' .* got '{family}': leave it at 'full'"):
        use_functions(expert_of(family), precision="reduced")


def test_another_precision_is_refused():
    with pytest.raises(SecureRouterValueError, match="`precision` should be one of full, reduced, got 'w4a4'"):
        use_functions(expert_of(), precision="w4a4")


def test_it_runs_in_other_dtypes(batch):
    """In bfloat16 throughout, and trained in float32 with products in bfloat16."""
    expert = expert_of()
    use_functions(expert, **NARROW)
    expected = expert(**batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        expert.train()(**batch).logits.float().sum().backward()
    found = expert.to(torch.bfloat16).eval()(**batch).logits
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)


# Ranges.


@pytest.mark.parametrize("softmax", ["2quad", "exact", "2relu"])
def test_only_what_exceeds_its_margin_is_penalised_and_learns(softmax, batch):
    expert = expert_of()
    use_functions(expert, **NARROW | {"softmax": softmax})
    with torch.no_grad():
        for name, parameter in expert.named_parameters():
            if name.endswith("weight") and "LayerNorm" not in name and "embeddings" not in name:
                parameter *= 0.1
            if softmax == "2relu" and name.endswith(("query.bias", "key.bias")):
                parameter += 1  # a row without a score above 0 has no sum to divide by
    with range_penalty(batch["attention_mask"]) as penalty:
        expert(**batch)
    assert penalty() == 0
    limit = 2.0 ** number_format("reduced", softmax).bounds.inner / MARGIN
    inner = expert.bert.encoder.layer[0].intermediate.dense
    with torch.no_grad():
        inner.bias[3] = 1.5 * limit
    with range_penalty(batch["attention_mask"]) as penalty:
        expert(**batch)
    assert 0.3 < penalty() < 0.5  # one value of each token is 1.5 times its limit; smooth L1 subtracts a tenth
    penalty().backward()
    assert inner.bias.grad[3] > 0 and not inner.bias.grad[4:].any()


def test_every_bounded_value_is_watched(batch):
    expert = expert_of()
    use_functions(expert, **NARROW)
    layer = expert.bert.encoder.layer[0]
    own = layer.attention.self
    places = {
        "scores": [(own.query.bias, 20.0), (own.key.bias, 20.0)],
        "value": [(own.value.bias, 9.0)],
        "residual": [(layer.output.dense.bias, 50.0)],
        "inner": [(layer.intermediate.dense.bias, 9.0)],
        "head": [(expert.bert.pooler.dense.bias, 90.0)],
        "logits": [(expert.classifier.bias, 90.0)],
    }
    with torch.no_grad():  # so that the scores change no other value
        own.value.weight.zero_()
        own.value.bias.zero_()
    state = {name: part.clone() for name, part in expert.state_dict().items()}
    with torch.no_grad():
        for parameter in (layer.output.dense.weight, layer.attention.output.LayerNorm.weight):
            parameter.mul_(0.01)
    with range_penalty(batch["attention_mask"]) as small_variance:
        expert(**batch)
    assert small_variance() > 0.01
    expert.load_state_dict(state)
    with range_penalty(batch["attention_mask"]) as before:
        expert(**batch)
    with torch.no_grad():  # every value within its bound, but their mean square is not
        layer.output.dense.bias.copy_(torch.tensor([5.0, -5.0]).repeat(8))
    with range_penalty(batch["attention_mask"]) as large_variance:
        expert(**batch)
    assert large_variance() > before() + 0.01
    for changes in places.values():
        expert.load_state_dict(state)
        with range_penalty(batch["attention_mask"]) as before:
            expert(**batch)
        with torch.no_grad():
            for bias, size in changes:
                bias[0] += size
        with range_penalty(batch["attention_mask"]) as after:
            expert(**batch)
        assert after() > before() + 0.01


def test_the_widest_value_is_told_in_parts_of_its_bound(batch):
    expert, bounds = expert_of(), number_format("reduced", "2quad").bounds
    use_functions(expert, **NARROW)
    live = batch["attention_mask"]
    for factor in (0.5, 3.0):
        with torch.no_grad(), range_penalty(live) as penalty:
            expert.classifier.bias.copy_(torch.tensor([factor * 2.0**bounds.logits, 0]))
            logits = expert(**batch).logits
        assert penalty.widest == pytest.approx(logits.abs().max().item() / 2.0**bounds.logits, rel=1e-3)


def test_a_row_of_2quad_needs_a_sum_to_divide_by(batch):
    expert = expert_of()
    use_functions(expert, **NARROW)
    own = expert.bert.encoder.layer[0].attention.self
    head = expert.config.hidden_size // expert.config.num_attention_heads
    with torch.no_grad():
        for part in (own.query, own.key):
            part.weight.zero_()
        own.query.bias.fill_(1.0)
        for score, within in ((0.0, True), (-4.9, False)):
            own.key.bias.fill_(score / head**0.5)
            with range_penalty(batch["attention_mask"]) as penalty:
                expert(**batch)
            assert (penalty.widest <= 1) == within


def test_padding_does_not_count_and_nothing_stays_behind(batch):
    expert = expert_of()
    use_functions(expert, **NARROW)
    with torch.no_grad():
        expert.bert.encoder.layer[0].attention.self.value.bias[0] = 20.0
    row = {name: part[3:4] for name, part in batch.items()}
    length = int(row["attention_mask"].sum())
    padded, short = row, {name: part[:, :length] for name, part in row.items()}
    assert length < row["input_ids"].shape[1]
    found = []
    for given in (short, padded):
        with range_penalty(given["attention_mask"]) as penalty:
            expert(**given)
        found.append(penalty())
        expert(**given)  # outside the block, where no penalty watches
        assert penalty() == found[-1]
    assert found[0] > 0
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_rounding_at_random_leaves_what_needs_none_in_any_dtype():
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.full((1000,), 1.5, dtype=dtype)
        assert torch.equal(truncated(values, 7, training=True), values)
    found = truncated(torch.full((100_000,), 0.3), 1, training=True)
    assert set(found.tolist()) == {0.0, 0.5} and abs(found.mean() - 0.3) < 0.01


def test_a_variance_is_watched_as_shares_divide_its_sum():
    """By 2^ceil(log2 d): a row of 20 numbers whose variance is 1.3 times the bound is below it on shares."""
    norm = torch.nn.LayerNorm(20).eval()
    norm.__class__ = FixedPointLayerNorm
    norm.format = number_format("reduced", "exact")
    row = torch.tensor([1.0, -1.0]).repeat(10)[None, None]
    least = 2.0**norm.format.bounds.variance_low
    for factor, within in ((1.3, False), (1.7, True)):
        with range_penalty(torch.ones(1, 1)) as penalty:
            norm(row * (factor * least) ** 0.5)
        assert (penalty.widest <= 1) == within
