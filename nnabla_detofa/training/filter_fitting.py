"""Path filters of a run: construction from a config's section `hparams.filter`, and fitting to evaluated paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..common.errors import UserError
from ..config import Filter
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.fitting import FitResult, fit, fit_options, transfer
from ..path_filter.model import PathFilter, PathScorer
from ..path_filter.tokens import Tokenizer
from ..runs.phases import slug
from ..space.geometry import Geometry

if TYPE_CHECKING:
    from .runner import SupernetRunner

TRANSFERRED_SETTINGS = ("dim", "heads", "layers", "feed_forward", "stem_tokens", "block_encoding", "encoding", "pooling")
"""Settings in which a pre-trained path filter must match the filter that starts from its weights."""
FILTER_SETTINGS = (*TRANSFERRED_SETTINGS, "linear_skip", "ensemble")


def new_filter(options: Filter, buckets: int, geometry: Geometry, rng: np.random.Generator) -> PathFilter:
    """Create a path filter with weights from `options.weights`, or with random weights if no file is given.

    Args:
        options: settings of the filter.
        buckets: number of FLOPs buckets.
        geometry: geometry of the supernet.
        rng: random generator of the weights.

    Raises:
        UserError: see `given_filter`.
    """
    if options.weights:
        return given_filter(options, buckets, geometry)
    return PathFilter(geometry, **_settings(options, buckets), rng=rng)


def given_filter(options: Filter, buckets: int, geometry: Geometry) -> PathFilter:
    """Load the path filter in the file `options.weights`.

    Raises:
        UserError: the file cannot be read, or its filter has other settings or belongs to another search space.
    """
    assert options.weights is not None
    settings = _settings(options, buckets)
    expected = {key: settings[key] for key in (*TRANSFERRED_SETTINGS, "buckets")}
    loaded = PathFilter.load(options.weights, type(geometry), **expected)
    ours, theirs = Tokenizer(geometry, options.stem_tokens), loaded.tokenizer
    if ours.vocabulary != theirs.vocabulary or ours.blocks.tolist() != theirs.blocks.tolist():
        raise UserError(f"the path filter in {options.weights} was trained for another search space than this run's")
    if loaded.settings["linear_skip"] and not options.linear_skip:
        raise UserError(
            f"the path filter in {options.weights} has a linear skip, without which its other weights rank nothing: set "
            "hparams.filter.linear_skip=true, or pre-train a filter without one"
        )
    return loaded.extended(options.ensemble, options.linear_skip)


def _settings(options: Filter, buckets: int) -> dict:
    """Return the arguments of `PathFilter` other than the geometry and the generator."""
    return {key: getattr(options, key) for key in FILTER_SETTINGS} | {"buckets": buckets}


def fit_filter(
    run: SupernetRunner, name: str, start: PathFilter, paths: EvaluatedPaths, transferred: bool = False
) -> PathScorer:
    """Fit a copy of a path filter to evaluated paths (Eq. 5 and 6), and save it as <name>.h5 in the folder of the run.

    If the file exists, the filter is loaded from it.

    Args:
        run: run that the filter belongs to.
        name: name of the phase.
        start: path filter to copy.
        paths: evaluated paths.
        transferred: `start` was fitted to paths of another supernet, see `fitting.transfer`.

    Returns:
        The fitted filter as a function of paths.
    """
    file, fitted = run.folder / f"{slug(name)}.h5", start.copy()

    def begin() -> tuple[bool, dict[str, np.ndarray]]:
        if file.exists():
            try:
                return True, PathFilter.load(file, type(start.tokenizer.geometry)).get_weights()
            except UserError as error:
                raise UserError(f"{error}; remove {file} to fit the path filter again") from error
        if transferred:
            how = transfer(fitted, paths.batch, paths.buckets, paths.losses, run.rng(f"{name}, fresh weights"))
            run.log(f"{name}: {how}")
        return False, fitted.get_weights()

    with run.phase(name):
        done, weights = run.comm.once(begin)
        fitted.set_weights(weights)
        if not done:
            _log_results(run, name, _fit(run, name, fitted, paths, transferred))
            run.comm.once(lambda: fitted.save(file))
    return run.scorer(fitted)


def _fit(
    run: SupernetRunner, name: str, path_filter: PathFilter, paths: EvaluatedPaths, transferred: bool
) -> Sequence[FitResult]:
    """Fit the members of a path filter, distributed among the ranks, with a progress bar of this rank's members."""
    options, own = run.hparams.filter, -(-len(path_filter.members) // run.comm.n_procs)
    with run.log.progress(name, own * options.epochs, unit="epoch") as bar:

        def on_epoch(member: int, epoch: int, train_loss: float, validation_loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{train_loss:.3f}", validation=f"{validation_loss:.3f}")
            run.pause(alone=True)

        data = paths.batch, paths.buckets, paths.losses
        return fit(path_filter, *data, run.rng(name), fit_options(options), on_epoch, transferred, run.comm.map)


def _log_results(run: SupernetRunner, name: str, results: Sequence[FitResult]) -> None:
    """Log the best epoch of each member, and write the curves of its losses to TensorBoard."""
    for number, result in enumerate(results, 1):
        curve = name if len(results) == 1 else f"{name}, member {number}"
        for epoch, (train_loss, validation_loss) in enumerate(zip(result.train_losses, result.validation_losses)):
            if epoch:
                run.log.scalar(f"pair loss/{curve}", train_loss, epoch)
                run.log.scalar(f"pair loss on validation paths/{curve}", validation_loss, epoch)
        member = f", member {number}" if len(results) > 1 else ""
        losses, best = result.validation_losses, result.best_epoch
        factor = f"; transferred logits are multiplied by {result.kept:.3g}" if result.kept != 1 else ""
        run.log(
            f"{name}{member}: best epoch {best} of {len(losses) - 1}, validation loss {losses[best]:.4f} "
            f"(before fitting: {losses[0]:.4f}){factor}"
        )
