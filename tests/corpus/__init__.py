"""Malformed input of every kind, made by code: what a user, or somebody worse, may hand to the command line."""

from . import arguments, coco, configs, results, voc, weights
from .case import Case

CASES: list[Case] = [case for module in (configs, voc, coco, weights, results, arguments) for case in module.cases()]
