"""The data sets, one file each; their names stand in :mod:`hem.datamodules`."""
