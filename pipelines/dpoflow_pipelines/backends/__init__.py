"""Where a compiled DAG runs."""
