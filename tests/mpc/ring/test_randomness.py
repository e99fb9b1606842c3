# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The generator of all masks: AES-256-CTR or ChaCha20, with one key for each domain."""

import hashlib
import math
import random
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_securerouter.errors import SecureRouterError, SecureRouterValueError
from hf_securerouter.mpc.gates.gate import Dealing
from hf_securerouter.mpc.ring import randomness
from hf_securerouter.mpc.ring.randomness import (
    AES,
    CHACHA20,
    SEED_BYTES,
    Csprng,
    Pad,
    PadReusedError,
    cipher_for,
    new_seed,
)
from tests.support.each import each


SEED = bytes(range(32))


def keystream(key, count, cipher=AES):
    zeros = bytes(16)
    made = (
        Cipher(algorithms.AES(key), modes.CTR(zeros))
        if cipher == AES
        else Cipher(algorithms.ChaCha20(key, zeros), None)
    )
    return made.encryptor().update(bytes(count))


def domain_key(seed, domain):
    return hashlib.blake2b(domain, key=seed, digest_size=32, person=b"securerouter").digest()


def test_the_cipher_meets_the_standard():
    """NIST SP 800-38A, F.5.5: AES-256 in counter mode, key stream = plaintext xor ciphertext."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    cipher = bytes.fromhex("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5")
    generator = Csprng(SEED, b"nist")
    generator._keystream = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
    assert bytes(generator.bytes(32).tolist()) == bytes(a ^ b for a, b in zip(plain, cipher, strict=True))


@pytest.mark.parametrize("cipher", [AES, CHACHA20])
def test_the_stream_is_the_ciphers_under_the_domains_key(cipher):
    for domain in (b"", b"input/0", b"x" * 300):
        expected = keystream(domain_key(SEED, domain), 5000, cipher)
        assert bytes(Csprng(SEED, domain, cipher).bytes(5000).tolist()) == expected


@given(st.lists(st.integers(0, 70), max_size=8), st.sampled_from([AES, CHACHA20]), st.integers(1, 90))
@settings(max_examples=40, deadline=None)
def test_the_stream_goes_on_where_it_stopped(counts, cipher, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(randomness, "_ZEROS", memoryview(bytes(block)))
        check_pieces(counts, cipher)


def check_pieces(counts, cipher):
    generator = Csprng(SEED, b"pieces", cipher)
    found = b"".join(bytes(generator.bytes(count).tolist()) for count in counts)
    assert found == keystream(domain_key(SEED, b"pieces"), sum(counts), cipher)


def test_no_more_is_drawn_of_chacha20_than_its_counter_reaches(monkeypatch):
    last = Cipher(algorithms.ChaCha20(bytes(32), (2**32 - 1).to_bytes(4, "little") + bytes(12)), None).encryptor()
    assert len(last.update(bytes(64))) == 64  # the last of 2^32 blocks
    with pytest.raises(ValueError, match="overflow"):
        last.update(bytes(1))
    assert randomness.CHACHA20_BYTES == 64 * 2**32
    monkeypatch.setattr(randomness, "CHACHA20_BYTES", 100)
    for cipher in (AES, CHACHA20):
        stream = Csprng(bytes(32), b"", cipher)
        assert len(stream.bytes(60)) + len(stream.bytes(40)) == 100 and len(stream.bytes(0)) == 0
        if cipher == AES:
            assert len(stream.bytes(1)) == 1
            continue
        with pytest.raises(SecureRouterError, match=r"2\^38 bytes.*use more domains"):
            stream.bytes(1)


def test_where_the_parties_compute_decides_the_cipher():
    assert (cipher_for("cpu"), cipher_for("cuda")) == (AES, CHACHA20)


@each("bits", range(1, 65))
def test_words_are_the_low_bits_of_the_stream(bits):
    size = next(size for size in (1, 2, 4, 8) if bits <= 8 * size)
    stream = keystream(domain_key(SEED, b"words"), 6 * size)
    words = Csprng(SEED, b"words").ring((2, 3), bits)
    assert words.shape == (2, 3)
    assert words.dtype == (torch.uint8 if bits <= 8 else torch.int64)
    expected = [int.from_bytes(stream[i * size : (i + 1) * size], "little") % 2**bits for i in range(6)]
    assert [word % 2**64 for word in words.reshape(-1).tolist()] == expected


@each("bits", range(1, 65))
def test_a_pad_has_exactly_its_bits(bits):
    pad = Csprng(new_seed(), b"pad").pad((4096,), bits)
    assert (pad.bits, pad.xor, pad.spent) == (bits, False, False)
    words = pad.words.to(torch.int64)
    for bit in range(64):
        ones = int(((words >> bit) & 1).sum())
        # A fair bit is off by 7 standard deviations once in 4e11.
        assert ones == 0 if bit >= bits else abs(ones - 2048) < 7 * 32


def test_a_pad_is_spent_once():
    pad = Pad(torch.arange(3), 10)
    assert torch.equal(pad.spend(), torch.arange(3))
    with pytest.raises(PadReusedError, match="draw a fresh one"):
        pad.spend()


def test_both_holders_of_a_seed_draw_the_same_words():
    shapes = [((3, 5), 40), ((7,), 3), ((), 64), ((2, 2), 1), ((0,), 9), ((11,), 17)]
    seed = new_seed()
    first, second = Csprng(seed, b"tuple/0"), Csprng(seed, b"tuple/0")
    for index, (shape, bits) in enumerate(shapes):
        words = first.pad(shape, bits).words if index % 2 else first.ring(shape, bits)
        assert torch.equal(words, second.ring(shape, bits))


def test_seeds_and_domains_are_independent():
    keys = [(new_seed(), domain) for domain in (b"", b"a", b"b", b"a\0", b"tuple/1", b"tuple/11") for _ in range(2)]
    keys += [(SEED, domain) for domain in (b"a", b"b")] + [(SEED[:-1] + b"\0", b"a")]
    draws = [Csprng(*key).ring((4096,), 64) for key in keys]
    for index, one in enumerate(draws):
        for other in draws[:index]:
            agree = sum(int((((one ^ other) >> bit) & 1).sum()) for bit in range(64))
            assert abs(agree - 4096 * 32) < 7 * 256
    one_stream = Csprng(SEED, b"a").ring((8192,), 64)
    assert len(set(one_stream.tolist())) == 8192


def test_seeds_are_32_fresh_bytes():
    seeds = {new_seed() for _ in range(1000)}
    assert len(seeds) == 1000
    assert {len(seed) for seed in seeds} == {SEED_BYTES} == {32}


@pytest.mark.parametrize("seed", [b"", bytes(16), bytes(31), bytes(33)])
def test_a_short_seed_is_refused(seed):
    with pytest.raises(SecureRouterValueError, match=f"`seed` must have 32 bytes, got {len(seed)}"):
        Csprng(seed, b"domain")


@pytest.mark.parametrize("bits", [1, 3, 8, 12, 16, 40, 64])
def test_words_look_uniform(bits):
    """Chi-square of the low and of the top bits, and no correlation of neighbours. Fixed seed: no chance failure."""
    count, shown = 1 << 15, min(bits, 6)
    words = Csprng(SEED, b"chi-square").ring((count,), bits).to(torch.int64)
    for part in (words & ((1 << shown) - 1), (words >> (bits - shown)) & ((1 << shown) - 1)):
        counts = torch.bincount(part, minlength=1 << shown).numpy()
        assert stats.chisquare(counts).pvalue > 1e-4
        pairs = torch.bincount(part[:-1] ^ part[1:], minlength=1 << shown).numpy()
        assert stats.chisquare(pairs).pvalue > 1e-4


def test_large_draws_match_small_ones():
    """Both holders must draw the same words, at once or row by row."""
    count = 100_003
    whole = Csprng(SEED, b"large").ring((count,), 40)
    generator = Csprng(SEED, b"large")
    parts = [generator.ring((size,), 40) for size in (1, 50_000, count - 50_001)]
    assert torch.equal(whole, torch.cat(parts))
    assert math.prod(whole.shape) == count


def test_a_device_reads_its_key_stream_on(monkeypatch):
    """The kernel is replaced by the same blocks from a library; what is read of them is the device's own code."""

    def stream(first, count):
        key = algorithms.ChaCha20(SEED, struct.pack("<I", first) + bytes(12))
        return Cipher(key, None).encryptor().update(bytes(64 * count))

    kernel = SimpleNamespace(
        state=lambda key, device: torch.zeros(1),
        blocks=lambda state, first, count: torch.frombuffer(bytearray(stream(first, count)), dtype=torch.uint8),
    )
    monkeypatch.setitem(sys.modules, "hf_securerouter.mpc.ring.chacha_cuda", kernel)
    device = randomness._DeviceKeystream(SEED, "cpu")
    found = b"".join(bytes(device.bytes(count).tolist()) for count in (5, 64, 0, 59, 1, 200))
    assert found == stream(0, 6)[:329]


def test_secrets_do_not_come_from_generators_that_can_be_seeded():
    def drawn():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        return new_seed(), Dealing((None, None)).permutation(64).tolist()

    assert all(first != second for first, second in zip(drawn(), drawn(), strict=True))
