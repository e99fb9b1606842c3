# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Every function over CrypTen's tensors against float64, in two real processes (one launch for all cases)."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_securerouter.mpc.ring.randomness import Csprng, new_seed
from tests.support import script


WORKER = script("crypten_worker")
TOLERANCE = 0.01


def shared(values):
    """Both shares of fixed-point values."""
    words = torch.round(values.double() * 2**16).long()
    mask = Csprng(new_seed(), b"test").ring(words.shape, 64)
    return mask, words - mask


def cases():
    """Name -> function, inputs, options, and the float64 function."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wide = torch.cat([torch.linspace(-30, 30, 6001), torch.linspace(-4, 4, 2001), torch.tensor([0.0, 3.0, -3.0])])
    gelu = torch.nn.functional.gelu
    found = {
        "gelu": ("gelu", [wide], {}, gelu),
        "gelu_far": ("gelu", [torch.tensor([-20000.0, -1000.0, 1000.0, 20000.0])], {}, gelu),
        "tanh": ("tanh", [torch.cat([wide, torch.tensor([-20000.0, 20000.0])])], {}, torch.tanh),
        "silu": ("silu", [torch.cat([wide, torch.tensor([-20000.0, 20000.0])])], {}, torch.nn.functional.silu),
        "relu": ("relu", [wide], {}, torch.relu),
        "exponential": ("exponential", [-torch.linspace(0, 450, 9001)], {}, torch.exp),
        "linear": (
            "linear",
            [normal(8, 64), normal(64, 16) * 0.1, normal(16)],
            {},
            lambda x, weight, bias: x @ weight + bias,
        ),
        "inverse_sqrt": ("inverse_sqrt", [torch.logspace(-0.9, 1.2, 500)], {}, torch.rsqrt),
    }
    for upper in (2, 32, 128, 512):
        found[f"reciprocal_{upper}"] = (
            "reciprocal",
            [torch.logspace(0, torch.log10(torch.tensor(float(upper))).item(), 500)],
            {"upper": upper},
            torch.reciprocal,
        )

    bias = torch.tensor([0.0, -200.0]).repeat_interleave(5).expand(2, 1, 1, 10)
    found["windowed"] = ("windowed", [bias], {"reach": 3, "score": -200.0}, windowed)
    flat = torch.cat([torch.zeros(24, 1), -torch.linspace(0, 12, 24)[:, None].expand(24, 511)], dim=1)
    masked = normal(6, 128) * 20
    masked[:, 100:] -= 200
    for name, scores in {
        "softmax_1": normal(4, 1),
        "softmax_2": normal(16, 2) * 10,
        "softmax_7": normal(16, 7) * 3,
        "softmax_128": normal(32, 128),
        "softmax_span_170": torch.cat([torch.linspace(-85, 85, 128)[None], normal(7, 128) * 28]),
        "softmax_equal_512": torch.zeros(2, 512),
        "softmax_flat_512": flat,
        "softmax_masked": masked,
        "softmax_tie": torch.tensor([[5.0, 5.0, 1.0, 5.0, -30.0]]),
    }.items():
        found[name] = ("softmax", [scores], {}, lambda x: torch.softmax(x, -1))

    width = 128
    gamma, beta = 1 + 0.2 * normal(width), normal(width)
    rows = torch.cat([normal(8, width) * 10**power for power in torch.linspace(-2, 2, 17).tolist()])
    # Sample variances scatter, so scale each row to exactly the intended variance, the ends of the range included.
    rows = (rows - rows.mean(-1, keepdim=True)) / rows.std(-1, unbiased=False, keepdim=True)
    rows = rows * torch.logspace(-2, 2, 17, dtype=torch.float64).repeat_interleave(8)[:, None]
    outlier = normal(8, width)
    outlier[:, 3] = 190
    outlier[:4, 7] = -195
    spike = normal(8, 768) * 0.1
    spike[:, 5] = 250

    def layer_norm(eps):
        return lambda x, w, b: torch.nn.functional.layer_norm(x, x.shape[-1:], w, b, eps)

    def rms_norm(x, w, b):
        return torch.nn.functional.rms_norm(x, x.shape[-1:], w, 1e-5) + b

    found["rms_norm"] = ("layer_norm", [rows[:40] + 3, gamma, beta], {"eps": 1e-5, "centre": False}, rms_norm)
    for name, inputs, eps in (
        ("layer_norm_variances", rows + 3, 1e-12),
        ("layer_norm_outlier", outlier, 1e-12),
        ("layer_norm_eps", rows[:40], 1e-5),
        ("layer_norm_spike", spike, 1e-12),
    ):
        found[name] = (
            "layer_norm",
            [inputs, gamma.repeat(6)[: inputs.shape[-1]], beta.repeat(6)[: inputs.shape[-1]]],
            {"eps": eps},
            layer_norm(eps),
        )
    return found


def windowed(bias):
    place = torch.arange(bias.shape[-1])
    return torch.where((place[:, None] - place).abs() > 3, -200.0, bias)


def one_hot(scores):
    return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).double()


def argmax_cases():
    generator = torch.Generator().manual_seed(1)
    ulp = 2.0**-16
    values = torch.randint(0, 3, (200, 4), generator=generator) * ulp
    return {
        "argmax_one": ("argmax_one_hot", [torch.randn(3, 1, generator=generator)], {}, one_hot),
        "argmax_equal": ("argmax_one_hot", [torch.zeros(2, 3)], {}, one_hot),
        "argmax_close": ("argmax_one_hot", [values], {}, one_hot),
        "argmax_two": ("argmax_one_hot", [torch.randn(50, 2, generator=generator)], {}, one_hot),
        "argmax_five": ("argmax_one_hot", [torch.randn(50, 5, generator=generator) * 100], {}, one_hot),
    }


CASES = cases() | argmax_cases()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Each case's result, expectation and costs, from one run of two processes."""
    folder = tmp_path_factory.mktemp("crypten")
    halves = {0: {}, 1: {}}
    listed = {}
    for name, (function, inputs, options, _) in CASES.items():
        listed[name] = (function, list(range(len(inputs))), options)
        for number, values in enumerate(inputs):
            for rank, share in enumerate(shared(values)):
                halves[rank][f"{name}.{number}"] = share.contiguous()
    (folder / "cases.json").write_text(json.dumps(listed))
    for rank, tensors in halves.items():
        save_file(tensors, folder / f"in{rank}.safetensors")
    rendezvous = f"file://{folder}/rendezvous"
    parties = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), rendezvous, str(folder)], stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    try:
        errors = [party.communicate(timeout=200)[1].decode() for party in parties]
    finally:
        for party in parties:
            party.kill()
    assert [party.returncode for party in parties] == [0, 0], "\n".join(errors)
    results = [load_file(folder / f"out{rank}.safetensors") for rank in (0, 1)]
    costs = [json.loads((folder / f"costs{rank}.json").read_text()) for rank in (0, 1)]
    return {
        name: (
            (results[0][name] + results[1][name]).double() / costs[0][name]["scale"],
            CASES[name][3](*[torch.round(x.double() * 2**16) / 2**16 for x in CASES[name][1]]),
            costs[0][name],
            costs[1][name],
        )
        for name in CASES
    }


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("argmax", "reciprocal"))])
def test_accuracy(outcome, name):
    got, expected, *_ = outcome[name]
    assert got.shape == expected.shape
    assert (got - expected).abs().max().item() < TOLERANCE


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("reciprocal")])
def test_reciprocal_is_relatively_accurate(outcome, name):
    got, expected, *_ = outcome[name]
    assert ((got - expected) / expected).abs().max().item() < 0.02
    assert (got - expected).abs().max().item() < 0.001


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("argmax")])
def test_argmax_is_exact_and_the_lowest_index_wins_ties(outcome, name):
    got, expected, *_ = outcome[name]
    assert torch.equal(got, expected)


BARRIERS = 3  # barriers that the parties may reach between two reads of the counters


@pytest.mark.parametrize("name", ["gelu", "layer_norm_outlier", "softmax_128", "linear"])
def test_ledger_agrees_with_the_kernel(outcome, name):
    _, _, *costs = outcome[name]
    assert costs[0]["sent"] == costs[1]["received"] == costs[1]["sent"]
    for cost in costs:
        for counted, kernel in zip((cost["sent"], cost["received"]), cost["kernel"], strict=True):
            # gloo adds headers and handshakes: under 1.5 kB a round in each direction, barriers included.
            assert counted <= kernel <= counted + 1500 * (cost["rounds"] + BARRIERS)


@pytest.mark.parametrize(
    "name, rounds, per_element",
    [("gelu", 12, 480), ("relu", 9, 232), ("softmax_128", 117, 760), ("layer_norm_spike", 62, 43)],
)
def test_documented_costs(outcome, name, rounds, per_element):
    _, expected, cost, _ = outcome[name]
    assert cost["rounds"] == rounds
    assert cost["sent"] / expected.numel() == pytest.approx(per_element, rel=0.03)
