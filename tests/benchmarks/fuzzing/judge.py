"""Reads mutated files in a child process, and says what each came to.

A case is right if it raises `PrunedFileError`, or loads: what was saved, or, if its hash was made right again, what the
changed file says. Anything else is a finding: another exception, memory out of proportion, a file opened elsewhere, a
process or a socket opened, code loaded, no end within a time, another model under the old hash, or the end of the
process.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from lightning_prune.io import PrunedFileError, load_pruned, pruned_info, pruned_state_dict
from lightning_prune.io.format.bitmask import bits
from tests.benchmarks.fuzzing.mutate import Case, mutated
from tests.benchmarks.fuzzing.seeds import FILE, Seed, seeds

SECONDS = 120  # by the clock, so that waiting for ever is found too; machines are busy
ROOM, FACTOR = 32 * 2**20, 64  # bytes that a case may take: so many, and so many times its own
SHARES = {"compact, rewritten graph": 0.005, "format 2": 0.1}  # a trace, and a network of 20 layers
ADDRESS_SPACE = 2 * 2**30  # beyond what the child has when it begins
FORBIDDEN = (
    "pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "os.remove", "os.rename", "os.mkdir", "os.rmdir",
    "os.symlink", "os.link", "os.chmod", "shutil.copyfile",
)  # fmt: skip


class Watch:
    """An audit hook, which cannot be taken off: on only while a case is read."""

    def __init__(self, allowed: Path) -> None:
        self.allowed = (str(allowed), sys.prefix, sys.base_prefix, str(Path(__file__).parents[3]))
        self.on, self.seen, self.grown = False, list[str](), 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        library = event == "ctypes.dlopen" and "/" in str(arguments[0])  # PyTorch looks for a driver's by name
        if event in FORBIDDEN or library:
            self.seen.append(f"{event} {arguments!r:.100}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path, mode = os.fsdecode(arguments[0]), arguments[1] or "r"
            if not os.path.realpath(path).startswith(self.allowed) or set(mode) & set("wax+"):
                self.seen.append(f"opened {path:.100} {mode}")


def _peak(reset: bool = False) -> int:
    """Most bytes resident since the last reset; Linux forgets the peak of before on request."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _late(*_: Any) -> NoReturn:
    raise TimeoutError(f"no end within {SECONDS} s")


@contextmanager
def _limits() -> Iterator[None]:
    signal.signal(signal.SIGALRM, _late)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESS_SPACE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _write(case: Case, home: Path) -> Path:
    """Puts a case into a folder that the case before was in; the path to read."""
    folder = home / "case"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    for name, what in case.special.items():
        path = folder / name
        path.unlink()
        if what == "outside":
            (home / "outside").write_bytes(case.files[name])
            path.symlink_to("../outside")
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        elif what != "missing":
            targets = {"zero": "/dev/zero", "self": name, "dangling": "nothing", "parent": ".."}
            path.symlink_to(targets[what])
    return folder if case.seed.folder else folder / FILE


def _same(seed: Seed, state: dict[str, torch.Tensor]) -> bool:
    return state.keys() == seed.state.keys() and all(
        tensor.dtype == seed.state[key].dtype
        and tensor.shape == seed.state[key].shape
        and bits(tensor.contiguous()).equal(bits(seed.state[key].contiguous()))
        for key, tensor in state.items()
    )


def _read(case: Case, path: Path) -> str:
    outcomes = []
    for read in (lambda: load_pruned(path, case.seed.model()), lambda: pruned_state_dict(path)):
        try:
            got = read()
        except PrunedFileError as error:
            if len(str(error)) > 2000 or str(path) not in str(error):
                return f"FINDING: message {str(error)!r:.100}"
            outcomes.append("refused")
            continue
        state = got.state_dict() if isinstance(got, nn.Module) else got
        outcomes.append("loaded the same" if _same(case.seed, state) else "loaded what it says")
        pruned_info(path)
    if not case.rehashed and "loaded what it says" in outcomes:
        return "FINDING: another model under the old hash"
    return outcomes[0] if outcomes[0] != "refused" else "refused" if outcomes[1] == "refused" else "refused as a model"


def judge(case: Case, path: Path, watch: Watch) -> str:
    """What reading a case comes to."""
    size = sum(map(len, case.files.values()))
    before = _peak(reset=True)
    watch.seen.clear()
    signal.alarm(SECONDS)
    watch.on = True
    try:
        outcome = _read(case, path)
    except Exception as error:
        outcome = f"FINDING: {type(error).__name__}: {error!s:.200}"
    finally:
        watch.on = False
        signal.alarm(0)
    grown = _peak() - before
    watch.grown = max(watch.grown, grown)
    if grown > ROOM + FACTOR * size:
        return f"FINDING: {grown} bytes for a file of {size}"
    return f"FINDING: {watch.seen[0]}" if watch.seen else outcome


def case_of(known: list[Seed], number: int) -> tuple[str, Case]:
    """Case `number`, the same on every machine; few of those that take long to read."""
    rng = random.Random(f"files {number}")
    shares = [SHARES.get(seed.kind, 1.0) for seed in known]
    return mutated(rng.choices(known, shares)[0], rng)


def child(begin: int, end: int, home: Path, out: Path) -> None:
    """Judges cases [begin, end) and writes a line of JSON for each, before and after it is read."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    known = seeds()
    watch = Watch(home)
    for seed in known:  # what is imported and cached once is no case's memory
        judge(Case(seed, dict(seed.files)), _write(Case(seed, dict(seed.files)), home), watch)
    watch.grown = 0
    with _limits(), out.open("w", buffering=1) as lines:
        for number in range(begin, end):
            kind, case = case_of(known, number)
            path = _write(case, home)
            lines.write(f"{number}\n")
            outcome = judge(case, path, watch)
            lines.write(json.dumps([number, case.seed.kind, kind, outcome]) + "\n")
        lines.write(json.dumps({"grown": watch.grown}) + "\n")
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    child(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
