"""What the tests share: the two ways to run a script, and one small prepared and one small trained run."""

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

# before torch is imported: threads gain nothing on tiny models, and wait for long where the cores are busy
os.environ.setdefault("OMP_NUM_THREADS", "1")
# so that the scripts heed Ctrl-C also where these tests run in the background, which ignores it
signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(REPO))  # so that plain `pytest` finds the program, as `python -m pytest` does

import prepare

# the reference run, so small that it takes a second
TINY = [
    *("config/elon.py", "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=8", "--spelling=64"),
    *("--batch_size=4", "--max_iters=8", "--warmup_iters=2", "--learning_rate=0.01", "--eval_interval=4"),
    *("--dropout=0.1", "--noise=0.3", "--patience=0", "--device=cpu"),
]


def write_data(folder, train_ids, val_ids):
    """Write what prepare.py does, by hand, and return the flag that names it."""
    folder.mkdir(exist_ok=True)
    for name, ids in (("train", train_ids), ("val", val_ids)):
        np.array(ids, "<u2").tofile(folder / f"{name}.bin")
    train, val = (np.fromfile(folder / f"{name}.bin", "<u2") for name in ("train", "val"))
    meta = {"val_bytes": prepare.count_bytes(prepare.load_tokenizer(), val)}
    meta["train_sha256"] = hashlib.sha256(train).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))
    return f"--data_dir={folder}"


@pytest.fixture(scope="session")
def repo():
    return REPO


@pytest.fixture(scope="session")
def shell():
    """Run a script as a user types it, in a process of its own: shell("train.py", "--seed=1").

    The result has `code`, the exit status, and the texts `out` and `err`.
    """

    def run(*words, env=None, cwd=REPO):
        how = {"env": os.environ | {"PYTHONUTF8": "1"} | (env or {}), "cwd": cwd, "timeout": 120}
        words = [sys.executable, *map(str, words)]
        done = subprocess.run(words, capture_output=True, encoding="utf-8", **how)
        return types.SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def command():
    """The same in this process, as __main__, without the seconds that a new one needs to import torch.

    `out` takes the place of standard output, `stdin` is what standard input holds.
    """
    import model

    # what train.py makes of GPT-2's vocabulary takes a second, and is always the same
    texts, model.token_tables = tuple(prepare.token_texts()), functools.cache(model.token_tables)
    prepare.token_texts = lambda: texts

    def run(script, *flags, out=None, stdin=""):
        out, err, code = out or io.StringIO(), io.StringIO(), 0
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(REPO)
            patch.setattr(sys, "argv", [script, *map(str, flags)])
            patch.setattr(sys, "stdin", None if stdin is None else io.StringIO(stdin))
            try:
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    runpy.run_path(script, run_name="__main__")
            except SystemExit as end:
                code = end.code or 0
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        return types.SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())

    return run


@pytest.fixture(scope="session")
def the_error():
    """Check that a run ended as all mistakes must: exit 2 and one line on stderr, which it returns."""

    def check(done, script):
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert done.err.startswith(f"{script}: error: ")
        return done.err.strip()

    return check


@pytest.fixture(scope="session")
def snapshot():
    """All files under a folder with their bytes, to tell whether anything has changed."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="session")
def prepared(command, tmp_path_factory):
    """The committed sample, prepared by the real command; `folder` is for reading only."""
    folder = tmp_path_factory.mktemp("prepared")
    done = command("prepare.py", "--input=data/sample_tweets.csv", f"--data_dir={folder}")
    assert done.code == 0, done.err
    return types.SimpleNamespace(folder=folder, out=done.out, err=done.err)


@pytest.fixture(scope="session")
def trained(shell, prepared, tmp_path_factory):
    """A TINY model trained by the real command; `folder` is for reading only."""
    folder, flags = tmp_path_factory.mktemp("trained"), [*TINY, f"--data_dir={prepared.folder}"]
    done = shell("train.py", *flags, f"--out_dir={folder}")
    assert done.code == 0, done.err
    return types.SimpleNamespace(folder=folder, flags=flags, out=done.out, err=done.err)


@pytest.fixture(scope="session")
def read_losses():
    """The rows of loss.csv as dictionaries of floats."""

    def read(folder):
        with open(folder / "loss.csv", encoding="utf-8", newline="") as file:
            return [{key: float(x or "nan") for key, x in row.items()} for row in csv.DictReader(file)]

    return read
