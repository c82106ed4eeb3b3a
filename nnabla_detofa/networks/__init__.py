"""The elastic networks: the OFA-ResNet50 supernet, CenterNet on it, their weights files, and loading them."""

from .loading import load_supernet

__all__ = ["load_supernet"]
