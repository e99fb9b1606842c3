# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The source of every mask, share and seed: a cipher's keystream, under a new key for each use.

A seed of 32 bytes from the operating system is the root of one role's randomness. Every tensor or tuple draws from a
generator of its own, whose key is derived from the seed and a domain, so no keystream is ever read twice. The holders
of a seed draw the same words by asking for the same shapes and widths in the same order.

The parties' device decides the cipher of all roles: AES-256-CTR is fastest on a CPU, which has instructions for AES;
ChaCha20 also runs on a CUDA device (`chacha_cuda.py`), and a CPU draws the same words from it.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from typing import Protocol

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

from ...errors import SecureRouterError, SecureRouterValueError


SEED_BYTES = 32
AES, CHACHA20 = "aes-256-ctr", "chacha20"
_WORDS = ((8, torch.uint8), (16, torch.int16), (32, torch.int32), (64, torch.int64))


_ZEROS = memoryview(bytes(1 << 18))
_BLOCK = 64  # bytes of a ChaCha20 block
CHACHA20_BYTES = _BLOCK << 32  # of one key's keystream: the block counter has 32 bits


def cipher_for(device: str) -> str:
    """The cipher of every role of a session whose parties compute on `device`: `AES` or `CHACHA20`."""
    return AES if device == "cpu" else CHACHA20


class PadReusedError(SecureRouterError):
    """A pad was about to mask a second message, which would reveal the difference of two secrets."""


def new_seed() -> bytes:
    """32 fresh bytes from the operating system's generator."""
    return secrets.token_bytes(SEED_BYTES)


class Pad:
    """A one-time pad: words uniform mod 2^`bits`, which mask one message.

    Args:
        words (`torch.Tensor`): uint8 for `bits` up to 8, int64 above; only the low `bits` bits are used.
        bits (`int`): Number of uniform bits of each word, 1 to 64.
        xor (`bool`): Mask by XOR instead of addition mod 2^`bits`, for words that are strings of `bits` bits.
    """

    __slots__ = ("bits", "spent", "words", "xor")

    def __init__(self, words: Tensor, bits: int, xor: bool = False):
        self.words, self.bits, self.xor, self.spent = words, bits, xor, False

    def spend(self) -> Tensor:
        """Return the words, for the one message that they mask.

        Raises:
            `PadReusedError`: The pad was spent before.
        """
        if self.spent:
            raise PadReusedError(f"A pad of {self.bits} bits was used for a second message; draw a fresh one.")
        self.spent = True
        return self.words


class WordSource(Protocol):
    """A stream of uniform words: `Csprng`, or an enumeration of all words in a test."""

    def ring(self, shape: Sequence[int], bits: int) -> Tensor: ...

    def pad(self, shape: Sequence[int], bits: int) -> Pad: ...


class Csprng:
    """A stream of uniform ring words: the keystream of a cipher under a key derived from a seed and a domain.

    Args:
        seed (`bytes`): 32 bytes, known to its holders only.
        domain (`bytes`): Name of the use; one domain serves one tensor or tuple, once.
        cipher (`str`): `AES` or `CHACHA20`; the same for all holders of the seed.
        device (`str` or `torch.device`): Device of the words. It does not change their values.

    Raises:
        `SecureRouterValueError`: `seed` does not have 32 bytes.

    Example:
        >>> words = Csprng(new_seed(), b"input/0").ring((2, 3), bits=40)

    Reference:
        NIST SP 800-38A (CTR mode); RFC 8439 (ChaCha20); RFC 7693 (keyed BLAKE2b, for the key of a domain).
    """

    def __init__(self, seed: bytes, domain: bytes, cipher: str = AES, device: str | torch.device = "cpu"):
        if len(seed) != SEED_BYTES:
            raise SecureRouterValueError(f"`seed` must have {SEED_BYTES} bytes, got {len(seed)}; use `new_seed()`.")
        key = hashlib.blake2b(domain, key=seed, digest_size=32, person=b"securerouter").digest()
        self._keystream: CipherContext | _DeviceKeystream
        if cipher == AES:
            self._keystream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        elif torch.device(device).type == "cpu":
            self._keystream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        else:
            self._keystream = _DeviceKeystream(key, device)
        self._device = device
        self._left: float = math.inf if cipher == AES else CHACHA20_BYTES

    def bytes(self, count: int) -> Tensor:
        """The next `count` bytes, as a uint8 tensor of shape (count,).

        Raises:
            `SecureRouterError`: More than 2^38 bytes, all that its counter reaches, were drawn from ChaCha20.
        """
        self._left -= count
        if self._left < 0:
            raise SecureRouterError("A domain's keystream is used up: 2^38 bytes were drawn; use more domains.")
        if isinstance(self._keystream, _DeviceKeystream):
            return self._keystream.bytes(count)
        # Encrypted zeros are the keystream; a small buffer of zeros stays in the CPU's cache.
        buffer = torch.empty(count, dtype=torch.uint8)
        view = memoryview(buffer.numpy().data)
        for start in range(0, count, len(_ZEROS)):
            part = view[start : start + len(_ZEROS)]
            self._keystream.update_into(_ZEROS[: len(part)], part)
        return buffer.to(self._device)

    def ring(self, shape: Sequence[int], bits: int) -> Tensor:
        """Words uniform mod 2^`bits`.

        Args:
            shape (`Sequence[int]`): Shape of the result.
            bits (`int`): Width of the ring, 1 to 64.

        Returns:
            `torch.Tensor`: uint8 for `bits` up to 8, int64 above, in [0, 2^bits) below 64 bits and any word at 64.

        Raises:
            `SecureRouterValueError`: `bits` is not from 1 to 64.
        """
        if not 1 <= bits <= 64:
            raise SecureRouterValueError(f"`bits` must be from 1 to 64, got {bits}.")
        size, dtype = next((size, dtype) for size, dtype in _WORDS if bits <= size)
        words = self.bytes(math.prod(shape) * size // 8).view(dtype).view(tuple(shape))
        if bits > 8:
            words = words.to(torch.int64)
        return words if bits in (8, 64) else words.bitwise_and_((1 << bits) - 1)

    def pad(self, shape: Sequence[int], bits: int) -> Pad:
        """The same words as `ring`, as a pad for one message."""
        return Pad(self.ring(shape, bits), bits)


class _DeviceKeystream:
    """The ChaCha20 keystream made by a CUDA kernel, read in order."""

    def __init__(self, key: bytes, device: str | torch.device):
        from . import chacha_cuda as chacha

        self._kernel, self._state, self._read = chacha, chacha.state(key, device), 0

    def bytes(self, count: int) -> Tensor:
        first, skip = divmod(self._read, _BLOCK)
        self._read += count
        last = -(-self._read // _BLOCK)
        if not count:
            return torch.empty(0, dtype=torch.uint8, device=self._state.device)
        found = self._kernel.blocks(self._state, first, last - first)[skip : skip + count]
        # The caller views the bytes as words of up to 8 bytes, which need an aligned start.
        return found if skip % 8 == 0 else found.clone()
