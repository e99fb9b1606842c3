# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Frames between two processes: a JSON header and safetensors bytes, each length-checked, under a deadline.

Nothing received is unpickled. A frame is `magic, header length, payload length` (16 bytes), the header, the payload.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ...errors import SecureRouterError
from .socket_stream import SocketStream


MAGIC = b"SRF1"
MAX_HEADER = 16 << 20
MAX_PAYLOAD = 8 << 30
_PREFIX = struct.Struct("<4sIQ")


class ChannelError(SecureRouterError):
    """A frame could not be sent or received; the message names the other end."""


class ChannelClosed(ChannelError):
    """The connection is closed."""


class ChannelTimeout(ChannelError):
    """The other end did not send, or did not read, before the deadline."""


class Channel:
    """One end of a stream socket that carries frames.

    `bytes_sent` and `bytes_received` count the bytes of frames, without TLS records.

    Args:
        sock (`socket.socket` or `SocketStream`): A connected stream socket, or a stream under TLS; the channel owns it
            from now on.
        peer (`str`): Name of the other end in error messages.
        max_payload (`int`): Largest payload, in bytes, that is accepted in a frame.

    Example:
        ```python
        channel.send({"kind": "query"}, {"share": share})
        header, tensors = channel.receive(timeout=30)
        ```
    """

    def __init__(self, sock: socket.socket | SocketStream, peer: str, max_payload: int = MAX_PAYLOAD) -> None:
        self.peer = peer
        self.max_payload = max_payload
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
        _check_lengths(len(head), len(payload), self.peer)
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

    def receive(self, timeout: float | None = 60.0) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Wait for one frame.

        Args:
            timeout (`float`, *optional*): Seconds to wait for the whole frame. None waits for the first byte until the
                connection closes, and then 60 seconds for the rest.

        Returns:
            The header and the tensors.

        Raises:
            ChannelClosed: The connection is closed.
            ChannelTimeout: No whole frame arrived in time.
            ChannelError: The bytes received are not a frame, or the frame is too large.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        first = self._read(1, deadline)
        if deadline is None:
            deadline = time.monotonic() + 60.0
        magic, head_length, payload_length = _PREFIX.unpack(first + self._read(_PREFIX.size - 1, deadline))
        if magic != MAGIC:
            raise ChannelError(f"{self.peer} sent {magic!r} where a frame should begin.")
        _check_lengths(head_length, payload_length, self.peer, self.max_payload)
        try:
            header = json.loads(bytes(self._read(head_length, deadline)))
            payload = bytes(self._read(payload_length, deadline))
            tensors = load(payload) if payload else {}
        except (ValueError, SafetensorError) as error:
            raise ChannelError(f"{self.peer} sent a frame that cannot be read ({type(error).__name__}).") from error
        if not isinstance(header, dict):
            raise ChannelError(f"{self.peer} sent a header that is not a JSON object.")
        return header, tensors

    def close(self) -> None:
        """Close this end; the other end then reads the end of the stream."""
        try:
            self._stream.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
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


def _check_lengths(head: int, payload: int, peer: str, max_payload: int = MAX_PAYLOAD) -> None:
    if head > MAX_HEADER or payload > max_payload:
        raise ChannelError(f"A frame of {head} + {payload} bytes for or from {peer} is past the limit.")
