"""A plan applied to a model and undone, in place. Importing this lets `PruningPlan.apply` and `undo` work."""

from lightning_prune.channels.surgery.cut import apply_plan
from lightning_prune.channels.surgery.undo import undo_plan
from lightning_prune.plan.plan import register_surgery

register_surgery(apply_plan, undo_plan)
