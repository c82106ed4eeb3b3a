"""Malformed input of every kind, made by code: what a user, or somebody worse, may hand to the command line."""

from . import arguments, coco, configs, results, tools, voc, weights
from .case import Case

CASES: list[Case] = [case for module in (configs, voc, coco, weights, results, tools, arguments) for case in module.cases()]
