"""DetOFA in NNabla: once-for-all training of object detectors with a pre-trained supernet and a path filter.

What the command line does, as functions: `train`, `describe_run`, `load_detector`, `evaluate_detector`, `search`,
`compare_runs`, `check_data`; and `load_supernet` for a weights file. A run is named by its folder, a config by its file, and
entries of a config are replaced by "key=value" texts. Networks compute where nnabla's default context says, the CPU unless it
was set. What the user can mend is an `errors.UserError`, one sentence.
"""

# Imports inside the functions: `import nnabla_detofa` and `--help` answer without nnabla. No function is called like a module.

from .common.version import __version__ as __version__

__all__ = [
    "check_data",
    "compare_runs",
    "describe_run",
    "evaluate_detector",
    "load_detector",
    "load_supernet",
    "search",
    "train",
]


def train(config, output=None, overrides=(), restart=False):
    """Train and search as a config says; what was done before in the folder is not done again.

    >>> summary = train("configs/demo.json", "runs/fullnet", ["args.runner=fullnet"])
    >>> 0 <= summary["fullnet"]["ap50"] <= 1
    True

    Args:
        config: a config file, .json or .yaml.
        output: the run's folder; None is the config's `args.output_path`.
        overrides: "key=value" entries that replace those of the config.
        restart: begin anew what is in the folder.

    Returns:
        the content of the run's summary.json.

    Raises:
        UserError: the config, the data or the weights cannot be used; what comes from the user is checked before the training.
    """
    import importlib
    from pathlib import Path

    from . import config as configs
    from .backend.compat import Device, own_modes
    from .backend.process_state import given_back
    from .cli.train import RUNNERS

    loaded = configs.load(config, overrides)
    with given_back(), own_modes():
        device = Device.open(loaded.args.context, loaded.args.device_id)
        runner = importlib.import_module(RUNNERS[loaded.args.runner])
        return runner.run(loaded, device, Path(output or loaded.output_path), restart=restart)


def describe_run(run):
    """How far a run is, what it cost, what it pruned, what it found, and where everything lies.

    >>> found = describe_run("runs/demo")
    >>> found["finished"], found["phases"][0]["name"], found["phases"][0]["state"]
    (True, 'fullnet', 'done')
    >>> [row["name"] for row in found["detectors"]]
    ['fullnet', 'subnet_1', 'subnet_2']

    Args:
        run: the folder of any run, finished or not.

    Returns:
        plain JSON values; see `inspect_run.describe`.

    Raises:
        UserError: the folder is not that of a run, or a file in it is damaged.
    """
    from pathlib import Path

    from .tools.inspect import describe

    return describe(Path(run))


def load_detector(run, name=None, overrides=()):
    """A run's detector as a function of a photograph.

    >>> detector = load_detector("runs/demo", "subnet_2")
    >>> image = cv2.imread("photograph.jpg")
    >>> for box, name, score in detector(image, threshold=0.05):
    ...     x1, y1, x2, y2 = box
    ...     assert 0 <= x1 < x2 <= image.shape[1] and name in detector.classes and score >= 0.05

    The batch-normalisation statistics are re-estimated on the run's training images, which must be there.

    Args:
        run: the folder of a run of Algorithm 1 or of a baseline.
        name: "fullnet", "subnet_1", "subnet_2", ... or a JSON file with a path; None is the subnet of the largest budget.
        overrides: "key=value" entries of the run's config to replace, such as the place of the data.

    Returns:
        a `detect.ImageDetector`: called with an image (H, W, 3) uint8 in the order blue, green, red, and a `threshold`
        (0.3), it gives a list of `detect.Detection` (box x1 y1 x2 y2 in pixels, name, score), best first.

    Raises:
        UserError: there is no such run or detector, or its data or weights are not there.
    """
    from .tools.detect import load_detector

    return load_detector(run, name, overrides)


def evaluate_detector(run, name=None, overrides=(), flip=None, scales=None):
    """Average precision of a run's detector on the test split.

    >>> result = evaluate_detector("runs/demo", "fullnet")
    >>> 0 <= result["ap50"] <= 1, len(result["ap50_per_class"])
    (True, 10)

    Args:
        run, name, overrides: as `load_detector`'s.
        flip: average each image with its mirror image. scales: sizes of the input over that of training. None is the config's.

    Returns:
        "ap50" and "ap50_per_class" in [0, 1], by the config's `ap_metric`; by VOC's rules also the other metric,
        "ap50_area" or "ap50_11point", and by COCO's "ap", "ap_per_class" and "coco" with all figures.

    Raises:
        UserError: as `load_detector`'s.
    """
    from pathlib import Path

    from .tools.evaluate import default_detector, evaluate

    run = Path(run)
    return evaluate(run, name or default_detector(run), overrides, flip, scales)


