"""Several processes, as torchrun starts them on one machine: the same run as with one, faster."""

import pytest

from model import GPT

# without what each process draws for itself, and what lets rounding differences grow: Muon uses bfloat16
PLAIN = ["--dropout=0", "--noise=0", "--cut=0", "--dtype=float32", "--muon=False"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def test_two_processes_train_as_one_does(shell, command, trained, read_losses, tmp_path):
    flags = ["train.py", *trained.flags, *PLAIN, "--max_iters=30", "--eval_interval=15"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert command(*flags, "--batch_size=8", f"--out_dir={alone}").code == 0
    done = shell(*TORCHRUN, *flags, "--gradient_accumulation_steps=2", f"--out_dir={shared}")
    assert done.code == 0, done.err
    assert done.out.count("best val loss") == 1  # one of them speaks
    for one, two in zip(read_losses(alone), read_losses(shared), strict=True):
        for name in ("train_loss", "val_loss", "bits_per_byte"):
            assert two[name] == pytest.approx(one[name], abs=1e-5, nan_ok=True)
    GPT.load(shared / "best.pt")  # raises an error if the weights have other names


@pytest.mark.long
def test_a_batch_that_cannot_be_shared_is_refused(shell, trained, tmp_path):
    done = shell(*TORCHRUN, "train.py", *trained.flags, "--batch_size=3", f"--out_dir={tmp_path / 'out'}")
    assert done.code != 0 and not (tmp_path / "out").exists()
    assert "train.py: error: batch_size: 3 windows" in done.err and "multiple of 2" in done.err
