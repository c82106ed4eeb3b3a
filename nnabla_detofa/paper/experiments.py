"""The runs that the paper's tables and figures are made of: Algorithm 1 and what is changed in it, seed by seed.

A run that is there, finished, with an equal config, is used wherever it lies, unless it began from other contents of its
weights files or of its data, or had other mini-batches, as several processes make them where the config does not say; one that
was stopped goes on. Runs that have their first phases in common train them once: a branch starts with copies of what those
phases left, which gives the same bits as doing them again, since everything random comes from the seed and the phase's name.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, reduce
from pathlib import Path as FilePath

from .. import config as configs
from ..backend.launch import can_launch, handling
from ..common.errors import UserError
from ..common.files import write_json
from ..common.progress import ProgressBar
from ..common.reading import parse_json
from ..runs import provenance, result_files
from ..runs.lock import differences
from ..runs.run_folder import read_result
from ..training.mini_batch import kept_mini_batch, most_processes
from . import stored
from .profiles import RATIOS, DataSet, Profile

RUNS = FilePath("runs")


@dataclass(frozen=True)
class Experiment:
    """What one curve of a figure is about.

    Attributes:
        name: of its folders.
        title: of its curve.
        overrides: entries of the data set's config that it replaces; {fullnet} stands for `profiles.Pretraining.fullnet`,
            {longer} for the entries of `longer`.
    """

    name: str
    title: str
    overrides: tuple[str, ...] = ()

    @property
    def needs_fullnet(self) -> bool:
        return any("{fullnet}" in entry for entry in self.overrides)


def _pruning(strategy: str, path_pruning: str = "score", **ratios: float) -> tuple[str, ...]:
    prefix = "hparams.operation_pruning."
    return (
        f"{prefix}strategy={strategy}",
        f"hparams.path_pruning={path_pruning}",
        *(f"{'hparams.' if name == 'r_path' else prefix}{name}={ratio}" for name, ratio in ratios.items()),
    )


OURS = Experiment("detofa", "ours")
OFA = Experiment("ofa", "OFA (w/o PS)", ("args.runner=ofa",))
OFA_PS = Experiment("ofa-ps", "OFA (w/ PS)", ("args.runner=ofa_ps",))
COMPOFA = Experiment("compofa", "CompOFA*", ("args.runner=compofa",))
METHODS = (OFA_PS, OFA, COMPOFA, OURS)
"""Table 2 and Figure 5."""


def _pretrained(name: str, title: str, weights: str) -> tuple[Experiment, Experiment]:
    """OFA without and with progressive shrinking from other weights; the path filter that searches them is a new one."""
    start = (f"network.centernet_ofa_resnet50.weights={weights}", "hparams.filter.weights=null")
    return (
        Experiment(f"{name}-ofa", f"{title} (w/o PS)", ("args.runner=ofa", *start)),
        Experiment(f"{name}-ofa-ps", f"{title} (w/ PS)", ("args.runner=ofa_ps", *start)),
    )


PRETRAININGS = (
    replace(OFA, title="Supernet (w/o PS)"),
    replace(OFA_PS, title="Supernet (w/ PS)"),
    *_pretrained("fullnet", "Fullnet", "{fullnet}"),
    *_pretrained("scratch", "Scratch", "null"),
)
"""Figures 7 and A1: what the backbone starts from."""
STRATEGIES = (
    Experiment("operations-flops", "FLOPs", _pruning("flops")),
    Experiment("operations-flops-score-bucket", "FLOPs & score (per bucket)", _pruning("flops_score_bucket")),
    replace(OURS, title="FLOPs & score (all)"),
)
"""Figure 9: the strategies of operation pruning, path pruning as ever."""


def path_ratios(ratios: Sequence[float]) -> tuple[Experiment, ...]:
    """Figure 10, left: the share of paths that is pruned in each bucket; the paper's own is our method's run."""

    def of(ratio: float) -> Experiment:
        if ratio == RATIOS["path_ratios"]:
            return replace(OURS, title=f"r = {ratio:g}")
        pruning = _pruning("flops_score_all", r_path=ratio) if ratio else _pruning("flops_score_all", "none")
        return Experiment(f"paths-{ratio:g}", f"r = {ratio:g}", pruning)

    return tuple(map(of, ratios))


def operation_ratios(ratios: Sequence[float]) -> tuple[Experiment, ...]:
    """Figure 10, right: the share of operations that is pruned in each bucket, after the worst 10% of all; at 0 none goes."""

    def of(ratio: float) -> Experiment:
        if ratio == RATIOS["operation_ratios"]:
            return replace(OURS, title=f"r = {ratio:g}")
        pruning = _pruning("flops_score_all", r_op2=ratio) if ratio else _pruning("none")
        return Experiment(f"operations-{ratio:g}", f"r = {ratio:g}", pruning)

    return tuple(map(of, ratios))


PATH_RATIOS = path_ratios((0, 0.2, 0.25, 0.3, 0.4))
OPERATION_RATIOS = operation_ratios((0, 0.2, 0.3, 0.4))
"""The ratios of Figure 10 unless a profile names others."""
PATH_PRUNINGS = (
    replace(OFA, title="None"),
    Experiment("paths-uniform", "Prune (Uniform)", _pruning("none", "uniform")),
    replace(OPERATION_RATIOS[0], title="Prune (Score)"),
)
"""Figure A2: how paths are pruned, without operation pruning."""


def longer(config: configs.Config) -> tuple[str, ...]:
    """Entries that give a method of one schedule the steps of OFA with progressive shrinking, in the same proportions."""
    hparams, stages = config.hparams, 3
    return f"hparams.warmup_epochs={stages * hparams.warmup_epochs}", f"hparams.epochs={stages * hparams.epochs}"


UNIFORM_RESTARTS = Experiment(
    "uniform-restarts", "uniform paths, steps and restarts of PS", ("args.runner=ofa_ps", "hparams.shrinking_spaces=false")
)
UNIFORM_LONG = Experiment("uniform-long", "uniform paths, steps of PS, one schedule", ("args.runner=ofa", "{longer}"))
OURS_LONG = Experiment("detofa-long", "ours, steps of PS", ("{longer}",))
CONTROLS = (UNIFORM_RESTARTS, UNIFORM_LONG, OURS_LONG)
"""Beside the methods (ours, not in the paper): what more steps gain, which OFA with progressive shrinking has."""


@dataclass(frozen=True)
class SharedPhases:
    """Phases at the beginning of a run, and what they leave.

    Attributes:
        phases: their names.
        files: files and folders of the run's folder.
        runners: that begin so.
        blind_to: entries of the config (or their sections) that change nothing up to here.
    """

    phases: tuple[str, ...]
    files: tuple[str, ...]
    runners: tuple[str, ...]
    blind_to: tuple[str, ...]


UP_TO_FILTER = (
    "hparams.operation_pruning",
    "hparams.path_pruning",
    "hparams.r_path",
    "hparams.paths_per_operation",
    "hparams.threshold_paths",
    "hparams.heldout_paths_per_bucket",
    "hparams.search",
    "hparams.shrinking_sort",
    "hparams.shrinking_spaces",
)
UP_TO_PATHS = (*UP_TO_FILTER, "hparams.filter", "hparams.paths_per_bucket")
FULLNET_FILES = ("fullnet", "fullnet.json", "fullnet_detections.json")
SHARED = (
    SharedPhases(
        ("fullnet",),
        FULLNET_FILES,
        ("detofa", *configs.BASELINES),
        (*UP_TO_PATHS, "hparams.warmup_epochs", "hparams.epochs"),
    ),
    SharedPhases(("fullnet", "warm-up"), (*FULLNET_FILES, "warm_up"), ("detofa", "ofa"), UP_TO_PATHS),
    SharedPhases(
        ("fullnet", "warm-up", "paths", "path filter"),
        (*FULLNET_FILES, "warm_up", "paths.jsonl", "path_filter.h5"),
        ("detofa",),
        UP_TO_FILTER,
    ),
)
"""From the shortest beginning to the longest."""


@dataclass(frozen=True, eq=False)
class Run:
    """One experiment of a profile, on one data set, with one seed.

    Attributes:
        key: of the data set in the profile.
        overrides: entries of the config given on the command line; those of another data set's section do not count.
    """

    profile: Profile
    key: str
    experiment: Experiment
    seed: int
    overrides: tuple[str, ...] = ()

    @property
    def data_set(self) -> DataSet:
        return self.profile.data_sets[self.key]

    @cached_property
    def own_overrides(self) -> tuple[str, ...]:
        return self.profile.own_overrides(self.data_set, self.overrides)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The entries of the config that are replaced."""
        seed = () if self.seed == 0 else (f"args.seed={self.seed}",)
        fullnet = self.data_set.pretraining.fullnet
        own: list[str] = []
        for entry in self.experiment.overrides:
            if entry == "{longer}":
                own += longer(configs.load(self.data_set.config, self.own_overrides))
            else:
                own.append(entry.replace("{fullnet}", fullnet))
        return (*self.own_overrides, *own, *seed)

    @cached_property
    def config(self) -> configs.Config:
        return configs.load(self.data_set.config, self.arguments)

    @property
    def name(self) -> str:
        return f"{self.key}-{self.experiment.name}-{self.seed}{self.suffix}"

    @property
    def suffix(self) -> str:
        """Of the names of folders, so that replaced entries of the config do not meet the runs without them.

        Entries that change no result, such as args.workers, do not count.
        """
        telling = [entry for entry in self.own_overrides if not configs.without_effect(entry.partition("=")[0])]
        return f"-{hashlib.sha256(' '.join(telling).encode()).hexdigest()[:6]}" if telling else ""

    @property
    def usual_folder(self) -> FilePath:
        """The profile's own folder for it."""
        return profile_folder(self.profile) / self.name

    @cached_property
    def folder(self) -> FilePath:
        """Its folder: where it was begun, or where a finished run with an equal config lies, or else a new one.

        Where results are made from kept files alone, the folder that its archive is unpacked to.
        """
        if self.profile.stored:
            return stored.unpacked(stored.archive(self.profile.stored, self.name))
        own = self.usual_folder.with_name(self.usual_folder.name + self.variant)
        if not own.exists():
            for file in sorted([*RUNS.glob("*/config.json"), *RUNS.glob("profiles/*/*/config.json")]):
                if _is_finished(file.parent, self.config):
                    return file.parent
        return own

    @cached_property
    def variant(self) -> str:
        """Of the names of folders where the usual one holds a run of a config, weights or data as they were before a change."""
        usual = self.usual_folder
        if self.profile.stored:
            return ""
        if not (usual / "config.json").exists() or _is_of(usual, self.config):
            return ""
        inputs = [self.config.config_hash, *provenance.inputs(self.config)]
        return f"-{hashlib.sha256(' '.join(inputs).encode()).hexdigest()[:6]}"

    @property
    def finished(self) -> bool:
        """Has it run to the end?"""
        if self.profile.stored:  # what it began from need not be here
            return (self.folder / "summary.json").exists() and _hash(self.folder / "config.json") == self.config.config_hash
        return _is_finished(self.folder, self.config)

    @property
    def place(self) -> str:
        """Where a reader finds it: its folder, or its archive."""
        return str(stored.archive(self.profile.stored, self.name) if self.profile.stored else self.folder)

    @property
    def command(self) -> str:
        """What starts it, or goes on with it."""
        return shlex.join(["nnabla_nas", "-f", self.data_set.config, *self.arguments, "-o", str(self.folder)])


