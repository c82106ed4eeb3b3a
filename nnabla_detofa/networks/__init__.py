"""Elastic networks: the OFA-ResNet50 supernet, and CenterNet with this backbone.

`load_supernet` builds a network from a weights file; `weights` reads and writes these files.
"""

from .loading import load_supernet

__all__ = ["load_supernet"]
