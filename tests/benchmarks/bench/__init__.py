"""The experiment bench: many short trainings from the same dense starts, paired by seed, one JSON line a run.

`runs` trains and remembers, `networks` says on what, `methods` says how, `table` compares. One file a question beside
this folder.
"""
