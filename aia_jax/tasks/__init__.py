"""The tasks of the systems. A task has the data, model, loss, predictions and metrics of a system."""
