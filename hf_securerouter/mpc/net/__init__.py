# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How roles reach each other, and what crosses the wire.

`link` joins the two parties (`frame` is its format), `channel` any two processes, both over a `socket_stream`; `tls`,
`tls_listener`, `identity` and `certificates` protect them between machines, `loopback` joins the roles of one machine.
`ledger` counts bytes and rounds, `cost` adds them up, `network_model` estimates seconds, `delay` measures them.
"""
