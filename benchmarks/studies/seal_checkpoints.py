"""Write the digest of its content into checkpoint descriptions that have none (made before rdc 0.2); the weights stay as they are.

python -m benchmarks.studies.seal_checkpoints rdc/assets/*.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.starting import start
from rdc.models.checkpoints import checkpoint_paths, load_model
from rdc.models.descriptions import reseal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    for path in parser.parse_args().checkpoints:
        load_model(path)  # the pair is whole
        reseal(checkpoint_paths(path)[1])
        print(path)


if __name__ == "__main__":
    start(main)
