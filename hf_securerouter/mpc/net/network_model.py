# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Models of networks, by which a plan trades rounds, bytes and the dealer's bytes against each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkModel:
    """The cost of a round and of a byte.

    Args:
        round_seconds (`float`): One-way delay between the parties, the time of one exchange.
        bytes_per_second (`float`): Bandwidth of each direction of the link.
        dealer_share (`float`): Weight of a dealer byte against an online byte: it is sent before the input arrives,
            but still has to be generated and transferred.
    """

    round_seconds: float
    bytes_per_second: float
    dealer_share: float = 0.05

    def seconds(self, rounds: int, payload_bytes: float, dealer_bytes: float) -> float:
        """Estimated time of `rounds` exchanges, `payload_bytes` each way and `dealer_bytes` from the dealer."""
        return rounds * self.round_seconds + (payload_bytes + self.dealer_share * dealer_bytes) / self.bytes_per_second


NETWORKS = {
    "lan": NetworkModel(round_seconds=5e-4, bytes_per_second=1e9),  # 0.5 ms, 8 Gbit/s
    "wan": NetworkModel(round_seconds=2e-2, bytes_per_second=5e7),  # 20 ms, 400 Mbit/s
}
