"""What runs leave behind: evaluated paths, paths, result files, latency tables; and profiles."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from . import template
from .case import Case, changed, put

SEARCH = ("search", "run", "--by-score", "-c", "cpu", "--flops", "1G")
EVALUATE = ("evaluate", "run", "-c", "cpu")
REPORT = ("report", "run", "-o", "out")
WITH_DATA = ("voc", "run")
EXCLUDE = ("evaluate-paths", "run", "--per-bucket", "1", "-c", "cpu", "-o", "out.jsonl", "--exclude", "run/paths.jsonl")
EXTEND = ("evaluate-paths", "run", "--per-bucket", "1", "-c", "cpu", "-o", "paths.jsonl")
DEEP = "[" * 900 + "]" * 900


def line(number: int, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Replace a line of the evaluated paths, counted from 0, by what `change` returns, or makes of it."""

    def make(folder: Path) -> None:
        file = folder / "run/paths.jsonl"
        lines = file.read_text().splitlines()
        entry = json.loads(lines[number])
        result = change(entry)
        lines[number] = result if isinstance(result, str) else json.dumps(entry)
        file.write_text("\n".join(lines) + "\n")

    return make


def values(**changed: object) -> Callable[[dict], None]:
    def change(entry: dict) -> None:
        entry |= changed
        for name in [name for name, value in changed.items() if value is ...]:
            del entry[name]

    return change


def in_path(**changed: object) -> Callable[[dict], None]:
    return lambda entry: entry["path"].update(changed)


def in_geometry(**changed: object) -> Callable[[dict], None]:
    return lambda entry: entry["geometry"].update(changed)


def repeated(folder: Path) -> None:
    file = folder / "run/paths.jsonl"
    file.write_text(file.read_text() + file.read_text().splitlines()[1] + "\n")


def endless(folder: Path) -> None:
    file = folder / "run/paths.jsonl"
    file.write_bytes(file.read_bytes().rstrip())


