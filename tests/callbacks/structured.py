"""What the tests of structured methods share: a short fit, and ways to compare what it leaves."""

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune import MRTSCallback, NetworkSlimmingCallback
from tests.toy import Toy, loaders, trainer

METHODS = {"mrts": MRTSCallback, "slimming": NetworkSlimmingCallback}
PHASES = {"warmup": 1, "sparsify": 3, "recalibrate_batches": 2}  # 8 batches an epoch: begin at 8, removal at 32


def size(module):
    return sum(p.numel() for p in module.parameters())


def fit(path, method, module=None, callbacks=(), data=None, ckpt_path=None, options=None, **trainer_options):
    torch.manual_seed(0)
    module = Toy() if module is None else module
    callback = method(**(PHASES | (options or {})))
    run = trainer(path, [callback, *callbacks], enable_checkpointing=True, **trainer_options)
    run.fit(module, **(data or loaders()), ckpt_path=ckpt_path)
    return module, callback, run


def keep_all(path, every=3):
    return ModelCheckpoint(dirpath=path, filename="{step}", every_n_train_steps=every, save_top_k=-1)


def equal(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
