"""The commands and blocks of code in README.md, docs/, the configs and each `--help`, and whether each could work here."""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nnabla_detofa import config as configs
from nnabla_detofa.cli import program as cli
from nnabla_detofa.common.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md") if file.parent.name != "reference"),
)
PROGRAMS = ("detofa", "nnabla_nas")
TOOL = r"\.venv/bin/(detofa|nnabla_nas|python -m nnabla_detofa) "
STARTS = ("make ", ".venv/bin/", ".venv-export/bin/", "detofa ", "nnabla_nas ", "python ", "mpirun ", "pip ", "PYTHONPATH=")
"""How an inline piece of code begins that is a command."""
WRITTEN = {"mydata.yaml": "configs/bccd_detofa.json", "digits_detofa": "configs/digits_detofa.json"}
"""A config that a command of the pages writes, or a shipped one by name -> a config like it."""


class Fault(Exception):
    """Why a command or a block is wrong."""


@dataclass(frozen=True)
class Command:
    """A command, or all Python blocks of a page, and where it stands."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place:<38} {self.text}"


# --- What there is ----------------------------------------------------------------------------------------------------


def blocks(page: str) -> list[tuple[int, str, str]]:
    """(first line, language, text) of each fenced block, or of each code cell of a notebook."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        return [(1, "python", "".join(cell["source"])) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    fenced = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, found.start()) + 2, found[1], found[2]) for found in fenced]


def spans(page: str) -> list[tuple[int, str]]:
    """(line, text) of each inline piece of code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, found.start()) + 1, found[1]) for found in re.finditer(r"`([^`]+)`", text)]


def page_commands(page: str) -> list[Command]:
    """The shell lines of a page and its inline commands, in their order."""
    found = [(line, text) for line, text in spans(page) if text.startswith(STARTS)]
    for first, language, text in blocks(page):
        if language == "sh":
            text = re.sub(r"\\\n *", "", text)  # a command may go on in the next line
            found += [(first + index, line) for index, line in enumerate(text.splitlines()) if shlex.split(line, comments=True)]
    return [Command(f"{page}:{line}", text.split(" #")[0].strip()) for line, text in sorted(found)]


def config_commands(file: str) -> list[Command]:
    """The commands in a config's `about`, or in what a profile `needs`."""
    content = json.loads((ROOT / file).read_text(encoding="utf-8"))
    texts = [content["about"]] if isinstance(content.get("about"), str) else content.get("about", [])
    texts = [piece.strip() for text in texts for piece in re.split(r"[();,]|command:|after:| does both", text)]
    for data_set in content.get("data_sets", {}).values():
        texts += [need["command"] for need in data_set.get("needs", [])]
    return [Command(file, text) for text in texts if text.startswith(STARTS)]


def help_commands() -> list[Command]:
    """The examples of each subcommand's `--help`."""
    return [
        Command(f"{' '.join(place)} --help", f"detofa {' '.join(place)} {example}".strip())
        for place, command in cli.all_commands()
        for example in command.examples
    ]


def config_files() -> list[str]:
    folders = ("configs", "configs/baselines", "configs/profiles")
    return [
        f"{folder}/{file.name}"
        for folder in folders
        for file in sorted((ROOT / folder).glob("*.json"))
        if file.stem != "schema"
    ]


def everything() -> list[Command]:
    """All commands, and the Python code of each page after its commands, in the order in which they are run."""
    found = []
    for page in PAGES:
        found += page_commands(page)
        if any(language == "python" for _, language, _ in blocks(page)):
            found.append(Command(page, "its Python code"))
    found += [Command(str(file.relative_to(ROOT)), "its Python code") for file in sorted((ROOT / "docs").rglob("*.ipynb"))]
    for file in config_files():
        found += config_commands(file)
    return found + help_commands()


# --- Checking without running -----------------------------------------------------------------------------------------


def check(command: Command) -> None:
    """Raise Fault where a command could not work: its program, files, options, and the entries of its config."""
    if command.text == "its Python code":
        for line, language, text in blocks(command.place):
            if language == "python":
                compile("\n" * (line - 1) + text, command.place, "exec")
        return
    _check_words(shlex.split(command.text))


