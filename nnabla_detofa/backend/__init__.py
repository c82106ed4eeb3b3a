"""Compatibility shims for NNabla and NNablaNAS, devices, ranks, and process launching."""
