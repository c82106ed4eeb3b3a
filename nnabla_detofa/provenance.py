"""What a run was made of besides its config: the code that computed it, and the weights files that it began from."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path as FilePath

from . import __version__, files, result_files
from .config import Config
from .errors import UserError
from .reading import read_json

FILE = "provenance.json"
UNKNOWN = "code that was not recorded"
ENDS = ("summary.json", "finetuned.json")
"""Either says that a run has finished."""


def revision() -> str:
    """The commit that this is, or the version where this package is in no repository."""
    here = FilePath(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", str(here))  # an environment may lie in another project's repository
        changed = bool(git("status", "--porcelain", "--untracked-files=no", "--", "nnabla_detofa", "configs"))
        return f"commit {git('rev-parse', '--short=12', 'HEAD')}" + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"


def given_weights(config: Config) -> dict[str, str]:
    """Weights file that a config names, of the supernet or of the path filter, -> its digest; without those that are gone."""
    named = [FilePath(name) for name in (config.network.weights, config.hparams.filter.weights) if name]
    return {str(file): _digest(file, *_state(file)) for file in named if file.is_file()}


def _state(file: FilePath) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=64)
def _digest(file: FilePath, *state: int) -> str:
    """Of a file's content, read again only where its time or its size is another."""
    return files.digest(file.read_bytes())


def recorded(run: FilePath) -> dict:
    """What `record` left in a run's folder; of an older run it knows nothing.

    Raises:
        UserError: its file is damaged.
    """
    file = run / FILE
    if not file.exists():
        return {"code": [], "weights": {}}
    content = read_json(file, "the run's provenance")
    try:
        return result_files.provenance(content)
    except UserError as error:
        raise UserError(f"{file} is damaged ({error}): remove it to go on without what it says") from error


def record(run: FilePath, config: Config) -> None:
    """Note in the folder of a run that is to begin or to go on: this code and, where not noted yet, its weights files."""
    if any((run / name).exists() for name in ENDS):
        return
    before = recorded(run)
    begun_unknown = not before["code"] and (run / "seconds.json").exists()
    code = [UNKNOWN] if begun_unknown else before["code"]
    code = code if code[-1:] == [revision()] else [*code, revision()]
    given = {} if (run / "origin.json").exists() else given_weights(config)  # that of a fine-tuning has the weights' digest
    files.write_json(run / FILE, {"code": code, "weights": given | before["weights"]})


def changed_weights(run: FilePath, config: Config) -> list[str]:
    """Weights files of the config that are not what the run in a folder began from, as far as is recorded."""
    before = recorded(run)["weights"]
    return [name for name, digest in given_weights(config).items() if before.get(name, digest) != digest]


def refuse_changed_weights(run: FilePath, config: Config) -> None:
    """Raise UserError if the run in a folder began from other contents of a weights file than there are now."""
    if changed := changed_weights(run, config):
        raise UserError(
            f"{run} holds a run that began from other weights than {' and '.join(changed)} now holds: "
            "put those back, take another -o, or --restart to lose that run"
        )


def code_of(run: FilePath) -> str:
    """The code that computed a run, in words: one commit, or those that went on with it, in their order."""
    return ", then ".join(recorded(run)["code"]) or UNKNOWN
