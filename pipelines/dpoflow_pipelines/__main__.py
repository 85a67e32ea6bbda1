"""`python -m dpoflow_pipelines` is `dpoflow`."""

from dpoflow_pipelines.cli import main

main()