PATHS: dict[str, tuple] = {
    "empty": (put("run/paths.jsonl", ""), "no evaluated paths"),
    "text": (put("run/paths.jsonl", "paths\n"), "line 1"),
    "not UTF-8": (put("run/paths.jsonl", b"\xff\xfe\n"), "UTF-8"),
    "a torn first line": (put("run/paths.jsonl", '{"format": "eval'), "no evaluated paths"),
    "a folder": (lambda f: [(f / "run/paths.jsonl").unlink(), (f / "run/paths.jsonl").mkdir()], "not a file"),
    "a device": (lambda f: [(f / "run/paths.jsonl").unlink(), os.symlink("/dev/zero", f / "run/paths.jsonl")], "not a file"),
    "a header that is a list": (line(0, lambda e: "[]"), "line 1"),
    "a header that is a string": (line(0, lambda e: '"x"'), "line 1"),
    "a deep header": (line(0, lambda e: "[" * 50_000), "line 1"),
    "an old format": (line(0, values(format="evaluated paths, version 1")), "line 1", "version 1", "version 2"),
    "a new format": (line(0, values(format="evaluated paths, version 3")), "line 1", "version 3"),
    "a format that is a number": (line(0, values(format=2)), "line 1", "2"),
    "no format": (line(0, values(format=...)), "line 1"),
    "no weights": (line(0, values(weights=...)), "line 1", "weights"),
    "no settings": (line(0, values(settings=...)), "line 1", "settings"),
    "settings that are a list": (line(0, values(settings=[])), "line 1", "settings"),
    "no geometry": (line(0, values(geometry=...)), "line 1", "geometry"),
    "a geometry that is a list": (line(0, values(geometry=[])), "line 1"),
    "a geometry with a word": (line(0, in_geometry(width_scale="wide")), "line 1"),
    "a geometry with NaN": (line(0, in_geometry(width_scale=float("nan"))), "line 1", "width_scale"),
    "a huge geometry": (line(0, in_geometry(base_depths=[10**15] * 4)), "line 1", "base_depths"),
    "another geometry": (line(0, in_geometry(width_scale=0.5)), "width_scale=0.5"),
    "a line that is text": (line(2, lambda e: "path"), "line 3"),
    "a line that is a list": (line(2, lambda e: "[]"), "line 3"),
    "a line deep inside lists": (line(2, lambda e: "[" * 50_000), "line 3"),
    "no path": (line(2, values(path=...)), "line 3"),
    "a path that is null": (line(2, values(path=None)), "line 3"),
    "a path without e": (line(2, lambda e: e["path"].pop("e") and None), "line 3", "e is missing"),
    "a path that is too short": (line(2, in_path(d=[0, 1])), "line 3", "5 values"),
    "a path with another depth": (line(2, in_path(d=[0, 1, 2, 3, 4])), "line 3", "3", "0, 1 or 2"),
    "a path with another width": (line(2, in_path(w=[0, 1, 2, 3, 4, 5])), "line 3", "3", "0, 1 or 2"),
    "a path with an infinite ratio": (line(2, in_path(e=[float("inf")] * 18)), "line 3", "inf"),
    "a path with a ratio of 400 digits": (line(2, in_path(e=[10**400] * 18)), "line 3", "e of a path"),
    "a path that is a number": (line(2, values(path=5)), "line 3"),
    "a stride of 0 with resolutions": (
        line(0, in_geometry(strides=[0, 2, 2, 2], named=[["resolution", [128]]])),
        "line 1",
        "strides",
    ),
    "a path of a million values": (line(2, in_path(d=[0] * 10**6)), "line 3", "5 values"),
    "no loss": (line(2, values(loss=...)), "line 3", "loss"),
    "a loss of NaN": (line(2, values(loss=float("nan"))), "line 3", "loss", "nan"),
    "an infinite loss": (line(2, values(loss=float("inf"))), "line 3", "loss", "inf"),
    "a loss that is a string": (line(2, values(loss="1")), "line 3", "loss", "'1'"),
    "a loss that is null": (line(2, values(loss=None)), "line 3", "loss", "None"),
    "a loss that is true": (line(2, values(loss=True)), "line 3", "loss", "True"),
    "a loss of 400 digits": (line(2, lambda e: json.dumps(e | {"loss": 10**400})), "line 3", "loss"),
    "a negative bucket": (line(2, values(bucket=-1)), "line 3", "bucket", "-1"),
    "a bucket that is a string": (line(2, values(bucket="1")), "line 3", "bucket", "'1'"),
    "a bucket of 1e30": (line(2, values(bucket=10**30)), "line 3", "bucket"),
    "FLOPs that are negative": (line(2, values(flops=-5)), "line 3", "flops", "-5"),
    "parameters of 1.5": (line(2, values(params=1.5)), "line 3", "params", "1.5"),
    "an AP of 2": (line(2, values(ap=2)), "line 3", "ap", "2"),
    "an AP that is a string": (line(2, values(ap="x")), "line 3", "ap", "'x'"),
    "an unknown entry": (line(2, values(speed=1)), "line 3", "speed"),
    "a path twice": (repeated, "line 6", "duplicated"),
}

DETECTORS: dict[str, tuple] = {
    "empty": ("", "JSON"),
    "text": ("d=1", "JSON"),
    "not UTF-8": (b"\xff\xfe", "UTF-8"),
    "a list": ("[]", "OFA's notation"),
    "a number": ("3", "OFA's notation"),
    "null": ("null", "OFA's notation"),
    "deep": ("[" * 50_000, "nested"),
    "deep inside a path": ('{"d": ' + DEEP + "}", "nested"),
    "no e": ('{"d": [0, 0, 0, 0, 0]}', "e is missing"),
    "a path that is null": ('{"path": null}', "OFA's notation"),
    "wrong lengths": ('{"d": [0], "e": [], "w": []}', "5 values"),
    "strings": ('{"d": "00000", "e": [], "w": []}', "5 values"),
    "an unknown depth": (json.dumps({"d": [7] * 5, "e": [0.2] * 18, "w": [0] * 6}), "7", "0, 1 or 2"),
    "true for a depth": (json.dumps({"d": [True] * 5, "e": [0.2] * 18, "w": [0] * 6}), "True"),
    "lists for depths": (json.dumps({"d": [[0]] * 5, "e": [0.2] * 18, "w": [0] * 6}), "[0]"),
    "a stem of depth 1": (json.dumps({"d": [1] * 5, "e": [0.2] * 18, "w": [0] * 6}), "stem"),
    "NaN": (json.dumps({"d": [0] * 5, "e": [float("nan")] * 18, "w": [0] * 6}), "nan"),
}

