"""Version of this package, which setup.py also reads, and path of its repository."""

from pathlib import Path

__version__ = "0.2.0"
REPOSITORY = Path(__file__).parents[2]
"""The parent folder of the package: the repository, if the package runs from a clone."""
