"""What the tools around a run are given: damaged folders, folders of another kind of run, and images."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from .case import Case, changed, put
from .results import without

INSPECT = ("inspect", "run")
COMPARE = ("compare", "run", "other")
SEARCH = ("search", "run", "--by-score", "-c", "cpu")
REPORT = ("report", "run", "-o", "out")
EVALUATE = ("evaluate", "run", "-c", "cpu")
DETECT = ("detect", "run", "voc/JPEGImages/test0.jpg", "-c", "cpu", "-o", "out")
EXPORT = ("export", "run", "--detector", "subnet_1", "-o", "x.nnp", "-c", "cpu")
FINETUNE = ("finetune", "run", "--detector", "subnet_1", "--epochs", "1", "-c", "cpu", "-o", "out")
WITH_DATA = ("voc", "run")
WRONG = {"a list": [], "a string": '"x"', "null": None, "a number": 3, "NaN": float("nan"), "no entries": {}}
BROKEN = {"empty": "", "cut short": '{"a": [1', "not UTF-8": b"\xff\xfe", "deep": "[" * 50_000}


def of(command: tuple[str, ...], folder: str) -> tuple[str, ...]:
    """The same command about another folder."""
    return tuple(folder if word == "run" else word for word in command)


def beside(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """A second run beside the first, which `make` then breaks."""

    def both(folder: Path) -> None:
        shutil.copytree(folder / "run", folder / "other")
        make(folder)

    return both


def damaged() -> Iterator[Case]:
    kind = "damaged folder"
    lines = [(INSPECT, name, WRONG | BROKEN) for name in ("summary", "seconds", "ledger", "fullnet", "subnet_1")]
    lines += [((*INSPECT, "--json"), "ledger", WRONG), (INSPECT, "operations", WRONG), (EXPORT, "subnet_1", WRONG | BROKEN)]
    for command, name, contents in lines:
        for how, content in contents.items():
            if (name, how) == ("seconds", "no entries"):  # as it is before the first phase
                continue
            said = f"{name}.json of {' '.join(word for word in command if word != 'run')}: {how}"
            yield Case(kind, said, command, (f"run/{name}.json",), put(f"run/{name}.json", content), WITH_DATA)
    for name in ("summary", "fullnet_detections"):
        for how, content in (WRONG | BROKEN).items():
            if name == "summary" or how not in ("a list", "no entries"):  # without images: that is not damaged
                make = beside(put(f"run/{name}.json", content))
                yield Case(kind, f"{name}.json of compare: {how}", COMPARE, (f"run/{name}.json",), make, ("run",))
    make = beside(without("summary.json"))
    yield Case(kind, "no summary.json of compare", COMPARE, ("run", "summary.json is missing"), make, ("run",))
    make = without("subnet_1.json")
    yield Case(kind, "no subnet_1.json of export", EXPORT, ("subnet_1.json is missing",), make, WITH_DATA)
    for how, change in {
        "a word": lambda summary: summary["subnets"][0].update(budget="many"),
        "infinite": lambda summary: summary["subnets"][0].update(budget=float("inf")),
        "missing": lambda summary: summary["subnets"][0].pop("budget") and None,
    }.items():
        make = beside(changed("run/summary.json", change))
        yield Case(kind, f"a budget of compare: {how}", COMPARE, ("run/summary.json", "damaged"), make, ("run",))
    long = changed("run/seconds.json", lambda seconds: seconds.update(search=10**400))
    yield Case(kind, "seconds of 400 digits", INSPECT, ("run/seconds.json", "damaged"), long, ("run",))
    word = changed("run/fullnet.json", lambda result: result.update(flops="many"))
    yield Case(kind, "FLOPs of inspect are a word", INSPECT, ("run/fullnet.json", "damaged"), word, ("run",))

    tuned = (
        of(INSPECT, "tuned"),
        of(EVALUATE, "tuned"),
        (*of(EVALUATE, "tuned"), "--detector", "finetuned"),
        of(DETECT, "tuned"),
        (*of(EXPORT, "tuned"), "--detector", "finetuned"),
        (*FINETUNE, "-o", "tuned"),
    )
    for command in tuned:
        for how, content in (WRONG | {"other entries": {"a": 1}}).items():
            make, words = put("tuned/origin.json", content), ("tuned/origin.json", "damaged")
            yield Case(kind, f"origin.json of {' '.join(command)}: {how}", command, words, make, (*WITH_DATA, "tuned"))
    path = changed("tuned/origin.json", lambda origin: origin.update(path={"d": []}))
    yield Case(
        kind, "origin.json: a path of nothing", tuned[1], ("tuned/origin.json", "OFA's notation"), path, ("voc", "tuned")
    )


def foreign() -> Iterator[Case]:
    kind = "folder of another kind"
    parts = ("voc", "run", "pretrained", "tuned")
    for command in (SEARCH, REPORT, EVALUATE, DETECT, EXPORT, FINETUNE):
        words = ("pretrained is a pre-training's folder", "needs a run that trains detectors")
        yield Case(kind, f"a pre-training's for {command[0]}", of(command, "pretrained"), words, parts=parts)
    yield Case(kind, "a pre-training's for compare", ("compare", "run", "pretrained"), words, parts=parts)
    words = ("tuned is a fine-tuning's folder", "needs a run of Algorithm 1 or of a baseline")
    for command in (SEARCH, REPORT):
        yield Case(kind, f"a fine-tuning's for {command[0]}", of(command, "tuned"), words, parts=parts)
    yield Case(kind, "a fine-tuning's for compare", ("compare", "run", "tuned"), words, parts=parts)
    yield Case(kind, "a report into the run", (*REPORT, "-o", "run"), ("--output", "folder of the run", "run"), parts=WITH_DATA)
    own = (*REPORT, "-o", "link")
    yield Case(
        kind,
        "a report into the run, by a link",
        own,
        ("--output", "folder of the run", "link"),
        lambda folder: os.symlink("run", folder / "link"),
        WITH_DATA,
    )
    for number, most in (("0", "1024"), ("-1", "1024"), ("1025", "1024"), ("9" * 30, "1024")):
        yield Case("export", f"a batch of {number}", (*EXPORT, "--batch", number), ("--batch", most, number), parts=WITH_DATA)
    for side in ("0", "16", "50", "-64", "16400", "9" * 30):
        words = ("--size", "16384", "multiple of 16", side)
        yield Case("export", f"a side of {side}", (*EXPORT, f"--size={side}"), words, parts=WITH_DATA)
    for epochs in ("0", "-1"):
        yield Case("fine-tuning", f"{epochs} epochs", (*FINETUNE, "--epochs", epochs), ("--epochs", epochs), parts=WITH_DATA)
    for rate in ("0", "-1", "nan", "inf"):
        yield Case("fine-tuning", f"a rate of {rate}", (*FINETUNE, "--lr", rate), ("--lr", rate), parts=WITH_DATA)
    taken = (*FINETUNE, "-o", "run")
    yield Case("fine-tuning", "into the run", taken, ("run contains a run that is not a fine-tuning",), parts=WITH_DATA)


def images() -> Iterator[Case]:
    kind, detect = "image to detect in", ("detect", "run", "given", "-c", "cpu", "-o", "out")
    picture = "voc/JPEGImages/test0.jpg"
    for how, make in {
        "a text": put("given", "notes"),
        "empty": put("given", ""),
        "a header alone": put("given", b"\xff\xd8\xff\xe0"),
        "a folder of texts": lambda folder: [put("given/a.txt", "a")(folder), put("given/b.jpg", "b")(folder)],
        "a device": lambda folder: os.symlink("/dev/zero", folder / "given"),
        "half": lambda folder: put("given", (folder / picture).read_bytes()[:-999])(folder),
    }.items():
        words = ("at least one file must be a JPEG or PNG image", "given")
        yield Case(kind, how, detect, words, make, WITH_DATA)
    words = ("no file found in given", "JPEG or PNG")
    yield Case(kind, "an empty folder", detect, words, lambda folder: (folder / "given").mkdir(), WITH_DATA)
    yield Case(kind, "missing", detect, ("existing files or folders", "given"), parts=WITH_DATA)
    into = (*detect[:-1], "given")
    words = ("--output must not be a folder of the images", "given")

    def link(folder: Path) -> None:
        (folder / "given").mkdir()
        os.symlink(f"../{picture}", folder / "given/x.jpg")

    yield Case(kind, "links to photographs, drawn over", into, words, link, WITH_DATA)
    own = ("detect", "run", "voc/JPEGImages", "-c", "cpu", "-o", "voc/JPEGImages")
    yield Case(kind, "photographs drawn over", own, ("--output must not be a folder of the images",), parts=WITH_DATA)


def cases() -> Iterator[Case]:
    yield from damaged()
    yield from foreign()
    yield from images()
