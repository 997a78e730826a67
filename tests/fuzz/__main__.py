"""Try changed files on every reader and count what goes wrong.

python -m tests.fuzz --cases 250            of each reader, some minutes
python -m tests.fuzz --reader pt --cases 1000 --seed 1 --json out/fuzz.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from tests.fuzz.bombs import BOMBS
from tests.fuzz.harness import READER_NAMES, fuzz, table


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reader", action="append", choices=("bombs", *READER_NAMES), help="default: all")
    parser.add_argument("--cases", type=int, default=250, help="of each reader (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write counts and faults there")
    args = parser.parse_args()
    found = []
    for name in args.reader or ("bombs", *READER_NAMES):
        print(f"{name} ...", file=sys.stderr)
        found += fuzz([name], len(BOMBS) if name == "bombs" else args.cases, args.seed)
        for kind, index, file, words in found[-1].faults:
            print(f"  {kind} case {index} {file}: {words[:300]!r}", file=sys.stderr)
        if args.json:
            with open(args.json, "w", encoding="utf-8") as out:
                json.dump([dataclasses.asdict(counts) for counts in found], out, indent=1)
    print(table(found))
    return int(any(counts.faults for counts in found))


if __name__ == "__main__":
    sys.exit(main())
