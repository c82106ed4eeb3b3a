"""DetOFA in NNabla: once-for-all training of object detectors with a pre-trained supernet and a path filter."""

__version__ = "0.1.0"


def load_supernet(weights, task="classification", num_classes=None, **options):
    """The supernet of a weights file, ready to run: `net(x, path)` is a variable (or, for detection, three).

    Classes, width and the detector's filters are read from the file's shapes. Strides do not show in them: files that
    training here wrote hold them, for others they are 1, 2, 2, 2 unless given; nor does the stem's freedom.

    >>> net = load_supernet("supernet.h5")
    >>> logits = net(x, net.space.largest)

    A path is a `search_space.Path`, as `Path.from_ofa({"d": ..., "e": ..., "w": ...})`. The batch normalisations use
    the statistics stored in the file unless told otherwise. A network trained here stores none worth using, and OFA's
    are those of its largest path: so re-estimate a path's on a few batches of images first, and pass them on,
    `net(x, path, supernet.GivenStatistics(validation.reestimate(net, path, batches)))`.

    Args:
        weights: a file that this package, its `import-ofa` or NNablaNAS' `ofa_resnet50` wrote.
        task: "classification" or "detection".
        num_classes: what the file must have; None takes any.
        options: further arguments of `supernet.SearchNet` or `centernet.SearchNet`, which go before what the file tells:
            strides (default: 1, 2, 2, 2), elastic_stem, width_scale, deconv_channels, head_channels.

    Returns:
        `supernet.SearchNet` or `centernet.SearchNet`; images go in as `data.augment.normalise` makes them.

    Raises:
        UserError: the file cannot be read, holds another kind of network, or its shapes are not those of the arguments.
    """
    from .loading import load_supernet  # `--help` answers without nnabla

    return load_supernet(weights, task, num_classes, **options)
