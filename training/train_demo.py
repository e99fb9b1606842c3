# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
Trains the embedded demo checkpoint: three small BERT experts and a router on SST-2, on one CPU core.

    python training/train_demo.py --teacher sentence-transformers/all-MiniLM-L6-v2

`hf_securerouter/recipes/demo_pool.py` says how.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hf_securerouter.recipes.arguments import command_line, make_parser
from hf_securerouter.recipes.demo_pool import DemoArguments, DemoRun
from hf_securerouter.recipes.script import run_script


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = make_parser(__doc__, DemoArguments).parse_args_into_dataclasses(argv)
    DemoRun(args, command_line("training/train_demo.py", argv))()


if __name__ == "__main__":
    run_script(main)
