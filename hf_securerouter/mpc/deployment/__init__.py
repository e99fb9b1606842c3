# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Roles on machines of different owners.

`save_shares` writes one folder per role, `role_folder` loads one. `party_server` and `dealer_server` run a role from
its folder. At a party, `client_desk` serves the clients within their `limits`, and `query_queue` holds their queries
and forms the batches. `remote_session` is the client.
"""
