# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Roles on machines of different owners.

`save_shares` writes one folder per role, `role_folder` loads one, and `integrity` tells whether both are the same.
`party_server` and `dealer_server` run a role from its folder; `query_queue` holds the queries that a party has
received. `key_watch` ends connections of clients that are no longer allowed, `audit` logs who asked. `remote_session`
is the client.
"""
