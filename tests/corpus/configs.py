"""Configs: files that are none, and values that are not allowed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from small import detofa_config

from .case import Case, put

RUN = ("run", "-c", "cpu", "-o", "out", "-f")
SMALL = detofa_config("voc")
NETWORK, DATA, HPARAMS = "network.centernet_ofa_resnet50", "dataloader.voc", "hparams"
DEEP = 100_000


def text(**sections: object) -> str:
    return json.dumps(SMALL | sections)


FILES: dict[str, dict[str, tuple]] = {
    "config.json": {
        "empty": ("", "line 1"),
        "a space": (" ", "line 1"),
        "cut short": (text()[:-40], "cannot be parsed"),
        "a comma too many": (text()[:-1] + ",}", "cannot be parsed"),
        "comments": ("// what\n" + text(), "line 1"),
        "single quotes": (text().replace('"', "'"), "line 1"),
        "a list": ("[1]", "mapping", "a list"),
        "a number": ("3", "mapping", "3"),
        "a string": ('"x"', "mapping", "a string"),
        "null": ("null", "mapping", "nothing"),
        "NaN alone": ("NaN", "mapping", "nan"),
        "the same section twice": ('{"args": {}, "args": {}}', "'args'", "duplicated"),
        "the same key twice": (text().replace('"epochs": 2', '"epochs": 2, "epochs": 3'), "'epochs'", "duplicated"),
        "deep lists": ("[" * DEEP, "nested"),
        "deep mappings": ('{"a":' * DEEP + "1" + "}" * DEEP, "nested"),
        "deep lists in an entry": (text(about=None).replace("null", "[" * 900 + "]" * 900), "nested"),
        "an integer of 10000 digits": (
            text(args={"seed": 0}).replace('"seed": 0', '"seed": ' + "9" * 10000),
            "cannot be parsed",
        ),
        "not UTF-8": (b"\xff\xfe{}", "UTF-8"),
        "UTF-16": (text().encode("utf-16"), "UTF-8"),
        "two byte-order marks": (2 * b"\xef\xbb\xbf" + text().encode(), "line 1"),
        "binary": (bytes(range(256)), "UTF-8"),
        "zero bytes": (bytes(100), "line 1"),
        "no network": (json.dumps({k: v for k, v in SMALL.items() if k != "network"}), "network", "none"),
        "no dataloader": (json.dumps({k: v for k, v in SMALL.items() if k != "dataloader"}), "dataloader", "none"),
        "an unknown section": (text(hparam={}), "hparam", "hparams"),
        "a key with a line break": (text(**{"a\nb": 1}), "is not a key"),
        "a key with an escape sequence": (text(**{"\x1b[31m": 1}), "is not a key"),
        "a section that is a list": (text(hparams=[]), "hparams", "mapping"),
        "two networks": (text(network={"ofa_resnet50": {}, "centernet_ofa_resnet50": {}}), "network", "exactly one"),
        "an unknown network": (text(network={"resnet18": {}}), "network.resnet18"),
        "an unknown data set": (text(dataloader={"imagenet": {}}), "dataloader.imagenet"),
        "a network that is null": (text(network={"centernet_ofa_resnet50": None}), NETWORK, "nothing"),
        "a folder with a zero byte": (text(dataloader={"voc": SMALL["dataloader"]["voc"] | {"root": "a\0b"}}), f"{DATA}.root"),
        "a folder with half a character": (
            text(dataloader={"voc": SMALL["dataloader"]["voc"] | {"root": "\ud800"}}),
            f"{DATA}.root",
        ),
        "a device with a zero byte": (text(args={"device_id": "a\0b"}), "args.device_id"),
        "a base that is missing": ('{"base": "nothing.json"}', "nothing.json", "No such file"),
        "a base that is itself": ('{"base": "bad.json"}', "based on itself"),
        "a base that is a number": ('{"base": 3}', "base", "3"),
        "a base that is a list": ('{"base": ["voc.json"]}', "base"),
        "a base that is a folder": ('{"base": "."}', ".json, .yaml or .yml"),
        "a base that is no config": ('{"base": "../secret.txt"}', "secret.txt", ".json"),
        "a base far outside": ('{"base": "/etc/passwd"}', "/etc/passwd", ".json"),
        "a base with a zero byte": ('{"base": "a\\u0000.json"}', "no file can have such a name"),
        "a base with half a character": ('{"base": "\\ud800.json"}', "no file can have such a name"),
        "a base with too long a name": (json.dumps({"base": "a" * 5000 + ".json"}), "cannot read"),
    },
    "config.yaml": {
        "empty": ("", "mapping", "nothing"),
        "not closed": ("args: [", "cannot be parsed"),
        "a tab": ("args:\n\tseed: 0\n", "cannot be parsed"),
        "two documents": ("args: {}\n---\nargs: {}\n", "cannot be parsed"),
        "a key twice": ("hparams:\n  epochs: 1\n  epochs: 2\n", "'epochs'", "duplicated"),
        "a Python object": ("args: !!python/object:os.system {}\n", "cannot be parsed", "python/object"),
        "a Python call": (f"args: !!python/object/apply:os.system ['touch ../{'canary'}']\n", "cannot be parsed", "apply"),
        "a Python call in a list": ("- !!python/object/new:subprocess.Popen [['touch', '../canary']]\n", "cannot be parsed"),
        "a Python name": ("args: !!python/name:os.system\n", "cannot be parsed"),
        "a Python module": ("args: !!python/module:os\n", "cannot be parsed"),
        "a Python tuple": ("args: !!python/tuple [1]\n", "cannot be parsed"),
        "an unknown tag": ("args: !secret ../secret.txt\n", "cannot be parsed", "!secret"),
        "a bomb of aliases": (
            "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)),
            "cannot be parsed",
            "alias",
        ),
        "a bomb in a value": (
            "args:\n  seed:\n  - &a0 [x, x]\n"
            + "".join(f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)),
            "alias",
        ),
        "a list in itself": ("args: &a [*a]\n", "alias"),
        "an alias of nothing": ("args: *a\n", "cannot be parsed"),
        "a list for a key": ("? [1, 2]\n: 3\n", "cannot be parsed"),
        "a mapping for a key": ("? {a: 1}\n: 3\n", "cannot be parsed"),
        "a number for a key": ("1: 2\n", "1 is not a key"),
        "nothing for a key": ("~: 2\n", "None is not a key"),
        "a date": ("args: {seed: 2020-01-01}\n", "args.seed", "an integer"),
        "no date": ("args: {seed: 2020-99-99}\n", "args.seed", "2020-99-99"),
        "a bad timestamp": ("args: {seed: !!timestamp x}\n", "cannot be parsed"),
        "a bad boolean": ("args: {seed: !!bool x}\n", "cannot be parsed"),
        "a bad integer": ("args: {seed: !!int ''}\n", "cannot be parsed"),
        "a bad number": ("args: {seed: !!float x}\n", "cannot be parsed"),
        "a set": ("base: voc.json\nhparams: !!set {epochs}\n", "hparams", "a mapping"),
        "bytes": ("args: {seed: !!binary aGk=}\n", "args.seed"),
        "deep lists": ("args: " + "[" * 20_000, "nested"),
        "deep mappings": ("args: " + "{a: " * 3_000 + "1" + "}" * 3_000, "nested"),
        "a zero byte": ("args: {seed: \0}", "cannot be parsed"),
        "not UTF-8": (b"args: \xff", "UTF-8"),
        "not a number": ("args: {seed: .nan}\n", "args.seed", "nan"),
        "yes for a number": ("hparams: {epochs: yes}\nbase: voc.json\n", "hparams.epochs", "'yes'"),
    },
}

VALUES: dict[str, tuple[str, ...]] = {
    "hparams.r_path=25": ("hparams.r_path", "[0, 0.99]", "25"),
    "hparams.r_path=-0.1": ("hparams.r_path", "[0, 0.99]", "-0.1"),
    "hparams.r_path=NaN": ("hparams.r_path", "[0, 0.99]", "nan"),
    "hparams.r_path=1": ("hparams.r_path", "[0, 0.99]"),
    "hparams.r_path=[0.1]": ("hparams.r_path", "a number"),
    "hparams.epochs=-1": ("hparams.epochs", "-1"),
    "hparams.epochs=1.5": ("hparams.epochs", "an integer", "1.5"),
    "hparams.epochs=many": ("hparams.epochs", "an integer", "'many'"),
    "hparams.epochs=null": ("hparams.epochs", "an integer", "None"),
    "hparams.epochs=1e400": ("hparams.epochs", "an integer", "inf"),
    f"hparams.epochs={'9' * 400}": ("hparams.epochs", "[0, 1000000]", "999"),
    f"hparams.epochs={'9' * 10000}": ("hparams.epochs", "an integer"),
    f"hparams.epochs={json.dumps('x' * 100000)}": ("hparams.epochs", "an integer"),
    f"hparams.epochs={'[' * 50000}": ("hparams.epochs", "an integer"),
    f"hparams.epochs={'[' * 900}{']' * 900}": ("hparams.epochs", "an integer"),
    "hparams.epoch=1": ("hparams.epoch ", "epochs"),
    "hparams.batch_size=0": ("hparams.batch_size", "0"),
    f"hparams.batch_size={10**30}": ("hparams.batch_size",),
    "hparams.batch_size=1000000000": ("batch_size", "1000000000"),
    "hparams.mini_batch=3": ("hparams.mini_batch", "divide", "3"),
    "hparams.buckets=0": ("hparams.buckets", "0"),
    "hparams.buckets=1000000000": ("hparams.buckets", "1000000000"),
    "hparams.paths_per_bucket=7": ("hparams.paths_per_bucket", "[8", "7"),
    "hparams.test_scales=[0]": ("hparams.test_scales[0]", "0"),
    "hparams.test_scales=[Infinity]": ("hparams.test_scales[0]", "inf"),
    "hparams.test_scales=[1e9]": ("hparams.test_scales[0]",),
    "hparams.test_scales=[]": ("hparams.test_scales", "at least one"),
    "hparams.path_pruning=scores": ("hparams.path_pruning", "score, uniform or none", "'scores'"),
    "hparams.path_pruning={}": ("hparams.path_pruning", "score, uniform or none"),
    "hparams.operation_pruning.r_op1=1": ("hparams.operation_pruning.r_op1", "[0, 1)", "1"),
    "hparams.cost_scope=head": ("hparams.cost_scope", "detector or backbone", "'head'"),
    "hparams.filter.dim=17": ("hparams.filter.dim", "multiple of heads", "17"),
    "hparams.filter.dim=4000000000": ("hparams.filter.dim", "4000000000"),
    "hparams.filter.layers=1000000000": ("hparams.filter.layers", "1000000000"),
    "hparams.filter.feed_forward=1000000000": ("hparams.filter.feed_forward", "1000000000"),
    "hparams.filter.lr=0": ("hparams.filter.lr", "(0, 1]", "0"),
    "hparams.filter.weights=nothing.h5": ("nothing.h5", "does not exist"),
    "hparams.filter=null": ("hparams.filter", "a mapping"),
    "hparams.search.budgets=3G": ("hparams.search.budgets", "a list", "'3G'"),
    'hparams.search.budgets=["3Q"]': ("hparams.search.budgets[0]", "(0, inf)", "'3Q'"),
    'hparams.search.budgets=["1.2.3G"]': ("hparams.search.budgets[0]", "'1.2.3G'"),
    "hparams.search.budgets=[0]": ("hparams.search.budgets[0]", "(0, inf)", "0"),
    "hparams.search.budgets=[1]": ("budget", "1"),
    'hparams.search.budgets=["9e999G"]': ("hparams.search.budgets[0]",),
    "hparams.search.population=0": ("hparams.search.population", "0"),
    "hparams.search.mutate_prob=1.1": ("hparams.search.mutate_prob", "[0, 1]", "1.1"),
    "args.seed=-1": ("args.seed", "[0,", "-1"),
    "args.seed=true": ("args.seed", "an integer", "True"),
    "args.seed=1e3": ("args.seed", "an integer", "1000.0"),
    f"args.seed={2**80}": ("args.seed",),
    "args.runner=train": ("args.runner", "detofa", "'train'"),
    "args.runner=pretrain": ("network", "ofa_resnet50", "pretrain"),
    'args.runner=["detofa"]': ("args.runner", "detofa"),
    "args.type_config=double": ("args.type_config", "must be float", "'double'"),
    "args.type_config=half": ("args.type_config", "must be float", "'half'"),
    "args.workers=-1": ("args.workers", "-1"),
    "args.workers=1000000": ("args.workers", "1000000"),
    "args.evaluation_processes=0": ("args.evaluation_processes", "0"),
    "args.evaluation_processes=1000000": ("args.evaluation_processes", "1000000"),
    "args.device_id=[0]": ("args.device_id", "a string"),
    f"{NETWORK}.width_scale=0": (f"{NETWORK}.width_scale", "(0, 1]", "0"),
    f"{NETWORK}.width_scale=2": (f"{NETWORK}.width_scale", "(0, 1]", "2"),
    f"{NETWORK}.strides=[1, 2, 2, 3]": (f"{NETWORK}.strides[3]", "[1, 2]", "3"),
    f"{NETWORK}.strides=[1]": ("strides", "4 numbers", "1"),
    f"{NETWORK}.strides=1": (f"{NETWORK}.strides", "a list", "1"),
    f"{NETWORK}.num_classes=0": (f"{NETWORK}.num_classes", "0"),
    f"{NETWORK}.num_classes=3": ("num_classes", "2", "3"),
    f"{NETWORK}.num_classes=1000000000": ("num_classes", "1000000000"),
    f"{NETWORK}.deconv_channels=[8, 8, 8, 8, 8, 8]": ("deconv_channels", "stride", "6"),
    f"{NETWORK}.deconv_channels=[1000000000]": ("deconv_channels", "1000000000"),
    f"{NETWORK}.head_channels=1000000000": ("head_channels", "1000000000"),
    f"{NETWORK}.weights=nothing.h5": ("nothing.h5", "does not exist"),
    f"{NETWORK}.weights=3": (f"{NETWORK}.weights", "a string", "3"),
    f"{NETWORK}.heatmap_std=Infinity": ("heatmap_std", "inf"),
    f"{DATA}.root=3": (f"{DATA}.root", "a string", "3"),
    f"{DATA}.root=": ("'train'", "voc/test, voc/train"),
    f"{DATA}.root=nothing": ("nothing", "not a folder"),
    f"{DATA}.root=voc.json": ("voc.json", "not a folder"),
    f'{DATA}.train="train"': (f"{DATA}.train", "a list", "'train'"),
    f"{DATA}.train=[]": ("splits", "at least one", "()"),
    f'{DATA}.train=["nothing"]': ("'nothing'", "test, train, val"),
    f'{DATA}.train=["../../secret"]': ("'../../secret'", "test, train, val"),
    f'{DATA}.train=["/etc/passwd"]': ("'/etc/passwd'", "test, train, val"),
    f'{DATA}.train=[""]': ("split ''", "test, train, val"),
    f"{DATA}.val=[]": (f"{DATA}.val", "holdout"),
    f"{DATA}.holdout=2": (f"{DATA}.val", "holdout", "2"),
    f'{DATA}.classes=["cat"]': ("'dog'", "cat"),
    f'{DATA}.classes=["cat", "dog", "cat"]': (f"{DATA}.classes", "once", "cat"),
    f"{DATA}.classes=[]": ("classes", "at least one"),
    f"{DATA}.image_size=31": (f"{DATA}.image_size", "[32", "31"),
    f"{DATA}.image_size=65": (f"{DATA}.image_size", "multiple of 16", "65"),
    f"{DATA}.image_size=1600000000": (f"{DATA}.image_size", "1600000000"),
    f"{DATA}.max_objects=0": (f"{DATA}.max_objects", "0"),
    f"{DATA}.max_objects=10000000000": (f"{DATA}.max_objects", "10000000000"),
    f"{DATA}.scale_range=[1, 0.5]": (f"{DATA}.scale_range", "[1.0, 0.5]"),
    f"{DATA}.scale_range=[NaN, 1]": (f"{DATA}.scale_range[0]", "nan"),
    f"{DATA}.ap_metric=coco": (f"{DATA}.ap_metric", "11point or area", "'coco'"),
    f"{DATA}.flip=1": (f"{DATA}.flip", "true or false", "1"),
    "optimizer.train.lr=0": ("optimizer.train.lr", "(0, inf)", "0"),
    "optimizer.train.lr=fast": ("optimizer.train.lr", "a number", "'fast'"),
    "optimizer.train.name=SGD": ("optimizer.train.name", "Sgd", "'SGD'"),
    "optimizer.train.milestones=[2, 1]": ("optimizer.train.milestones", "ascending order", "[2, 1]"),
    "optimizer.valid.lr=1": ("optimizer.valid", "train"),
    "about={}": ("about", "a list", "a mapping"),
}


def cases() -> Iterator[Case]:
    parts = ("voc", "voc.json")
    for kind, files in FILES.items():
        name = f"bad{Path(kind).suffix}"
        for case, (content, *words) in files.items():
            yield Case(kind, case, (*RUN, name), tuple(words), put(name, content), parts)
    for override, words in VALUES.items():
        short = override if len(override) < 70 else f"{override[:40]}... ({len(override)} characters)"
        yield Case("config values", short, (*RUN, "voc.json", override), words, parts=parts)

    def yaml_values(folder: Path) -> None:
        (folder / "dry.yaml").write_text("base: voc.json\nhparams: {r_path: 25}\n")

    yield Case("config values", "a dry run", ("run", "--dry-run", "-f", "dry.yaml"), ("hparams.r_path",), yaml_values, parts)
    dry = ("run", "--dry-run", "-f", "voc.json")
    yield Case("config values", "a dry run, too many", (*dry, "hparams.batch_size=9"), ("batch", "9", "8"), parts=parts)
    yield Case("config values", "a dry run, no data", (*dry, f"{DATA}.root=x"), ("x is not a folder", "train"), parts=parts)

    def chain(folder: Path) -> None:
        for number in range(2000):
            put(f"{number}.json", {"base": f"{number + 1}.json"})(folder)

    def sparse(folder: Path) -> None:
        with open(folder / "big.json", "wb") as file:
            file.truncate(1 << 33)

    def loop(folder: Path) -> None:
        os.symlink("loop.json", folder / "loop.json")

    files = "config files"
    yield Case(files, "missing", (*RUN, "nothing.json"), ("nothing.json", "No such file"))
    yield Case(files, "a folder", (*RUN, "a.json"), ("a.json", "not a file"), lambda folder: (folder / "a.json").mkdir())
    yield Case(files, "another ending", (*RUN, "a.toml"), ("a.toml", ".json, .yaml or .yml"), put("a.toml", "a = 1"))
    yield Case(files, "no ending", (*RUN, "/dev/zero"), ("/dev/zero", ".json"))
    yield Case(files, "no name", (*RUN, ""), ("a config is needed", "train CONFIG"))
    device = lambda folder: os.symlink("/dev/zero", folder / "a.json")  # noqa: E731
    yield Case(files, "a device", (*RUN, "a.json"), ("a.json", "not a file"), device)
    yield Case(files, "a pipe", (*RUN, "a.json"), ("a.json", "not a file"), lambda folder: os.mkfifo(folder / "a.json"))
    yield Case(files, "8 GB of nothing", (*RUN, "big.json"), ("big.json", "at most"), sparse)
    yield Case(files, "a link to itself", (*RUN, "loop.json"), ("loop.json",), loop)
    two = lambda folder: [put("a.json", {"base": "b.json"})(folder), put("b.json", {"base": "a.json"})(folder)]  # noqa: E731
    yield Case(files, "bases in a circle", (*RUN, "a.json"), ("based on itself",), two)
    yield Case(files, "2000 bases", (*RUN, "0.json"), ("base", "at most"), chain)
