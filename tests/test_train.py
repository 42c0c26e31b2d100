"""Training: what it writes and prints, the loss it reports, stopping and resuming, and what it refuses."""

import itertools
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
from conftest import write_data

import train as train_module
from config import load_settings
from model import GPT, GPTConfig

OUTPUTS = ["best.pt", "last.pt", "loss.csv", "loss.png"]
COLUMNS = "iter,epoch,train_loss,val_loss,bits_per_byte,lr,tokens_per_second,elapsed_seconds"
CLOCK = {"tokens_per_second", "elapsed_seconds"}  # the columns that no two runs share
STEADY = ["--noise=0", "--dropout=0", "--cut=0", "--dtype=float32"]
FULL = [*STEADY, "--compact_vocab=False", "--spelling=0"]


@pytest.fixture
def train(command, trained, tmp_path, monkeypatch):
    """train.py with the flags of `trained`, and more, into tmp_path/out."""
    # `trained` draws its losses; here that would take most of the time
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **how: file.write(b"PNG"))
    return lambda *flags: command("train.py", *trained.flags, f"--out_dir={tmp_path / 'out'}", *flags)


@pytest.fixture
def losses_of(train, tmp_path, read_losses):
    """The rows of loss.csv of a run with these flags, but for the clock's columns."""

    def run(*flags):
        done = train(*flags)
        assert done.code == 0, done.err
        return without_clock(read_losses(tmp_path / "out"))

    return run


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of a finished run in tmp_path/out."""
    return shutil.copytree(trained.folder, tmp_path / "out")


@pytest.fixture
def new_run(trained, prepared):
    """A Run with the flags of `trained`, and more, and the data that it trains on."""

    def make(*flags):
        settings = load_settings(train_module.Settings, [*trained.flags, *FULL, *flags])
        data, _, _ = train_module.load_data(settings)
        return train_module.Run(settings, train_module.make_model(settings, data), torch.device("cpu")), data

    return make


def signal_at(monkeypatch, at, number):
    """Send this process a signal when the network is used for training the so manieth time."""
    forward, calls = GPT.forward, itertools.count(1)

    def counted(model, *args):
        if model.training and next(calls) == at:
            signal.raise_signal(number)
        return forward(model, *args)

    monkeypatch.setattr(GPT, "forward", counted)


def without_clock(rows):
    return [{key: x for key, x in row.items() if key not in CLOCK and not math.isnan(x)} for row in rows]


def best_of(rows):
    """The row with the lowest val loss, but for that of the untrained model."""
    return min(rows[1:], key=lambda row: row["val_loss"])


def check_same(a, b):
    """The weights of two runs, also those from before the noise fell, and float16's scaler."""
    for name in ("best.pt", "last.pt"):
        one, other = GPT.load(a / name), GPT.load(b / name)
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
        assert one.notes.get("scaler") == other.notes.get("scaler")
        torch.testing.assert_close(one.notes["early"], other.notes["early"], rtol=0, atol=0)


def nats(model, tokens):
    """-ln p of all tokens but the first, one by one; the window before each moves by half a block."""
    block_size, total = model.config.block_size, 0.0
    half = block_size // 2
    for place in range(1, len(tokens)):
        begin = max(0, math.ceil((place - block_size) / half) * half)
        total -= model.log_probs(torch.tensor([tokens[begin:place]]))[0, -1, tokens[place]].item()
    return total


def check_val_loss(out, data, rows):
    """The lowest val loss is that of best.pt over all of val.bin."""
    tokens = np.fromfile(data / "val.bin", "<u2").tolist()
    total = nats(GPT.load(out / "best.pt"), tokens)
    n_bytes = json.loads((data / "meta.json").read_text())["val_bytes"]
    assert best_of(rows)["val_loss"] == pytest.approx(total / (len(tokens) - 1), abs=1e-4)
    assert best_of(rows)["bits_per_byte"] == pytest.approx(total / math.log(2) / n_bytes, abs=1e-4)