def profile_folder(profile: Profile) -> FilePath:
    """Where a profile's runs and studies are."""
    return RUNS / "profiles" / profile.name


def _is_finished(folder: FilePath, config: configs.Config) -> bool:
    """Does a folder hold the whole run of this config, from the weights that there are, with one process' mini-batches?"""
    return (folder / "summary.json").exists() and kept_mini_batch(folder) is None and _is_of(folder, config)


def _is_of(folder: FilePath, config: configs.Config) -> bool:
    """Is this the folder of a run of this config, from the weights and the data that there are?"""
    return _hash(folder / "config.json") == config.config_hash and not provenance.changed_inputs(folder, config)


def _hash(file: FilePath) -> str | None:
    """`Config.config_hash` of the config in a run's folder; None where it is none that we read."""
    try:
        content = parse_json(file.read_text())
        return configs.from_run(content, file.parent.name).config_hash if isinstance(content, dict) else None
    except (OSError, ValueError, UserError):
        return None


def shared_phases(one: configs.Config, other: configs.Config) -> SharedPhases | None:
    """The longest beginning that two runs have in common, or None."""
    differing = [key for key in differences(one.to_dict(), other.to_dict()) if not configs.without_effect(key)]

    def blind(shared: SharedPhases) -> bool:
        unseen = (*shared.blind_to, "args.runner")
        begin_so = {one.args.runner, other.args.runner} <= set(shared.runners)
        return begin_so and all(any(key == entry or key.startswith(entry + ".") for entry in unseen) for key in differing)

    return next((shared for shared in reversed(SHARED) if blind(shared)), None)