BROKEN_JSON = {"empty": "", "text": "results", "cut short": '{"a": [1', "not UTF-8": b"\xff\xfe", "deep": "[" * 50_000}
WRONG_JSON = {"a list": [], "a number": 3, "null": None, "no entries": {}}


def copied(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """`make`, and then a copy of the run's evaluated paths, which a command may extend."""
    return lambda folder: (make(folder), shutil.copy(folder / "run" / "paths.jsonl", folder))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "run" / name).unlink()


def damaged(name: str, command: tuple[str, ...], parts: tuple[str, ...] = ("run",), wrong: dict = WRONG_JSON) -> Iterator[Case]:
    """A result file of a run that is no JSON, or JSON of something else."""
    for how, content in (BROKEN_JSON | wrong).items():
        yield Case("run folder", f"{name} for {command[0]}: {how}", command, (name,), put(f"run/{name}", content), parts)


def cases() -> Iterator[Case]:
    for name, (make, *words) in PATHS.items():
        yield Case("evaluated paths", name, EXCLUDE, ("paths.jsonl", *words), make, WITH_DATA)
    kind = "evaluated paths"
    for name, make, words in (
        ("of other weights", lambda folder: None, "evaluated with"),
        ("without its last end", endless, "evaluated with"),
        ("a file of something else", put("run/paths.jsonl", "my notes\n"), "evaluated paths"),
    ):
        yield Case(kind, f"{name}, to extend", EXTEND, ("paths.jsonl", words), copied(make), WITH_DATA)
    yield Case(kind, "missing", EXCLUDE, ("paths.jsonl", "No such file"), without("paths.jsonl"), WITH_DATA)

    for name, (content, *words) in DETECTORS.items():
        yield Case(
            "path file", name, (*EVALUATE, "--detector", "a.json"), ("a.json", *words), put("a.json", content), WITH_DATA
        )
    named = (*EVALUATE, "--detector")
    yield Case("path file", "no such detector", (*named, "subnet_7"), ("subnet_7", "fullnet, subnet_1"), parts=WITH_DATA)
    yield Case("path file", "a folder", (*named, "voc"), ("voc", "fullnet, subnet_1"), parts=WITH_DATA)
    yield Case("path file", "a device", (*named, "/dev/zero"), ("/dev/zero", "fullnet, subnet_1"), parts=WITH_DATA)

    kind = "run folder"
    for command, folder in ((SEARCH, "run"), (EVALUATE, "run"), (REPORT, "run"), (EXCLUDE, "run")):
        yield Case(kind, f"missing, {command[0]}", command, (folder, "not the folder of"))
        yield Case(kind, f"empty, {command[0]}", command, (folder, "not the folder of"), lambda f: (f / "run").mkdir())
        yield Case(kind, f"a file, {command[0]}", command, (folder, "not the folder of"), put("run", "x"))
    yield from damaged("config.json", SEARCH)
    yield from damaged("operations.json", SEARCH)
    yield from damaged("fullnet.json", SEARCH)
    yield from damaged("summary.json", (*named, "subnet_1"), WITH_DATA)
    yield from damaged("summary.json", REPORT, WITH_DATA)
    subnets = changed("run/summary.json", lambda s: s.update(subnets=3))
    yield Case(kind, "summary.json: subnets are a number", (*named, "subnet_1"), ("summary.json",), subnets, WITH_DATA)
    pathless = changed("run/summary.json", lambda s: s["subnets"][0].pop("path") and None)
    yield Case(kind, "summary.json: a subnet without a path", (*named, "subnet_1"), ("summary.json",), pathless, WITH_DATA)
    strange = changed("run/summary.json", lambda s: s["subnets"][0].update(flops="many"))
    yield Case(kind, "summary.json: FLOPs are a word", REPORT, ("run", "damaged"), strange, WITH_DATA)
    for command in (REPORT, ("inspect", "run"), (*named, "subnet_1")):
        vast = changed("run/summary.json", lambda s: s["subnets"][0].update(budget=1e300))
        yield Case(kind, f"summary.json: a vast budget for {command[0]}", command, ("[0, 1e18]", "1e+300"), vast, WITH_DATA)
    later = changed("run/summary.json", lambda s: s.update(kendall_tau=[0.5]))
    yield Case(kind, "scores.json is missing", REPORT, ("run",), later, WITH_DATA)
    found = put("run/subnet_1_detections.json", [{"image": 3}])
    yield Case(kind, "detections of other images", REPORT, ("run", "damaged"), found, WITH_DATA)
    yield Case(
        kind, "detections that are a word", REPORT, ("run", "damaged"), put("run/subnet_1_detections.json", '"x"'), WITH_DATA
    )
    yield Case(
        kind, "detections are missing", REPORT, ("subnet_1_detections.json",), without("subnet_1_detections.json"), WITH_DATA
    )
    value = changed("run/config.json", lambda c: c["hparams"].update(r_path=25))
    yield Case(kind, "a value in config.json", SEARCH, ("config.json", "hparams.r_path", "25"), value, ("run",))
    key = changed("run/config.json", lambda c: c["hparams"].update(color=1))
    yield Case(kind, "a key in config.json", SEARCH, ("config.json", "hparams.color"), key, ("run",))
    yield Case(kind, "no path filter", SEARCH, ("path_filter_again.h5", "missing"), without("path_filter_again.h5"), ("run",))
    text = put("run/path_filter_again.h5", "text")
    yield Case(kind, "a path filter that is text", SEARCH, ("path_filter_again.h5", "HDF5"), text, ("run",))
    yield Case(kind, "no weights", EVALUATE, ("fullnet", "does not exist"), without("fullnet/weights.h5"), WITH_DATA)
    yield Case(kind, "weights that are text", EVALUATE, ("weights.h5", "HDF5"), put("run/fullnet/weights.h5", "x"), WITH_DATA)
    classes = changed("run/fullnet.json", lambda f: f.update(ap50_per_class={"cow": 1.0}))
    yield Case(kind, "other classes", EVALUATE, ("cow", "cat, dog"), classes, WITH_DATA)
    for name, content in {
        "a name alone": {"space": {"name": "A"}},
        "strings for operations": {
            "space": {"name": "A", "operations": "all", "stem_depths": [], "stem_widths": [], "geometry": {}}
        },
        "an operation that is unknown": None,
        "a space that is a string": {"space": "A"},
        "spaces in spaces": {"space": _nested(300)},
    }.items():
        make = put("run/operations.json", content) if content else changed("run/operations.json", _unknown_operation)
        yield Case(kind, f"operations.json: {name}", SEARCH, ("operations.json",), make, ("run",))
    geometry = changed("run/operations.json", lambda o: o["space"]["geometry"].update(base_depths=[10**15] * 4))
    yield Case(kind, "operations.json: a huge geometry", SEARCH, ("operations.json",), geometry, ("run",))
    arguments = ("run", "-c", "cpu", "-f", "voc.json", "-o", "taken")
    parts = ("voc", "voc.json")
    yield Case(kind, "something else to write into", arguments, ("taken", "not a run"), put("taken/notes.txt", "x"), parts)
    yield Case(kind, "a file to write into", arguments, ("taken", "a file"), put("taken", "x"), parts)
    for how, content in BROKEN_JSON.items():
        yield Case(kind, f"to write into: {how}", arguments, ("taken", "config.json"), put("taken/config.json", content), parts)
    yield Case(kind, "of another config", (*arguments[:-1], "run", "args.seed=3"), ("run", "args.seed"), parts=(*parts, "run"))
    yield from withdrawn()
    yield from gone_on_with()
    yield from reproduced()
    yield Case("exported weights", "missing", ("export-weights", "nothing", "out"), ("nothing", "not the folder"))
    yield Case(
        "exported weights", "a file", ("export-weights", "voc.json", "out"), ("voc.json", "not the folder"), parts=("voc.json",)
    )
    out = ("export-weights", "run", "out", "--name", "../a")
    yield Case("exported weights", "a name that climbs", out, ("--name", "'../a'"), put("run/config.json", {}))

    def pretrained(folder: Path) -> None:
        """A finished pre-training, but for its weights."""
        (folder / "run").mkdir()
        os.replace(folder / "classes.json", folder / "run/config.json")
        (folder / "run/summary.json").write_text("{}")
        (folder / "run/supernet.h5").write_text("x")

    words = ("supernet.h5", "HDF5")
    yield Case(
        "exported weights", "weights that are text", ("export-weights", "run", "out"), words, pretrained, ("classes.json",)
    )

    kind = "latency table"
    for how, content in (BROKEN_JSON | WRONG_JSON).items():
        yield Case(kind, how, SEARCH, ("latency.json",), put("run/latency.json", content), ("run",))
    for how, change in {
        "another format": values(format="latency table, version 9"),
        "no tables": values(stem=...),
        "a table of strings": values(head=["1", "2", "3"]),
        "a table of words": values(head=["a", "b", "c"]),
        "a table of fractions": values(head=[1.5, 2.5, 3.5]),
        "a table of NaN": values(head=[float("nan")] * 3),
        "a table with huge numbers": values(head=[10**30] * 3),
        "a table with negative numbers": values(head=[-1, 2, 3]),
        "a table of another shape": values(head=[1, 2]),
        "a ragged table": values(head=[[1], [2, 3], 4]),
        "no geometry": values(geometry=...),
        "another geometry": in_geometry(width_scale=0.5),
        "a huge geometry": in_geometry(base_depths=[10**15] * 4),
        "another image size": values(image_size=[32, 32]),
        "an image size of words": values(image_size=["a", "b"]),
        "other filters": values(head_filters=[1]),
        "another scope": values(scope="classifier"),
    }.items():
        yield Case(kind, how, SEARCH, ("latency.json",), changed("run/latency.json", change), ("run",))
    yield Case(kind, "missing", (*SEARCH, "--latency-table", "x.json"), ("x.json",), parts=("run",))

    yield from profiles()


