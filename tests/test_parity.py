"""The table of `make parity`: what counts as over the limit, and that it is reported."""

import numpy as np
import parity
import pytest
from parity import Check, failed, table


def test_errors_by_hand():
    absolute, relative = (Check.of("x", [1.0, -4.0], [1.0, -4.5], 0.2, relative) for relative in (False, True))
    assert (absolute.reference, absolute.ours, absolute.error, absolute.ok) == (-4, -4.5, 0.5, False)
    assert (relative.error, relative.ok) == (0.125, True)
    assert not Check.of("x", [1.0, 2.0], [np.nan, 2.0], 1).ok
    assert failed([absolute, relative]) == [absolute]
    with pytest.raises(ValueError, match="shape"):
        Check.of("x", [1.0], [1.0, 1.0], 0)
    with pytest.raises(ValueError, match="nothing was compared"):
        failed([])


def test_one_failure_among_many_shows_and_is_the_exit_status(monkeypatch, capsys):
    checks = [Check.of("x", 1, 1, 0.1), Check.of("x", 1, np.nan, 0.1), Check.of("x", 1, 3, 0.1), Check.of("y", 2, 2, 0)]
    assert table(checks).splitlines()[1].split() == ["x", "3", "1", "nan", "nan", "1e-01", "absolute", "NO"]
    assert table(checks).splitlines()[2].split() == ["y", "1", "2", "2", "0.0e+00", "equal", "yes"]
    monkeypatch.setattr(parity, "all_checks", lambda: iter(checks))
    assert parity.main() == 1
    assert "4 comparisons" in capsys.readouterr().out
    monkeypatch.setattr(parity, "all_checks", lambda: iter(checks[:1]))
    assert parity.main() == 0
