# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Queries to roles on this machine.

`session` splits texts into batches, shares each and puts the answers together; `local` starts the roles as processes,
of which `role_process` is the main program.
"""
