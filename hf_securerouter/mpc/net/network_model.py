# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Networks that a plan can be made for, where rounds, bytes and the dealer's bytes trade against each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkModel:
    """What a round and a byte cost.

    Args:
        round_seconds (`float`): One way between the parties: the time that an exchange takes.
        bytes_per_second (`float`): Of each direction of the link.
        dealer_share (`float`): What a byte of the dealer's counts against one between the parties; it comes ahead of
            the input, but it has to be made, moved and read.
    """

    round_seconds: float
    bytes_per_second: float
    dealer_share: float = 0.05

    def seconds(self, rounds: int, payload_bytes: float, dealer_bytes: float) -> float:
        """Estimated time of `rounds` exchanges with so many bytes each way, and so many from the dealer."""
        return rounds * self.round_seconds + (payload_bytes + self.dealer_share * dealer_bytes) / self.bytes_per_second


NETWORKS = {
    "lan": NetworkModel(round_seconds=5e-4, bytes_per_second=1e9),  # 0.5 ms, 8 Gbit/s
    "wan": NetworkModel(round_seconds=2e-2, bytes_per_second=5e7),  # 20 ms, 400 Mbit/s
}
