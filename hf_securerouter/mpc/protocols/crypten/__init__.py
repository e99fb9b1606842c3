# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The reference: CrypTen's two-party protocol, to compare with and not to deploy.

`protocol` is its face, `sharing` how weights and inputs are shared, `roles` what party and dealer do. An `encoder` is
made of `functions` over CrypTen's tensors in its `fixed_point`; `compat` imports CrypTen, `communicator` counts and
limits its messages, `link_adapter` runs it over the parties' own link.
"""