def withdrawn() -> Iterator[Case]:
    """Runs that are refused when their folder is theirs already: it is left as it was."""
    command = ("run", "-c", "cpu", "-f", "voc.json", "hparams.search.budgets=[1.0]", "-o")
    words, parts = ("hparams.search.budgets", "below the smallest path"), ("voc", "voc.json")

    def linked(folder: Path) -> None:
        (folder / "target").mkdir()
        (folder / "link").symlink_to("target")

    kind = "refused run"
    yield Case(kind, "its folder is new", (*command, "deep/a/b"), words, parts=parts)
    yield Case(kind, "its folder is empty", (*command, "out"), words, lambda f: (f / "out").mkdir(), parts)
    yield Case(kind, "its folder is linked", (*command, "link"), words, linked, parts)


def gone_on_with() -> Iterator[Case]:
    """The mini-batch of a run that has not finished, or of one that a table would take."""
    words, wrong = (
        ("mini_batch.json",),
        {"a word": {"mini_batch": "x"}, "zero": {"mini_batch": 0}, "true": {"mini_batch": True}},
    )
    goes_on = ("run", "-c", "cpu", "-f", "voc.json", "-o", "run")
    for how, content in (BROKEN_JSON | WRONG_JSON | wrong).items():

        def unfinished(folder: Path, content=content) -> None:
            (folder / "run/summary.json").unlink()
            put("run/mini_batch.json", content)(folder)

        name = f"mini_batch.json to go on with: {how}"
        yield Case("run folder", name, goes_on, words, unfinished, ("voc", "voc.json", "run"))


