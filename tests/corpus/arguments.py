"""Arguments of every subcommand."""

from collections.abc import Iterator
from pathlib import Path

from .case import Case

RUN = ("run", "-f", "voc.json", "-c", "cpu", "-o", "out")
SEARCH = ("search", "run", "--by-score", "-c", "cpu")
EVALUATE = ("evaluate", "run", "-c", "cpu")
PATHS = ("evaluate-paths", "run", "-c", "cpu", "-o", "out.jsonl")
STUDY = ("image-count-study", "run", "-c", "cpu")
LATENCY = ("measure-latency", "-f", "voc.json", "-c", "cpu", "-o", "out.json")
REPRODUCE = ("reproduce", "--profile", "profile.json", "-c", "cpu", "-o", "out")

LINES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("trian",), ("trian", "did you mean train?", "train, finetune")),
    (("",), ("there is no command ''", "train, finetune")),
    (("run",), ("a config is needed", "train CONFIG", "--help")),
    (("run", "-f"), ("-f/--file", "--help")),
    (("-f", "voc.json", "-c", "gpu"), ("--context", "'gpu'", "cpu")),
    ((*RUN, "--rest"), ("--rest",)),
    ((*RUN, "--help-me"), ("--help-me",)),
    ((*RUN, "hparams.epochs"), ("override", "hparams.epochs=3", "'hparams.epochs'")),
    ((*RUN, "=3"), ("override", "'=3'")),
    ((*RUN, "hparams.=3"), ("override", "'hparams.=3'")),
    ((*RUN, ""), ("override", "''")),
    ((*RUN, "coco.json"), ("one config is allowed", "voc.json and coco.json")),
    ((*RUN, "digits_detofa"), ("one config is allowed", "voc.json and digits_detofa")),
    (("run", "about=x"), ("a config is needed", "train CONFIG")),
    ((*RUN, ".".join(["a"] * 5000) + "=1"), ("override", "hparams.epochs=3", "a.a.a")),
    ((*RUN, "-o", "voc.json"), ("voc.json", "folder")),
    ((*RUN, "-o", "voc.json/x"), ("voc.json", "folder")),
    ((*RUN, "-d", "first", "-c", "auto"), ("device_id", "'first'")),
    ((*RUN, "-d", "-2", "-c", "auto"), ("device_id", "'-2'")),
    ((*RUN, "-d", "", "-c", "auto"), ("device_id", "''")),
    ((*RUN, "--processes", "0"), ("--processes", "0")),
    ((*RUN, "--processes", "100000"), ("hparams.batch_size", "multiple", "1 x 100000", "4")),
    ((*RUN, "-c", "cudnn"), ("args.context is cudnn, but", "choose the CPU (-c cpu)")),
    ((*SEARCH, "--flops", "3Q"), ("--flops", "3Q", "3G")),
    ((*SEARCH, "--flops", ""), ("--flops", "positive", "3G")),
    ((*SEARCH, "--flops", "-3G"), ("--flops",)),
    ((*SEARCH, "--flops=-3G"), ("--flops", "-3G", "positive")),
    ((*SEARCH, "--flops", "0"), ("--flops", "positive", "0")),
    ((*SEARCH, "--flops", "nan"), ("--flops", "nan")),
    ((*SEARCH, "--flops", "inf"), ("--flops", "inf")),
    ((*SEARCH, "--flops", "1e999"), ("--flops", "1e999")),
    ((*SEARCH, "--flops", "1e-999"), ("--flops", "1e-999")),
    ((*SEARCH, "--flops", "9" * 5000), ("--flops", "positive")),
    ((*SEARCH, "--flops", "3 G G"), ("--flops", "3 G G")),
    ((*SEARCH, "--flops", "\u0663G"), ("--flops", "\u0663G")),
    ((*SEARCH, "--flops", "1"), ("--flops", "without a unit", "3G")),
    ((*SEARCH, "--flops", "1K"), ("no path", "reachable")),
    ((*SEARCH, "--latency", "40"), ("--latency", "40", "ms")),
    ((*SEARCH, "--latency", "40min"), ("--latency", "40min", "ms")),
    ((*SEARCH, "--params", "20MB"), ("--params", "20MB")),
    ((*SEARCH, "--memory", "2TB"), ("--memory", "2TB", "GB")),
    ((*SEARCH, "--memory", "1B"), ("no path", "reachable")),
    ((*SEARCH, "--generations", "-1"), ("--generations", "-1")),
    ((*SEARCH, "--generations", "9" * 30), ("--generations", "from 0 to 1000000", "999")),
    ((*SEARCH, "--generations", "few"), ("--generations", "'few'")),
    ((*SEARCH, "-o", "voc.json/x"), ("--output", "existing folder", "voc.json/x")),
    ((*SEARCH, "-o", "no/out.json"), ("--output", "no/out.json")),
    ((*SEARCH, "hparams.cost_scope=backbone"), ("hparams.cost_scope", "detector")),
    ((*SEARCH, "hparams"), ("override", "'hparams'")),
    ((*EVALUATE, "--scales", "0"), ("--scales", "0")),
    ((*EVALUATE, "--scales", "-1"), ("--scales", "-1")),
    ((*EVALUATE, "--scales", "nan"), ("--scales", "nan")),
    ((*EVALUATE, "--scales", "inf"), ("--scales", "inf")),
    ((*EVALUATE, "--scales", "9"), ("--scales", "9")),
    ((*EVALUATE, "--scales", "big"), ("--scales", "'big'")),
    ((*EVALUATE, "--scales"), ("--scales",)),
    ((*EVALUATE, "-o", "voc"), ("--output", "voc")),
    ((*EVALUATE, "--detector", ""), ("''", "fullnet, subnet_1")),
    ((*EVALUATE, "dataloader.voc.root=nothing"), ("nothing", "not a folder")),
    ((*PATHS,), ("--per-bucket", "--help")),
    ((*PATHS, "--per-bucket", "0"), ("--per-bucket", "0")),
    ((*PATHS, "--per-bucket", "-3"), ("--per-bucket", "-3")),
    ((*PATHS, "--per-bucket", "1.5"), ("--per-bucket", "'1.5'")),
    ((*PATHS, "--per-bucket", "1", "--images", "0"), ("--images", "0")),
    ((*PATHS, "--per-bucket", "1", "--bn-images", "0"), ("--bn-images", "0")),
    ((*PATHS, "--per-bucket", "1", "-o", "run"), ("--output", "run")),
    ((*PATHS, "--per-bucket", "1", "-o", "no/x"), ("--output", "no/x")),
    ((*PATHS, "--per-bucket", "1", "--weights", "no.h5"), ("--weights", "no.h5")),
    ((*PATHS, "--per-bucket", "1", "--weights", "voc.json"), ("voc.json", "HDF5")),
    ((*PATHS, "--per-bucket", "1", "--exclude", "voc.json"), ("voc.json",)),
    ((*PATHS, "--per-bucket", "1", "-f", "voc.json"), ("not both",)),
    (("evaluate-paths", "--per-bucket", "1", "-o", "x"), ("-f", "run")),
    (("evaluate-paths", "-f", "voc.json", "--per-bucket", "1", "-o", "x"), ("--weights",)),
    (("evaluate-paths", "-f", "voc.json", "--pruned", "--per-bucket", "1", "-o", "x"), ("--pruned",)),
    ((*STUDY, "--per-bucket", "0"), ("--per-bucket", "0")),
    ((*STUDY, "--per-bucket", "1", "--pairs", "0"), ("--pairs", "0")),
    ((*STUDY, "--per-bucket", "1", "-o", "voc"), ("--output", "voc")),
    ((*LATENCY, "--repeats", "0"), ("--repeats", "0")),
    ((*LATENCY, "--paths", "-1"), ("--paths", "-1")),
    ((*LATENCY, "--classes", "0"), ("--classes", "0")),
    ((*LATENCY, "--classes", "1000000000000"), ("--classes", "1000000000000")),
    ((*LATENCY, "--image-size", "63"), ("--image-size", "63")),
    ((*LATENCY, "--image-size", "64", "64", "64"), ("--image-size", "64 64 64")),
    ((*LATENCY, "--image-size", "0"), ("--image-size", "0")),
    ((*LATENCY, "--image-size", "-64"), ("--image-size", "-64")),
    ((*LATENCY, "--image-size", "16000000"), ("--image-size", "16000000")),
    ((*LATENCY, "-o", "voc"), ("--output", "voc")),
    (("report", "run", "-o", "voc.json"), ("--output", "voc.json")),
    (("report",), ("RUN", "--help")),
    (("table1", "-o", "voc.json"), ("--output", "voc.json")),
    (("table1", "-o", "voc.json/x"), ("--output", "voc.json/x")),
    (("table1", "more"), ("more",)),
    ((*REPRODUCE, "table9"), ("table9", "table2")),
    ((*REPRODUCE, ""), ("there is no target ''", "table2")),
    ((*REPRODUCE,), ("TARGET", "--help")),
    ((*REPRODUCE, "tableA1", "--seeds", "0"), ("--seeds", "0")),
    ((*REPRODUCE, "tableA1", "--seeds", "1000000000"), ("--seeds", "1000000000")),
    ((*REPRODUCE, "tableA1", "--jobs", "0"), ("--jobs", "0")),
    ((*REPRODUCE, "tableA1", "--jobs", "1000000"), ("--jobs", "1000000")),
    ((*REPRODUCE, "table2", "--set", "hparams.epochs"), ("override", "'hparams.epochs'")),
    ((*REPRODUCE, "table2", "--set", "hparams.epoch=1"), ("hparams.epoch",)),
    ((*REPRODUCE, "table2", "--set", "args.seed=3"), ("args.seed", "3")),
    ((*REPRODUCE, "figure9"), ("profile", "does not start runs")),
    ((*REPRODUCE, "tableA1", "-o", "voc.json"), ("--output", "voc.json")),
    ((*REPRODUCE, "tableA1", "-d", "x", "-c", "auto"), ("device_id", "'x'")),
    (("page", "--profile", "profile.json", "--results", "nothing"), ("nothing",)),
    (("page", "--profile", "profile.json", "-o", "voc"), ("--output", "voc")),
    (("data", "letters"), ("data letters", "digits")),
    (("data", "digits", "--seed", "-1", "--root", "x"), ("--seed", "-1")),
    (("data", "digits", "--seed", "one"), ("--seed", "'one'")),
    (("data", "digits", "--root", "voc"), ("voc",)),
    (("data", "digits", "--root", "voc.json"), ("voc.json",)),
    (("data", "to-coco"), ("--voc",)),
    (("data", "to-coco", "--voc", "nothing", "--root", "x"), ("nothing", "not a folder")),
    (("data", "to-coco", "--voc", "voc", "--root", "voc"), ("--root", "voc")),
    (("data", "to-coco", "--voc", "voc", "--root", "x", "--splits", "nothing"), ("'nothing'", "train")),
    (("import-ofa", "a.pth"), ("-o", "--help")),
    (("export-weights", "run"), ("FOLDER", "--help")),
)


def cases() -> Iterator[Case]:
    parts = ("voc", "voc.json", "run", "profile.json")
    for line, words in LINES:
        name = " ".join(line)
        short = name if len(name) < 100 else f"{name[:60]}... ({len(name)} characters)"
        yield Case("arguments", short or "an empty word", line, words, parts=parts)

    def read_only(folder: Path) -> None:
        (folder / "results").write_text("a file")

    yield Case("arguments", "results is a file", ("table1",), ("--output", "results"), read_only)
