"""What a path is worth: BatchNorm re-estimation, validation loss, detections, and average precision."""
