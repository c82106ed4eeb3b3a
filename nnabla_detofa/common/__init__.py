"""Errors, atomic files, safe reading, checked values, boxes and drawing: helpers independent of detector and search."""
