# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Sessions, which send queries to the roles.

`session` splits texts into batches, shares each batch and reconstructs the logits, wherever the roles are;
`verification` compares answers. `local` starts the roles as processes of this machine: `fork_server` forks them, and
`role_process` is their main program, and `core_dumps` forbids these. The session with roles on other machines is
`deployment/remote_session.py`.
"""
