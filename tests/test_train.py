"""Training: what it writes and prints, the loss it reports, stopping and resuming, and what it refuses."""

import json
import math
import re
import shlex
import shutil
import signal
import sys

import matplotlib.image
import numpy as np
import pytest
import torch

from model import GPT

OUTPUTS = ["best.pt", "last.pt", "loss.csv", "loss.png"]
COLUMNS = "iter,epoch,train_loss,val_loss,bits_per_byte,lr,tokens_per_second,elapsed_seconds"
CLOCK = {"tokens_per_second", "elapsed_seconds"}  # the columns that no two runs share
PLAIN = ["--compact_vocab=False", "--spelling=0", "--noise=0", "--dropout=0", "--dtype=float32"]


@pytest.fixture
def train(command, trained, tmp_path):
    """train.py with the flags of `trained`, and more, into tmp_path/out."""

    def run(*flags, **how):
        return command("train.py", *trained.flags, f"--out_dir={tmp_path / 'out'}", *flags, **how)

    return run


@pytest.fixture
def losses_of(train, tmp_path, read_losses):
    """The rows of loss.csv of a run with these flags."""

    def run(*flags):
        done = train(*flags)
        assert done.code == 0, done.err
        return read_losses(tmp_path / "out")

    return run


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of a finished run in tmp_path/out."""
    return shutil.copytree(trained.folder, tmp_path / "out")


@pytest.fixture
def at_forward(monkeypatch):
    """Act when the network is used for training the so manieth time."""

    def patch(count, action):
        forward, calls = GPT.forward, []

        def counted(model, *args):
            calls.extend([1] * model.training)
            if model.training and len(calls) == count:
                action()
            return forward(model, *args)

        monkeypatch.setattr(GPT, "forward", counted)

    return patch


def write_data(folder, train_ids, val_ids):
    """What prepare.py writes, by hand."""
    folder.mkdir()
    for name, ids in (("train", train_ids), ("val", val_ids)):
        np.array(ids, "<u2").tofile(folder / f"{name}.bin")
    (folder / "meta.json").write_text(json.dumps({"val_bytes": 4 * len(val_ids)}))
    return f"--data_dir={folder}"


def without_clock(rows):
    return [{key: x for key, x in row.items() if key not in CLOCK and not math.isnan(x)} for row in rows]


def same_weights(a, b):
    a, b = (GPT.load(path).state_dict() for path in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- what it writes and prints --------------------------------------------------------------------


def test_a_run_writes_its_files_and_tells_what_it_does(trained, prepared, read_losses):
    assert sorted(path.name for path in trained.folder.iterdir()) == OUTPUTS
    assert (trained.folder / "loss.csv").read_text().splitlines()[0] == COLUMNS
    assert (trained.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert min(matplotlib.image.imread(trained.folder / "loss.png").shape[:2]) > 200
    rows, n_tokens = read_losses(trained.folder), (prepared.folder / "train.bin").stat().st_size // 2
    assert [row["iter"] for row in rows] == pytest.approx([row["epoch"] * n_tokens / 32 for row in rows])
    assert [row["iter"] for row in rows] == [0, 4, 8]
    assert all(math.isfinite(value) for row in rows[1:] for value in row.values())
    assert "device cpu" in trained.out and f"{n_tokens:,} training tokens" in trained.out
    lines = [line for line in trained.out.splitlines() if line.startswith("iter ")]
    for line, row in zip(lines[1:], rows[1:], strict=True):
        shown = (f"train {row['train_loss']:.4f}", f"val {row['val_loss']:.4f} nats")
        assert all(text in line for text in (*shown, f"{row['bits_per_byte']:.4f} bits/byte")), line
    best = min(rows[1:], key=lambda row: row["val_loss"])
    assert f"best val loss {best['val_loss']:.4f}" in trained.out
    assert GPT.load(trained.folder / "best.pt").notes["val_loss"] == best["val_loss"]
    assert trained.err == ""
    check_val_loss(trained.folder, prepared.folder, rows)


def test_the_same_seed_gives_the_same_run(trained, losses_of, tmp_path, read_losses):
    before = without_clock(read_losses(trained.folder))
    assert without_clock(losses_of()) == before
    assert same_weights(tmp_path / "out" / "last.pt", trained.folder / "last.pt")
    assert without_clock(losses_of("--seed=2")) != before


def test_a_new_run_keeps_the_earlier_one(finished, train, snapshot):
    before = snapshot(finished)
    for is_second in (False, True):
        done = train("--max_iters=1")
        assert done.code == 0, done.err
        assert (snapshot(finished / "previous") == before) != is_second
        assert sorted(path.name for path in finished.iterdir()) == [*OUTPUTS, "previous"]


def test_the_preset_trains_on_few_tweets_and_what_it_writes_can_be_used(command, read_losses, tmp_path):
    tweets = "\n".join(f"Rocket number {i} flies to Mars {'again ' * (i % 9)}" for i in range(60))
    (tmp_path / "tweets.txt").write_text(tweets)
    flags = [f"--data_dir={tmp_path / 'data'}"]
    assert command("prepare.py", f"--input={tmp_path / 'tweets.txt'}", *flags).code == 0
    flags += [f"--out_dir={tmp_path / 'out'}", "--batch_size=2"]
    for more in (["--max_iters=2"], ["--max_iters=3", "--init_from=resume"]):
        done = command("train.py", "config/elon.py", *flags, *more)
        assert done.code == 0, done.err
    assert math.isfinite(read_losses(tmp_path / "out")[-1]["train_loss"])
    words = shlex.split(done.out.splitlines()[-1])
    assert words[:3] == ["next:", sys.orig_argv[0], "sample.py"]
    done = command(*words[2:], "--num_samples=2", "--start=Tesla")
    assert done.code == 0 and done.out.count("Tesla") >= 2, done.err


# --- the loss -------------------------------------------------------------------------------------


def check_val_loss(out, data, rows):
    """The lowest val loss is that of best.pt over all of val.bin; windows advance by half a block."""
    model, tokens, total = GPT.load(out / "best.pt"), np.fromfile(data / "val.bin", "<u2").tolist(), 0.0
    block_size, half = model.config.block_size, model.config.block_size // 2
    for place in range(1, len(tokens)):
        begin = max(0, math.ceil((place - block_size) / half) * half)
        total -= model.log_probs(torch.tensor([tokens[begin:place]]))[0, -1, tokens[place]].item()
    best = min(rows[1:], key=lambda row: row["val_loss"])
    assert best["val_loss"] == pytest.approx(total / (len(tokens) - 1), abs=1e-4)
    n_bytes = json.loads((data / "meta.json").read_text())["val_bytes"]
    assert best["bits_per_byte"] == pytest.approx(total / math.log(2) / n_bytes, abs=1e-4)


@pytest.mark.parametrize("block_size, n_val", [(8, 2), (8, 9), (8, 12), (8, 13), (7, 60), (2, 20)])
def test_the_val_loss_at_every_edge_of_the_windows(losses_of, tmp_path, block_size, n_val):
    rng = np.random.default_rng(0)
    data = write_data(tmp_path / "data", rng.integers(900, 940, 300), rng.integers(900, 950, n_val))
    rows = losses_of(*PLAIN, data, f"--block_size={block_size}", "--max_iters=1")
    check_val_loss(tmp_path / "out", tmp_path / "data", rows)


def test_best_pt_holds_the_best_weights_and_patience_ends_the_run(losses_of, tmp_path):
    rng = np.random.default_rng(0)  # val is another text, so that training makes the val loss worse
    data = write_data(tmp_path / "data", rng.integers(900, 910, 300), rng.integers(910, 1000, 60))
    flags = [*PLAIN, data, "--max_iters=40", "--eval_interval=5", "--learning_rate=0.1"]
    rows = losses_of(*flags)
    assert len(rows) == 9 and min(rows[1:], key=lambda row: row["val_loss"]) != rows[-1]
    check_val_loss(tmp_path / "out", tmp_path / "data", rows)
    stopped = losses_of(*flags, "--patience=2")
    assert len(stopped) < 9 and without_clock(stopped) == without_clock(rows[: len(stopped)])
    assert min(stopped[1:], key=lambda row: row["val_loss"]) == stopped[-3]


@pytest.mark.parametrize("flags", [PLAIN, ["--noise=0", "--dropout=0"]], ids=["plain", "preset"])
def test_training_learns(losses_of, tmp_path, flags):
    tweet = [50256, 900, 901, 902, 903]
    long = ["--max_iters=80", "--eval_interval=80", "--learning_rate=0.03", "--warmup_iters=5"]
    first, last = losses_of(write_data(tmp_path / "data", tweet * 60, tweet * 8), *flags, *long)
    assert last["val_loss"] < 0.25 < 1 < first["val_loss"]


# --- optimization ---------------------------------------------------------------------------------


def test_the_learning_rate_rises_and_then_falls_to_0(losses_of):
    rates = [row["lr"] for row in losses_of("--max_iters=8", "--warmup_iters=4", "--eval_interval=2")]
    cosine = [0.005 * (1 + math.cos(math.pi * i / 4)) for i in (0, 2, 4)]
    assert rates == pytest.approx([0.0025, 0.0075, *cosine])


def test_epochs_give_the_iterations_and_max_iters_overrides_them(train, prepared):
    n_tokens = (prepared.folder / "train.bin").stat().st_size // 2
    for flag, iterations in ("--max_iters=0", math.ceil(0.05 * n_tokens / 32)), ("--max_iters=2", 2):
        done = train("--epochs=0.05", "--eval_interval=100", flag)
        assert done.code == 0 and f" {iterations} iterations" in done.out, done.out + done.err


def test_accumulated_steps_are_one_large_batch(losses_of, tmp_path):
    # where all windows are alike, so must be 2 x 4 and 1 x 8 of them
    flags = [*PLAIN, write_data(tmp_path / "data", [900] * 200, [900] * 100), "--max_iters=4"]
    whole = without_clock(losses_of(*flags, "--batch_size=8"))
    parts = without_clock(losses_of(*flags, "--batch_size=4", "--gradient_accumulation_steps=2"))
    assert all(one == pytest.approx(other, rel=1e-5) for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_trains_alike_and_resumes_exactly(losses_of, train, tmp_path, at_forward, dtype):
    flags = ["--max_iters=40", "--eval_interval=20", "--learning_rate=0.003"]
    exact, half = (losses_of(*flags, f"--dtype={name}") for name in ("float32", dtype))
    for name in ("train_loss", "val_loss"):
        assert half[-1][name] == pytest.approx(exact[-1][name], rel=0.02)
    scaler = torch.load(tmp_path / "out" / "last.pt", weights_only=True)["notes"]["scaler"]
    assert bool(scaler) == (dtype == "float16")
    at_forward(30, lambda: signal.raise_signal(signal.SIGTERM))
    assert train(*flags, f"--dtype={dtype}").code == 128 + signal.SIGTERM
    resumed = losses_of(*flags, f"--dtype={dtype}", "--init_from=resume")
    assert without_clock(resumed) == without_clock(half)
    assert torch.load(tmp_path / "out" / "last.pt", weights_only=True)["notes"]["scaler"] == scaler


@pytest.mark.long
def test_a_compiled_run_gives_the_same_losses(shell, trained, read_losses, tmp_path):
    flags, rows = [*trained.flags, "--dropout=0", "--noise=0", "--cut=0", "--dtype=float32"], []
    for how in ("False", "True"):
        done = shell("train.py", *flags, f"--compile={how}", f"--out_dir={tmp_path / how}")
        assert done.code == 0, done.err
        rows.append(without_clock(read_losses(tmp_path / how)))
    assert all(one == pytest.approx(other, abs=1e-4) for one, other in zip(*rows, strict=True))
    assert GPT.load(tmp_path / "True" / "best.pt").config == GPT.load(tmp_path / "False" / "best.pt").config


# --- stopping and resuming ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, at", [(signal.SIGINT, 4), (signal.SIGTERM, 6)], ids=["at an evaluation", "between two"]
)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    train, command, trained, tmp_path, read_losses, at_forward, number, at
):
    at_forward(at, lambda: signal.raise_signal(number))
    stopped = train()
    assert stopped.code == 128 + number
    told, _, again = stopped.out.splitlines()[-1].partition("; to continue: ")
    assert told == f"stopped at iteration {at}"
    words = shlex.split(again)
    assert words[:2] == [sys.orig_argv[0], "train.py"] and words[-1] == "--init_from=resume"
    resumed = command(*words[1:])
    assert resumed.code == 0 and not re.search(r"^iter +[0-3] ", resumed.out, re.MULTILINE), resumed.err
    rows = read_losses(tmp_path / "out")
    assert without_clock(rows) == without_clock(read_losses(trained.folder))
    assert [row["elapsed_seconds"] for row in rows] == sorted(row["elapsed_seconds"] for row in rows)
    for name in ("best.pt", "last.pt"):
        assert same_weights(tmp_path / "out" / name, trained.folder / name)


def test_a_finished_run_can_be_made_longer(finished, losses_of, read_losses):
    before = without_clock(read_losses(finished))
    assert without_clock(losses_of("--init_from=resume")) == before  # nothing is left to do
    rows = without_clock(losses_of("--init_from=resume", "--max_iters=12"))
    assert [row["iter"] for row in rows] == [0, 4, 8, 12] and rows[:3] == before


@pytest.mark.parametrize(
    "flags, harm, words",
    [
        (["--n_embd=32"], None, ["n_embd", "16", "32"]),
        (["--seed=2", "--batch_size=8"], None, ["seed", "1337", "batch_size", "4"]),
        (["--max_iters=2"], None, ["max_iters", "2", "8"]),
        ([], lambda out: (out / "last.pt").write_bytes(b""), ["last.pt"]),
        ([], lambda out: (out / "last.pt").unlink(), ["last.pt", "train.py"]),
        ([], lambda out: (out / "best.pt").replace(out / "last.pt"), ["last.pt", "weights only"]),
        (
            ["--data_dir={}"],
            lambda out: write_data(out.parent / "other", [900] * 99, [900] * 99),
            ["other tweets"],
        ),
    ],
    ids=["width", "seed", "fewer iterations", "empty", "missing", "weights only", "other tweets"],
)
def test_what_cannot_be_resumed_is_told_and_left_as_it_is(
    finished, train, the_error, snapshot, flags, harm, words
):
    if harm:
        harm(finished)
    before = snapshot(finished)
    flags = [flag.replace("{}", str(finished.parent / "other")) for flag in flags]
    error = the_error(train("--init_from=resume", *flags), "train.py")
    assert all(word in error for word in words), error
    assert snapshot(finished) == before


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--block_size=100000"], ["train.bin", "too few", "block_size"]),
        (["--n_embd=15"], ["n_embd", "15", "n_head"]),
        (["--device=nonsense"], ["device", "'nonsense'"]),
        (["--compact_vocab=False", "--spelling=8"], ["spelling", "compact_vocab"]),
        (["--data_dir=no/such/folder"], ["no/such/folder", "prepare.py"]),
        (["--batch_size=100000000000000"], ["out of memory", "batch_size"]),
        (["--learning_rate=1e30", "--grad_clip=0"], ["the loss became", "lower learning_rate"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_what_cannot_be_trained_is_told_and_an_earlier_run_is_left(
    finished, train, the_error, snapshot, flags, words
):
    before = snapshot(finished)
    error = the_error(train(*flags), "train.py")
    assert all(word in error for word in words), error
    assert snapshot(finished) == before
