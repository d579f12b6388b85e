"""Where the data is."""

from pathlib import Path

DATA = Path(__file__).parents[2] / "data"
TINY = DATA / "tiny"
