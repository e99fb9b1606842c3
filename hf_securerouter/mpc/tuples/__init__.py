# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Correlated randomness: the dealer makes tuples, and the parties use each of them once.

`plan` records the gates of a program, with the help of `shapes`, and `deal` makes one set of tuples for a plan.
`dealer_service` is the dealer's end of the connection, `dealer_client` a party's. A party receives its part of a set
as a `party_set`, at P0 with `corrections` in a file; a `tuple_set` hands the tuples out, gate by gate. `memory` says
how much a plan takes at each role.
"""