def finished(folder: Path) -> None:
    """The run where tables and figures find it, with what those need."""
    changed("run/summary.json", values(thresholds=[None] * 5))(folder)
    for name in ("out", "runs"):
        (folder / name).mkdir()
    os.replace(folder / "run", folder / "runs/cats")


def reproduced() -> Iterator[Case]:
    """Results of finished runs that tables and figures are made of."""
    parts = ("voc", "voc.json", "run", "profile.json")
    thresholds = {
        "thresholds that are a number": {"thresholds": 3},
        "a threshold too few": {"thresholds": [None] * 4},
        "a threshold that is a word": {"thresholds": [None] * 4 + ["x"]},
    }
    ledgers = {
        "no phases": {"unit": "core seconds"},
        "phases that are a list": {"unit": "core seconds", "phases": []},
        "a phase without seconds": {"unit": "core seconds", "phases": {"search": {}}},
        "seconds that are a word": {"unit": "core seconds", "phases": {"search": {"seconds": "x"}}},
    }
    operations = {
        "no scores": values(scores=...),
        "scores of words": lambda o: o["scores"].__setitem__(0, "x"),
        "a score too few": lambda o: o["scores"].pop() and None,
        "an operation too few": lambda o: o["operations"].pop() and None,
        "an operation of words": lambda o: o["operations"].__setitem__(0, ["a"] * 4),
        "a removed operation that is unknown": values(removed=[[0, 9, 9, 9]]),
        "reasons that are numbers": values(spared=[3]),
    }
    provenance = {
        "no code": {"weights": {}},
        "code that is a number": {"code": [1], "weights": {}},
        "weights that are a list": {"code": [], "weights": []},
        "a digest that is a number": {"code": [], "weights": {"x.h5": 1}},
        "data that are a number": {"code": [], "weights": {}, "data": 1},
    }
    made = {
        "provenance.json": ("figure3", WRONG_JSON | provenance),
        "mini_batch.json": ("figure3", {"a list": [], "zero": {"mini_batch": 0}}),
        "summary.json": ("figure4", WRONG_JSON | thresholds),
        "ledger.json": ("figure4", WRONG_JSON | ledgers),
        "operations.json": ("figure3", WRONG_JSON | operations),
    }
    for name, (target, wrong) in made.items():
        for how, content in wrong.items():

            def make(folder: Path, name=name, content=content) -> None:
                finished(folder)
                change = changed if callable(content) else put
                change(f"runs/cats/{name}", content)(folder)

            command = ("reproduce", target, "--profile", "profile.json", "-c", "cpu", "-o", "out")
            yield Case("run folder", f"{name} for {target}: {how}", command, (f"runs/cats/{name}", "damaged"), make, parts)


