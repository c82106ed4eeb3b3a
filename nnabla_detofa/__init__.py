"""DetOFA in NNabla: once-for-all training of object detectors with a pre-trained supernet and a path filter.

The functions `train`, `describe_run`, `load_detector`, `evaluate_detector`, `search`, `compare_runs` and `check_data`
correspond to commands of the command line; `load_supernet` loads a network from a weights file. A run is identified by its
folder and a config by its file. Strings of the form "key=value" override keys of a config. Networks run in nnabla's default
context, which is the CPU unless it was changed. Errors that the user can fix are raised as `common.errors.UserError`, with a
message of one sentence.
"""

# Functions import what they need, so that `import nnabla_detofa` and `--help` do not import nnabla. No function has the name
# of a module: importing that module would replace the function.

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
    """Train and search according to a config, resuming the run in the output folder if there is one.

    >>> summary = train("configs/demo.json", "runs/fullnet", ["args.runner=fullnet"])
    >>> 0 <= summary["fullnet"]["ap50"] <= 1
    True

    Args:
        config: path of a config file, .json or .yaml.
        output: folder of the run. Default: the config's `args.output_path`.
        overrides: "key=value" strings that override keys of the config.
        restart: discard the run in the folder and start from the beginning.

    Returns:
        Content of the run's summary.json.

    Raises:
        UserError: the config, the data or the weights cannot be used. User input is checked before training starts.
    """
    import re
    from pathlib import Path

    from . import config as configs
    from .backend.compat import Device, own_modes
    from .backend.process_state import restored_state
    from .cli.train import runner_of
    from .common.errors import UserError

    if isinstance(output, (list, tuple)) or re.match(r"(args|network|dataloader|optimizer|hparams)\.[^/]*=", str(output)):
        raise UserError(f"output must be a folder, got {output}: pass key=value strings as overrides=[...]")
    loaded = configs.load(config, overrides)
    with restored_state(), own_modes():
        device = Device.open(loaded.args.context, loaded.args.device_id)
        return runner_of(loaded)(loaded, device, Path(output or loaded.output_path), restart=restart)


def describe_run(run):
    """Describe the progress, cost, pruning, detectors and files of a run.

    >>> found = describe_run("runs/demo")
    >>> found["finished"], found["phases"][0]["name"], found["phases"][0]["state"]
    (True, 'fullnet', 'done')
    >>> [row["name"] for row in found["detectors"]]
    ['fullnet', 'subnet_1', 'subnet_2']

    Args:
        run: folder of a run, finished or not.

    Returns:
        Dictionary of plain JSON values; see `tools.inspect.describe`.

    Raises:
        UserError: the folder does not contain a run, or a file in it is damaged.
    """
    from pathlib import Path

    from .tools.inspect import describe

    return describe(Path(run))


def load_detector(run, name=None, overrides=()):
    """Load a detector of a run as a function that takes an image.

    >>> detector = load_detector("runs/demo", "subnet_2")
    >>> image = cv2.imread("image.jpg")
    >>> for box, name, score in detector(image, threshold=0.05):
    ...     x1, y1, x2, y2 = box
    ...     assert 0 <= x1 < x2 <= image.shape[1] and name in detector.classes and score >= 0.05

    The batch normalization statistics are re-estimated on the run's training images, which must be available.

    Args:
        run: folder of a run of Algorithm 1 or of a baseline; or an exported detector, a .nnp file, which needs no images.
        name: "fullnet", "subnet_1", "subnet_2", ... or a JSON file with a path. Default: the subnet of the largest budget.
        overrides: "key=value" strings that override keys of the run's config, such as the location of the data.

    Returns:
        A `tools.detect.ImageDetector`. It takes an image (H, W, 3) uint8 with channels blue, green, red, and a score
        `threshold` (default 0.3). It returns a list of `Detection` (box x1 y1 x2 y2 in pixels, name, score), by descending
        score.

    Raises:
        UserError: the run or the detector does not exist, or its data or weights are missing.
    """
    from .common.errors import UserError
    from .tools.detect import load_detector
    from .tools.exported import is_exported, load_exported

    if is_exported(run):
        if name or overrides:
            raise UserError(f"{run} is one detector with its own settings: leave out {'name' if name else 'overrides'}")
        return load_exported(run)
    return load_detector(run, name, overrides)


