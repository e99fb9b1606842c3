# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Products of ring words by digits against those of int64."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_securerouter.mpc.ring import few_rows
from hf_securerouter.mpc.ring import matmul as module
from hf_securerouter.mpc.ring.few_rows import few_rows_matmul
from hf_securerouter.mpc.ring.matmul import fastest, float_matmul, int8_matmul, ring_matmul, word_matmul
from hf_securerouter.mpc.ring.randomness import Csprng
from hf_securerouter.mpc.ring.words import reduce
from tests.support.each import each


def device_digits(left, right, bits):
    """`float_matmul` as a CUDA device computes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_by_blocks", lambda *how: module._by_digits(*how, torch.float64, torch.matmul))
        return float_matmul(left, right, bits)


def small_blocks(left, right, bits):
    """`float_matmul` with few columns at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_NARROWEST", 2)
        patch.setattr(module, "_BLOCK_BYTES", 1)
        return float_matmul(left, right, bits)


DIGITS = pytest.mark.parametrize("product", [float_matmul, device_digits, small_blocks, int8_matmul])
ALL = pytest.mark.parametrize("product", [float_matmul, device_digits, small_blocks, int8_matmul, few_rows_matmul])
EDGES = [-(2**63), 2**63 - 1, -1, 0, 1, 2**31, -(2**31), 0x8080808080808080 - 2**64, 0x7F7F7F7F7F7F7F7F]


def words(shape, random):
    """Uniform words, some of them at the edges of words and of digits."""
    count = torch.Size(shape).numel()
    values = [random.choice(EDGES) if random.random() < 0.3 else random.getrandbits(64) - 2**63 for _ in range(count)]
    return torch.tensor(values, dtype=torch.int64).view(shape)


