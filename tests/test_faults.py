"""Faults: a run is ended with SIGKILL at random moments, and goes on each time as if nothing had been.

python -m pytest tests/test_faults.py            # a few kills
python -m pytest tests/test_faults.py -m long -s # a hundred
"""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time

import pytest

import train
from model import GPT, read_checkpoint

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHAPE = {
    "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "compact_vocab": True, "output_bias": True,
    "ngram_order": 2, "noise": 0.5, "dropout": 0.1, "average_decay": 0.5, "batch_size": 4, "max_iters": 15,
    "eval_interval": 3, "warmup_iters": 2, "device": "cpu",
}  # fmt: skip


def run(settings):
    """train.py's work, in a process of its own."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        train.main(settings)


def weights(path):
    return read_checkpoint(path)["model"]


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no forkserver")
@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.long)])
def test_a_run_survives_sigkill_at_any_moment(prepared, tmp_path, read_losses, kills):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train"])  # torch is imported once, not for every kill
    settings = train.Settings(**SHAPE, data_dir=str(prepared.folder), out_dir=str(tmp_path / "undisturbed"))

    began = time.monotonic()
    process = context.Process(target=run, args=(settings,))
    process.start()
    process.join()
    seconds = time.monotonic() - began
    expected = read_losses(tmp_path / "undisturbed")

    seed = random.SystemRandom().randrange(10**6)
    print(f"{kills} kills, moments drawn with the seed {seed}")
    moments, out, done, survived = random.Random(seed), tmp_path / "killed", [], 0
    settings = dataclasses.replace(settings, out_dir=str(out))
    while survived < kills:
        how = "resume" if (out / "last.pt").exists() else "scratch"
        process = context.Process(target=run, args=(dataclasses.replace(settings, init_from=how),))
        process.start()
        process.join(moments.uniform(0, seconds))
        ended = process.exitcode is not None
        process.kill()
        process.join()
        if (out / "loss.csv").exists():
            rows = [(row["iter"], row["val_loss"]) for row in read_losses(out)]
            assert rows[: len(done)] == done, "a finished evaluation was lost"
            assert rows == [(row["iter"], row["val_loss"]) for row in expected[: len(rows)]]
            done = rows
        for name, load in (("best.pt", GPT.load), ("last.pt", read_checkpoint)):
            if (out / name).exists():
                load(out / name)
        if ended:  # begin again, for the next kills
            assert process.exitcode == 0
            compare(tmp_path / "undisturbed", out)
            shutil.rmtree(out)
            done = []
        else:
            survived += 1
    how = "resume" if (out / "last.pt").exists() else "scratch"
    run(dataclasses.replace(settings, init_from=how))
    compare(tmp_path / "undisturbed", out)


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no limit on the size of files")
@pytest.mark.parametrize("share", [0.6, 0.95, 0.99])
def test_a_full_disk_is_told_and_the_checkpoint_before_it_is_intact(trained, snapshot, tmp_path, share):
    out = shutil.copytree(trained.folder, tmp_path / "out")
    before = snapshot(out)
    limit = int((out / "last.pt").stat().st_size * share)
    code = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    code += "runpy.run_path('train.py', run_name='__main__')"
    flags = [*trained.flags, f"--out_dir={out}", "--init_from=resume", "--max_iters=12"]
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r".*: error: .*cannot write .*last\.pt: .*too large.*\n", done.stderr), done.stderr
    assert snapshot(out)["last.pt"] == before["last.pt"]
    assert not list(out.glob("*.tmp"))


def compare(undisturbed, killed):
    for name in ("best.pt", "last.pt"):
        expected, found = weights(undisturbed / name), weights(killed / name)
        assert expected.keys() == found.keys()
        assert all(expected[key].equal(found[key]) for key in expected)
