import json

import numpy as np
import pytest

from nnabla_detofa.common.boxes import box_iou
from nnabla_detofa.evaluation.metrics import ap_keys, average_precision, coco_ap, summarize, voc_ap

A, B, FAR = [0, 0, 9, 9], [20, 20, 39, 39], [60, 60, 69, 69]


def found(*detections):
    """Detections of one image from (box, score, label)."""
    boxes, scores, labels = zip(*detections) if detections else ([], [], [])
    return np.array(boxes, float).reshape(-1, 4), np.array(scores, float), np.array(labels, int)


def truth(*objects):
    """Ground truth of one image from (box, label) or (box, label, difficult)."""
    boxes, labels, difficult = zip(*[(*o, False)[:3] for o in objects]) if objects else ([], [], [])
    return np.array(boxes, float).reshape(-1, 4), np.array(labels, int), np.array(difficult, bool)


def test_average_precision_by_hand():
    # Of 4 objects: right, wrong, right, wrong, right.
    recall, precision = [0.25, 0.25, 0.5, 0.5, 0.75], [1, 1 / 2, 2 / 3, 2 / 4, 3 / 5]
    assert average_precision(recall, precision) == pytest.approx(0.25 * (1 + 2 / 3 + 3 / 5))
    # Recalls 0, 0.1, 0.2 | 0.3, 0.4, 0.5 | 0.6, 0.7 | none.
    assert average_precision(recall, precision, "11point") == pytest.approx((3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11)
    assert average_precision([], []) == average_precision([], [], "11point") == 0
    with pytest.raises(ValueError, match="'area' or '11point', got 'coco'"):
        average_precision([1], [1], "coco")


def test_both_metrics_of_voc_by_hand():
    """One class, three objects: the best detection is right, the second wrong, the third right, and one is not found."""
    detections = [found((FAR, 0.8, 0), (A, 0.9, 0)), found((B, 0.7, 0))]
    objects = [truth((A, 0), ([80, 80, 99, 99], 0)), truth((B, 0))]
    # Recalls 0 to 0.3 have precision 1 (recall 1/3 was reached at once), 0.4 to 0.6 have 2/3 (recall 2/3), the others none.
    eleven, area = (4 * 1 + 3 * 2 / 3) / 11, (1 + 2 / 3) / 3
    assert voc_ap(detections, objects, 1, metric="11point").mean == pytest.approx(eleven)
    assert voc_ap(detections, objects, 1, metric="area").mean == pytest.approx(area)
    for metric, main, key, other in (("11point", eleven, "ap50_area", area), ("area", area, "ap50_11point", eleven)):
        result = summarize(detections, objects, ("cat",), metric)
        assert set(result) == {"ap50", "ap50_per_class", key, f"{key}_per_class"}
        assert (result["ap50"], result[key]) == pytest.approx((main, other))
        assert result["ap50_per_class"]["cat"] == result["ap50"] and result[f"{key}_per_class"]["cat"] == result[key]
        assert ap_keys(result) == ["ap50", key]


def test_eleven_points_with_two_classes_and_a_difficult_object():
    """Of class 0 one of two objects is found, of class 1 its one; the difficult one and its detection do not count."""
    detections = [found((A, 0.9, 0), (FAR, 0.95, 1), (B, 0.5, 1))]
    objects = [truth((A, 0), ([80, 80, 99, 99], 0), (B, 1), (FAR, 1, True))]
    result = voc_ap(detections, objects, 3, metric="11point")
    # Recall 1/2 with precision 1: the levels 0 to 0.5, six of eleven.
    assert result.per_class[:2] == pytest.approx([6 / 11, 1]) and np.isnan(result.per_class[2])
    assert result.mean == pytest.approx((6 / 11 + 1) / 2)


def test_eleven_points_meet_exact_recalls():
    recall = np.arange(1, 11) / 10
    assert average_precision(recall, np.ones(10), "11point") == 1


def test_iou_counts_corners_inclusively_for_voc():
    assert box_iou(np.array([A]), np.array([[5, 0, 14, 9], A, FAR]), inclusive=True).tolist() == [[50 / 150, 1, 0]]
    assert box_iou(np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2]])).tolist() == [[2 / 6]]
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0]] and box_iou(np.zeros((0, 4)), [A]).shape == (0, 1)


