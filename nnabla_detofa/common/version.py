"""The version of this package, which setup.py reads too, and where its repository would be."""

from pathlib import Path

__version__ = "0.1.0"
REPOSITORY = Path(__file__).parents[2]
"""The folder that holds the package: the repository where it runs from a clone."""
