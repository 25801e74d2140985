"""Data sets, one file each; :mod:`hem.datamodules` lists their names."""
