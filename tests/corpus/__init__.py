"""Malformed input of every kind, made by code: what a user, or somebody worse, may hand to the command line."""

from . import arguments, coco, configs, results, tools, voc, weights, yolo
from .case import Case

MODULES = (configs, voc, coco, yolo, weights, results, tools, arguments)
CASES: list[Case] = [case for module in MODULES for case in module.cases()]
