# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Both protocols on a CUDA device, from tiny to large, in under ten minutes: `python tests/benchmarks/gpu.py`.

Each measurement is one `securerouter profile` in a process of its own: 128 tokens, random weights, all roles on one
card, or with `crypten` the servers on one each where there are two. It prints a line of JSON for each: seconds with
the input and before it, bytes, rounds, memory, and the largest error of a logit. What does not fit into the time is
named.
"""

import argparse
import json
import subprocess
import sys
import time


ARCHITECTURES = ("bert-tiny", "bert-base", "ettin-17m", "modernbert-base", "deberta-v3-base", "bert-large")
PROTOCOLS = ("masked", "crypten")
FIELDS = (
    *("architecture", "protocol", "device", "online_seconds", "preprocess_seconds", "setup_seconds"),
    *("online_bytes", "dealer_bytes", "rounds", "peak_rss_bytes", "max_abs_logit_error"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=540.0, help="Time for all measurements.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="*", default=ARCHITECTURES, help="Architectures to measure.")
    args = parser.parse_args()
    end, failed = time.monotonic() + args.seconds, 0
    for architecture in args.only:
        for protocol in PROTOCOLS:
            asked = {"architecture": architecture, "protocol": protocol, "device": args.device}
            command = [sys.executable, "-c", "from hf_securerouter.cli import main; main()", "profile", "--json"]
            command += [word for name, value in asked.items() for word in (f"--{name}", value)]
            left = end - time.monotonic()
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=max(left, 0.1))
                problem = None if done.returncode == 0 else done.stderr.strip().splitlines()[-1:]
            except subprocess.TimeoutExpired:
                problem = "no time left"
            if problem is None:
                report = json.loads(done.stdout)
                print(json.dumps({name: report[name] for name in FIELDS}), flush=True)
            else:
                failed += 1
                print(json.dumps(asked | {"problem": problem}), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
