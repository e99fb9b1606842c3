# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""One party of test_crypten_functions.py: applies every function to its shares, and writes its shares of the results.

Usage: crypten_worker.py RANK RENDEZVOUS FOLDER, with FOLDER/in{RANK}.safetensors and FOLDER/cases.json.
"""

import json
import os
import socket
import sys
from pathlib import Path

import link_worker
import torch
from safetensors.torch import load_file, save_file

from hf_securerouter.mpc.net.ledger import Ledger
from hf_securerouter.mpc.protocols.crypten import functions
from hf_securerouter.mpc.protocols.crypten.communicator import connect, crypten


def kernel_counters():
    """Payload bytes that crossed this process's TCP connections, once each, by the kernel's count (`struct tcp_info`).

    Both parties stand at a barrier before and after, so that nothing of the next function is counted with this one.
    """
    torch.distributed.barrier()
    sent = received = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as sock:
                acknowledged, arrived = link_worker.settled_counters(sock)
        except OSError:
            continue
        sent += acknowledged
        received += arrived
    torch.distributed.barrier()
    return sent, received


def main(rank: int, rendezvous: str, folder: Path) -> None:
    torch.set_num_threads(1)
    ledger = Ledger()
    connect(rank, rendezvous, provider="tfp", timeout=120, ledger=ledger)
    shares = load_file(folder / f"in{rank}.safetensors")
    results, costs = {}, {}
    with crypten.no_grad():
        for name, (function, arguments, options) in json.loads((folder / "cases.json").read_text()).items():
            tensors = [crypten.mpc.MPCTensor.from_shares(shares[f"{name}.{argument}"]) for argument in arguments]
            ledger.reset()
            before = kernel_counters()
            result = getattr(functions, function)(*tensors, **options)
            after = kernel_counters()
            results[name] = result.share.contiguous()
            costs[name] = {
                "sent": ledger.total("sent"),
                "received": ledger.total("received"),
                "rounds": ledger.total("rounds"),
                "kernel": [late - early for late, early in zip(after, before, strict=True)],
                "scale": result.encoder.scale,
            }
    save_file(results, folder / f"out{rank}.safetensors")
    (folder / f"costs{rank}.json").write_text(json.dumps(costs))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
