"""Which steps, in what order, where: the DAGs, the backends that run them, and the command."""
