# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The ChaCha20 kernel: on a GPU if there is one, else in Triton's interpreter."""

import hashlib
import importlib
import struct
import sys

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.mpc.ring.randomness import CHACHA20, Csprng, _DeviceKeystream


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KEY = bytes(range(32))
SEED = bytes(range(1, 33))


@pytest.fixture(scope="module")
def chacha():
    pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")
    name = "hf_securerouter.mpc.ring.chacha_cuda"
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
            sys.modules.pop(name, None)
        yield importlib.import_module(name)
    if DEVICE == "cpu":
        sys.modules.pop(name)


def reference(key, first, count, nonce=bytes(12)):
    cipher = Cipher(algorithms.ChaCha20(key, struct.pack("<I", first) + nonce), mode=None)
    return cipher.encryptor().update(bytes(64 * count))


def made(chacha, key, first, count, nonce=bytes(12)):
    return bytes(chacha.blocks(chacha.state(key, DEVICE, nonce), first, count).tolist())


def test_the_block_of_the_standard(chacha):
    """RFC 8439, section 2.3.2."""
    block = made(chacha, KEY, 1, 1, bytes.fromhex("000000090000004a00000000"))
    assert block.hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


@pytest.mark.parametrize(
    ("key", "counter", "nonce", "start"),
    [
        (bytes(32), 0, bytes(12), "76b8e0ada0f13d90405d6ae55386bd28"),
        (bytes(32), 1, bytes(12), "9f07e7be5551387a98ba977c732d080d"),
        (bytes(31) + b"\x01", 1, bytes(12), "3aeb5224ecf849929b9d828db1ced4dd"),
        (b"\x00\xff" + bytes(30), 2, bytes(12), "72d54dfbf12ec44b362692df94137f32"),
        (bytes(32), 0, bytes(11) + b"\x02", "c2c64d378cd536374ae204b9ef933fcd"),
    ],
)
def test_the_key_streams_of_the_standard(chacha, key, counter, nonce, start):
    """RFC 8439, appendix A.1."""
    assert made(chacha, key, counter, 1, nonce).hex().startswith(start)


@pytest.mark.parametrize(("first", "count"), [(0, 1), (7, 127), (0, 128), (3, 129), (2**31 - 2, 4), (2**32 - 3, 3)])
def test_the_kernel_is_the_cipher(chacha, first, count):
    """Counters of all magnitudes; full, partial and several programs of the kernel."""
    assert made(chacha, SEED, first, count) == reference(SEED, first, count)


@given(st.lists(st.integers(0, 200), max_size=6))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_device_reads_the_stream_that_a_cpu_reads(chacha, counts):
    device, host = _DeviceKeystream(KEY, DEVICE), Cipher(algorithms.ChaCha20(KEY, bytes(16)), None).encryptor()
    for count in counts:
        found = device.bytes(count)
        assert (found.dtype, found.shape, found.device.type) == (torch.uint8, (count,), DEVICE)
        assert bytes(found.tolist()) == host.update(bytes(count))


def test_words_of_all_widths_agree(chacha):
    """Two holders of a seed, one of them on the device, draw the same words."""
    host, device = Csprng(SEED, b"words", CHACHA20), Csprng(SEED, b"words", CHACHA20, DEVICE)
    key = hashlib.blake2b(b"words", key=SEED, digest_size=32, person=b"securerouter").digest()
    device._keystream = _DeviceKeystream(key, DEVICE)
    for bits in (3, 40, 1, 64, 12, 20, 8, 64):
        assert torch.equal(host.ring((3, 5), bits), device.ring((3, 5), bits).cpu())


def test_a_used_up_stream_is_refused(chacha):
    stream = Csprng(SEED, b"words", CHACHA20, DEVICE)
    keystream = stream._keystream = _DeviceKeystream(KEY, DEVICE)
    keystream._read, stream._left = 2**38 - 64, 64
    assert bytes(stream.bytes(64).tolist()) == reference(KEY, 2**32 - 1, 1)
    with pytest.raises(SecureRouterError, match="used up"):
        stream.bytes(1)
