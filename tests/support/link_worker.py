# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The other process in the link's tests: each task is a function whose first argument is the address."""

import socket
import ssl
import struct
import time

import numpy as np
import torch

from hf_securerouter.mpc.net import link as transport
from hf_securerouter.mpc.net.link import Link
from hf_securerouter.mpc.protocols.crypten.compat import import_crypten
from hf_securerouter.mpc.protocols.crypten.link_adapter import CryptenLink


def serve(pipe):
    """Run tasks until the pipe closes; answer with what each returned, or how and how fast it failed."""
    pipe.send("ready")
    while True:
        try:
            name, args, options = pipe.recv()
        except EOFError:
            return
        start = time.monotonic()
        try:
            pipe.send(("returned", globals()[name](*args, **options), 0.0))
        except Exception as error:
            pipe.send((type(error).__name__, str(error), time.monotonic() - start))


def tls_context(folder, role, server_side):
    """A context as a party would make it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(folder / "ca.pem")
    context.load_cert_chain(folder / f"{role}.pem", folder / f"{role}.key")
    return context


def connected(address, rank=1, tls=None, role="party1", **options):
    """The link of party 1; `tls` is the folder of its keys."""
    context = None if tls is None else tls_context(tls, role, False)
    return Link.connect(address, rank, ssl_context=context, **options)


kept: list[Link] = []


def pattern(seed, length):
    return np.random.default_rng(seed).bytes(length)


def say_hello(address, **options):
    with connected(address, **options) as link:
        link.exchange([])


def say_hello_as_version_2(address):
    transport.VERSION = 2
    try:
        say_hello(address)
    finally:
        transport.VERSION = 1


def mirror(address, own, theirs, **options):
    """Exchange parts of lengths `own` for parts of lengths `theirs`; return whether the right bytes arrived."""
    with connected(address, **options) as link:
        received = link.exchange([pattern(1000 + i, length) for i, length in enumerate(own)], theirs)
        return [
            bytes(part) == pattern(i, length) for i, (part, length) in enumerate(zip(received, theirs, strict=True))
        ]


def agree_then(address, fields, lengths):
    with connected(address) as link:
        link.agree(fields)
        for length in lengths:
            link.exchange([bytes(length)])


def counted(address, **options):
    """Exchange some parts; return the ledger's and the kernel's counts for the whole connection."""
    sock = socket.create_connection(address)
    acknowledged, _ = kernel_counters(sock)
    context = None if (tls := options.pop("tls", None)) is None else tls_context(tls, "party1", False)
    link = Link(sock, 1, ssl_context=context, **options)
    return exchange_and_count(link, sock, acknowledged)


def exchange_and_count(link, sock, acknowledged):
    """`acknowledged`: what the kernel had counted before the link was made, as some count the SYN as a byte."""
    for length in (0, 1, 5_000_000):
        link.exchange([bytes(length)])
    link.send_object({"a": [1, None]}) if link.rank else link.receive_object()
    counts = link.ledger.total("sent"), link.ledger.total("received"), link.ledger.total("rounds")
    sent, received = settled_counters(sock)
    kept.append(link)  # keeps the link open: nothing more may arrive before the other party has read its counters
    return counts, (sent - acknowledged, received), link.traffic


def close_kept():
    while kept:
        kept.pop().close()


def settled_counters(sock):
    """The counters, once all sent bytes are acknowledged; retransmitted bytes count once."""
    while struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232), 24)[0]:
        time.sleep(0.001)
    return kernel_counters(sock)


def kernel_counters(sock):
    """Bytes that the other end has acknowledged, and bytes received: `tcpi_bytes_acked`, `tcpi_bytes_received`."""
    return struct.unpack_from("QQ", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232), 120)


def stuck_in_a_frame(address):
    """Send a frame that the other end does not read."""
    connected(address).exchange([bytes(64 << 20)])


def silent(address, seconds):
    with connected(address):
        time.sleep(seconds)


def crypten_operations(address):
    with connected(address) as link:
        return operations(CryptenLink(link))


def operations(link):
    """Every operation of CrypTen's communicator, on data that depends on the rank; tensors as lists."""
    rank, xor = link.get_rank(), torch.distributed.ReduceOp.BXOR
    x = torch.tensor([[2**62 + rank, -5], [7 * rank, 2**63 - 1]])
    y = torch.tensor(3 + rank, dtype=torch.int64)
    results = {
        "size": link.get_world_size(),
        "sum": link.all_reduce(x),
        "xor": link.all_reduce(x, op=xor),
        "batch": link.all_reduce([x, y, x[:0]], batched=True),
        "transposed": link.all_reduce(x.t()),
        "bytes": link.all_reduce(torch.tensor([200 + rank], dtype=torch.uint8)),
        "reduce": link.reduce(x, 1),
        "reduce batch": link.reduce([x, y], 0, op=xor, batched=True),
        "gather": link.gather(y, 1),
        "all_gather": link.all_gather(x),
        "broadcast": link.broadcast(x.clone(), 1),
        "broadcast batch": link.broadcast([x.clone(), y.clone()], 0, batched=True),
        "floats": link.broadcast(torch.tensor([0.5 + rank]), 0),
        "scatter": link.scatter([x, x + 1] if rank == 0 else None, 0, size=x.size()),
        "send": link.send(x, 1) if rank == 0 else link.recv(torch.empty_like(x), src=0),
        "object": link.send_obj({"k": [1, 2.5, None, "ü"]}, 1) if rank == 0 else link.recv_obj(0),
        "broadcast object": link.broadcast_obj(["from", 1] if rank == 1 else None, 1),
        "barrier": link.barrier(),
        "unchanged": x,
    }
    return {name: _plain(result) for name, result in results.items()}


def _plain(result):
    if isinstance(result, torch.Tensor):
        return result.tolist()
    return [_plain(item) for item in result] if isinstance(result, list) else result


def crypten_computes(address):
    with connected(address) as link:
        return crypten_arithmetic(CryptenLink(link))


def crypten_arithmetic(link):
    """CrypTen's own multiplication and comparison with this link as its communicator."""
    crypten = import_crypten()
    for name, seed in (("prev", 2 - link.rank), ("next", 1 + link.rank), ("local", 8 + link.rank), ("global", 7)):
        crypten.generators[name][torch.device("cpu")] = torch.Generator().manual_seed(seed)
    former = crypten.communicator.get
    crypten.communicator.get = lambda: link
    try:
        x = crypten.cryptensor(torch.tensor([1.5, -2.0, 3.25]), src=0)
        y = crypten.cryptensor(torch.tensor([-4.0, -0.5, 2.0]), src=1)
        return (x * y).get_plain_text().tolist(), (x > y).get_plain_text().tolist()
    finally:
        crypten.communicator.get = former


def measure(address, **options):
    with connected(address, **options) as link:
        return timed(link)


def timed(link):
    """Median seconds of an exchange of 64 bytes and of 64 MiB."""
    medians = []
    for length, repeats in ((64, 2000), (64 << 20, 10)):
        part, seconds = bytes(length), []
        for _ in range(repeats):
            start = time.perf_counter()
            link.exchange([part])
            seconds.append(time.perf_counter() - start)
        medians.append(float(np.median(seconds)))
    return medians
