# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""CrypTen's communicator over the parties' own link.

Every collective operation is one exchange of buffers in both directions at once. Sessions run CrypTen over gloo
(`communicator.py`); this adapter puts the same computation on the link of the masked protocol, whose byte counts are
exact and which unpickles nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ReduceOp

from ....errors import SecureRouterValueError
from ...net.link import Link
from .compat import import_crypten


Communicator: Any
try:
    Communicator = import_crypten().communicator.Communicator
except ImportError:  # `CryptenLink` raises it again, when an instance is made
    Communicator = object


class CryptenLink(Communicator):
    """The collective operations of `crypten.communicator.Communicator` between ranks 0 and 1.

    Both parties call the same method in the same order (`send` meets `recv`). Each call is one round, whatever the
    number of tensors. `comm_bytes`, `comm_rounds` and `comm_time` start at 0 for every adapter.

    Args:
        link (`Link`): To the other party; the caller closes it.

    Raises:
        ImportError: `crypten` is missing.

    Example:
        ```python
        crypten.communicator.get = lambda: adapter  # with adapter = CryptenLink(link)
        ```
    """

    BYTES_PER_ELEMENT = 8

    def __init__(self, link: Link) -> None:
        import_crypten()
        self.link, self.rank = link, link.rank
        self._name = f"party{link.rank}"
        self.reset_communication_stats()

    def exchange(self, parts: Sequence[Any], expected: Sequence[int] | None = None) -> list[memoryview]:
        """Send buffers, and receive the other party's, of `expected` lengths; see `Link.exchange`."""
        with self._counted():
            return self.link.exchange(parts, expected)

    def send_obj(self, obj: Any, dst: int) -> None:
        """Send a JSON-able object of up to 1 MiB to the other party, which calls `recv_obj` at the same time."""
        self._must_be_peer("dst", dst)
        with self._counted():
            self.link.send_object(obj)

    def recv_obj(self, src: int) -> Any:
        """The object that the other party sends by `send_obj`."""
        self._must_be_peer("src", src)
        with self._counted():
            return self.link.receive_object()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count one round in CrypTen's own statistics."""
        start, before = time.perf_counter(), self.link.traffic
        try:
            yield
        finally:
            self.comm_rounds += 1
            self.comm_bytes += self.link.traffic - before
            self.comm_time += time.perf_counter() - start

    def get_world_size(self) -> int:
        """2."""
        return 2

    def get_rank(self) -> int:
        """0 or 1."""
        return self.rank

    def set_name(self, name: str) -> None:
        """Name this process, for CrypTen's own logs."""
        if not isinstance(name, str):
            raise SecureRouterValueError(f"`name` must be a string, got {type(name).__name__}.")
        self._name = name

    def get_name(self) -> str:
        """`party0` or `party1`, or the name from `set_name`."""
        return self._name

    def all_reduce(self, input: Any, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """The sum mod 2^64, or the bitwise XOR, of both parties' integer tensors; with `batched`, of lists of them."""
        own = _tensors(input, batched)
        combine = _reduction(own, op)
        result = [combine(theirs, tensor) for theirs, tensor in zip(self._trade(own, own), own, strict=True)]
        return result if batched else result[0]

    def reduce(self, input: Any, dst: int, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """As `all_reduce`, but only `dst` gets the result; the other party gets None."""
        own = _tensors(input, batched)
        combine = _reduction(own, op)
        if not self._is_here(dst):
            self._trade(own, [])
            return None
        result = [combine(theirs, tensor) for theirs, tensor in zip(self._trade([], own), own, strict=True)]
        return result if batched else result[0]

    def gather(self, tensor: Tensor, dst: int) -> list[Any]:
        """Both parties' tensors in the order of rank at `dst`, `[None]` at the other party."""
        if not self._is_here(dst):
            self._trade([tensor], [])
            return [None]
        return self._by_rank(tensor.clone(), self._trade([], [tensor])[0])

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Both parties' tensors in the order of rank."""
        return self._by_rank(tensor.clone(), self._trade([tensor], [tensor])[0])

    def scatter(self, scatter_list: Any, src: int, size: Any = None, device: Any = None) -> Tensor:
        """The tensor that `src` lists for this rank; the other party names its shape (int64) as `size`."""
        if self._is_here(src):
            self._trade([scatter_list[1 - self.rank]], [])
            return scatter_list[self.rank]
        if size is None:
            size, device = scatter_list[self.rank].size(), scatter_list[self.rank].device
        return self._trade([], [torch.empty(size, dtype=torch.long, device=device)])[0]

    def broadcast(self, input: Any, src: int, batched: bool = False) -> Any:
        """Overwrite the tensor (with `batched`, each tensor of a list) with the tensor of `src`, and return it."""
        own = _tensors(input, batched)
        if self._is_here(src):
            self._trade(own, [])
        else:
            for tensor, theirs in zip(own, self._trade([], own), strict=True):
                tensor.data.copy_(theirs)
        return input

    def send(self, tensor: Tensor, dst: int) -> None:
        """Send to the other party, which calls `recv` at the same time."""
        self._must_be_peer("dst", dst)
        self._trade([tensor], [])

    def recv(self, tensor: Tensor, src: int | None = None) -> Tensor:
        """A new tensor, shaped like `tensor`, from the other party, which calls `send` at the same time."""
        self._must_be_peer("src", src)
        return self._trade([], [tensor])[0]

    def broadcast_obj(self, obj: Any, src: int) -> Any:
        """The JSON-able object of `src`, up to 1 MiB, at both parties."""
        if not self._is_here(src):
            return self.recv_obj(src)
        self.send_obj(obj, 1 - src)
        return obj

    def barrier(self) -> None:
        """Wait until the other party calls `barrier` too."""
        self.exchange([])

    def _trade(self, own: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """Send tensors, and receive tensors with the shapes and dtypes of `like`."""
        sizes = [tensor.numel() * tensor.element_size() for tensor in like]
        received = self.exchange([_tensor_bytes(tensor) for tensor in own], sizes)
        return [
            (torch.frombuffer(part, dtype=tensor.dtype) if part else torch.empty(0, dtype=tensor.dtype))
            .view(tensor.shape)
            .to(tensor.device)
            for part, tensor in zip(received, like, strict=True)
        ]

    def _by_rank(self, own: Tensor, theirs: Tensor) -> list[Tensor]:
        return [own, theirs] if self.rank == 0 else [theirs, own]

    def _is_here(self, rank: int) -> bool:
        if rank not in (0, 1):
            raise SecureRouterValueError(f"Rank {rank!r} was given, but a link has the ranks 0 and 1.")
        return rank == self.rank

    def _must_be_peer(self, name: str, rank: int | None) -> None:
        if rank not in (None, 1 - self.rank):
            raise SecureRouterValueError(
                f"`{name}` is {rank!r}, but this link of rank {self.rank} ends at {1 - self.rank}."
            )


def _tensors(input: Any, batched: bool) -> list[Tensor]:
    tensors = input if batched else [input]
    if not isinstance(tensors, list) or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise SecureRouterValueError("`input` must be a tensor, or with `batched=True` a list of tensors.")
    return tensors


def _tensor_bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _reduction(tensors: list[Tensor], op: Any) -> Callable[[Tensor, Tensor], Tensor]:
    for tensor in tensors:
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise SecureRouterValueError(f"Shares are integers; a tensor of {tensor.dtype} cannot be reduced.")
    if op == ReduceOp.SUM:
        return Tensor.add_
    if op == ReduceOp.BXOR:
        return Tensor.bitwise_xor_
    raise SecureRouterValueError(f"`op` is {op!r}; a link reduces by ReduceOp.SUM and ReduceOp.BXOR.")