def search(
    run,
    flops=None,
    latency=None,
    params=None,
    memory=None,
    overrides=(),
    *,
    latency_table=None,
    by_score=False,
    whole_front=False,
    generations=None,
    progress=None,
    note=None,
):
    """The best path of a finished run under any mix of hard bounds (section 3.3).

    >>> found = search("runs/demo", flops="90M", memory="20MB")
    >>> found["flops"] <= 90e6 and found["memory"] <= 20e6
    True
    >>> sorted(found["path"])
    ['d', 'e', 'w']
    >>> search("runs/demo", memory=300e3, by_score=True)["memory"] <= 300e3
    True

    Args:
        run: the folder of a finished run.
        flops, latency, params, memory: bounds like "3G", "40ms", "20M", "200MB", or plain numbers of multiply-accumulates,
            nanoseconds, parameters and bytes; latency needs a table, which `measure-latency` writes.
        overrides: "key=value" entries of the run's config to replace.
        latency_table: the table's file; None is the run's latency.json.
        by_score: compare winners of FLOPs buckets by score, which needs neither weights nor data.
        whole_front: all trades of FLOPs against score in each bucket instead of one path.
        generations: of each search; None is the run's.
        progress: called after each generation. note: hears what the user should know.

    Returns:
        plain JSON values: "path" in OFA's notation, its costs, and more; see `search_run.find`.

    Raises:
        UserError: the run is not finished, a bound is not a positive number, or no path meets the bounds; then the message
            gives what can be reached.
    """
    from pathlib import Path

    from .tools.search import as_bound, find, load_run

    given = {"flops": flops, "latency": latency, "params": params, "memory": memory}
    bounds = {name: as_bound(name, bound) for name, bound in given.items() if bound is not None}
    finished = load_run(Path(run), overrides, latency_table and Path(latency_table))
    told = {name: call for name, call in {"progress": progress, "note": note}.items() if call is not None}
    return find(finished, bounds, by_score, whole_front, generations, **told)


def compare_runs(*runs):
    """The fronts of two or more finished runs beside each other, and whether they may be compared.

    >>> found = compare_runs("runs/demo", "runs/fullnet")
    >>> found["runs"], found["unfair"]
    (['demo', 'fullnet'], [])
    >>> [len(values) == len(found["budgets"]) for values in found["ap"]]
    [True, True]

    Args:
        runs: their folders.

    Returns:
        plain JSON values; see `compare.compare`.

    Raises:
        UserError: fewer than two runs, or one that is not finished or trains no detectors.
    """
    from pathlib import Path

    from .tools.compare import compare

    return compare([Path(run) for run in runs])


def check_data(config, overrides=(), whole=False):
    """What a config's data set holds, and everything that is wrong with it.

    >>> report = check_data("configs/demo.json")
    >>> report.fatal, [(split.name, split.images) for split in report.splits]
    ([], [('train', 16), ('val', 6), ('test', 6)])

    Args:
        config: a config file. overrides: "key=value" entries that replace those of the config.
        whole: decode every photograph, instead of looking at the ends of the files.

    Returns:
        a `data.check.DataReport`; printed it is what `data check` prints.

    Raises:
        UserError: the config is wrong, or there is no data set at all.
    """
    from . import config as configs
    from .data.check import check_config

    return check_config(configs.load(config, overrides), whole)


def load_supernet(weights, task="classification", num_classes=None, **options):
    """The supernet of a weights file, ready to run: `net(x, path)` is a variable (or, for detection, three).

    Classes, width and the detector's filters are read from the file's shapes. Strides do not show in them: files that
    training here wrote hold them, for others they are 1, 2, 2, 2 unless given; nor does the stem's freedom.

    >>> net = load_supernet("supernet.h5")
    >>> x = nnabla.Variable((1, 3, 64, 64))
    >>> net(x, net.space.largest).shape
    (1, 10)

    A path is a `search_space.Path`, as `Path.from_ofa({"d": ..., "e": ..., "w": ...})`. The batch normalisations use
    the statistics stored in the file unless told otherwise. A network trained here stores none worth using, and OFA's
    are those of its largest path: so re-estimate a path's on a few batches of images first, and pass them on,
    `net(x, path, layers.GivenStatistics(reestimation.reestimate(net, path, batches)))`.

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
    from .networks.loading import load_supernet

    return load_supernet(weights, task, num_classes, **options)
