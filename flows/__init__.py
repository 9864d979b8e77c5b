"""The flows: the only place that knows Prefect."""
