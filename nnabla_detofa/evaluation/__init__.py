"""Evaluation of paths: re-estimation of batch normalization statistics, validation loss, detections and AP."""
