"""Data that outgrow a process or a folder: units of work on a Ray cluster, parts that are merged."""
