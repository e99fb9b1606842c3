# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Messages that are none: frames of a client with bytes, fields, dtypes and shapes changed at random."""

import json
import random
import select
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

from safetensors.torch import save

from hf_securerouter.mpc.net.channel import Channel, ChannelError
from hf_securerouter.mpc.net.sockets import MeetingError
from hf_securerouter.mpc.net.tls import connect


PATIENCE = 0.2  # seconds for an answer, after which a new connection is made
WORKERS = 8  # connections at once


def values(draw):
    """Something for a field."""
    return draw.choice(
        [None, True, 0, -1, 1 << 70, 1.5, "", "x" * draw.randrange(100), [], {}, [[[]]] * 3, "ab" * 16, "0" * 32]
    )


def header(draw):
    """The header of a message, seldom a right one."""
    kind = draw.randrange(4)
    if kind == 0:
        return draw.randbytes(draw.randrange(200))
    if kind == 1:
        depth = draw.randrange(1, 30_000)
        return b"[" * depth + b"]" * draw.choice([depth, 0])
    fields = {"kind": "query", "id": draw.randbytes(16).hex(), "batch": draw.randrange(1, 5)}
    for name in draw.sample(list(fields), draw.randrange(3)):
        fields[name] = values(draw)
    return json.dumps(fields).encode()


def payload(draw, shares):
    """Tensors, seldom right ones."""
    kind = draw.randrange(5)
    if kind == 0:
        return draw.randbytes(draw.randrange(300))
    if kind == 1:
        dtype = draw.choice(["U8", "I64", "F8_E8M0", "F4", "C64", "NONE"])
        shape = [draw.choice([0, 1, 3, 1 << 40]) for _ in range(draw.randrange(6))]
        head = json.dumps({draw.choice([*shares, "x"]): {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}})
        return struct.pack("<Q", len(head)) + head.encode()
    own = dict(shares)
    name = draw.choice(list(own))
    changes = [own[name][:-1], own[name][:, None], own[name][:0], own[name].float(), own[name].repeat(2)]
    own[name] = draw.choice(changes).contiguous()
    data = bytearray(save(own))
    if kind == 2:
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(min(len(data), 400))] = draw.randrange(256)
    return bytes(data)


def send_to_party(address, role, identity, shares, count, seed):
    """Send `count` messages to a party as a client, over several connections. Every message gets an error, or the
    connection ends."""

    def send(number, count):
        draw, channel = random.Random(f"{seed} {number}"), None
        for _ in range(count):
            head, body = header(draw), payload(draw, shares)
            try:
                if channel is None:
                    channel = Channel(connect(address, role, identity, time.monotonic() + 60), role)
                length = draw.choice([len(head)] * 20 + [1 << 20, 0])
                channel.send_bytes(struct.pack("<4sIQ", b"SRF1", length, len(body)) + head + body, timeout=10)
                answer, _ = channel.receive(PATIENCE, 10.0)
                assert answer["kind"] == "error", answer
                if answer["busy"]:  # too many were refused, and the server ends the connection
                    channel.close()
                    channel = None
            except MeetingError:
                raise
            except ChannelError:
                if channel is not None:
                    channel.close()
                    channel = None
        if channel is not None:
            channel.close()

    _side_by_side(send, count)


def send_bytes(address, count, seed):
    """Make `count` connections that are no TLS, or break off, and wait for the end of some of them."""

    def send(number, count):
        draw = random.Random(f"{seed} {number}")
        for _ in range(count):
            with socket.create_connection(address, timeout=60) as sock:
                data = draw.choice([b"\x16\x03\x01", b"GET / HTTP/1.1\r\n", b"SRF1", b""]) + draw.randbytes(
                    draw.randrange(64)
                )
                try:
                    sock.sendall(data)
                    if draw.random() < 0.5:
                        select.select([sock], [], [], 0.02)
                except OSError:
                    pass

    _side_by_side(send, count)


def _side_by_side(send, count):
    """Send `count` messages in `WORKERS` threads, and raise what one of them raises."""
    counts = [len(range(number, count, WORKERS)) for number in range(WORKERS)]
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(send, range(WORKERS), counts))
