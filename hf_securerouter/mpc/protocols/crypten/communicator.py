# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""CrypTen's communicator with a ledger and deadlines.

CrypTen looks up its communicator in `DistributedCommunicator.instance`; `connect` puts an instance of a subclass
there, before `crypten.init` makes a plain one. CrypTen's own `comm_bytes` is not used: it counts an all-reduce twice,
and a pickled object by `sys.getsizeof`.
"""

from __future__ import annotations

import pickle
import secrets
import time
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...net.ledger import Ledger
from .compat import import_crypten


crypten = import_crypten()

from crypten.communicator import DistributedCommunicator  # noqa: E402
from crypten.config import cfg  # noqa: E402
from crypten.cuda import CUDALongTensor  # noqa: E402
from crypten.mpc.provider import TTPServer  # noqa: E402
from crypten.mpc.provider.ttp_provider import TTPClient  # noqa: E402


WORD = 8
SEED_BYTES = 8


class LedgerCommunicator(DistributedCommunicator):
    """Counts the payload bytes of each message, and gives every wait a deadline.

    An all-reduce between two parties sends every word once in each direction; a batch of them is one round.

    Args:
        rank (`int`): 0 and 1 for the parties, 2 for the dealer.
        rendezvous (`str`): A `file://` address that all roles share.
        with_dealer (`bool`): Whether the dealer is a third process.
        timeout (`float`): Seconds after which a wait for another role fails.
        ledger (`Ledger`): Counts bytes and rounds.
    """

    def __init__(self, rank: int, rendezvous: str, with_dealer: bool, timeout: float, ledger: Ledger) -> None:
        self.world_size = 2
        self.rank = rank
        self.distributed_backend = "gloo"
        self.rendezvous = rendezvous
        self.ttp_initialized = with_dealer
        self._name = f"rank{rank}"
        self._ledger = ledger
        self.last_object: Any = None
        self.waited = 0.0
        self.reset_communication_stats()

        wait = timedelta(seconds=timeout)
        processes = 3 if with_dealer else 2
        dist.init_process_group("gloo", init_method=rendezvous, world_size=processes, rank=rank, timeout=wait)
        self.ttp_group = dist.new_group(list(range(processes)), timeout=wait)
        self.ttp_comm_group = dist.new_group([0, processes - 1], timeout=wait)
        self.main_group = dist.new_group([0, 1], timeout=wait)

    def _exchanged(self, nbytes: int) -> None:
        self._ledger.sent(nbytes)
        self._ledger.received(nbytes)
        self._ledger.round()

    def all_reduce(self, input: Any, op: Any = dist.ReduceOp.SUM, batched: bool = False) -> Any:
        given = input if batched else [input]
        self._exchanged(WORD * sum(tensor.nelement() for tensor in given))
        reduced = super().all_reduce([on_host(tensor) for tensor in given], op=op, batched=True)
        results = [beside(words, tensor) for words, tensor in zip(reduced, given, strict=True)]
        return results if batched else results[0]

    def isend(self, tensor: Tensor, dst: int) -> Any:
        self._ledger.sent(WORD * tensor.nelement())
        return super().isend(tensor, dst)

    def irecv(self, tensor: Tensor, src: int | None = None) -> Any:
        self._ledger.received(WORD * tensor.nelement())
        self._ledger.round()
        return super().irecv(tensor, src)

    def broadcast(self, input: Any, src: int, group: Any = None, batched: bool = False) -> Any:
        nbytes = WORD * sum(tensor.nelement() for tensor in (input if batched else [input]))
        if src == self.get_ttp_rank():
            self._ledger.dealer(nbytes)
        else:
            (self._ledger.sent if src == self.rank else self._ledger.received)(nbytes)
            self._ledger.round()
        given = input if batched else [input]
        words = [on_host(tensor) for tensor in given]
        super().broadcast(words, src, group=group, batched=True)
        for tensor, received in zip(given, words, strict=True):
            if tensor.is_cuda:
                tensor.data.copy_(received)
        return input

    def send_obj(self, obj: Any, dst: int, group: Any = None) -> None:
        if self.rank == self.get_ttp_rank():
            self._ledger.dealer(_pickled(obj))
        super().send_obj(obj, dst, group)

    def recv_obj(self, src: int, group: Any = None) -> Any:
        start = time.perf_counter()
        self.last_object = super().recv_obj(src, group)
        self.waited += time.perf_counter() - start
        if src == self.get_ttp_rank():
            self._ledger.dealer(_pickled(self.last_object))
        return self.last_object


def on_host(tensor: Any) -> Tensor:
    """The words of a tensor, or of one of CrypTen's CUDA tensors, in host memory; gloo reads no other."""
    return tensor.data.cpu() if tensor.is_cuda else tensor


def beside(words: Tensor, tensor: Any) -> Any:
    """Words of host memory on the device of a tensor, as one of CrypTen's CUDA tensors if that is a GPU."""
    return CUDALongTensor(words.to(tensor.device)) if tensor.is_cuda else words


def _pickled(obj: Any) -> int:
    """Bytes that CrypTen sends for an object: its pickle and a 4-byte length."""
    return len(pickle.dumps(obj)) + 4


def connect(rank: int, rendezvous: str, *, provider: str, timeout: float, ledger: Ledger) -> LedgerCommunicator:
    """Connect to the other roles and install the communicator in CrypTen.

    Args:
        rank (`int`): 0 and 1 for the parties, 2 for the dealer.
        rendezvous (`str`): A `file://` address that all roles share.
        provider (`str`): `"ttp"` or `"tfp"`.
        timeout (`float`): Seconds after which a wait for another role fails.
        ledger (`Ledger`): Counts bytes and rounds.
    """
    cfg.mpc.provider = provider.upper()
    communicator = LedgerCommunicator(rank, rendezvous, provider == "ttp", timeout, ledger)
    DistributedCommunicator.instance = communicator
    if rank < 2:
        crypten._setup_prng()
    return communicator


def start_dealing(ledger: Ledger) -> None:
    """In a party, before a query: take a fresh seed from the dealer, if there is one."""
    if cfg.mpc.provider == "TTP":
        TTPClient._init()
        ledger.dealer(SEED_BYTES)


def stop_dealing(communicator: LedgerCommunicator) -> None:
    """In a party, after a query: tell the dealer that the query is over."""
    if cfg.mpc.provider == "TTP":
        TTPClient.uninit()
        if communicator.rank == 0:
            communicator.send_obj("terminate", communicator.get_ttp_rank(), communicator.ttp_group)


def deal(communicator: LedgerCommunicator, ledger: Ledger) -> None:
    """In the dealer: serve one query.

    CrypTen's dealer draws the parties' seeds from torch's global generator, whose state a party could compute from its
    own seeds of many queries; so the generator is seeded from the system before every query.

    Raises:
        `RuntimeError`: A party went away before the end of the query.
    """
    torch.manual_seed(secrets.randbits(63))
    ledger.dealer(2 * SEED_BYTES)
    communicator.last_object, communicator.waited = None, 0.0
    with ledger.phase("dealer"), warnings.catch_warnings():
        # `TTPServer` calls `crypten.init`, which warns that `connect` has installed a communicator already.
        warnings.simplefilter("ignore", RuntimeWarning)
        TTPServer()
    ledger.phases["dealer"] -= communicator.waited
    if communicator.last_object != "terminate":
        raise RuntimeError("A party went away before the query's end.")
