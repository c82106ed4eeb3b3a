"""Figures of AP over budgets: their sentences by hand, and whose fullnet is whose."""

import matplotlib.pyplot as plt
import numpy as np

from nnabla_detofa.paper.budget_curves import Curve, by_fullnet
from nnabla_detofa.paper.budget_figures import colors_of, draw, fullnets, gains, ranking, table


def curve(title: str, ap, fullnet) -> Curve:
    ap = np.array(ap, float)
    return Curve(title, np.array([1e9, 2e9]), np.full(ap.shape, 10**9), ap, np.array(fullnet, float))


ONE = curve("OFA", [[50, 60], [54, 64]], [70, 72])  # means 55 and 59
OURS = curve("ours", [[52, 62], [54, 66]], [70, 72])  # means 57 and 60
SCRATCH = curve("scratch", [[20, 30], [20, 30]], [40, 42])


def test_gains_compare_seeds_with_their_like():
    says = gains([ONE, OURS])
    assert says.startswith("Ours, mean over the budgets: +1.50 [-4.85, +7.85] (+2.00, +1.00) compared with OFA.")
    assert says.endswith("Its best subnet: -7.00 [-19.71, +5.71] (-8.00, -6.00) compared with its fullnet.")
    one_seed = [curve(c.title, c.ap[:1], c.fullnet[:1]) for c in (ONE, OURS)]
    assert gains(one_seed).startswith("Ours, mean over the budgets: +2.00 compared with OFA.")


def test_means_ranges_and_deviation_are_over_seeds():
    assert "| OFA | 52.0 (50.0 to 54.0) | 62.0 (60.0 to 64.0) | 57.0 (55.0 to 59.0) |" in table([ONE], "AP50")
    deviation = (np.std([55, 59], ddof=1) + np.std([57, 60], ddof=1)) / 2
    assert f"over the 2 seeds is {deviation:.1f} on average" in ranking([ONE, OURS])


def test_another_start_has_a_fullnet_of_its_own():
    """One mean of them would be nobody's."""
    assert fullnets([ONE, OURS]) == "AP of the fullnet (Algorithm 1, line 2): 71.0 (70.0 to 72.0)."
    assert fullnets([ONE, OURS, SCRATCH]).endswith("OFA, ours 71.0 (70.0 to 72.0); scratch 41.0 (40.0 to 42.0).")
    assert by_fullnet([ONE, SCRATCH, OURS]) == [[ONE, OURS], [SCRATCH]]
    figure, axes = plt.subplots()
    draw(axes, [ONE, OURS, SCRATCH], "AP50", {ONE.title: "C0", OURS.title: "C1", SCRATCH.title: "C2"})
    dotted = {line.get_label(): line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"}
    assert dotted == {"fullnet of OFA, …": 71, "fullnet of scratch, …": 41}
    plt.close(figure)


def test_error_bars_of_one_budget_are_side_by_side():
    both = [ONE, OURS]
    for curves, places in ((both, [[0.9925, 1.9925], [1.0075, 2.0075]]), ([curve("OFA", [[50, 60]], [70])], [[1, 2]])):
        figure, axes = plt.subplots()
        draw(axes, curves, "AP50", {ONE.title: "C0", OURS.title: "C1"}, "digits")
        found = [bars.lines[0].get_xdata() for bars in axes.containers]
        np.testing.assert_allclose(found, places)
        assert axes.get_title() == ("digits (mean and range of 2 seeds)" if len(curves) == 2 else "digits (one seed)")
        plt.close(figure)


def test_any_number_of_curves_can_be_told_apart():
    titles = [f"r = {number}" for number in range(14)]
    curves = [Curve(title, np.ones(2), np.ones((1, 2)), np.ones((1, 2)), np.ones(1)) for title in (titles[0], *titles[9:])]
    axes = plt.figure().subplots()
    draw(axes, curves, "AP50", colors_of(titles))
    looks = [(line.get_color(), line.get_marker()) for line in axes.lines if line.get_marker() != "None"]
    assert len(set(looks)) == len(curves)
