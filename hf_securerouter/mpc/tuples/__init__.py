# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Correlated randomness: what the dealer makes, and how the parties use it once.

`plan` records the gates of a program, `deal` makes one set of tuples for it. `dealer_service` is the dealer's end,
`dealer_client` a party's. There a set is a `party_set` with its `corrections`, and a `tuple_set` hands its tuples out,
gate by gate.
"""
