"""``python -m benchmarks [NAME ...]``: run benchmarks, print their claims, write their results."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Options, pin, save

NAMES = (
    "kernels",
    "press_smollm2",
    "decode",
    "runtimes",
    "press_phi_shape",
    "verification",
    "quality",
    "calibrate_smollm2",
    "calibrate_phi_shape",
    "search",
    "cluster",
    "graph_passes",
    "adapters",
    "serving",
    "finetune",
    "encoders",
    "neighbours",
    "lab",
    "installation",
)


def main() -> int:
    arguments = _arguments()
    pin(arguments.threads)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=arguments.scratch) as scratch:
        for name in arguments.names or NAMES:
            print(name, flush=True)
            options = Options(
                arguments.scratch if arguments.keep else Path(scratch),
                arguments.rounds,
                arguments.threads,
                arguments.layers,
                arguments.keep,
            )
            outcome = importlib.import_module(f"benchmarks.{name}").run(options)
            for line in (*(claim.line() for claim in outcome.claims), *outcome.remarks):
                print(f"  {line}")
            print(f"  {save(name, outcome, options, arguments.results)}", flush=True)
            failed += sum(not claim.holds for claim in outcome.claims)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)}; default all")
    parser.add_argument("--rounds", type=int, default=0, help="turns of each contender; default: the benchmark's own")
    parser.add_argument("--threads", type=int, default=2, help="threads of each contender; default 2")
    parser.add_argument("--layers", type=int, default=0, help="the 3.8B shape with fewer layers than 32")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where models are made")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON")
    parser.add_argument("--keep", action="store_true", help="leave the source models in --scratch, and use those there")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in NAMES]:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(NAMES)}")
    arguments.scratch = arguments.scratch.resolve()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