def _check_words(words: list[str]) -> None:
    program, *rest = words
    if program.startswith("PYTHONPATH="):
        with importable(ROOT / program.partition("=")[2]):
            return _check_words(rest)
    if program == "make":
        _check_make(rest)
    elif program in ("mpirun", ".venv/bin/mpirun"):
        if rest[0] != "-n" or not rest[1].isdigit():
            raise Fault("mpirun must begin with -n and a number")
        _check_words(rest[2:])
    elif program.removeprefix(".venv/bin/") in PROGRAMS:
        _check_tool(rest)
    elif program in ("python", ".venv/bin/python") and rest[:2] == ["-m", "nnabla_detofa"]:
        _check_tool(rest[2:])
    elif program in ("python", ".venv/bin/python", ".venv-export/bin/python") and re.match(
        r"(examples|tests)/\w+\.py", rest[0]
    ):
        if not (ROOT / rest[0]).exists():
            raise Fault(f"there is no {rest[0]}")
    elif program in ("pip", ".venv/bin/pip") and rest[0] == "install":
        _check_pip(rest[1:])
    elif program == "pip" and rest[0] == "wheel" and rest[-1] == ".":
        pass
    else:
        raise Fault(f"{program} is a program that this check does not know")


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let modules of a folder be imported, as PYTHONPATH does."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def place_and_arguments(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The command that the words after the program's name begin with, and its arguments."""
    return cli.find(["train", *words] if words and words[0].startswith("-") else words or [""])


def _check_tool(words: list[str]) -> None:
    if not words:  # the program is only named
        return
    try:
        place, rest = place_and_arguments(words)
        if rest == ["--help"]:
            return
        arguments = cli.parsed("detofa", place, rest)
        if file := getattr(arguments, "file", None):
            configs.load(ROOT / WRITTEN.get(file, file), arguments.overrides)
        if place == ("paper", "reproduce"):
            _check_reproduce(arguments)
    except UserError as error:
        raise Fault(str(error)) from None


def _check_reproduce(arguments: argparse.Namespace) -> None:
    from nnabla_detofa.cli.paper import expanded
    from nnabla_detofa.paper.profiles import load

    profile = load(str(ROOT / "configs/profiles" / f"{arguments.profile}.json"))
    expanded(arguments.targets)
    for text in arguments.set:
        for data_set in profile.data_sets.values():
            configs.load(ROOT / data_set.config, [text])


def _check_make(words: list[str]) -> None:
    for line in recipe(words):
        if re.match(TOOL, line):
            _check_words(shlex.split(line))


@functools.cache
def _recipe(words: tuple[str, ...]) -> tuple[str, ...]:
    variables = [word for word in words if "=" in word]
    targets = [word for word in words if "=" not in word]
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    if unknown := [target for target in targets if target not in known]:
        raise Fault(f"the Makefile has no target {', '.join(unknown)}")
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "-n", *targets, *variables], cwd=ROOT, env=outside, capture_output=True, text=True)
    if done.returncode:
        raise Fault(done.stderr.strip())
    setting = dict(word.split("=", 1) for word in variables).get("SET", "")
    return tuple(done.stdout.replace("\\\n", " ").replace('"$SET"', shlex.quote(setting)).splitlines())


def recipe(words: list[str]) -> list[str]:
    """The lines that make would run."""
    return list(_recipe(tuple(words)))


def _check_pip(words: list[str]) -> None:
    """Extras are those of setup.py, and a package of NNabla has the version of the one that is locked."""
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for word in words:
        if "nnabla" in word or "[" in word:
            extra = re.fullmatch(r"(?:nnabla-detofa|\.)\[(\w+)\]", word)
            if f'"{extra[1]}": [' not in setup if extra else f'"{word}"' not in setup:
                raise Fault(f"setup.py knows no {word}")
        elif not word.startswith("-") and word not in (".", "dist/*.whl") and not (ROOT / word).exists():
            raise Fault(f"there is no {word}")