def test_perfect_and_empty_detections():
    objects = [truth((A, 0), (B, 1)), truth((A, 0))]
    perfect = voc_ap([found((A, 0.9, 0), (B, 0.8, 1)), found((A, 0.7, 0))], objects, 3)
    assert perfect.per_class[:2].tolist() == [1, 1] and np.isnan(perfect.per_class[2]) and perfect.mean == 1
    nothing = voc_ap([found(), found()], objects, 3)
    assert nothing.per_class[:2].tolist() == [0, 0] and nothing.mean == 0
    assert np.isnan(voc_ap([found((A, 0.9, 0))], [truth()], 1).mean) and np.isnan(voc_ap([], [], 1).mean)


def test_one_class_by_hand():
    detections = [found((FAR, 0.8, 0), (A, 0.9, 0)), found((B, 0.7, 0))]
    result = voc_ap(detections, [truth((A, 0), ([80, 80, 99, 99], 0)), truth((B, 0))], 1)
    # Right, wrong, right, of three objects.
    assert result.mean == pytest.approx((1 + 2 / 3) / 3)


def test_duplicates_are_wrong():
    detections = [found((A, 0.9, 0), (A, 0.8, 0), (B, 0.7, 0))]
    assert voc_ap(detections, [truth((A, 0), (B, 0))], 1).mean == pytest.approx((1 + 2 / 3) / 2)


def test_difficult_objects_are_neither_counted_nor_punished():
    detections = [found((A, 0.9, 0), (A, 0.85, 0), (B, 0.8, 0))]
    assert voc_ap(detections, [truth((A, 0, True), (B, 0))], 1).mean == 1
    assert np.isnan(voc_ap(detections, [truth((A, 0, True))], 1).mean)


def test_a_detection_belongs_to_the_object_it_overlaps_most():
    """Even if that one is taken or difficult, and the next best overlaps enough."""
    beside = [1, 0, 10, 9]
    detections = [found((A, 0.9, 0), (A, 0.8, 0))]
    assert voc_ap(detections, [truth((A, 0), (beside, 0))], 1).mean == pytest.approx(1 / 2)
    assert voc_ap(detections, [truth((A, 0, True), (beside, 0))], 1).mean == 0


def test_classes_do_not_mix_and_the_threshold_is_included():
    assert voc_ap([found((A, 0.9, 1))], [truth((A, 0), (B, 1))], 2).per_class.tolist() == [0, 0]
    half = [0, 0, 9, 4]  # half of A's pixels
    assert voc_ap([found((half, 0.9, 0))], [truth((A, 0))], 1).mean == 1
    assert voc_ap([found((half, 0.9, 0))], [truth((A, 0))], 1, iou=0.51).mean == 0


def test_equal_scores_keep_their_order():
    right_first = [found((A, 0.5, 0)), found((FAR, 0.5, 0))]
    assert voc_ap(right_first, [truth((A, 0)), truth()], 1).mean == 1
    assert voc_ap(right_first[::-1], [truth(), truth((A, 0))], 1).mean == 0.5


def test_bad_arguments():
    with pytest.raises(ValueError, match="for 1 images, got 0"):
        voc_ap([], [truth()], 1)
    with pytest.raises(ValueError, match="for 1 images, got 0"):
        coco_ap([], [truth()], 1)
    with pytest.raises(ValueError, match="finite, got nan"):
        voc_ap([found((A, np.nan, 0))], [truth((A, 0))], 1)


