"""NNabla and NNablaNAS prepared for this package: compatibility shims, devices, ranks, and the launching of processes."""
