"""Where things lie: the checkout, and beside it the folder of published data, which may be missing."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
