"""DetOFA in NNabla: once-for-all training of object detectors with a pre-trained supernet and a path filter."""

__version__ = "0.1.0"
