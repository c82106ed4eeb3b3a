"""Evaluation of paths: re-estimation of batch normalization statistics, validation loss, detections and AP.

`validation.PathEvaluator` evaluates many paths at once; `stored.StoredEvaluation` also stores the results in a file.
"""
