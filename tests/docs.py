"""Every command and block of code in README.md, docs/, the configs and each `--help`, run or checked as far as it can be here.

    python tests/docs.py [WORD ...] [--check] [--list] [-v]

The commands are run in the order of their pages, in a folder that looks like a checkout after `make demo`: without a finished
runs/demo a tiny run of the same config stands in for it, and data/digits has only 48 images. Training is made tiny by what is
appended to its command (`TINY`), and what cannot be run is parsed by the program's own parsers, and its config is loaded
(`NOT_RUN` says why). Prints a line for each command, and exits with status 1 if one failed.

WORD: only commands that contain one of these words, together with their places ("README.md:5", "search --help").
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from documented import PROGRAMS, ROOT, TOOL, Command, Fault, blocks, check, everything, place_and_arguments, recipe

TINY = (
    "args.context=cpu args.device_id=0 args.workers=0 args.evaluation_processes=1 hparams.batch_size=8 hparams.bn_images=8 "
    "hparams.bn_batch=8 hparams.val_images=8 hparams.filter.epochs=1 optimizer.train.warmup_steps=0"
)
TINY_DETECTION = (
    f"{TINY} hparams.fullnet_epochs=1 hparams.warmup_epochs=1 hparams.epochs=1 hparams.paths_per_bucket=8 "
    "hparams.heldout_paths_per_bucket=0 hparams.paths_per_operation=2 hparams.threshold_paths=40 "
    "hparams.search.generations=1 hparams.search.population=4"
)
TINY_PRETRAINING = f"{TINY} hparams.fullnet_epochs=1 hparams.epochs=1 hparams.paths=40"
MORE = {
    "evaluate-paths": "--per-bucket 1 --images 8 --bn-images 8",
    "image-count-study": "--per-bucket 2 --images 16 --bn-images 64",
    "measure-latency": "--repeats 2 --paths 2",
    "finetune": "--epochs 1",
    "init": "--force",
    "search": "--generations 5",
}
"""Subcommand -> what is appended to make it short; the last of an option that is given twice counts."""
STANDS_FOR = {"MYDATA": "data/cells", "MYYOLO": "data/yolo", "FOLDER": "data/cells", "15ms": "10000ms"}
"""What the reader replaces -> a VOC tree of 48 images with bccd_detofa.json's classes; a bound that any machine keeps."""
NOT_RUN = {
    r"/(voc|coco)_|imagenet_pretrain|/data/VOCdevkit": "the paper's data and hours",
    r"import-ofa": "needs PyTorch and a checkpoint",
    r"(reproduce|paper) (?!results|page|table1)": "minutes to hours of runs",
    r"runs/digits_ofa": "needs a baseline's run",
    r"runs/profiles/": "needs a profile's run",
}
"""What a command contains -> why it is only parsed, with its config loaded."""
DRY = r"baselines/|digits_pretrain_"
"""Configs that are tried with `--dry-run`: a run of each would be like those that are made."""
MISSING = r"(doctor|data check) (-f )?configs/voc|page --profile bccd"
"""Commands that must end with status 2: what they need is not here."""
RUN_TARGETS = ("help", "report", "table1", "tableA1", "tableA2")
"""Targets of make whose lines are run; of the others they are parsed."""
GIVEN = {"docs/guide/weights.md": "import nnabla as nn; x = nn.Variable((1, 3, 64, 64))"}
"""Page -> what its Python code takes as given."""
LIMIT = 600
"""Seconds of a command."""


def write_yolo(voc: Path, root: Path) -> None:
    """A data set in YOLO's layout of images of a VOC tree, each with one box in the middle."""
    for split in ("train", "val", "test"):
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for name in (voc / "ImageSets/Main" / f"{split}.txt").read_text().split():
            shutil.copy(voc / "JPEGImages" / f"{name}.jpg", images)
            (labels / f"{name}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\ntest: images/test\nnames: [thing]\n")