def test_a_run_writes_its_files_and_tells_what_it_does(trained, prepared, read_losses):
    assert sorted(path.name for path in trained.folder.iterdir()) == OUTPUTS
    assert (trained.folder / "loss.csv").read_text().splitlines()[0] == COLUMNS
    assert min(matplotlib.image.imread(trained.folder / "loss.png").shape[:2]) > 200
    rows, n_tokens = read_losses(trained.folder), (prepared.folder / "train.bin").stat().st_size // 2
    assert [row["iter"] for row in rows] == [0, 4, 8]
    assert [row["epoch"] * n_tokens / 32 for row in rows] == pytest.approx([0, 4, 8])
    assert all(math.isfinite(value) for row in rows[1:] for value in row.values())
    assert "device cpu" in trained.out and f"{n_tokens:,} training tokens" in trained.out
    lines = [line for line in trained.out.splitlines() if line.startswith("iter ")]
    assert trained.out.count("it writes: ") == len(lines) == 3  # a tweet at each evaluation
    for line, row in zip(lines[1:], rows[1:], strict=True):
        for text in ("train {train_loss:.4f}", "val {val_loss:.4f} nats", "{bits_per_byte:.4f} bits/byte"):
            assert text.format(**row) in line
    assert f"best val loss {best_of(rows)['val_loss']:.4f}" in trained.out and trained.err == ""
    check_val_loss(trained.folder, prepared.folder, rows)
    best, last = (GPT.load(trained.folder / f"{name}.pt").notes for name in ("best", "last"))
    assert best["val_loss"] == best_of(rows)["val_loss"] and "val_loss" not in last  # it has other weights


def test_a_seed_gives_the_same_run_again_and_the_earlier_is_kept(
    finished, train, losses_of, read_losses, snapshot, monkeypatch
):
    before, rows = snapshot(finished), without_clock(read_losses(finished))
    signal_at(monkeypatch, 2, signal.SIGTERM)
    assert "stopped at iteration 2" in train("--seed=2").out  # before it has a best.pt: not worth keeping
    assert losses_of() == rows and snapshot(finished / "previous") == before
    check_same(finished, finished / "previous")
    assert losses_of("--seed=2") != rows and snapshot(finished / "previous") != before
    assert sorted(path.name for path in finished.iterdir()) == [*OUTPUTS, "previous"]


def test_the_preset_trains_on_few_tweets_and_what_it_writes_can_be_used(command, tmp_path):
    tweets = "\n".join(f"Rocket number {i} flies to Mars {'again ' * (i % 9)}" for i in range(60))
    (tmp_path / "tweets.txt").write_text(tweets)
    data, out = f"--data_dir={tmp_path / 'data'}", f"--out_dir={tmp_path / 'out'}"
    assert command("prepare.py", f"--input={tmp_path / 'tweets.txt'}", data).code == 0
    done = command("train.py", "config/elon.py", data, out, "--batch_size=2", "--max_iters=2")
    assert done.code == 0, done.err
    words = shlex.split(done.out.splitlines()[-1])
    assert words[:3] == ["next:", sys.orig_argv[0], "sample.py"]
    done = command(*words[2:], "--num_samples=2", "--start=Tesla")
    assert done.code == 0 and done.out.count("Tesla") >= 2, done.err


@pytest.mark.parametrize("block_size, n_val", [(8, 2), (8, 9), (8, 12), (8, 13), (7, 60), (2, 20)])
def test_the_val_loss_at_every_edge_of_the_windows(block_size, n_val):
    model = GPT(GPTConfig(block_size, vocab_size=50, n_layer=1, n_head=1, n_embd=8)).eval()
    for parameter in model.parameters():
        parameter.data.normal_()
    tokens = np.random.default_rng(0).integers(50, size=n_val).astype("<u2")
    val_loss = train_module.evaluate(model, tokens, batch_size=3)
    assert val_loss == pytest.approx(nats(model, tokens.tolist()) / (n_val - 1), abs=1e-4)


def test_best_pt_holds_the_best_weights_and_patience_ends_the_run(losses_of, tmp_path):
    rng = np.random.default_rng(0)  # val is another text, so that training makes the val loss worse
    data = write_data(tmp_path / "data", rng.integers(900, 910, 300), rng.integers(910, 1000, 60))
    flags = [*FULL, data, "--max_iters=20", "--eval_interval=5", "--learning_rate=0.1"]
    rows = losses_of(*flags)
    assert len(rows) == 5 and best_of(rows) != rows[-1]
    check_val_loss(tmp_path / "out", tmp_path / "data", rows)
    stopped = losses_of(*flags, "--patience=2")
    assert len(stopped) < 5 and stopped == rows[: len(stopped)] and best_of(stopped) == stopped[-3]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_training_learns(losses_of, tmp_path, dtype):
    tweet = [50256, 900, 901, 902, 903]
    long = ["--max_iters=80", "--eval_interval=80", "--learning_rate=0.03"]
    data = write_data(tmp_path / "data", tweet * 60, tweet * 8)
    first, last = losses_of(data, *STEADY, f"--dtype={dtype}", *long)
    assert last["val_loss"] < 0.25 < 1 < first["val_loss"]


