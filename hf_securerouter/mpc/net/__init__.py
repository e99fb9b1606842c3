# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How roles reach each other, and what crosses the wire.

`link` joins the two parties (`frame` is its format, `signs_of_life` shows the other party that this one computes),
`channel` any two processes; both use a `socket_stream`, and `sockets` has what all TCP sockets share. Between
machines, `tls` connects and `tls_listener` listens, with the `identity` that a role loads; `certificates` are the
public parts of keys, and `trusted` reads whose a role accepts. `peer_watch` notices that a peer is gone, and
`counted_log` writes what strangers cause once, and counts the rest. `loopback` joins the roles of one machine.
`ledger` counts bytes and rounds, `cost` adds them up, `network_model` estimates seconds; `delay`, by the process
`delay_relay`, delays the packets between two parties on one machine.
"""
