"""Errors, atomic files, safe reading, checked values, boxes and drawing: helpers that know nothing of detection or search."""