@ALL
@given(
    st.integers(1, 64),
    st.lists(st.integers(1, 3), max_size=2),
    st.tuples(st.integers(1, 5), st.integers(1, 90), st.integers(1, 5)),
    st.sampled_from(["both", "left", "right"]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=120, deadline=None)
def test_it_is_the_product(product, bits, batch, sizes, batched, random):
    rows, inner, columns = sizes
    left = words((*(batch if batched != "right" else ()), rows, inner), random)
    right = words((*(batch if batched != "left" else ()), inner, columns), random)
    found = product(left, right, bits)
    assert found.dtype == torch.int64
    assert torch.equal(reduce(found, bits), reduce(left @ right, bits))


@ALL
@each("bits", range(1, 65))
def test_every_ring(product, bits):
    left, right = (Csprng(bytes(32), name).ring((6, 70), 64) for name in (b"left", b"right"))
    assert torch.equal(reduce(product(left, right.mT, bits), bits), reduce(left @ right.mT, bits))


@DIGITS
@each("bits", [8, 22, 27, 46, 48, 54, 64])
@each("near", [-1, 0])
def test_the_largest_sums_are_exact(product, bits, near):
    """All digits at one end of their range, where sums are largest; several pieces of the inner dimension."""
    for width in {-(-bits // count) for count in range(1, 9)}:
        value = near - sum((1 << (width - 1)) << (width * place) for place in range(9))
        left = torch.full((1, 34000), (value + 2**63) % 2**64 - 2**63)
        right = left.mT.contiguous()
        assert torch.equal(reduce(product(left, right, bits), bits), reduce(left @ right, bits))


def test_a_small_ring_takes_fewer_products(monkeypatch):
    made = []

    def counted(left, right):
        made.append(left.shape[-1] * left.shape[-2] * right.shape[-1])
        return exact(left, right)

    exact = module._int8_product
    monkeypatch.setattr(module, "_int8_product", counted)
    left, right = torch.ones(4, 16, dtype=torch.int64), torch.ones(16, 5, dtype=torch.int64)
    for bits, pairs in ((64, 36), (40, 15), (33, 15), (8, 1)):
        made.clear()
        int8_matmul(left, right, bits)
        assert sum(made) == pairs * 4 * 16 * 5
        assert len(made) == -(-bits // 8)


def test_a_cpu_multiplies_few_words_as_they_are(monkeypatch):
    monkeypatch.setattr(module, "fastest", None)
    for dtype in (torch.int64, torch.uint8):
        left, right = torch.arange(6, dtype=dtype).view(2, 3), torch.arange(6, dtype=dtype).view(3, 2)
        assert torch.equal(ring_matmul(left, right, 8), left @ right)
    untold = torch.empty(1000, 1000, dtype=torch.int64, device="meta")
    assert ring_matmul(untold, untold, 8).shape == (1000, 1000)


@pytest.mark.parametrize("product", [word_matmul, float_matmul])
@pytest.mark.parametrize("sizes", [((70, 300), (300, 60)), ((3, 20, 300), (3, 300, 60))])
def test_a_cpu_takes_what_is_faster(monkeypatch, product, sizes):
    asked, made = [], []

    def seconds(candidate, left, right, bits):
        asked.append((candidate, left.shape, right.shape, bits))
        return float(candidate is not product)

    monkeypatch.setattr(module, "_seconds", seconds)
    monkeypatch.setattr(module, "_chosen", {})
    original = module.float_matmul
    monkeypatch.setattr(module, "float_matmul", lambda *operands: made.append(1) or original(*operands))
    product = getattr(module, product.__name__)
    left, right = (Csprng(bytes(32), name).ring(size, 64) for name, size in zip((b"1", b"2"), sizes, strict=True))
    for _ in range(2):
        assert torch.equal(reduce(ring_matmul(left, right, 53), 53), reduce(left @ right, 53))
    assert len(made) == 2 * (product is module.float_matmul)
    small = (sizes[0][-2], module._TIMED_SIZE), (module._TIMED_SIZE, sizes[1][-1])
    assert asked == [(module.word_matmul, *small, 53), (module.float_matmul, *small, 53)]


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize(
    ("rows", "batch", "moved", "tried"),
    [(8, (), False, True), (17, (), False, False), (8, (), True, False), (1, (8,), False, True)],
)
def test_few_rows_have_one_product_more(monkeypatch, numba, rows, batch, moved, tried):
    asked = []

    def seconds(product, left, right, bits):
        asked.append((product, right.is_contiguous(), right.shape))
        return 0.0 if product is few_rows_matmul else 1.0

    monkeypatch.setattr(module, "_seconds", seconds)
    monkeypatch.setattr(module, "_chosen", {})
    monkeypatch.setattr(few_rows, "_has_numba", lambda: numba)
    left = Csprng(bytes(32), b"left").ring((*batch, rows, 300), 64)
    right = Csprng(bytes(32), b"right").ring((*batch, 300, 600), 64)
    right = right.mT.contiguous().mT if moved else right
    assert torch.equal(ring_matmul(left, right, 64), left @ right)
    tried = tried and numba
    products = [word_matmul, float_matmul, few_rows_matmul][: 2 + tried]
    assert [product for product, *_ in asked] == products and (asked[0][1] or not tried)
    # In smaller pieces, which stay in the cache, the products of few rows are equally fast.
    assert asked[0][2] == ((300, 512) if tried else (256, 256))


def test_a_numba_that_cannot_be_imported_counts_as_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not few_rows._has_numba.__wrapped__()


def test_the_choice_is_made_once_a_shape(monkeypatch):
    asked = []

    def seconds(product, left, right, bits):
        asked.append((product, tuple(left.shape), bits))
        return float((product is float_matmul) == (left.shape[0] > 16))

    monkeypatch.setattr(module, "_seconds", seconds)
    monkeypatch.setattr(module, "_chosen", {})
    small, large = torch.ones(8, 16, dtype=torch.int64), torch.ones(32, 16, dtype=torch.int64)
    for left in (small, small, large, small[:7], large):
        assert fastest(left, left.mT, 40) is (word_matmul if left.shape[0] > 16 else float_matmul)
    assert len(asked) == 4
    fastest(small, small.mT, 64)
    assert len(asked) == 6
