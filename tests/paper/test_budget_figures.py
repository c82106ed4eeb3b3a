"""Figures of AP over budgets: their sentences by hand, and whose fullnet is whose."""

import matplotlib.pyplot as plt
import numpy as np

from nnabla_detofa.paper.budget_curves import Curve, by_fullnet
from nnabla_detofa.paper.budget_figures import colors_of, differences_table, draw, fullnets, ranking, table


def curve(title: str, ap, fullnet, errors=()) -> Curve:
    subnets = [[{"budget": 1e9 * place, "flops": 10**9, "ap50": one / 100} for place, one in enumerate(row, 1)] for row in ap]
    summaries = [{"subnets": found, "fullnet": {"ap50": one / 100}} for found, one in zip(subnets, fullnet, strict=True)]
    return Curve.of(title, summaries, errors)


ONE = curve("OFA", [[50, 60], [54, 64]], [70, 72])  # means 55 and 59
OURS = curve("ours", [[52, 62], [54, 66]], [70, 72])  # means 57 and 60
SCRATCH = curve("scratch", [[20, 30], [20, 30]], [40, 42])


def test_differences_compare_seeds_with_their_like():
    head, _, one, ours = differences_table([ONE, OURS]).splitlines()
    assert head == "| AP, mean over the budgets | seed 0 | seed 1 | minus OFA | best subnet minus fullnet |"
    assert one == "| OFA | 55.0 | 59.0 |  | -9.00 [-21.71, +3.71] |"  # 60 - 70 and 64 - 72
    assert ours == "| ours | 57.0 | 60.0 | +1.50 [-4.85, +7.85] | -7.00 [-19.71, +5.71] |"
    one_seed = [curve("OFA", [[50, 60]], [70]), curve("ours", [[52, 62]], [70])]
    assert differences_table(one_seed).endswith("| ours | 57.0 | +2.00 | -8.00 |")


def test_standard_errors_are_those_of_the_seeds_that_have_them_and_their_seeds_are_named():
    known = {"fullnet": 0.7, "subnet_1": 0.4, "subnet_2": 0.6}
    row = "| standard error over the test images{} | 0.4 | 0.6 |  |"
    for errors, seeds in (([known, known], ""), ([{}, known], " (seed 1)"), ([{"subnet_1": 9}, known], " (seed 1)")):
        some = curve("OFA", [[50, 60], [54, 64]], [70, 72], errors)
        assert row.format(seeds) in table([some], "AP50").splitlines()
        assert fullnets([some]).endswith(f"71.0 (70.0 to 72.0), standard error over the test images{seeds} 0.7.")
        assert fullnets([ONE, some]) == fullnets([some, ONE]) == fullnets([some])  # the same fullnet, measured once
    other = curve("scratch", [[20, 30]], [40], [{"fullnet": 0.1, "subnet_1": 1, "subnet_2": 1}])
    one = curve("OFA", [[50, 60]], [70], [known])
    wanted = "OFA 70.0, standard error over the test images 0.7; scratch 40.0, standard error over the test images 0.1."
    assert fullnets([one, other]).endswith(wanted)
    for errors in ([], [{}, {}]):
        assert "standard error" not in table([curve("OFA", [[50, 60], [54, 64]], [70, 72], errors)], "AP50")


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


def test_a_fullnet_far_below_the_curves_leaves_them_the_space():
    for fullnet, shown in (([55, 55], True), ([40, 40], False)):
        axes = plt.figure().subplots()
        draw(axes, [curve("OFA", [[60, 62], [61, 63]], fullnet)], "AP50", {"OFA": "C0"})
        labels = [line.get_label() for line in axes.lines if line.get_linestyle() == ":"]
        assert labels == (["fullnet"] if shown else ["fullnet: 40.0, below"]) and (axes.get_ylim()[0] < 56) == shown
        plt.close("all")


def test_the_bars_of_one_seed_are_its_standard_errors():
    known = {"fullnet": 0.7, "subnet_1": 0.4, "subnet_2": 0.6}
    axes = plt.figure().subplots()
    draw(axes, [curve("OFA", [[50, 60]], [70], [known])], "AP50", {"OFA": "C0"}, "digits")
    (bars,) = axes.containers
    np.testing.assert_allclose([segment[:, 1] for segment in bars.lines[2][0].get_segments()], [[49.6, 50.4], [59.4, 60.6]])
    assert axes.get_title() == "digits (one seed; bars: standard error)"
    plt.close("all")


def test_bars_that_are_known_for_some_curves_only_say_so():
    known = {"fullnet": 0.7, "subnet_1": 0.4, "subnet_2": 0.6}
    both = [curve("OFA", [[50, 60]], [70], [known]), curve("ours", [[50, 60]], [70])]
    for curves in (both, both[::-1]):
        axes = plt.figure().subplots()
        draw(axes, curves, "AP50", {"OFA": "C0", "ours": "C1"}, "digits")
        assert axes.get_title() == "digits (one seed; bars: standard error, where known)"
        plt.close("all")


def test_budgets_ascend_in_any_order_of_the_config():
    subnets = [{"budget": budget, "flops": budget, "ap50": budget / 100} for budget in (80, 60, 70)]
    errors = {"fullnet": 1, "subnet_1": 0.8, "subnet_2": 0.6, "subnet_3": 0.7}
    one = Curve.of("OFA", [{"subnets": subnets, "fullnet": {"ap50": 0.9}}], [errors])
    assert one.budgets.tolist() == [60, 70, 80] and one.errors.tolist() == [[1, 0.6, 0.7, 0.8]]
    np.testing.assert_allclose(one.ap, [[60, 70, 80]])


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
    curves = [curve(title, [[1, 1]], [1]) for title in (titles[0], *titles[9:])]
    axes = plt.figure().subplots()
    draw(axes, curves, "AP50", colors_of(titles))
    looks = [(line.get_color(), line.get_marker()) for line in axes.lines if line.get_marker() != "None"]
    assert len(set(looks)) == len(curves)
