"""The bytes of a pruned file; the layout is in ``docs/files.md``."""
