"""Measures this machine for the simulator: `python -m sim profile measure`, by the name that it had as a script.

pip install '.[profile]'
python scripts/profile_gpu.py --quick
python scripts/profile_gpu.py --help
"""

from __future__ import annotations

import sys

from sim.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["profile", "measure"]
    main()