def folder_like_a_checkout(folder: Path) -> Iterator[Command]:
    """Fill a folder with what a checkout has after `make demo`; yields what must still be run in it."""
    from nnabla_detofa.data.digits import write_digits

    (folder / ".venv").symlink_to(sys.prefix)
    if (ROOT / ".venv-export").exists():
        (folder / ".venv-export").symlink_to(ROOT / ".venv-export")
    shutil.copytree(ROOT / "configs", folder / "configs")  # `export-weights` writes there
    for name in ("docs", "examples", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("demo", "study"):
        shutil.copytree(ROOT / "results" / name, folder / "results" / name)
    (folder / "runs").mkdir()
    write_digits(folder / "data/digits", train=24, val=16, test=8, crops_train=64, crops_val=32)
    for name in ("cells", "digits_400"):
        shutil.copytree(folder / "data/digits", folder / "data" / name)
    classes = json.loads((ROOT / "configs/bccd_detofa.json").read_text())["dataloader"]["voc"]["classes"]
    for file in (folder / "data/cells/Annotations").iterdir():
        text = re.sub(r"<name>(\d)</name>", lambda name: f"<name>{classes[int(name[1]) % 3]}</name>", file.read_text())
        file.write_text(text)
    write_yolo(folder / "data/digits", folder / "data/yolo")
    (folder / "images").mkdir()
    for place in ("image.jpg", "images"):
        shutil.copy(folder / "data/digits/JPEGImages/test_00003.jpg", folder / place)
    shutil.copy(ROOT / "configs/weights/digits_supernet.h5", folder / "ofa.h5")
    if (ROOT / "runs/demo/summary.json").exists():
        shutil.copytree(ROOT / "runs/demo", folder / "runs/demo")
    else:
        yield Command("instead of make demo", ".venv/bin/nnabla_nas -f configs/digits_detofa.json -o runs/demo")


def to_run(command: Command) -> tuple[str, str]:
    """(what is given to the shell, ""), or ("", why it is not run)."""
    text = command.text
    if text == "its Python code":
        return shlex.join([".venv/bin/python", str(ROOT / "tests/docs.py"), "--python", command.place]), ""
    words = shlex.split(text)
    if text.removeprefix(".venv/bin/") in (*PROGRAMS, "python -m nnabla_detofa"):
        return "", "only names the program"
    if words[0] == "make":
        if set(words[1:]) & set(RUN_TARGETS) and not set(words[1:]) & {"PROFILE=bccd", "PROFILE=paper"}:
            lines = [line for line in recipe(words[1:]) if re.match(rf"{TOOL}(?!data digits)|sed ", line)]
            return "\n".join(["set -e", *lines]), ""
        return "", "make -n, and its lines are parsed"
    if words[0].endswith("pip"):
        return "", "the names are looked up in setup.py"
    if words[0].startswith(".venv-export") and not (ROOT / ".venv-export").exists():
        return "", "needs make setup-export"
    if any(word.endswith(".onnx") for word in words) and not (ROOT / ".venv-export").exists():
        return "", "needs make setup-export"
    if ("--processes" in words or words[0].endswith("mpirun")) and not importlib.util.find_spec("mpi4py"):
        return "", "needs mpi4py: make setup"
    if "--dry-run" not in words and not re.search(MISSING, text):
        for pattern, reason in NOT_RUN.items():
            if re.search(pattern, text):
                return "", reason
    text = re.sub(r"(detofa train .*)-o runs/demo\b", r"\1-o runs/demo_again", text)  # a finished run of another config
    for word, meant in STANDS_FOR.items():
        text = re.sub(rf"\b{word}\b", meant, text)
    if command.place.endswith("--help"):  # what they write must not go where the pages' commands wrote
        text = text.replace(" -o runs/", " -o runs/of_help_")
        text += " -o runs/of_help" if words[1] == "train" and "--dry-run" not in words else ""
    text = re.sub(rf"^(PYTHONPATH=\S+ )?({'|'.join(PROGRAMS)}|python|mpirun) ", r"\1.venv/bin/\2 ", text)
    text = re.sub(rf"^(\S*mpirun .*?) ({'|'.join(PROGRAMS)}) ", r"\1 .venv/bin/\2 ", text)
    return " ".join([text, *_shorter(shlex.split(re.sub(r"^PYTHONPATH=\S+ ", "", text)))]), ""


def _shorter(words: list[str]) -> list[str]:
    """What is appended to make a command short."""
    if any(re.match(r"examples/\w+\.py", word) for word in words) or "--help" in words:
        return []
    few = ["optimizer.train.warmup_steps=0"] if re.search("digits|cells", " ".join(words)) else []  # 48 images make few steps
    if "--dry-run" in words:
        return few
    if re.search(DRY, " ".join(words)):
        return ["--dry-run", *few]
    tool = re.match(rf"({TOOL})|\.venv/bin/mpirun .*?({TOOL})", shlex.join(words))
    place, _ = place_and_arguments(shlex.split(shlex.join(words)[tool.end() :])) if tool else (("make",), [])
    if place == ("data", "digits"):
        root = words[words.index("--root") + 1] if "--root" in words else "data/digits"
        return ["--root", f"{root}_made"]  # the folder itself has the 48 images
    if place != ("train",):
        return shlex.split(MORE.get(place[-1], ""))
    if "pretrain" in " ".join(words):
        return shlex.split(TINY_PRETRAINING)
    cells = re.search(r"configs/bccd_(coco)?|mydata", " ".join(words))
    smaller = [f"dataloader.{cells[1] or 'voc'}.image_size=112"] if cells else []
    return [*shlex.split(TINY_DETECTION), *smaller]


def run_python(page: str) -> None:
    """Run all Python blocks of a page, one after the other, as one program."""
    names: dict = {"__name__": "__main__"}
    exec(GIVEN.get(page, ""), names)
    for line, language, text in blocks(page):
        if language == "python":
            exec(compile("\n" * (line - 1) + text, ROOT / page, "exec", dont_inherit=True), names)


def run(command: Command, folder: Path) -> tuple[str, str]:
    """(state, what was printed or why it was not run) of one command; states are run, checked and failed."""
    try:
        check(command)
        text, reason = to_run(command)
    except (Fault, SyntaxError) as fault:
        return "failed", str(fault)
    if reason:
        return "checked", reason
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(["bash", "-c", text], cwd=folder, env=environment, capture_output=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return "failed", f"more than {LIMIT} seconds: {text}"
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    said = re.sub(r"[^\n]*\r", "", said)  # progress bars
    if done.returncode != (2 if re.search(MISSING, text) else 0):
        return "failed", f"status {done.returncode}: {text}\n{said[-3000:]}"
    return "run", said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="only commands that contain one of these")
    parser.add_argument("--check", action="store_true", help="run nothing")
    parser.add_argument("--list", action="store_true", help="print the commands and what each would become")
    parser.add_argument("-v", "--verbose", action="store_true", help="print what the commands print")
    parser.add_argument("--python", metavar="PAGE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.python:
        run_python(args.python)
        return 0
    commands = [item for item in everything() if not args.words or any(word in str(item) for word in args.words)]
    if args.list:
        for command in commands:
            text, reason = to_run(command)
            print(f"{command}\n    {text or f'not run: {reason}'}")
        return 0
    states: Counter = Counter()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        if not args.check:
            commands = [*folder_like_a_checkout(folder), *commands]
        for number, command in enumerate(commands, 1):
            begun = time.monotonic()
            if args.check:
                try:
                    check(command)
                    state, said = "checked", ""
                except (Fault, SyntaxError) as fault:
                    state, said = "failed", str(fault)
            else:
                state, said = run(command, folder)
            states[state] += 1
            why = f" ({said})" if state == "checked" and said else ""
            print(f"[{number:>3}/{len(commands)}] {state:<8}{time.monotonic() - begun:>6.1f} s  {command}{why}", flush=True)
            if said and (state == "failed" or args.verbose and state == "run"):
                print("    " + said.replace("\n", "\n    "), flush=True)
    counts = ", ".join(f"{states[state]} {state}" for state in ("run", "checked", "failed"))
    busy = os.times()
    cpu = busy.user + busy.system + busy.children_user + busy.children_system
    print(f"{len(commands)} commands: {counts}; {time.monotonic() - start:.0f} seconds, {cpu:.0f} of a core")
    return 1 if states["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
