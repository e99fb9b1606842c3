# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Frames between processes: whole or not at all, within a deadline, and never unpickled."""

import json
import pickle
import socket
import struct
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_securerouter.mpc.net.channel import (
    MAGIC,
    MAX_HEADER,
    MAX_PAYLOAD,
    SMALL_HEADER,
    Channel,
    ChannelClosed,
    ChannelError,
    ChannelTimeout,
    SlowFrame,
    UnreadableFrame,
)
from tests.support.waiting import ended


@pytest.fixture
def ends():
    left, right = socket.socketpair()
    channels = Channel(left, "right"), Channel(right, "left")
    yield channels
    for channel in channels:
        channel.close()


@pytest.fixture
def raw():
    """A channel, and the bare socket at its other end."""
    left, right = socket.socketpair()
    channel = Channel(left, "right")
    yield channel, right
    channel.close()
    right.close()


def frame(header: bytes, payload: bytes = b"", magic: bytes = MAGIC):
    return struct.pack("<4sIQ", magic, len(header), len(payload)) + header + payload


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=4),
    st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), max_size=3),
)
def test_frames_arrive_as_they_were_sent(header, lists):
    left, right = (Channel(sock, "peer") for sock in socket.socketpair())
    tensors = {name: torch.tensor(values, dtype=torch.int64) for name, values in lists.items()}
    left.send(header, tensors)
    got, received = right.receive(timeout=5)
    assert got == header
    assert {name: values.tolist() for name, values in received.items()} == lists
    assert left.bytes_sent == right.bytes_received > 0
    left.close()
    right.close()


def test_frames_larger_than_the_socket_buffer(ends):
    words = torch.arange(1 << 20)
    sender = threading.Thread(target=ends[0].send, args=({"kind": "weights"}, {"w": words}), daemon=True)
    sender.start()
    header, tensors = ends[1].receive(timeout=20)
    ended(sender, "the sender of a frame that was received")
    assert header == {"kind": "weights"} and torch.equal(tensors["w"], words)
    assert ends[1].bytes_received > words.nbytes


def test_both_directions_at_once(ends):
    words = torch.arange(1 << 19)
    senders = [threading.Thread(target=end.send, args=({}, {"w": words})) for end in ends]
    for sender in senders:
        sender.start()
    received = []
    readers = [threading.Thread(target=lambda end=end: received.append(end.receive(timeout=20))) for end in ends]
    for thread in readers:
        thread.start()
    for thread in [*readers, *senders]:
        thread.join(timeout=20)
    assert len(received) == 2 and all(torch.equal(tensors["w"], words) for _, tensors in received)


def test_silence_ends_at_the_deadline(ends):
    start = time.monotonic()
    with pytest.raises(ChannelTimeout, match="right did not answer in time"):
        ends[0].receive(timeout=0.2)
    assert time.monotonic() - start < 3


def test_half_a_frame_ends_at_the_deadline(raw):
    channel, other = raw
    other.sendall(frame(b'{"kind": "query"}', b"x" * 100)[:-1])
    with pytest.raises(SlowFrame, match="right did not send a whole message within 0.2 seconds"):
        channel.receive(timeout=0.2)


def test_a_peer_that_does_not_read_ends_at_the_deadline(ends):
    with pytest.raises(ChannelTimeout, match="right did not take a message in time"):
        ends[0].send({}, {"w": torch.zeros(1 << 20, dtype=torch.int64)}, timeout=0.2)


def test_a_closed_peer_is_noticed(ends):
    ends[1].close()
    with pytest.raises(ChannelClosed, match="right"):
        ends[0].receive(timeout=None)
    with pytest.raises(ChannelClosed, match="right"):
        ends[0].send({}, {"w": torch.zeros(1 << 20)})


def test_a_peer_that_closes_within_a_frame(raw):
    channel, other = raw
    other.sendall(frame(b'{"kind": "query"}')[:-3])
    other.close()
    with pytest.raises(ChannelClosed, match="right closed the link"):
        channel.receive(timeout=5)


