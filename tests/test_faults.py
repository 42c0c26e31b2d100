"""Faults: a run that is killed at any moment goes on as if nothing had been; a full disk harms nothing.

python -m pytest tests/test_faults.py            # a few kills
python -m pytest tests/test_faults.py -m long -s # many
"""

import contextlib
import dataclasses
import multiprocessing
import os
import random
import re
import shutil
import time

import pytest

import train
from config import load_settings
from model import GPT


def run(settings):
    """train.py's work, in a process of its own."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        train.main(settings)


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no forkserver")
@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.long)])
def test_a_run_survives_sigkill_at_any_moment(trained, repo, tmp_path, monkeypatch, read_losses, kills):
    def start(seconds=None, **changes):
        """Run until the end or, after so many seconds, the kill; returns whether it ended by itself."""
        process = context.Process(target=run, args=(dataclasses.replace(settings, **changes),))
        process.start()
        process.join(seconds)
        exit_code = process.exitcode
        process.kill()
        process.join()
        assert exit_code in (None, 0)
        return exit_code == 0

    def losses(folder):
        return [(row["iter"], row["val_loss"]) for row in read_losses(folder)]

    monkeypatch.chdir(repo)
    context, whole, out = multiprocessing.get_context("forkserver"), tmp_path / "whole", tmp_path / "killed"
    context.set_forkserver_preload(["train", "matplotlib.figure"])  # once, not for every kill
    flags = [*trained.flags, "--spelling=0", "--max_iters=9", "--eval_interval=3", f"--out_dir={whole}"]
    settings = load_settings(train.Settings, flags)
    start(0)  # which waits for the server
    began = time.monotonic()
    assert start()
    seconds, seed = time.monotonic() - began, random.SystemRandom().randrange(10**6)
    print(f"{kills} kills, moments drawn with the seed {seed}")
    moments, survived, ended = random.Random(seed), 0, False
    while survived < kills or not ended:
        how = "resume" if (out / "last.pt").exists() else "scratch"
        moment = moments.uniform(0, seconds) if survived < kills else None
        ended = start(moment, out_dir=str(out), init_from=how)
        survived += not ended
        if (out / "loss.csv").exists():
            assert losses(out) == losses(whole)[: len(losses(out))]
        for path in out.glob("*.pt"):
            here, there = GPT.load(path).state_dict(), GPT.load(whole / path.name).state_dict()
            assert not ended or all(here[key].equal(there[key]) for key in there)
        if ended:
            shutil.rmtree(out)  # begin again, for the next kills


def test_a_full_disk_is_told_and_the_checkpoint_before_it_is_intact(shell, trained, tmp_path):
    pytest.importorskip("resource", reason="Windows knows no limit on the size of files")
    out = shutil.copytree(trained.folder, tmp_path / "out")
    before = (out / "last.pt").read_bytes()
    limit = int(len(before) * 0.95)
    code = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    code += "runpy.run_path('train.py', run_name='__main__')"
    done = shell("-c", code, *trained.flags, f"--out_dir={out}", "--init_from=resume", "--max_iters=9")
    assert done.code == 2
    assert re.fullmatch(r".*: error: .*cannot write .*last\.pt: .*too large.*\n", done.err), done.err
    assert (out / "last.pt").read_bytes() == before and not list(out.glob("*.tmp"))