def branch(run: Run, trunks: Sequence[Run]) -> SharedPhases | None:
    """Begin a run's folder with what a finished run left of the phases that they have in common.

    Args:
        trunks: finished runs; the one with the longest common beginning is taken, of those whose files are still there.

    Returns:
        those phases; None where there are none, or the run's folder is there already.
    """
    records = ("seconds", "ledger")
    common = [
        (shared, trunk)
        for trunk in trunks
        if (shared := shared_phases(run.config, trunk.config))
        and all((trunk.folder / name).exists() for name in (*shared.files, *(f"{name}.json" for name in records)))
    ]
    if run.folder.exists() or not common:
        return None
    shared, trunk = max(common, key=lambda pair: len(pair[0].phases))
    seconds = read_result(trunk.folder, "seconds", result_files.seconds)
    ledger = read_result(trunk.folder, "ledger", result_files.ledger)
    ledger["phases"] = {phase: entry for phase, entry in ledger["phases"].items() if phase in shared.phases}
    fresh = run.folder.with_name(run.folder.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name in shared.files:
        source = trunk.folder / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, fresh / name)
    write_json(fresh / "seconds.json", {phase: seconds[phase] for phase in shared.phases if phase in seconds})
    write_json(fresh / "ledger.json", ledger)
    if (trunk.folder / provenance.FILE).exists():  # that code, and those weights, made the beginning
        shutil.copy(trunk.folder / provenance.FILE, fresh / provenance.FILE)
    write_json(fresh / "shared.json", {"from": str(trunk.folder), "phases": list(shared.phases)})
    write_json(fresh / "config.json", run.config.to_dict())
    os.replace(fresh, run.folder)
    return shared


