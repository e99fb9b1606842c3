# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Roles on machines of different owners.

`save_shares` writes one folder per role, `role_folder` loads one, and `integrity` tells whether both are the same.
`party_server` and `dealer_server` run a role from its folder. At a party, `client_desk` serves the clients within
their `limits`, `query_queue` holds their queries and forms the batches, and `audit` logs who asked. `key_watch` ends
connections of clients that are no longer allowed. `remote_session` is the client, and `public_folder` what of its
folder may be on the Hub.
"""
