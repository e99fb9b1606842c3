# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The masked engine on a CUDA device, and on a stand-in that any machine has (`fake_card.py`).

With a GPU, what is measured for the documentation is

    securerouter profile --architecture bert-base --device cuda --json
    securerouter profile --architecture bert-large --device cuda --json
"""

import json
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import pytest
import torch
from transformers import BertForSequenceClassification
from typer.testing import CliRunner

from hf_securerouter import cli
from hf_securerouter.mpc.conversion.clear_encoder import ClearEncoder
from hf_securerouter.mpc.conversion.description import Options
from hf_securerouter.mpc.conversion.validation import validate
from hf_securerouter.mpc.gates.activation import Activation
from hf_securerouter.mpc.gates.argmax import Argmax, Reveal
from hf_securerouter.mpc.gates.bit_to_ring import BitToRing
from hf_securerouter.mpc.gates.compare import Compare
from hf_securerouter.mpc.gates.exponential import Exponential
from hf_securerouter.mpc.gates.gate import together
from hf_securerouter.mpc.gates.linear import Linear
from hf_securerouter.mpc.gates.matmul import Matmul
from hf_securerouter.mpc.gates.maximum import maximum
from hf_securerouter.mpc.gates.party import BoundError
from hf_securerouter.mpc.gates.relu import ReLU
from hf_securerouter.mpc.gates.row_function import RowFunction
from hf_securerouter.mpc.gates.row_scale import RowScale
from hf_securerouter.mpc.gates.select import Select
from hf_securerouter.mpc.gates.selected_linear import SelectedLinear
from hf_securerouter.mpc.gates.shuffle import Shuffle
from hf_securerouter.mpc.gates.square import SelectedSquare, Square
from hf_securerouter.mpc.gates.widen import Widen
from hf_securerouter.mpc.protocols.masked.encoder import MaskedEncoder
from hf_securerouter.mpc.protocols.masked.evaluator import SecureProgram
from hf_securerouter.mpc.protocols.masked.folding import fold_weights
from hf_securerouter.mpc.protocols.masked.programs import rank_in_secret_order
from hf_securerouter.mpc.protocols.masked.ring_widths import Bounds, RingWidths
from hf_securerouter.mpc.ring import device as device_module
from hf_securerouter.mpc.ring.device import Staging, free_memory, kept_on
from hf_securerouter.mpc.ring.matmul import float_matmul, int8_matmul, ring_matmul
from hf_securerouter.mpc.ring.randomness import AES, CHACHA20, Csprng, cipher_for
from hf_securerouter.mpc.ring.words import _pack, reduce, unpack
from hf_securerouter.mpc.sessions import local as session_module
from tests.mpc.protocols.masked.test_encoder import SMALL, batch_of, weights_of
from tests.support import fake_card, script
from tests.support.harness import Bits, Input, run
from tests.support.kinds_of_layers import LENGTH, a_text_for_each_expert, configs, more_configs, pool
from tests.tiny import family_config, pool_model


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
SCALE = 14


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=needs_gpu)])
def within(request):
    """Makes the context in which a thread computes on the device."""
    with ExitStack() as stack:
        if request.param == "stand-in":
            stack.enter_context(fake_card.faked_cuda())
        yield nullcontext if request.param == "gpu" else fake_card.on_card


def values(*shape, seed=0, spread=4.0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5) * 2 * spread


def real(values, width=40, bound=5):
    return Input.real(values, width, SCALE, bound)


def on_card(within, program, **options):
    return run(program, device="cuda", within=within, **options)


X = values(3, 5)
BIT = (X > 0).to(torch.uint8)


# A gate on one input, the expected result, and the allowed error.
UNARY = {
    "relu": (lambda: ReLU((3, 5), 21, 40), 40, lambda x: x.clamp(min=0), 1e-4),
    "gelu": (lambda: Activation("gelu", (3, 5), 5, 12, SCALE, 40), 40, torch.nn.functional.gelu, 2e-3),
    "tanh": (lambda: Activation("tanh", (3, 5), 5, 12, SCALE, 40), 40, torch.tanh, 2e-3),
    "square": (lambda: Square((3, 5), 22, 60), 60, torch.square, 1e-3),
    "reciprocal": (lambda: RowFunction("reciprocal", (3, 5), SCALE, -6, 9, 16), 23, lambda x: 1 / x, 0.01),
    "inverse_sqrt": (lambda: RowFunction("inverse_sqrt", (3, 5), SCALE, -6, 9, 16), 23, torch.rsqrt, 0.01),
}


@pytest.mark.parametrize("name", list(UNARY))
def test_functions(within, name):
    make, width, function, error = UNARY[name]
    gate, x = make(), X.abs() + 0.25 if name in ("reciprocal", "inverse_sqrt") else X
    share = real(x, width, 9 if width == 23 else 5)
    done = on_card(within, lambda party: gate.run(party, share(party)))
    assert (done.values - function(x)).abs().max() < error


def test_exponentials(within):
    y = values(3, 5).abs()
    share, gate = Input.real(y, 21, 12, 8), Exponential((3, 5), 9, 12, 57)
    done = on_card(within, lambda party: gate.run(party, share(party)))
    assert (done.values - torch.exp(-y)).abs().max() < 1e-3


def test_bits(within):
    share, bits = real(X), Bits(BIT)

    def program(party):
        negative, ones = yield from together(
            Compare((3, 5), 40, (0, 1 << SCALE)).run(party, share(party)),
            BitToRing((3, 5), 20).run(party, bits(party)),
        )
        return [negative, ones]

    (first, ones), (second, others) = on_card(within, program).results
    assert torch.equal(first ^ second, torch.stack([X < 0, X < 1]).to(torch.uint8))
    assert torch.equal(reduce(ones.words + others.words, 20), BIT.to(torch.int64))


@pytest.mark.parametrize("choices", [2, 4])
def test_argmax_and_maximum(within, choices):
    scores = values(6, choices, seed=1)
    share, small = real(scores), Input((scores * 8).round().to(torch.int64), 8)

    def program(party):
        bits = yield from Argmax(6, choices, 30).run(party, share(party))
        opened = yield from Reveal((choices, 6)).run(party, bits)
        highest = yield from maximum(party, small(party))
        return [opened, highest]

    (first, low), (second, high) = on_card(within, program).results
    assert torch.equal(first, second)
    assert torch.equal(first.argmax(0), scores.argmax(1))
    found = (reduce(low.words + high.words, 8) + 128) % 256 - 128
    assert torch.equal(found, (scores * 8).round().to(torch.int64).amax(1))


def test_products(within):
    left, right = values(2, 3, 4, 6, seed=2), values(2, 3, 6, 5, seed=3)
    x, y, rows = real(left, 60), real(right, 60), real(X, 60)
    mask = torch.tensor([1, 0, 1, 1, 0])
    chosen = Bits(mask.expand(3, 5))
    weights = {"w": torch.round(values(5, 4) * 2**SCALE).to(torch.int64), "d": torch.arange(5) << SCALE}

    def program(party):
        product = yield from Matmul((2, 3, 4, 6), (2, 3, 6, 5), 60).run(party, x(party), y(party))
        gate = Linear(3, 5, 60, (("w", 4),), ("d",))
        matrix, diagonal = yield from gate.run(party, rows(party), (SCALE, SCALE), 8)
        squares = yield from SelectedSquare((3, 5), 22, 60).run(party, rows(party), chosen(party))
        return [product, matrix, diagonal, squares]

    def scaled(party):
        under_way = RowScale((3, 5), 22, 22, 60, squares=True).start(party)
        scalar = rows(party).map(lambda words: words[:, :1])
        yield from together(under_way.open_rows(rows(party)), under_way.open_scalar(scalar))
        return [under_way.sum_of_squares(12), under_way.product(10)]

    def decoded(parts):
        return [
            torch.from_numpy(((a.words + b.words).numpy() << (64 - a.width)) >> (64 - a.width)) * 2.0**-a.scale
            for a, b in zip(*parts, strict=True)
        ]

    wanted = [left @ right, X @ (weights["w"].double() * 2.0**-SCALE), X * torch.arange(5), X.square() * mask]
    for found, exact in zip(decoded(on_card(within, program, weights=weights).results), wanted, strict=True):
        assert (found - exact).abs().max() < 2e-3
    for found, exact in zip(decoded(on_card(within, scaled).results), [X.square().sum(1), X * X[:, :1]], strict=True):
        assert (found - exact).abs().max() < 2e-3


def test_a_bound_is_checked(within):
    share = Input(torch.tensor([1 << 20]), 40, SCALE, 5)
    with pytest.raises(BoundError):
        on_card(within, lambda party: party.checked(share(party), "x"), debug=True)


@pytest.mark.parametrize("softmax", ["exact", "2quad"])
def test_a_whole_encoder(within, softmax):
    spec = replace(SMALL, num_layers=1, layer_map=(0,), softmax=softmax)
    x, live = batch_of(spec, [4, 2], 4)
    encoder = MaskedEncoder(spec, RingWidths(Bounds(), 4, softmax))
    words = fold_weights(spec, weights_of(spec), encoder.rings)
    given, mask = Input.real(x, encoder.input_width, encoder.rings.bits.hidden), Bits(live)
    done = on_card(within, lambda party: encoder.run(party, given(party), mask(party)), weights=words)
    assert (done.values - ClearEncoder(spec, weights_of(spec))(x, live)).abs().max() < 0.004


def test_an_encoder_with_a_relative_bias(within):
    spec = replace(SMALL, num_layers=1, layer_map=(0,), relative_buckets=32)
    weights = weights_of(spec) | {"relative_attention_bias.weight": torch.randn(32, spec.num_heads)}
    x, live = batch_of(spec, [4, 2], 4)
    encoder = MaskedEncoder(spec, RingWidths(Bounds(), 4))
    words = fold_weights(spec, weights, encoder.rings)
    given, mask = Input.real(x, encoder.input_width, encoder.rings.bits.hidden), Bits(live)
    done = on_card(within, lambda party: encoder.run(party, given(party), mask(party)), weights=words)
    assert (done.values - ClearEncoder(spec, weights)(x, live)).abs().max() < 0.004


@pytest.mark.parametrize("bits", [1, 3, 8, 13, 40, 63, 64])
def test_bytes_are_those_of_the_host(within, bits):
    for count in (5, 8192 + 77):
        words = Csprng(bytes(32), b"words").ring((count,), bits)
        packed = _pack(words, bits)
        with within():
            assert torch.equal(_pack(words.to("cuda"), bits).cpu(), packed)
            message = torch.cat([torch.zeros(3, dtype=torch.uint8), packed]).to("cuda")[3:]
            assert torch.equal(unpack(message, (count,), bits).cpu(), words)


def test_words_are_those_of_the_host(within):
    with within():
        host, device = Csprng(bytes(32), b"x", CHACHA20), Csprng(bytes(32), b"x", CHACHA20, "cuda")
        for bits in (3, 40, 64, 1, 20, 64):
            words = device.ring((7, 3), bits)
            assert words.device.type == "cuda"
            assert torch.equal(words.cpu(), host.ring((7, 3), bits))


def test_messages_pass_through_one_buffer(within):
    with within():
        staging = Staging("cuda")
        for sizes in ((3, 0, 5), (2,), (40, 1)):
            parts = [torch.arange(size, dtype=torch.uint8, device="cuda") for size in sizes]
            sent = [bytearray(view) for view in staging.to_host(parts)]
            assert sent == [bytes(range(size)) for size in sizes]
            if all(sizes):
                received = staging.to_device(sent)
                assert all(part.device.type == "cuda" for part in received)
                assert [part.cpu().tolist() for part in received] == [list(range(size)) for size in sizes]


def test_constants_are_copied_once(within):
    table = torch.arange(4)
    with within():
        assert kept_on("cuda", table) is kept_on("cuda", table)
        assert kept_on("cuda", table).cpu().tolist() == [0, 1, 2, 3]
        assert 1 << 20 < free_memory("cuda") < 1 << 50
    assert kept_on("cpu", table) is table and 0 < free_memory("cpu") < 1 << 50


@pytest.mark.parametrize("product", [float_matmul, int8_matmul, ring_matmul])
@pytest.mark.parametrize("bits", [8, 40, 45, 64])
def test_matrix_products(within, product, bits):
    for left, right in (((128, 768), (768, 96)), ((3, 9, 64), (3, 64, 33)), ((1, 5), (5, 2)), ((4, 7), (7, 1))):
        one, other = Csprng(bytes(32), b"1").ring(left, 64), Csprng(bytes(32), b"2").ring(right, 64)
        with within():
            found = product(one.to("cuda"), other.to("cuda"), bits)
            assert found.device.type == "cuda"
            found = found.cpu()
        assert torch.equal(reduce(found, bits), reduce(one @ other, bits))


@pytest.fixture
def roles(within, monkeypatch):
    """Roles that find the device."""
    if within is fake_card.on_card:
        monkeypatch.setattr(session_module, "ROLE_PROGRAM", (script("fake_card_role"),))


in_processes = pytest.mark.parametrize(
    "within", [pytest.param("stand-in", marks=pytest.mark.slow), pytest.param("gpu", marks=needs_gpu)], indirect=True
)


@in_processes
def test_profile(roles, tmp_path):
    """Two parties and the dealer in processes of their own, on one device."""
    BertForSequenceClassification(family_config("bert", layers=1)).save_pretrained(tmp_path)
    arguments = ["profile", "--architecture", str(tmp_path), "--seq-length", "4", "--device", "cuda", "--json"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["device"] == "cuda" and report["max_abs_logit_error"] < 0.01


@in_processes
def test_a_pool_routes_as_in_clear(roles):
    model = pool_model(families=("bert", "bert"))
    inputs = {"input_ids": torch.randint(5, 20, (3, 4)), "attention_mask": torch.tensor([[1, 1, 1, 0]] * 3)}
    secure = model.to_mpc(device="cuda", routing_privacy="revealed", max_length=4)
    with secure.local_session(timeout=120) as session:
        result = session(inputs)
    with torch.no_grad():
        expected = model(**inputs)
    assert result.expert_indices == expected.expert_indices.tolist()
    assert (result.logits - expected.logits).abs().max() < 0.01


@in_processes
def test_every_kind_of_layer_runs_on_a_card(roles):
    model = pool([*configs(), *more_configs()])
    ids, mask, expected = a_text_for_each_expert(model)
    secure = model.to_mpc(device="cuda", routing_privacy="revealed", max_length=LENGTH)
    with secure.local_session(timeout=120) as session:
        result = session({"input_ids": ids, "attention_mask": mask})
    assert result.expert_indices == list(range(model.config.num_experts))
    assert (result.logits - expected.logits).abs().max() < 0.02


def test_tuples_of_another_cipher_are_for_another_plan():
    program = SecureProgram("x", lambda party, shares: together(), {}, {})
    host, device = program.plan(), program.plan(cipher_for("cuda"))
    assert (host.cipher, device.cipher) == (AES, CHACHA20)
    assert host.digest != device.digest


def test_what_is_missing_is_told(model, tokenizer, monkeypatch):
    def problems(device):
        return [problem for problem in validate(model, tokenizer, Options(device=device)) if problem.path == "device"]

    assert problems("cpu") == []
    (unknown,) = problems("abacus")
    assert "one of cpu, cuda, got 'abacus'" in str(unknown)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (absent,) = problems("cuda")
    assert "no CUDA device" in str(absent) and "`device='cpu'`" in str(absent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device_module, "find_spec", lambda name: None)
    (lacking,) = problems("cuda")
    assert "pip install triton" in str(lacking)
    monkeypatch.setattr(device_module, "find_spec", lambda name: name)
    assert problems("cuda") == []


ONE = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]])  # which of two, for four rows


def test_choices_that_stay_secret(within):
    weights = {f"{index}.{name}": torch.arange(6).view(3, 2) + index for index, name in ((0, "w"), (1, "w"))}
    weights |= {f"{index}.w.bias": torch.tensor([index, 5]) for index in (0, 1)}
    rows, bits = Input(torch.arange(12).view(4, 3), 40), Bits(ONE)
    scores = Input(torch.tensor([[3], [9], [3], [-4]]), 10)

    def program(party):
        shuffle = Shuffle(4, ((1, 12), (3, 40), (2, 1))).start(party)
        moved = yield from shuffle.open(1, rows(party).words)
        yield from shuffle.open(2, bits(party).T.contiguous())
        ranks = yield from rank_in_secret_order(party, shuffle, scores(party))
        candidates = party.secret(torch.stack([rows(party).words] * 2), 40, 0, 30)
        chosen = yield from Select(2, 4, 3, 40).run(party, bits(party), candidates)
        gate = SelectedLinear(4, 1, 3, 40, ("0.", "1."), (("w", 2),))
        (product,) = yield from gate.run(party, rows(party), bits(party), (0,), 30)
        wide = yield from Widen((4, 1), 10, 40).run(party, scores(party))
        return [ranks, party.secret(moved, 40, 0, 30), chosen, product, wide]

    (ranks, moved, chosen, product, wide), others = on_card(within, program, weights=weights).results
    pairs = zip((moved, chosen, product, wide), others[1:], strict=True)
    clear = [reduce(one.words + other.words, 40) for one, other in pairs]
    assert sorted(ranks.tolist()) == [0, 1, 2, 3] and ranks[clear[0][:, 0] == 3].item() == 0
    assert torch.equal(clear[1], torch.arange(12).view(4, 3))
    index = ONE.argmax(0)
    assert torch.equal(clear[2], torch.stack([
        torch.arange(3 * row, 3 * row + 3) @ weights[f"{k}.w"] + weights[f"{k}.w.bias"] for row, k in enumerate(index)
    ]))  # fmt: skip
    assert torch.equal(clear[3], torch.tensor([[3], [9], [3], [(1 << 40) - 4]]))
