"""Studies: grids of tasks, losses and seeds, with hyperparameter searches, run on this machine or on a cluster."""
