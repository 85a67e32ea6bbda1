"""The container images that components name. Digests come with the images themselves."""

CPU = "dpoflow-python-cpu:0.1.0"
GPU = "dpoflow-python-gpu:0.1.0"
