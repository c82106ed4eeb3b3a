"""What a run was made of besides its config: the code that computed it, and the weights and data that it began from."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path as FilePath

from ..common import files, version
from ..common.errors import UserError
from ..common.reading import read_json
from ..config import Config
from ..data.content import content_digest
from . import result_files

FILE = "provenance.json"
UNKNOWN = "code that was not recorded"
ENDS = ("summary.json", "finetuned.json")
"""Either says that a run has finished."""


def revision() -> str:
    """The commit that this is, or the version where this package is in no repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(version.REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", "nnabla_detofa")  # an environment may lie in another project's repository
        changed = bool(git("status", "--porcelain", "--untracked-files=no", "--", "nnabla_detofa", "configs"))
        return f"commit {git('rev-parse', '--short=12', 'HEAD')}" + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"version {version.__version__}"


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
    """Note in the folder of a run that is to begin or to go on: this code and, where it begins, its weights files and data."""
    if any((run / name).exists() for name in ENDS):
        return
    before, begun = recorded(run), (run / "seconds.json").exists()
    code = [UNKNOWN] if begun and not before["code"] else before["code"]
    code = code if code[-1:] == [revision()] else [*code, revision()]
    given = {} if (run / "origin.json").exists() else given_weights(config)  # that of a fine-tuning has the weights' digest
    data = before.get("data") or (None if begun else content_digest(config.dataloader))
    found = {"code": code, "weights": given | before["weights"]} | ({"data": data} if data else {})
    files.write_json(run / FILE, found)


def inputs(config: Config) -> list[str]:
    """Digests of what a run of the config would begin from now."""
    return [*given_weights(config).values(), content_digest(config.dataloader) or ""]


def changed_inputs(run: FilePath, config: Config) -> list[str]:
    """Weights files of the config, and its data, that are not what the run in a folder began from, as far as is recorded."""
    before = recorded(run)
    weights = before["weights"]
    changed = [name for name, digest in given_weights(config).items() if weights.get(name, digest) != digest]
    if "data" in before and content_digest(config.dataloader) not in (None, before["data"]):
        changed.append(f"the data in {config.dataloader.root}")
    return changed


def refuse_changed_inputs(run: FilePath, config: Config) -> None:
    """Raise UserError if the run in a folder began from other weights or data than there are now."""
    if changed := changed_inputs(run, config):
        raise UserError(
            f"{run} holds a run that began before {' and '.join(changed)} changed: "
            "put back what there was, take another -o, or --restart to lose that run"
        )


def code_of(run: FilePath) -> str:
    """The code that computed a run, in words: one commit, or those that went on with it, in their order."""
    return ", then ".join(recorded(run)["code"]) or UNKNOWN