def test_own_end_closed_while_used(ends):
    ends[0].close()
    with pytest.raises(ChannelError):
        ends[0].receive(timeout=1)
    with pytest.raises(ChannelError):
        ends[0].send({})


def described(dtype, shape):
    """An empty tensor as safetensors."""
    head = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}}).encode()
    return struct.pack("<Q", len(head)) + head


@pytest.mark.parametrize(
    "data, message",
    [
        (frame(b"{}", magic=b"EVIL"), "where a frame should begin"),
        (struct.pack("<4sIQ", MAGIC, MAX_HEADER + 1, 0), "past the limit"),
        (struct.pack("<4sIQ", MAGIC, 2, MAX_PAYLOAD + 1), "past the limit"),
        (frame(b"{"), "cannot be read"),
        (frame(b"\xff\xfe"), "cannot be read"),
        (frame(b"[1]"), "not a JSON object"),
        (frame(b"{}", pickle.dumps({"w": 1})), "cannot be read"),
        (frame(b"{}", struct.pack("<Q", 1 << 40) + b"{}"), "cannot be read"),
        (frame(b"[" * 100_000 + b"]" * 100_000), "cannot be read"),
        (frame(b"{}", described("F8_E8M0", [0])), "unknown dtype"),
        (frame(b"{}", described("U8", [0, 1 << 40, 1 << 40])), "too many dimensions"),
        (frame(b"{}", described("U8", [0] * 5000)), "too many dimensions"),
    ],
)
def test_what_is_no_frame_is_refused(raw, data, message):
    channel, other = raw
    other.sendall(data)
    with pytest.raises(ChannelError, match=message):
        channel.receive(timeout=5)


def test_an_unreadable_frame_leaves_the_next_one_readable(raw):
    channel, other = raw
    other.sendall(frame(b"[1]") + frame(b"{}", described("F8_E8M0", [0])) + frame(b'{"kind": "query"}'))
    for _ in range(2):
        with pytest.raises(UnreadableFrame):
            channel.receive(timeout=5)
    assert channel.receive(timeout=5) == ({"kind": "query"}, {})


def test_a_small_header_is_all_that_a_channel_may_take(ends):
    ends[1].max_header = SMALL_HEADER
    ends[0].send({"kind": "x" * SMALL_HEADER})
    with pytest.raises(ChannelError, match="past the limit"):
        ends[1].receive(timeout=5)


def test_the_rest_of_a_frame_has_a_deadline_of_its_own(raw):
    channel, other = raw
    other.sendall(b"S")
    with pytest.raises(SlowFrame, match="within 0.2 seconds"):
        channel.receive(timeout=60, rest=0.2)


def test_a_last_word_is_read_by_a_peer_that_still_sends(raw):
    channel, other = raw
    channel.send({"kind": "error"})
    ending = threading.Thread(target=channel.finish, args=(20,), daemon=True)
    ending.start()
    reader = Channel(other, "left")
    reader.send({}, {"w": torch.zeros(1 << 20, dtype=torch.int64)})  # more than a socket buffers
    assert reader.receive(timeout=20)[0] == {"kind": "error"}
    reader.close()
    ending.join(20)
    assert not ending.is_alive()


def test_a_peer_that_sends_for_ever_is_dropped_in_time(raw):
    channel, other = raw
    channel.finish(0.2)
    with pytest.raises(OSError):
        for _ in range(1000):
            other.sendall(bytes(1 << 16))


def test_nothing_received_is_unpickled(raw, tmp_path):
    channel, other = raw
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self):
            return (open, (str(touched), "w"))

    other.sendall(frame(json.dumps({}).encode(), pickle.dumps(Evil())))
    with pytest.raises(ChannelError):
        channel.receive(timeout=5)
    assert not touched.exists()