def evaluate_detector(run, name=None, overrides=(), flip=None, scales=None):
    """Compute the average precision of a run's detector on the test split.

    >>> result = evaluate_detector("runs/demo", "fullnet")
    >>> 0 <= result["ap50"] <= 1, len(result["ap50_per_class"])
    (True, 10)

    Args:
        run, name, overrides: see `load_detector`.
        flip: average the output maps of each image and of its mirror image. Default: the config's `hparams.flip_test`.
        scales: input sizes relative to the training size. Default: the config's `hparams.test_scales`.

    Returns:
        Dictionary with "ap50" and "ap50_per_class" in [0, 1], by the config's `ap_metric`. A VOC metric adds the other VOC
        metric, "ap50_area" or "ap50_11point"; the COCO metric adds "ap", "ap_per_class" and "coco", all COCO metrics.

    Raises:
        UserError: see `load_detector`.
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
    """Search a finished run for its best path under any combination of hard bounds (section 3.3).

    >>> found = search("runs/demo", flops="90M", memory="20MB")
    >>> found["flops"] <= 90e6 and found["memory"] <= 20e6
    True
    >>> sorted(found["path"])
    ['d', 'e', 'w']
    >>> search("runs/demo", memory=300e3, by_score=True)["memory"] <= 300e3
    True

    Args:
        run: folder of a finished run.
        flops, latency, params, memory: upper bounds, as strings like "3G", "40ms", "20M", "200MB" or as numbers of
            multiply-accumulates, nanoseconds, parameters and bytes. A latency bound needs a table from `measure-latency`.
        overrides: "key=value" strings that override keys of the run's config.
        latency_table: file of the latency table. Default: the run's latency.json.
        by_score: compare the best paths of the FLOPs buckets by path score, which needs neither weights nor data.
        whole_front: return the Pareto front of FLOPs and score of each bucket instead of one path.
        generations: number of generations of each search. Default: the number in the run's config.
        progress: called after each generation.
        note: called with messages for the user.

    Returns:
        Dictionary of plain JSON values: "path" in OFA's notation, its costs, and more; see `tools.search.find`.

    Raises:
        UserError: the run is not finished, a bound is not a positive number, or no path satisfies the bounds. In the last
            case the message states the reachable range of each cost.
    """
    from pathlib import Path

    from .tools.bounds import as_bound
    from .tools.search import find, load_run

    given = {"flops": flops, "latency": latency, "params": params, "memory": memory}
    bounds = {name: as_bound(name, bound) for name, bound in given.items() if bound is not None}
    finished = load_run(Path(run), overrides, latency_table and Path(latency_table))
    told = {name: call for name, call in {"progress": progress, "note": note}.items() if call is not None}
    return find(finished, bounds, by_score, whole_front, generations, **told)


def compare_runs(*runs):
    """Compare the AP of two or more finished runs at each budget, and check whether the comparison is fair.

    >>> found = compare_runs("runs/demo", "runs/fullnet")
    >>> found["runs"], found["unfair"]
    (['demo', 'fullnet'], [])
    >>> [len(values) == len(found["budgets"]) for values in found["ap"]]
    [True, True]

    Args:
        runs: folders of the runs.

    Returns:
        Dictionary of plain JSON values; see `tools.compare.compare`.

    Raises:
        UserError: fewer than two runs are given, or a run is not finished or does not train detectors.
    """
    from pathlib import Path

    from .tools.compare import compare

    return compare([Path(run) for run in runs])


def check_data(config, overrides=(), whole=False):
    """Check the dataset of a config, and report its content and all of its errors.

    >>> report = check_data("configs/demo.json")
    >>> report.fatal, [(split.name, split.images) for split in report.splits]
    ([], [('train', 16), ('val', 6), ('test', 6)])

    Args:
        config: path of a config file.
        overrides: "key=value" strings that override keys of the config.
        whole: decode every image, instead of only inspecting the beginning and the end of its file.

    Returns:
        A `data.check.DataReport`. Printing it gives the output of the command `data check`.

    Raises:
        UserError: the config is invalid, or the dataset does not exist.
    """
    from . import config as configs
    from .data.check import check_config

    return check_config(configs.load(config, overrides), whole)


def load_supernet(weights, task="classification", num_classes=None, **options):
    """Load a supernet from a weights file.

    `net(x, path)` returns the logits of a classification supernet, or the three outputs of a detection supernet. The number
    of classes, the width and the filters of the detector are inferred from the shapes of the weights. Strides and the
    elasticity of the stem cannot be inferred from shapes. Files written by this package's training store the strides; for
    other files they are 1, 2, 2, 2 unless given. `elastic_stem` must be given if its default does not apply. Files of other
    networks, such as your own, record the name and the settings, from which their network is created.

    >>> net = load_supernet("supernet.h5")
    >>> x = nnabla.Variable((1, 3, 64, 64))
    >>> net(x, net.space.largest).shape
    (1, 10)

    A path is a `space.paths.Path`, such as `Path.from_ofa({"d": ..., "e": ..., "w": ...})`. By default, batch normalization
    uses the statistics stored in the file. Networks trained by this package store no usable statistics, and OFA's files
    store those of the largest path only. Re-estimate the statistics of a path on a few batches of images first, and pass
    them to the call: `net(x, path, layers.GivenStatistics(reestimation.reestimate(net, path, batches)))`.

    Args:
        weights: weights file written by this package, by its `import-ofa` command, or by NNablaNAS' `ofa_resnet50`.
        task: "classification" or "detection".
        num_classes: expected number of classes. Default: any number.
        options: further arguments of `supernet.SearchNet` or `centernet.SearchNet`, which take precedence over the values
            inferred from the file: strides, elastic_stem, width_scale, deconv_channels, head_channels.

    Returns:
        A `supernet.SearchNet` or `centernet.SearchNet`, or a network of your own. Its input images (B, 3, H, W) must be
        normalized by `net.normalization`, as `data.augment.eval_transform` does.

    Raises:
        UserError: the file cannot be read or contains another kind of network, or its shapes do not match the arguments.
    """
    from .networks.loading import load_supernet

    return load_supernet(weights, task, num_classes, **options)
