# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Roles on machines of different owners.

`save_shares` writes one folder a role, `role_folder` reads it. `party_server` and `dealer_server` serve from it, the
former with a `query_queue` of what clients asked; `remote_session` is the client.
"""
