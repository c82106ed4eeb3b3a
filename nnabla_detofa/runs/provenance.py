"""Provenance of a run: the code that computed it, and the checksums of its initial weights and its data."""

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
"""Files of which a finished run has one."""


def revision() -> str:
    """Return the commit of this package, or its version if it is not in a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(version.REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", "nnabla_detofa")  # the package may lie inside another project's repository
        changed = bool(git("status", "--porcelain", "--untracked-files=no", "--", "nnabla_detofa", "configs"))
        return f"commit {git('rev-parse', '--short=12', 'HEAD')}" + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"version {version.__version__}"


def given_weights(config: Config) -> dict[str, str]:
    """Return the digests of a config's weights files (supernet and path filter) by name; missing files are omitted."""
    named = [FilePath(name) for name in (config.network.weights, config.hparams.filter.weights) if name]
    return {str(file): _digest(file, *_state(file)) for file in named if file.is_file()}


def _state(file: FilePath) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=64)
def _digest(file: FilePath, *state: int) -> str:
    """Return the digest of a file's content, cached by its modification time and size (`state`)."""
    return files.digest(file.read_bytes())


def recorded(run: FilePath) -> dict:
    """Read the provenance that `record` wrote to a run's folder; it is empty for older runs.

    Returns:
        "code": list of revisions; "weights": digest of each weights file; "data": digest of the data, if known.

    Raises:
        UserError: provenance.json is damaged.
    """
    file = run / FILE
    if not file.exists():
        return {"code": [], "weights": {}}
    try:
        return result_files.provenance(read_json(file, "the run's provenance"))
    except UserError as error:
        raise UserError(
            f"{file} is damaged or unreadable ({error}): restore it, or remove it to continue without this record"
        ) from error


def record(run: FilePath, config: Config) -> None:
    """Write the provenance of a run that starts or resumes: the code and, at its start, its weights files and data.

    A finished run is not changed.

    Raises:
        UserError: an existing provenance.json is damaged.
    """
    if any((run / name).exists() for name in ENDS):
        return
    before, begun = recorded(run), (run / "seconds.json").exists()
    code = [UNKNOWN] if begun and not before["code"] else before["code"]
    code = code if code[-1:] == [revision()] else [*code, revision()]
    given = {} if (run / "origin.json").exists() else given_weights(config)  # in a fine-tuning, origin.json has the digest
    data = before.get("data") or (None if begun else content_digest(config.dataloader))
    found = {"code": code, "weights": given | before["weights"]} | ({"data": data} if data else {})
    files.write_json(run / FILE, found)


def inputs(config: Config) -> list[str]:
    """Return the digests of the weights and data that a run of the config would use now."""
    return [*given_weights(config).values(), content_digest(config.dataloader) or ""]


def changed_inputs(run: FilePath, config: Config) -> list[str]:
    """Return the config's weights files and data that differ from the record at the start of a folder's run."""
    before = recorded(run)
    weights = before["weights"]
    changed = [name for name, digest in given_weights(config).items() if weights.get(name, digest) != digest]
    if "data" in before and content_digest(config.dataloader) not in (None, before["data"]):
        changed.append(f"the data in {config.dataloader.root}")
    return changed


def check_inputs_unchanged(run: FilePath, config: Config) -> None:
    """Raise UserError if weights files or data have changed since the start of the run in a folder."""
    if changed := changed_inputs(run, config):
        raise UserError(
            f"{run} holds a run that began before {' and '.join(changed)} changed: "
            "restore the previous files, choose another -o, or pass --restart to discard that run"
        )


def code_of(run: FilePath) -> str:
    """Describe the code that computed a run: one commit, or several in order if it was resumed with other code."""
    return ", then ".join(recorded(run)["code"]) or UNKNOWN
