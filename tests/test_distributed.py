"""Several processes, as torchrun starts them on one machine: the same run as with one, faster."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import train
from model import GPT

PLAIN = ["--dropout=0", "--noise=0", "--dtype=float32"]  # what each process draws for itself


@pytest.fixture
def torchrun(repo, trained):
    """Start train.py with the flags of `trained`, and more, in so many processes."""

    def start(number, *flags):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
        command = [*launch, "train.py", *trained.flags, *map(str, flags)]
        return subprocess.Popen(
            command, cwd=repo, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    return start


def test_two_processes_train_as_one_does_and_take_over_from_it(torchrun, train_here, read_losses, tmp_path):
    flags = [*PLAIN, "--gradient_accumulation_steps=2", "--max_iters=50", "--eval_interval=25"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert train_here(*flags, f"--out_dir={alone}").code == 0
    run = torchrun(2, *flags, f"--out_dir={shared}")
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 0, out
    assert "2 processes" in out and out.count("best val loss") == 1  # one of them speaks
    for one, two in zip(read_losses(alone), read_losses(shared), strict=True):
        for name in ("train_loss", "val_loss", "bits_per_byte"):
            assert two[name] == pytest.approx(one[name], abs=1e-5, nan_ok=True)

    longer = [*flags, "--max_iters=60", "--init_from=resume"]
    assert train_here(*longer, f"--out_dir={shared}").code == 0
    assert train_here(*longer, f"--out_dir={alone}").code == 0
    last = [read_losses(folder)[-1]["val_loss"] for folder in (alone, shared)]
    assert last[0] == pytest.approx(last[1], abs=1e-4)
    assert all(name.startswith(("h.", "w", "ln_f", "head", "rare", "tables", "ngrams")) for name in (
        GPT.load(shared / "best.pt").state_dict()
    ))  # fmt: skip


def test_a_process_that_has_no_windows_adds_nothing_to_the_val_loss(trained, monkeypatch):
    model, few = GPT.load(trained.folder / "best.pt"), np.arange(6, dtype="<u2")
    shares = []
    for rank in range(3):
        monkeypatch.setattr(train, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(train, "world_size", lambda: 3)
        monkeypatch.setattr(train, "summed", float)
        shares.append(train.evaluate(model, few, 1)[0])
    assert shares[0] > 0 and shares[1:] == [0.0, 0.0]


def test_gradients_are_exchanged_once_an_iteration(prepared, trained, tmp_path, monkeypatch):
    settings = train.Settings(block_size=8, batch_size=4, gradient_accumulation_steps=3)
    data, exchanged = np.memmap(prepared.folder / "train.bin", "<u2", "r"), []

    def hook(_, bucket):
        exchanged.append(bucket.index())
        result = torch.futures.Future()
        result.set_result(bucket.buffer())
        return result

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        monkeypatch.setattr(train, "world_size", lambda: 2)
        model = DistributedDataParallel(GPT.load(trained.folder / "best.pt"))
        model.register_comm_hook(None, hook)
        optimizer, scaler = train.make_optimizer(model, settings), torch.amp.GradScaler("cpu", enabled=False)
        for iteration in range(2):
            train.train_step(model, optimizer, scaler, data, iteration, settings, "float32")
    finally:
        dist.destroy_process_group()
    assert exchanged == [0, 0]


def test_the_death_of_one_process_ends_all(torchrun, tmp_path):
    run = torchrun(2, "--max_iters=1000000", "--eval_interval=1000000", f"--out_dir={tmp_path}")
    for line in run.stdout:
        if line.startswith("iter"):
            break
    children = pathlib.Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    began = time.monotonic()
    out, _ = run.communicate(timeout=90)
    assert run.returncode != 0 and time.monotonic() - began < 90
    assert "SIGKILL" in out or "-9" in out


def test_a_stop_is_agreed_on_and_leaves_a_run_to_resume(torchrun, train_here, tmp_path):
    run = torchrun(2, *PLAIN, "--max_iters=1000000", "--eval_interval=1000000", f"--out_dir={tmp_path}")
    for line in run.stdout:
        if line.startswith("iter") and " 20 " in line:
            break
    os.killpg(run.pid, signal.SIGTERM)
    out, _ = run.communicate(timeout=90)
    assert "stopped at iteration" in out, out
    iteration = torch.load(tmp_path / "last.pt", weights_only=True)["iteration"]
    assert iteration >= 20
    done = train_here(*PLAIN, "--init_from=resume", f"--max_iters={iteration + 2}", f"--out_dir={tmp_path}")
    assert done.code == 0, done.err


def test_a_batch_that_cannot_be_shared_is_refused(torchrun, tmp_path):
    run = torchrun(2, "--batch_size=3", f"--out_dir={tmp_path / 'out'}")
    out, _ = run.communicate(timeout=90)
    assert run.returncode != 0
    assert "train.py: error: batch_size: 3 windows" in out and "multiple of 2" in out
    assert not (tmp_path / "out").exists()


@pytest.fixture
def train_here(command, trained):
    return lambda *flags: command("train.py", *trained.flags, *flags)