def test_against_a_slow_reading_of_the_rules():
    rng = np.random.default_rng(0)

    def boxes(count):
        corner = rng.integers(0, 20, (count, 2))
        return np.concatenate([corner, corner + rng.integers(8, 16, (count, 2))], 1)

    objects = [(boxes(n), rng.integers(0, 2, n), rng.random(n) < 0.2) for n in rng.integers(0, 6, 30)]
    detections = [(boxes(n), rng.integers(0, 5, n) / 5, rng.integers(0, 2, n)) for n in rng.integers(0, 8, 30)]
    for label in range(2):
        entries = [
            (-s, i, j) for i, (_, scores, labels) in enumerate(detections) for j, s in enumerate(scores) if labels[j] == label
        ]
        taken, outcomes = set(), []
        for _, i, j in sorted(entries):
            own = [k for k, other in enumerate(objects[i][1]) if other == label]
            overlaps = box_iou(detections[i][0][j], objects[i][0], inclusive=True)[0]
            best = max(own, key=lambda k: overlaps[k], default=None)  # noqa: B023
            if best is None or overlaps[best] < 0.5:
                outcomes.append(0)
            elif not objects[i][2][best]:
                outcomes.append(int((i, best) not in taken))
                taken.add((i, best))
        total = sum(((labels == label) & ~difficult).sum() for _, labels, difficult in objects)
        right = np.cumsum(outcomes)
        expected = average_precision(right / total, right / np.arange(1, len(outcomes) + 1))
        assert 0 < expected < 1
        assert voc_ap(detections, objects, 2).per_class[label] == pytest.approx(expected)


def test_coco_by_hand(capsys):
    objects = [truth(([0, 0, 20, 20], 0), ([100, 100, 300, 300], 1)), truth(([0, 0, 50, 50], 0))]
    perfect = [found(*((box, 0.9, label) for box, label in zip(boxes, labels))) for boxes, labels, _ in objects]
    result = coco_ap(perfect, objects, 2)
    assert result.values == dict.fromkeys(["AP", "AP50", "AP75", "APs", "APm", "APl"], pytest.approx(1))
    assert result.per_class == pytest.approx([1, 1]) and result.per_class_50 == pytest.approx([1, 1])
    # A box of IoU 0.7 is right at 0.5, 0.55, ..., 0.7: half of the thresholds.
    shorter = coco_ap([found(([0, 0, 20, 14], 0.9, 0))], [truth(([0, 0, 20, 20], 0))], 1).values
    assert [shorter[name] for name in ("AP", "AP50", "AP75", "APs")] == pytest.approx([0.5, 1, 0, 0.5])
    assert np.isnan(shorter["APl"])
    assert coco_ap([found()], [truth((A, 0))], 1).values["AP"] == 0
    assert np.isnan(coco_ap([found()], [truth()], 1).values["AP"])
    assert capsys.readouterr().out == ""


def test_coco_crowds_and_areas():
    crowd = [truth((A, 0, True), (B, 0))]
    assert coco_ap([found((A, 0.9, 0), (B, 0.8, 0))], crowd, 1).values["AP"] == pytest.approx(1)
    box = [0, 0, 50, 50]
    sizes = coco_ap([found((box, 0.9, 0))], [truth((box, 0))], 1, areas=[np.array([100.0])]).values
    assert sizes["APs"] == pytest.approx(1) and np.isnan(sizes["APm"])


def test_a_summary_is_plain_json_by_either_metric():
    detections, objects = [found((A, 0.9, 0))], [truth((A, 0))]
    both = {"ap50": 1.0, "ap50_per_class": {"cat": 1.0, "dog": None}}
    both |= {"ap50_11point": 1.0, "ap50_11point_per_class": {"cat": 1.0, "dog": None}}
    assert summarize(detections, objects, ("cat", "dog"), "area") == both
    coco = summarize(detections, objects, ("cat", "dog"), "coco")
    assert (coco["ap50"], coco["ap"]) == pytest.approx((1, 1)) and coco["ap_per_class"]["dog"] is None
    assert coco["coco"]["APl"] is None and json.loads(json.dumps(coco)) == coco