@pytest.mark.parametrize(
    "flags, iters",
    [
        ("--max_iters=3 --eval_interval=2", [0, 2, 3]),
        ("--max_iters=0 --epochs=0.45 --eval_interval=99", [0, 5]),  # of 320 tokens, 32 a time
        ("--max_iters=24 --eval_interval=0", range(0, 25, 2)),
    ],
)
def test_when_a_run_is_evaluated(losses_of, tmp_path, flags, iters):
    rows = losses_of(write_data(tmp_path / "data", [900, 901] * 160, [900] * 9), *flags.split())
    assert [row["iter"] for row in rows] == list(iters)


def test_the_learning_rate_rises_on_a_line_and_falls_along_half_a_cosine(losses_of):
    rows = losses_of("--warmup_iters=4", "--eval_interval=2")
    assert [row["lr"] for row in rows] == pytest.approx([0.0025, 0.0075, 0.01, 0.005, 0])


def test_accumulated_steps_are_one_large_batch(losses_of):
    flags = [*FULL, "--muon=False", "--max_iters=4"]
    whole = losses_of(*flags, "--batch_size=8")  # of tweets that differ, so no other 2 x 4 equal these 1 x 8
    parts = losses_of(*flags, "--batch_size=4", "--gradient_accumulation_steps=2")
    assert all(one == pytest.approx(other, rel=1e-5) for one, other in zip(whole, parts, strict=True))


@pytest.mark.long
def test_a_compiled_run_gives_the_same_losses(losses_of, tmp_path):
    rows = [losses_of(*STEADY, f"--compile={how}") for how in (False, True)]
    assert all(one == pytest.approx(other, abs=1e-4) for one, other in zip(*rows, strict=True))
    GPT.load(tmp_path / "out" / "best.pt")  # raises an error if the weights have other names


@pytest.mark.parametrize(
    "dtype, number, at",  # 4 is an evaluation, 6 is between two
    [("float32", signal.SIGINT, 4), ("bfloat16", signal.SIGTERM, 6), ("float16", signal.SIGTERM, 6)],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    train, losses_of, command, tmp_path, read_losses, monkeypatch, dtype, number, at
):
    out, flag = tmp_path / "out", f"--dtype={dtype}"
    whole = losses_of(flag)
    signal_at(monkeypatch, at, number)
    stopped = train(flag)
    seconds_before = GPT.load(out / "last.pt").notes["seconds"]
    told, _, again = stopped.out.splitlines()[-1].partition("; to continue: ")
    assert (stopped.code, told) == (128 + number, f"stopped at iteration {at}")
    resumed = command(*shlex.split(again)[1:])
    assert resumed.code == 0 and "iter     0" not in resumed.out, resumed.err
    rows = read_losses(out)
    assert without_clock(rows) == whole
    seconds = [32 * 4 / row["tokens_per_second"] for row in rows[1:]]
    assert rows[-1]["elapsed_seconds"] > sum(seconds) and seconds[-1] > seconds_before
    check_same(out, out / "previous")


def test_a_finished_run_can_be_made_longer(finished, losses_of, read_losses):
    before = without_clock(read_losses(finished))
    assert losses_of("--init_from=resume") == before  # nothing is left to do
    rows = losses_of("--init_from=resume", "--max_iters=12")
    assert [row["iter"] for row in rows] == [0, 4, 8, 12] and rows[:3] == before


def damage(out, name, change):
    """Write data beside a run of which one file is not as prepare.py writes it."""
    write_data(out / "data", [900, 901] * 99, [900] * 99)
    (out / "data" / name).write_bytes(change((out / "data" / name).read_bytes()))


