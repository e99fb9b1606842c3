# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The format of a frame on the parties' link.

A frame is a 16-byte header (magic, kind, round, payload length) and the payload, without dtype or shape: both parties
run the same plan and know them. Objects travel as JSON.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any

from ...errors import SecureRouterValueError


VERSION = 1
MAGIC = b"SRL"
HEADER = struct.Struct("<3sBIQ")  # magic, kind, round, bytes of the payload
MAX_OBJECT = 1 << 20  # bytes of an object as JSON


class Kind(IntEnum):
    """What a frame carries."""

    HELLO = 1
    PROOF = 2
    DATA = 3
    OBJECT = 4
    ABORT = 5
    ALIVE = 6  # empty, of no round: the sender still computes


class Abort(IntEnum):
    """Why a party gave up. An `ABORT` frame carries this code in its length field, and nothing else."""

    TIMEOUT = 1
    GARBAGE = 2
    KIND = 3
    ROUND = 4
    LENGTH = 5
    IDENTITY = 6


ALIVE = HEADER.pack(MAGIC, Kind.ALIVE, 0, 0)


ABORT_TEXTS = {
    Abort.TIMEOUT: "it got no message in time",
    Abort.GARBAGE: "it got bytes that are not a message",
    Abort.KIND: "it got a message of another kind than it expected",
    Abort.ROUND: "it got a message of another round",
    Abort.LENGTH: "it got a message of another length than it expected",
    Abort.IDENTITY: "this end did not prove who it is",
}


def as_bytes(part: Any) -> memoryview:
    """A buffer as flat bytes, without a copy.

    Raises:
        `SecureRouterValueError`: `part` is not a C-contiguous buffer.
    """
    try:
        view = memoryview(part)
        if view.nbytes == 0:
            return memoryview(b"")
        return view if view.ndim == 1 and view.format == "B" and view.contiguous else view.cast("B")
    except (TypeError, ValueError) as error:
        raise SecureRouterValueError(f"Each of `parts` must be a C-contiguous buffer of bytes: {error}.") from error


def to_json(obj: Any) -> bytes:
    """An object as JSON.

    Raises:
        `SecureRouterValueError`: `obj` changes on its way through JSON, or takes more than `MAX_OBJECT` bytes.
    """
    try:
        data = json.dumps(obj, allow_nan=False).encode()
        same = json.loads(data) == obj
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise SecureRouterValueError(
            f"An object of type {type(obj).__name__} does not survive JSON, the only form in which objects cross the "
            "link. Send dicts with string keys, lists, strings, numbers, booleans or None; tensors go by `send`."
        )
    if len(data) > MAX_OBJECT:
        raise SecureRouterValueError(f"An object of {len(data)} bytes is past the limit of {MAX_OBJECT}.")
    return data
