# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Deployed servers under kills, under nonsense and under load: scripts that end with one line of JSON.

`kill_and_fuzz` is `make faults`, `many_clients` is `make load`. `asking` has clients that ask in the background,
`nonsense` makes messages that are none, `opened_sets` records which sets of tuples the parties open.
"""
