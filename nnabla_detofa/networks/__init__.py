"""The elastic networks: the OFA-ResNet50 supernet, CenterNet with this backbone, and reading and writing of weights files."""

from .loading import load_supernet

__all__ = ["load_supernet"]