HARM = {
    "a damaged file": lambda out: (out / "last.pt").write_bytes(b"PK"),
    "weights only": lambda out: (out / "best.pt").replace(out / "last.pt"),
    "other tweets": lambda out: write_data(out / "data", [900] * 99, [900] * 99),
    "empty val.bin": lambda out: damage(out, "val.bin", lambda x: b""),
    "broken meta.json": lambda out: damage(out, "meta.json", lambda x: x[:-9]),
    "foreign train.bin": lambda out: damage(out, "train.bin", lambda x: x[2:]),
    "wrong val_bytes": lambda out: damage(out, "meta.json", lambda x: x.replace(b": ", b": 1", 1)),
}


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--block_size=100000", "train.bin .*too few.* block_size"),
        ("--n_embd=15", "n_embd .*15.* n_head"),
        ("--compact_vocab=False --spelling=8", "spelling .*compact_vocab"),
        ("--out_dir=/dev/null/out", "/dev/null"),
        ("--data_dir=no/such/folder", "no/such/folder.*prepare.py"),
        ("--data_dir=OUT/data  # empty val.bin", "val.bin.*prepare.py"),
        ("--data_dir=OUT/data  # broken meta.json", "meta.json.*prepare.py"),
        ("--data_dir=OUT/data  # foreign train.bin", "meta.json.*made together.*prepare.py"),
        ("--data_dir=OUT/data  # wrong val_bytes", "meta.json.*made together.*prepare.py"),
        ("--batch_size=100000000000000", "out of memory.* batch_size"),
        ("--n_embd=10000000000", "out of memory.* n_embd"),
        ("--learning_rate=1e30 --grad_clip=0", "the loss became .*lower learning_rate"),
        ("--compile", "compile.*no compiler here.*leave out --compile"),
        ("--init_from=resume --n_embd=32", "n_embd .*16.* 32"),
        ("--init_from=resume --seed=2 --batch_size=8", "batch_size .*4.* 8.* seed .*1337.* 2"),
        ("--init_from=resume --max_iters=2", "8 .*2.* raise max_iters"),
        ("--init_from=resume  # a damaged file", "last.pt"),
        ("--init_from=resume --out_dir=OUT/none", "none/last.pt.* train.py"),
        ("--init_from=resume  # weights only", "last.pt: .*weights only"),
        ("--init_from=resume --data_dir=OUT/data  # other tweets", "other tweets"),
    ],
)
def test_what_cannot_be_done_is_told_and_an_earlier_run_is_left(
    finished, train, the_error, snapshot, monkeypatch, flags, words
):
    def no_compiler(model):
        raise torch._dynamo.exc.TorchDynamoException("no compiler here\nand why")

    flags, _, harm = flags.replace("OUT", str(finished)).partition("  # ")
    if harm:
        HARM[harm](finished)
    monkeypatch.setattr(torch, "compile", no_compiler)
    before = snapshot(finished)
    error = the_error(train(*flags.split()), "train.py")
    assert re.search(words, error), error
    assert snapshot(finished) == before


@pytest.mark.parametrize("shape", [(24, 8), (8, 8), (8, 32)])
def test_muon_is_that_of_torch_and_in_float32_nearly_the_same(shape):
    start, kinds = torch.randn(shape), (torch.float32, torch.bfloat16)
    theirs, in_float32, in_bfloat16 = weights = [torch.nn.Parameter(start.clone()) for _ in range(3)]
    optimizers = [torch.optim.Muon([theirs], 0.01, 0.3, adjust_lr_fn="match_rms_adamw")]
    optimizers += [
        train_module.Muon([weight], 0.01, 0.3, kind) for weight, kind in zip(weights[1:], kinds, strict=True)
    ]
    for _ in range(5):
        grad = torch.randn(shape)
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = grad.clone()
            optimizer.step()
    assert torch.equal(theirs, in_bfloat16) and not torch.equal(theirs, start)
    torch.testing.assert_close(theirs, in_float32, rtol=0, atol=2e-3)


@pytest.mark.parametrize("noise_fall, last", [(0.25, 0.5), (0, 1.0)])
def test_noise_falls_to_nothing_over_the_last_part_of_a_run(new_run, noise_fall, last):
    run, data = new_run("--noise=0.5", f"--noise_fall={noise_fall}")
    for n in range(8):
        train_module.train_step(run, run.model, data)
        assert run.model.noise.strength.item() == (last if n == 7 else 1.0)


def test_what_is_kept_from_before_the_noise_fell_is_that_network(trained, train, tmp_path, monkeypatch):
    """Of 8 iterations only the last is in the last 15 %, so it is the network after seven."""
    signal_at(monkeypatch, 7, signal.SIGTERM)
    assert "stopped at iteration 7" in train().out
    weights = GPT.load(tmp_path / "out" / "last.pt").state_dict()
    halves = {name: tensor.half() for name, tensor in weights.items()}
    early = GPT.load(trained.folder / "last.pt").notes["early"]
    torch.testing.assert_close(early, halves, rtol=0, atol=0)


def test_where_a_float16_gradient_overflows_no_weight_moves(new_run):
    """One block's gradient that is no number must not reach any other weight, nor the optimizers' state."""
    run, data = new_run("--dtype=float16")
    run.model.h[0].mlp.c_fc.weight.register_hook(lambda grad: grad * math.nan)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    train_module.train_step(run, run.model, data)
    torch.testing.assert_close(run.model.state_dict(), before, rtol=0, atol=0)
    assert run.scaler.get_scale() < 65536  # the next step tries a smaller one
