# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Frames between two processes: a JSON header and safetensors bytes, each length-checked, under a deadline.

Nothing received is unpickled. A frame is `magic, header length, payload length` (16 bytes), the header, the payload.
"""

from __future__ import annotations

import contextlib
import json
import math
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save
from torch import Tensor

from ...errors import SecureRouterError
from .socket_stream import SocketStream


MAGIC = b"SRF1"
MAX_HEADER = 16 << 20
SMALL_HEADER = 64 << 10  # enough between machines, where only queries, answers and orders travel
MAX_PAYLOAD = 8 << 30
_PREFIX = struct.Struct("<4sIQ")
_DROPPED = 1 << 16  # bytes of a dropped frame that are read at once
_MAX_RANK = 4
_MAX_EMPTY = 1 << 20  # product of the other dimensions of a tensor without elements
_DTYPES = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "BOOL": torch.bool,
}


class ChannelError(SecureRouterError):
    """A frame could not be sent or received; the message names the other end."""


class ChannelClosed(ChannelError):
    """The connection is closed."""


class UnreadableFrame(ChannelError):
    """A whole frame arrived, but its content is invalid. The next frame can be received."""


class ChannelTimeout(ChannelError):
    """The other end did not send, or did not read, before the deadline."""


class SlowFrame(ChannelError):
    """A frame began, and did not end before the deadline."""


class Channel:
    """One end of a stream socket that carries frames.

    `bytes_sent` and `bytes_received` count the bytes of frames, without TLS records.

    Args:
        sock (`socket.socket` or `SocketStream`): A connected stream socket, or a stream under TLS; the channel owns it
            from now on.
        peer (`str`): Name of the other end in error messages.
        max_payload (`int`): Largest payload, in bytes, that is accepted in a frame.
        max_header (`int`): Largest header, in bytes, that is accepted in a frame.

    Example:
        ```python
        channel.send({"kind": "query"}, {"share": share})
        header, tensors = channel.receive(timeout=30)
        ```
    """

    def __init__(
        self,
        sock: socket.socket | SocketStream,
        peer: str,
        max_payload: int = MAX_PAYLOAD,
        max_header: int = MAX_HEADER,
    ) -> None:
        self.peer = peer
        self.max_payload, self.max_header = max_payload, max_header
        # Non-blocking: one thread may wait to read while another waits to write.
        self._stream = sock if isinstance(sock, SocketStream) else SocketStream(sock)
        self.bytes_sent = 0
        self.bytes_received = 0

    def send(self, header: dict[str, Any], tensors: dict[str, Tensor] | None = None, timeout: float = 60.0) -> None:
        """Send one frame.

        Args:
            header (`dict`): JSON-able.
            tensors (`dict[str, torch.Tensor]`, *optional*): Contiguous CPU tensors.
            timeout (`float`): Seconds within which the other end must take the frame.

        Raises:
            ChannelClosed: The connection is closed.
            ChannelTimeout: The other end did not take the frame in time.
            ChannelError: The frame is larger than `MAX_HEADER` or `MAX_PAYLOAD`.
        """
        head = json.dumps(header).encode()
        payload = save(tensors) if tensors else b""
        _check_lengths(len(head), len(payload), self.peer, MAX_HEADER, MAX_PAYLOAD)
        deadline = time.monotonic() + timeout
        self._write(_PREFIX.pack(MAGIC, len(head), len(payload)) + head, deadline)
        self._write(payload, deadline)

    def send_bytes(self, data: bytes | bytearray | memoryview, timeout: float = 60.0) -> None:
        """Send raw bytes, without a copy; the frame before them announced their number.

        Raises:
            ChannelClosed: The connection is closed.
            ChannelTimeout: The other end did not take the bytes within `timeout` seconds.
        """
        self._write(data, time.monotonic() + timeout)

    def receive_into(self, buffer: bytearray | memoryview, timeout: float = 60.0) -> None:
        """Fill `buffer` with the bytes that the other end sends by `send_bytes`.

        Raises:
            ChannelClosed: The connection is closed.
            ChannelTimeout: The bytes did not arrive within `timeout` seconds.
        """
        self._fill(memoryview(buffer).cast("B"), time.monotonic() + timeout)

    def receive(
        self, timeout: float | None = 60.0, rest: float | None = None, admit: Callable[[int], None] | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Wait for one frame.

        Args:
            timeout (`float`, *optional*): Seconds to wait for the whole frame; with `rest`, for its first byte. None
                waits for the first byte until the connection closes.
            rest (`float`, *optional*): Seconds from the first byte to the last. By default what `timeout` leaves, or
                60 seconds if it is None.
            admit (callable, *optional*): Called with the payload's bytes before there is memory for them. If it raises
                a `SecureRouterError`, the frame is read to its end and dropped, and the error raised.

        Returns:
            The header and the tensors.

        Raises:
            ChannelClosed: The connection is closed.
            ChannelTimeout: No frame began in time.
            SlowFrame: A frame began, and did not end in time.
            UnreadableFrame: The frame's header is no JSON object, or its payload no tensors of up to 4 dimensions.
            ChannelError: The bytes received are not a frame, or the frame is too large.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        first = self._read(1, deadline)
        if timeout is None or deadline is None or rest is not None:
            timeout = 60.0 if rest is None else rest
            deadline = time.monotonic() + timeout
        try:
            head, payload = self._frame(first, deadline, admit)
        except ChannelTimeout as error:
            raise SlowFrame(f"{self.peer} did not send a whole message within {timeout:g} seconds.") from error
        try:
            header = json.loads(head)
        except (ValueError, RecursionError) as error:
            raise UnreadableFrame(f"{self.peer} sent a header that cannot be read ({type(error).__name__}).") from None
        if not isinstance(header, dict):
            raise UnreadableFrame(f"{self.peer} sent a header that is not a JSON object.")
        return header, self._tensors(payload) if payload else {}

    def _frame(self, first: bytearray, deadline: float, admit: Callable[[int], None] | None) -> tuple[bytes, bytes]:
        """Header and payload of the frame that begins with the byte `first`."""
        magic, head_length, payload_length = _PREFIX.unpack(first + self._read(_PREFIX.size - 1, deadline))
        if magic != MAGIC:
            raise ChannelError(f"{self.peer} sent {magic!r} where a frame should begin.")
        _check_lengths(head_length, payload_length, self.peer, self.max_header, self.max_payload)
        if admit is not None:
            try:
                admit(payload_length)
            except SecureRouterError:
                self._drop(head_length + payload_length, deadline)
                raise
        return bytes(self._read(head_length, deadline)), bytes(self._read(payload_length, deadline))

    def _drop(self, count: int, deadline: float | None) -> None:
        """Read bytes that nobody keeps."""
        while count:
            count -= len(self._read(min(count, _DROPPED), deadline))

    def _tensors(self, payload: bytes) -> dict[str, Tensor]:
        if int.from_bytes(payload[:8], "little") > self.max_header:
            raise UnreadableFrame(
                f"{self.peer} sent tensors that cannot be read: their description is past the limit."
            )
        try:
            described = deserialize(payload)
        except SafetensorError:
            raise UnreadableFrame(f"{self.peer} sent tensors that cannot be read.") from None
        found = {}
        for name, parts in described:
            dtype, shape, data = _DTYPES.get(parts["dtype"]), parts["shape"], parts["data"]
            sides = math.prod(max(side, 1) for side in shape)
            if dtype is None or len(shape) > _MAX_RANK or sides > max(len(data), _MAX_EMPTY):
                raise UnreadableFrame(f"{self.peer} sent a tensor of an unknown dtype, or of too many dimensions.")
            empty = torch.empty(0, dtype=dtype)
            found[name] = (torch.frombuffer(data, dtype=dtype) if len(data) else empty).reshape(shape)
        return found

    def hang_up(self) -> None:
        """End the connection from any thread; the thread that receives or sends then fails, and closes the channel."""
        with contextlib.suppress(OSError):
            self._stream.sock.shutdown(socket.SHUT_RDWR)

    def finish(self, timeout: float) -> None:
        """Close this end so that the other end can read what was sent to it: what it still sends meanwhile is read
        and dropped, for `timeout` seconds at most. Unread bytes would make the system drop both."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(OSError, ChannelError):
            self._stream.sock.shutdown(socket.SHUT_WR)
            while time.monotonic() < deadline:
                self._wait(select.POLLIN, deadline, "close the link")
                if not self._stream.sock.recv(_DROPPED):
                    break
        self.close()

    def close(self) -> None:
        """Close this end; the other end then reads the end of the stream."""
        self.hang_up()
        self._stream.sock.close()

    def forget(self) -> None:
        """Close this process's descriptor only: the connection goes on in the process that this one is a fork of."""
        self._stream.sock.close()

    def _write(self, data: bytes | bytearray | memoryview, deadline: float) -> None:
        view = memoryview(data).cast("B")
        if not view:
            return
        self._stream.put([view])
        try:
            while True:
                self._stream.push()
                if not self._stream.unsent:
                    break
                self._wait(select.POLLOUT, deadline, "take a message")
        except OSError as error:
            raise ChannelClosed(f"The link to {self.peer} is closed ({error}).") from error
        finally:
            self._stream.drop()  # after a failure nobody knows where the next frame begins
        self.bytes_sent += len(view)

    def _read(self, length: int, deadline: float | None) -> bytearray:
        data = bytearray(length)
        self._fill(memoryview(data), deadline)
        return data

    def _fill(self, view: memoryview, deadline: float | None) -> None:
        while view:
            try:
                count = self._stream.pull(view)
            except OSError as error:
                raise ChannelClosed(f"The link to {self.peer} is closed ({error}).") from error
            if count is None:
                self._wait(select.POLLIN, deadline, "answer")
                continue
            if count == 0:
                raise ChannelClosed(f"{self.peer} closed the link.")
            view = view[count:]
            self.bytes_received += count

    def _wait(self, event: int, deadline: float | None, action: str) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise ChannelTimeout(f"{self.peer} did not {action} in time.")
        poll = select.poll()
        try:
            poll.register(self._stream.sock, event)
        except ValueError as error:  # closed by this process
            raise ChannelClosed(f"The link to {self.peer} is closed.") from error
        poll.poll(None if left is None else left * 1000)


def _check_lengths(head: int, payload: int, peer: str, max_header: int, max_payload: int) -> None:
    if head > max_header or payload > max_payload:
        raise ChannelError(f"A frame of {head} + {payload} bytes for or from {peer} is past the limit.")
