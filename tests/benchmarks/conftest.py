"""benchmarks/ is a folder of scripts, not a package: its modules are imported by name, as the scripts do."""

import sys
from pathlib import Path

FOLDER = str(Path(__file__).resolve().parents[2] / "benchmarks")
if FOLDER not in sys.path:
    sys.path.append(FOLDER)