def plan(profile: Profile, keys: Sequence[str], experiments: Sequence[Experiment], seeds: int, overrides) -> list[Run]:
    """The runs of these experiments, each once, whatever their titles; our own method first where runs are
    started, since others branch off it.

    Raises:
        UserError: the config, or an override, changes what experiments and seeds differ in, so that titles would be wrong.
    """
    once: dict[str, Experiment] = {}
    for experiment in (OURS, *experiments) if profile.starts_runs else experiments:
        once.setdefault(experiment.name, experiment)
    for key in profile.chosen(keys):
        _check_ours(Run(profile, key, OURS, 0, tuple(overrides)))
    return [
        Run(profile, key, experiment, seed, tuple(overrides))
        for experiment in once.values()
        for key in profile.chosen(keys)
        for seed in range(seeds)
    ]


def _check_ours(run: Run) -> None:
    """Raise UserError unless our method is set up as in the paper wherever experiments, or seeds, differ from it."""
    usual = {"args.runner": "detofa", "args.seed": 0}
    pruning = asdict(configs.DetofaHparams())
    for name in ("path_pruning", "r_path"):
        usual[f"hparams.{name}"] = pruning[name]
    for name, value in pruning["operation_pruning"].items():
        usual[f"hparams.operation_pruning.{name}"] = value
    for key, value in usual.items():
        got = reduce(getattr, key.split("."), run.config)
        if got != value:
            raise UserError(
                f"{key} must be {value} in {run.data_set.config} and what replaces its entries, since tables and figures vary "
                f"it themselves, got {got}"
            )


def ensure(runs: Sequence[Run], jobs: int, log: Callable[[str], None] = print, cores: int = 1) -> None:
    """Bring runs to their end: those that others branch off first, then the others, `jobs` at a time.

    Args:
        runs: as `plan` makes them.
        jobs: how many run side by side.
        cores: that they may take together.

    Raises:
        UserError: a run failed, or the profile does not start runs and some are missing.
    """
    missing = [run for run in runs if not run.finished]
    if not missing:
        return
    for run in missing:
        if run.variant:
            log(f"{run.usual_folder} stays: its config, weights or data are not those of now, which go to {run.folder}")
    profile = missing[0].profile
    if not profile.starts_runs:
        for run in missing:
            log(f"  {run.command}")
        raise UserError(
            f"the profile {profile.name} starts no runs, and {len(missing)} of {len(runs)} are missing: "
            "start those printed above"
        )
    for run in missing:
        if (mini := kept_mini_batch(run.folder)) is not None:
            raise UserError(
                f"{run.folder} holds a run of several processes with mini-batches of {mini}, which its config does not say: "
                "move it away, and start such runs with hparams.mini_batch"
            )
        source = run.data_set.pretraining
        if run.experiment.needs_fullnet and not FilePath(source.fullnet).is_file():
            raise UserError(
                f"{run.name} needs {source.fullnet}, weights of a classifier of which only the largest path was trained, which "
                f"are missing: {source.fullnet_command}"
            )
    minutes = sum(profile.minutes.get("branch" if _branches(run) else "whole run", 0) for run in missing)
    long = f"about {minutes:.0f} minutes on two cores" if minutes else f"the profile {profile.name} does not say how long"
    log(f"{len(missing)} of {len(runs)} runs are to be done, {long}: {_names(missing)}")
    with ProgressBar(total=len(missing), desc="runs", unit="run") as bar:
        for stage in (
            [run for run in missing if run.experiment == OURS],
            [run for run in missing if run.experiment != OURS],
        ):
            for run in _finishing(stage, runs, jobs, cores, bar.write):
                bar.update()
                bar.set_postfix_str(run.name)


