# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Words mod 2^K: packing, and `seal`, by which they leave a role."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.mpc.gates.secret import Secret
from hf_securerouter.mpc.ring.packing_cuda import pack_words, unpack_words
from hf_securerouter.mpc.ring.randomness import Csprng, Pad, PadReusedError, new_seed
from hf_securerouter.mpc.ring.words import (
    RingWidthError,
    _tabled,
    checked_width,
    packed_size,
    reduce,
    seal,
    seal_in_pieces,
    signed,
    unpack,
)
from hf_securerouter.mpc.tuples.plan import trace
from tests.support.each import each


WIDTHS = range(1, 65)
SIZES = [0, 1, 3, 7, 8, 9, 63, 64, 65, 8128, 8191, 8192, 8193, 8255, 8256, 16384]


def draw(shape, bits):
    return Csprng(new_seed(), b"test").ring(shape, bits)


def no_pad(shape, bits, xor=False):
    return Pad(torch.zeros(shape, dtype=torch.uint8 if bits <= 8 else torch.int64), bits, xor)


def as_integer(packed):
    return int.from_bytes(bytes(packed.tolist()), "little")


@each("bits", WIDTHS)
def test_unpacking_undoes_packing(bits):
    for count in SIZES:
        words = draw((count,), bits)
        covered, packed = seal(words, no_pad((count,), bits))
        assert packed.dtype == torch.uint8
        assert packed.numel() == packed_size(count, bits) == -(-count * bits // 8)
        found = unpack(packed, (count,), bits)
        assert found.dtype == (torch.uint8 if bits <= 8 else torch.int64)
        assert torch.equal(found, covered)
        assert torch.equal(found, words)


@each("bits", WIDTHS)
def test_a_message_cut_out_of_a_buffer_unpacks_at_any_address(bits):
    count = 8192 + 5
    words = draw((count,), bits)
    packed = seal(words, no_pad((count,), bits))[1]
    for offset in (1, 4):
        buffer = torch.cat([torch.full((offset,), 255, dtype=torch.uint8), packed])
        assert torch.equal(unpack(buffer[offset:], (count,), bits), words)


@each("bits", sorted(set(WIDTHS) - {8, 64}))  # widths 8 and 64 take the same code on any device
def test_a_device_packs_the_same_bytes(bits):
    """The packing of CUDA devices, here on the CPU."""
    for count in [*SIZES, 2 * 8192 + 77]:
        words = draw((count,), bits)
        packed = seal(words, no_pad((count,), bits))[1]
        tabled = _tabled(count)
        assert torch.equal(pack_words(words, bits, tabled), packed)
        for offset in (0, 1, 8):
            message = torch.cat([torch.full((offset,), 255, dtype=torch.uint8), packed])[offset:]
            found = unpack_words(message, count, bits, tabled)
            assert found.dtype == words.dtype
            assert torch.equal(found, words)


@each("bits", [1, 2, 3, 5, 8, 13, 21, 40, 63, 64])
def test_few_words_follow_one_another_bit_by_bit(bits):
    words = draw((37,), bits)
    packed = as_integer(seal(words, no_pad((37,), bits))[1])
    for index, word in enumerate(words.tolist()):
        assert (packed >> (index * bits)) % 2**bits == word % 2**bits


@given(st.integers(1, 64), st.lists(st.integers(0, 5), min_size=0, max_size=3), st.randoms())
@settings(max_examples=60, deadline=None)
def test_sealed_words_open_with_the_pad(bits, shape, random):
    words = torch.tensor([random.getrandbits(64) - 2**63 for _ in range(torch.Size(shape).numel())]).view(shape)
    words = words.to(torch.int64)
    pad = Csprng(new_seed(), b"test").pad(shape, bits)
    covered, packed = seal(words, pad)
    assert torch.equal(unpack(packed, shape, bits), covered.to(unpack(packed, shape, bits).dtype))
    assert torch.equal(reduce(covered.to(torch.int64) - pad.words, bits), reduce(words, bits))


@each("bits", WIDTHS)
def test_no_bit_above_the_ring_leaves(bits):
    """Two words that are equal mod 2^K leave as the same bytes, whatever their bits above K."""
    seed = new_seed()
    words = draw((9000,), 64)
    noise = draw((9000,), 64) << bits if bits < 64 else torch.zeros_like(words)
    first, second = (seal(value, Csprng(seed, b"pad").pad((9000,), bits)) for value in (words, words + noise))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    if bits < 64:
        assert not (first[0].to(torch.int64) >> bits).any()


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_an_xor_pad_covers_by_xor(bits):
    words, seed = draw((1000,), 8), new_seed()
    pad = Pad(Csprng(seed, b"pad").ring((1000,), bits), bits, xor=True)
    covered, packed = seal(words, pad)
    assert torch.equal(covered, (words ^ pad.words) & (2**bits - 1))
    assert torch.equal(unpack(packed, (1000,), bits), covered)


def test_a_spent_pad_is_refused():
    pad = Csprng(new_seed(), b"test").pad((4,), 20)
    words = torch.arange(4)
    seal(words, pad)
    with pytest.raises(PadReusedError, match="20 bits was used for a second message"):
        seal(words, pad)


def test_a_pad_spent_by_hand_is_refused_too():
    pad = Csprng(new_seed(), b"test").pad((4,), 20)
    pad.spend()
    with pytest.raises(PadReusedError):
        seal(torch.arange(4), pad)


@pytest.mark.parametrize("shape", [(3,), (5,), (2, 2), (1,), (4, 1), ()])
def test_a_pad_of_another_shape_is_refused(shape):
    """Broadcasting would mask several words by one word of the pad."""
    pad = Csprng(new_seed(), b"test").pad(shape, 20)
    with pytest.raises(SecureRouterError, match="under a pad of"):
        seal(torch.arange(4), pad)
    assert not pad.spent


@pytest.mark.parametrize("change", [-1, 1])
def test_a_message_of_another_length_is_refused(change):
    packed = seal(torch.arange(10), no_pad((10,), 13))[1]
    with pytest.raises(SecureRouterError, match="bytes for 10 words of 13 bits"):
        unpack(packed[:-1] if change < 0 else torch.cat([packed, packed[:1]]), (10,), 13)


@each("bits", WIDTHS)
def test_representatives(bits):
    words = draw((500,), 64)
    assert [value % 2**bits for value in words.tolist()] == [value % 2**64 for value in reduce(words, bits).tolist()]
    half = 2 ** (bits - 1)
    assert [(value + half) % 2**bits - half for value in words.tolist()] == signed(words, bits).tolist()


@pytest.mark.parametrize("bits", [-1, 0, 65, 100])
def test_no_ring_but_of_1_to_64_bits(bits):
    with pytest.raises(RingWidthError, match=f"The sum needs a ring of {bits} bits, and the widest has 64"):
        checked_width(bits, "The sum")
    with pytest.raises(RingWidthError, match="A secret tensor"):
        Secret(torch.zeros(1), bits, 0, 0, 0)
    with pytest.raises(ValueError, match="from 1 to 64"):
        Csprng(new_seed(), b"test").ring((1,), bits)

    def program(party):
        yield from ()
        return party.secret(torch.empty(1, device="meta"), bits, 0, 0)

    with pytest.raises(RingWidthError):
        trace(program)


def test_words_sealed_in_pieces_are_those_sealed_at_once():
    """The same bytes, from the same place of the stream to the same place, in small pieces."""
    for count in (1, 8191, 8192, 64 * 137, 64 * 136 + 77):
        for bits in (1, 2, 7, 8, 9, 33, 57, 63, 64):
            seed = new_seed()
            words = Csprng(new_seed(), b"words").ring((count,), bits)
            whole, pieces = Csprng(seed, b"pad"), Csprng(seed, b"pad")
            drawn = []

            class Recorded:
                def pad(self, shape, bits, pieces=pieces, drawn=drawn):
                    drawn.append(math.prod(shape))
                    return pieces.pad(shape, bits)

            expected = seal(words, whole.pad(words.shape, bits))[1]
            assert torch.equal(seal_in_pieces(words, Recorded(), bits), expected), (count, bits)
            assert torch.equal(whole.ring((5,), 40), pieces.ring((5,), 40))
            assert sum(drawn) == count and (count < 8192 or max(drawn) < count / 60)
