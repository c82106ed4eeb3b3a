"""The path filter g(a): tokens, the transformer, its ranking loss and fit, ranking metrics, and files of evaluated paths."""

from .model import PathFilter, PathScorer
from .tokens import Tokenizer

__all__ = ["PathFilter", "PathScorer", "Tokenizer"]