def _unknown_operation(content: dict) -> None:
    content["space"]["operations"][0].append([9, 9, 9])


def _nested(depth: int) -> dict:
    space: dict = {"name": "A"}
    for _ in range(depth):
        space = {"parent": space, "removed": []}
    return space


def profiles() -> Iterator[Case]:
    make = ("reproduce", "tableA1", "--profile", "profile.json", "-c", "cpu", "-o", "out")
    kind, parts = "profile", ("profile.json", "voc.json")
    for how, content in (BROKEN_JSON | WRONG_JSON).items():
        yield Case(kind, how, make, ("profile.json",), put("profile.json", content), parts)
    one = {"cats": template.profile()["data_sets"]["cats"]}

    def source(**changed: object) -> dict:
        return {"cats": one["cats"] | {"pretraining": one["cats"]["pretraining"] | changed}}

    for how, (change, *words) in {
        "an unknown key": (values(color=1), "color"),
        "a misspelt part in minutes": (values(minutes={"whole runs": 1}), "minutes.whole runs", "whole run"),
        "an unknown part in minutes": (values(minutes={"zzz": 1}), "minutes.zzz", "branch"),
        "minutes of 0": (values(minutes={"branch": 0}), "minutes.branch", "(0, inf)", "0"),
        "minutes of NaN": (values(minutes={"branch": float("nan")}), "minutes.branch", "nan"),
        "minutes that are a string": (values(minutes={"branch": "1"}), "minutes.branch", "a number", "'1'"),
        "minutes that are a list": (values(minutes=[1]), "minutes", "map"),
        "no data sets": (values(data_sets={}), "data_sets"),
        "data sets that are a list": (values(data_sets=[]), "data_sets"),
        "three data sets": (values(data_sets={"a": {}, "b": {}, "c": {}}), "data_sets", "voc and coco"),
        "a data set that is null": (values(data_sets={"cats": None}), "data_sets.cats", "mapping"),
        "a data set without a title": (lambda p: p["data_sets"]["cats"].pop("title") and None, "data_sets.cats.title"),
        "a data set with another key": (lambda p: p["data_sets"]["cats"].update(x=1), "data_sets.cats.x"),
        "a data set's name that climbs": (
            lambda p: p.update(data_sets={"../a": p["data_sets"]["cats"]}),
            "data_sets",
            "'../a'",
        ),
        "a config that is a number": (lambda p: p["data_sets"]["cats"].update(config=3), "data_sets.cats.config", "3"),
        "a config that is missing": (lambda p: p["data_sets"]["cats"].update(config="x.json"), "x.json", "No such file"),
        "no pretraining": (lambda p: p["data_sets"]["cats"].pop("pretraining") and None, "pretraining"),
        "a pretraining that is a list": (lambda p: p["data_sets"]["cats"].update(pretraining=[]), "pretraining", "mapping"),
        "a supernet that is a number": (lambda p: p.update(data_sets=source(supernet=3)), "supernet", "a string", "3"),
        "needs that are a mapping": (lambda p: p["data_sets"]["cats"].update(needs={}), "needs", "a list"),
        "a need without a command": (lambda p: p["data_sets"]["cats"].update(needs=[{"path": "x"}]), "needs[0].command"),
        "starts_runs that is a word": (values(starts_runs="yes"), "starts_runs", "true or false"),
        "seeds of 0": (values(filter_study={"seeds": 0}), "filter_study.seeds", "0"),
        "an unknown size": (values(filter_study={"sizes": 1}), "filter_study.sizes"),
        "about that is a number": (values(about=3), "about", "a list"),
    }.items():
        yield Case(
            kind,
            how,
            make,
            ("profile.json" if "missing" not in how else "x.json", *words),
            changed("profile.json", change),
            parts,
        )
    twice = put("profile.json", '{"minutes": {}, "minutes": {}}')
    yield Case(kind, "a key twice", make, ("profile.json", "duplicated"), twice, parts)
    unknown = ("reproduce", "table2", "-c", "cpu", "--profile")
    yield Case(kind, "no such profile", (*unknown, "nothing"), ("--profile", "nothing"))
    yield Case(kind, "no such file", (*unknown, "nothing.json"), ("--profile", "nothing.json"))
    yield Case(kind, "a name that climbs", (*unknown, "../../voc"), ("--profile", "../../voc"))
    yield Case(kind, "no such profile of a page", ("page", "--profile", "nothing"), ("--profile", "nothing"))
    yield Case(kind, "a page without results", ("page", "--profile", "profile.json"), ("results/profile",), parts=parts)
