"""Many runs of one study: a grid of tasks, losses and seeds, a search for each loss, done here or by a cluster."""
