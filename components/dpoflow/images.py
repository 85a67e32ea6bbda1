"""The container images that components and the cluster name; infra/images makes them.

A name here is a placeholder: where a pipeline is compiled for a cluster, infra/images/images.lock
says which digest stands for it.
"""

CPU = "dpoflow-python-cpu:0.1.0"
GPU = "dpoflow-python-gpu:0.1.0"
MLFLOW = "dpoflow-python-mlflow:0.1.0"