def _branches(run: Run) -> bool:
    """Has it a beginning in common with our method's run?"""
    return run.experiment.name != OURS.name and shared_phases(run.config, replace(run, experiment=OURS).config) is not None


def _names(runs: Sequence[Run]) -> str:
    return ", ".join(run.name for run in runs)


def _finishing(
    runs: Sequence[Run], all_runs: Sequence[Run], jobs: int, cores: int, log: Callable[[str], None]
) -> Iterator[Run]:
    """Start the runs as processes, `jobs` at a time, and yield each that has finished.

    Args:
        all_runs: off which they may branch, once finished.
        cores: shared out over the runs that are side by side.

    Raises:
        UserError: one failed; the others are stopped, and go on another time.
    """
    waiting, started = list(runs), {}
    with _stopping_all(started) as stop:
        while waiting or started:
            while waiting and len(started) < jobs:
                run = waiting.pop(0)
                trunks = [trunk for trunk in all_runs if trunk.finished]
                share = max(1, cores // min(jobs, len(started) + 1 + len(waiting)))
                with stop.held():  # a process that is in no list would outlive us
                    started[run] = _start(run, share, trunks)
                log(f"{run.name} is running, its output is in {console(run)}")
            for run, process in list(started.items()):
                if process.poll() is not None:
                    del started[run]
                    if process.returncode:
                        raise UserError(f"{run.command} ended with status {process.returncode}: {_last_words(run)}")
                    yield run
            time.sleep(0.2)


def console(run: Run) -> FilePath:
    """The file that takes what a run prints."""
    return profile_folder(run.profile) / f"{run.name}.txt"


def _last_words(run: Run) -> str:
    """The last line that a run printed; mpirun prints some more about it, between rows of dashes."""
    lines = re.sub(r"^-{20,}\n.*?^-{20,}$", "", console(run).read_text(errors="replace"), flags=re.DOTALL | re.MULTILINE)
    return (lines.strip() or "no output").splitlines()[-1].removeprefix("error: ")


def _start(run: Run, cores: int, trunks: Sequence[Run] = ()) -> subprocess.Popen:
    """Start a run, or go on with it, on so many cores; a new one branches off `trunks` where it can."""
    file = console(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nnabla_detofa", "run", "-f", run.data_set.config, *run.arguments]
    processes = most_processes(run.config, cores, run.folder) if cores > 1 and can_launch() else 1
    command += ["--processes", str(processes)] if processes > 1 else [f"args.evaluation_processes={cores}"]
    command += ["-o", str(run.folder)]
    with open(file, "a") as output:
        try:  # the process inherits the lock with its output: it holds as long as that runs, also where we were killed
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run.name} is being run by another process, see {file}: wait for its end, or stop it") from None
        branch(run, trunks)
        # a session of its own: stopping it is our business
        return subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True)


@dataclass
class _Stop:
    """A signal upon which the block of `_stopping_all` ends, but not inside `held`."""

    requested: bool = False
    holding: bool = False

    def hear(self, number: int, frame) -> None:
        self.requested = True
        if not self.holding:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
        if self.requested:
            raise KeyboardInterrupt


@contextmanager
def _stopping_all(started: dict[Run, subprocess.Popen]) -> Iterator[_Stop]:
    """Whatever ends the block, also a signal, the processes save what they have and end first."""
    stop = _Stop()
    with handling(stop.hear):
        try:
            yield stop
        finally:
            stop.holding = True  # until all have been told
            for process in started.values():
                process.send_signal(signal.SIGINT)
            stop.holding = False
            for process in started.values():
                process.wait()
