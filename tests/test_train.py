"""Training: what it writes and prints, the loss it reports, stopping and resuming, and what it refuses."""

import io
import json
import math
import re
import shlex
import shutil
import signal
import sys
import types

import matplotlib.image
import numpy as np
import pytest
import torch

from model import GPT

OUTPUTS = ["best.pt", "last.pt", "loss.csv", "loss.png"]
COLUMNS = "iter,epoch,train_loss,val_loss,bits_per_byte,lr,tokens_per_second,elapsed_seconds"
CLOCK = {"tokens_per_second", "elapsed_seconds"}  # the columns that no two runs share


@pytest.fixture
def train(command, trained, tmp_path):
    """train.py with the flags of `trained`, and more, into tmp_path/out."""

    def run(*flags, **how):
        return command("train.py", *trained.flags, f"--out_dir={tmp_path / 'out'}", *flags, **how)

    return run


@pytest.fixture(scope="module")
def again(command, trained, tmp_path_factory):
    """The run of `trained` once more; `folder` may be added to."""
    folder = tmp_path_factory.mktemp("again")
    done = command("train.py", *trained.flags, f"--out_dir={folder}")
    assert done.code == 0, done.err
    return types.SimpleNamespace(folder=folder, out=done.out)


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of a finished run in tmp_path/out."""
    return shutil.copytree(trained.folder, tmp_path / "out")


def write_data(folder, train_ids, val_ids):
    """What prepare.py writes, by hand."""
    folder.mkdir()
    for name, ids in (("train", train_ids), ("val", val_ids)):
        np.array(ids, "<u2").tofile(folder / f"{name}.bin")
    counts = {str(i): int(n) for i, n in zip(*np.unique(train_ids, return_counts=True), strict=True)}
    sizes = {"train_tokens": len(train_ids), "val_tokens": len(val_ids), "val_bytes": 4 * len(val_ids)}
    (folder / "meta.json").write_text(json.dumps(sizes | {"train_token_counts": counts}))
    return folder


def without_clock(rows):
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def same_weights(a, b):
    a, b = (GPT.load(path).state_dict() for path in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- what it writes and prints --------------------------------------------------------------------


def test_a_run_writes_its_files(trained, prepared, read_losses):
    assert sorted(path.name for path in trained.folder.iterdir()) == OUTPUTS
    assert (trained.folder / "loss.csv").read_text().splitlines()[0] == COLUMNS
    rows = read_losses(trained.folder)
    assert [row["iter"] for row in rows] == [0, 4, 8]
    n_tokens = (prepared.folder / "train.bin").stat().st_size // 2
    assert [row["epoch"] for row in rows] == pytest.approx([i * 4 * 8 / n_tokens for i in (0, 4, 8)])
    elapsed = [row["elapsed_seconds"] for row in rows]
    assert elapsed == sorted(elapsed)
    assert all(math.isfinite(row[name]) for row in rows for name in ("val_loss", "bits_per_byte", "lr"))
    assert all(math.isfinite(row["train_loss"]) and row["tokens_per_second"] > 0 for row in rows[1:])
    height, width, _ = matplotlib.image.imread(trained.folder / "loss.png").shape
    assert height > 200 and width > 200


def test_a_run_tells_what_will_happen_and_how_it_goes(trained, prepared, read_losses):
    meta, rows = json.loads((prepared.folder / "meta.json").read_text()), read_losses(trained.folder)
    start, *evaluations = re.split(r"^(?=iter .* val )", trained.out, flags=re.MULTILINE)
    for told in (
        "cpu", "dtype ", "parameters", f"{meta['train_tokens']:,} training tokens", "32 tokens per iteration",
        "8 iterations", f"{8 * 32 / meta['train_tokens']:.1f} epochs",
    ):  # fmt: skip
        assert told in start
    for line, row in zip(evaluations, rows, strict=True):
        line = line.splitlines()[0]
        shown = [f"{row['iter']:.0f}", f" {row['epoch']:.1f}  ", f"val {row['val_loss']:.4f} nats",
                 f"{row['bits_per_byte']:.4f} bits/byte", "tokens/s", "lr"]  # fmt: skip
        shown += [f"train {row['train_loss']:.4f}", " left"] if row["iter"] else []
        assert all(text in line for text in shown), line
    best = min(rows, key=lambda row: row["val_loss"])
    last_words = evaluations[-1].splitlines()[1:]
    assert f"best val loss {best['val_loss']:.4f}" in last_words[0]
    assert f"{best['bits_per_byte']:.4f} bits per byte" in last_words[0]
    assert trained.err == ""


def test_the_next_command_that_it_names_works(again, command):
    words = shlex.split(again.out.splitlines()[-1])
    assert words[:3] == ["next:", sys.orig_argv[0], "sample.py"]
    done = command(*words[2:], "--max_new_tokens=3")
    assert done.code == 0 and done.out.count("new  ") == 5


def test_the_same_seed_gives_the_same_run(trained, again, train, tmp_path, read_losses):
    assert without_clock(read_losses(again.folder))[1:] == without_clock(read_losses(trained.folder))[1:]
    for name in ("best.pt", "last.pt"):
        assert same_weights(again.folder / name, trained.folder / name)
    assert train("--seed=2").code == 0
    assert without_clock(read_losses(tmp_path / "out"))[1:] != without_clock(read_losses(trained.folder))[1:]


def test_a_new_run_keeps_the_earlier_one(finished, train, snapshot, tmp_path):
    before = snapshot(finished)
    for gone in (False, True):
        done = train("--max_iters=1")
        assert done.code == 0 and "previous" in done.out and ("replacing" in done.out) == gone
        assert (snapshot(finished / "previous") == before) != gone
        assert sorted(path.name for path in finished.iterdir()) == [*OUTPUTS, "previous"]


# --- the loss -------------------------------------------------------------------------------------


def sliding_val_loss(model, tokens):
    """-log p summed over all tokens but the first, each scored once; windows move on by half a block."""
    block_size, begins = model.config.block_size, [0]
    while begins[-1] + block_size + 1 < len(tokens):
        begins.append(begins[-1] + block_size // 2)
    total, next_to_score = 0.0, 1
    for begin in begins:
        window = tokens[begin : begin + block_size]
        log_probs = model.log_probs(torch.tensor([window]))[0].tolist()
        for place in range(next_to_score, min(begin + block_size + 1, len(tokens))):
            total -= log_probs[place - begin - 1][tokens[place]]
            next_to_score = place + 1
    assert next_to_score == len(tokens)
    return total


def check_val_loss(out, data, read_losses):
    """The lowest val loss in loss.csv is that of best.pt, over val.bin, computed on its own."""
    tokens = np.fromfile(data / "val.bin", "<u2").tolist()
    total = sliding_val_loss(GPT.load(out / "best.pt"), tokens)
    best = min(read_losses(out), key=lambda row: row["val_loss"])
    assert best["val_loss"] == pytest.approx(total / (len(tokens) - 1), abs=1e-4)
    n_bytes = json.loads((data / "meta.json").read_text())["val_bytes"]
    assert best["bits_per_byte"] == pytest.approx(total / math.log(2) / n_bytes, abs=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_preset_trains_on_other_tweets_and_what_it_writes_can_be_used(
    command, prepared, tmp_path, reverse
):
    data = prepared.folder
    if reverse:  # other tweets come first
        lines = (data / "processed.txt").read_text(encoding="utf-8").splitlines()[::-1]
        (tmp_path / "tweets.txt").write_text("\n".join(lines), encoding="utf-8")
        data = tmp_path / "data"
        assert command("prepare.py", f"--input={tmp_path / 'tweets.txt'}", f"--data_dir={data}").code == 0
    flags = ["config/elon.py", f"--data_dir={data}", f"--out_dir={tmp_path / 'out'}", "--batch_size=2"]
    for more in (["--max_iters=2"], ["--max_iters=3", "--init_from=resume"]):
        done = command("train.py", *flags, *more)
        assert done.code == 0, done.err
    done = command("sample.py", f"--out_dir={tmp_path / 'out'}", "--num_samples=2", "--start=Tesla")
    assert done.code == 0 and done.out.count("Tesla") >= 2, done.err


def test_the_val_loss_is_that_of_every_held_out_token(trained, prepared, read_losses):
    check_val_loss(trained.folder, prepared.folder, read_losses)


@pytest.mark.parametrize(
    "block_size, n_val", [(8, 2), (8, 5), (8, 9), (8, 12), (8, 13), (8, 14), (7, 60), (2, 20)]
)
def test_the_val_loss_at_every_edge_of_the_windows(train, tmp_path, read_losses, block_size, n_val):
    rng = np.random.default_rng(0)
    data = write_data(tmp_path / "data", rng.integers(900, 940, 300), rng.integers(900, 950, n_val))
    done = train(f"--data_dir={data}", f"--block_size={block_size}", "--max_iters=1")
    assert done.code == 0, done.err
    check_val_loss(tmp_path / "out", data, read_losses)


def test_best_pt_holds_the_weights_with_the_lowest_val_loss(train, tmp_path, read_losses):
    rng = np.random.default_rng(0)  # val is another text, so that training makes the val loss worse
    data = write_data(tmp_path / "data", rng.integers(900, 910, 300), rng.integers(910, 1000, 60))
    done = train(f"--data_dir={data}", "--max_iters=20", "--eval_interval=5", "--learning_rate=0.1")
    assert done.code == 0, done.err
    rows = read_losses(tmp_path / "out")
    assert min(rows, key=lambda row: row["val_loss"]) != rows[-1]
    check_val_loss(tmp_path / "out", data, read_losses)


@pytest.mark.parametrize(
    "flags", [["--compact_vocab=False", "--output_bias=False"], ["--output_bias=False"], []], ids=str
)
def test_training_learns(train, tmp_path, read_losses, flags):
    data = write_data(tmp_path / "data", [50256, 900, 901, 902, 903] * 60, [50256, 900, 901, 902, 903] * 8)
    plain = ["--ngram_order=0", "--noise=0", "--dropout=0"]
    long = ["--max_iters=80", "--eval_interval=80", "--learning_rate=0.03", "--warmup_iters=5"]
    done = train(f"--data_dir={data}", *plain, *long, *flags)
    assert done.code == 0, done.err
    first, last = read_losses(tmp_path / "out")
    assert last["val_loss"] < 0.25 < 1 < first["val_loss"]


# --- optimization ---------------------------------------------------------------------------------


def test_the_learning_rate_rises_and_then_falls_to_min_lr(train, tmp_path, read_losses):
    done = train(
        "--max_iters=12", "--warmup_iters=4", "--eval_interval=1", "--learning_rate=0.01", "--min_lr=0.001"
    )
    assert done.code == 0, done.err
    rates = [row["lr"] for row in read_losses(tmp_path / "out")]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    cosine = [0.001 + 0.009 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(9)]
    assert rates[4:] == pytest.approx(cosine)


def test_accumulated_steps_are_one_large_batch(train, tmp_path, read_losses):
    # where all windows are alike, so must be 2 x 4 and 1 x 8 of them
    data = write_data(tmp_path / "data", [900] * 200, [900] * 100)
    runs = []
    for shape in (["--batch_size=8"], ["--batch_size=4", "--gradient_accumulation_steps=2"]):
        flags = ["--ngram_order=0", "--noise=0", "--dropout=0", "--compact_vocab=False", "--eval_interval=1"]
        done = train(f"--data_dir={data}", *flags, "--max_iters=4", *shape)
        assert done.code == 0, done.err
        assert "64 tokens per iteration" in done.out
        runs.append(without_clock(read_losses(tmp_path / "out"))[1:])
    assert [row["epoch"] for row in runs[0]] == pytest.approx([i * 64 / 200 for i in range(1, 5)])
    for one, other in zip(*runs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_training_in_half_precision_gives_nearly_the_same(train, tmp_path, read_losses, dtype):
    runs = []
    for name in ("float32", dtype):
        done = train(f"--dtype={name}", "--max_iters=100", "--eval_interval=50", "--learning_rate=0.003")
        assert done.code == 0, done.err
        assert name in done.out
        runs.append(read_losses(tmp_path / "out")[1:])
    for exact, row in zip(*runs, strict=True):
        assert row["train_loss"] == pytest.approx(exact["train_loss"], rel=0.02)
        assert row["val_loss"] == pytest.approx(exact["val_loss"], rel=0.02)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_compiled_run_gives_the_same_losses(shell, trained, read_losses, tmp_path, dtype):
    flags = [*trained.flags, "--spelling=64", "--separate_tweets", "--dropout=0", "--noise=0"]
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    for out, how in ((plain, "False"), (compiled, "True")):
        done = shell("train.py", *flags, f"--compile={how}", f"--dtype={dtype}", f"--out_dir={out}")
        assert done.code == 0, done.err
    tolerance = 1e-4 if dtype == "float32" else 1e-2
    for one, other in zip(read_losses(plain), read_losses(compiled), strict=True):
        for name in ("train_loss", "val_loss"):
            assert other[name] == pytest.approx(one[name], abs=tolerance, nan_ok=True)
    names = [torch.load(out / "best.pt", weights_only=True)["model"].keys() for out in (plain, compiled)]
    assert names[0] == names[1]


def test_a_run_that_leaves_all_bounds_ends_in_plain_words(train):
    plain = ["--output_bias=False", "--compact_vocab=False", "--ngram_order=0", "--noise=0"]
    for rate in ("1e3", "1e30"):
        done = train(f"--learning_rate={rate}", "--grad_clip=0", "--eval_interval=2", "--max_iters=6", *plain)
        assert done.code == 0 or (done.code == 2 and done.err.count("\n") == 1), done.err


# --- stopping and resuming ------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a process that ends at once."""


class At(io.StringIO):
    """A standard output that acts when a line begins with `start`."""

    def __init__(self, start, action):
        super().__init__()
        self.start, self.action = start, action

    def write(self, text):
        super().write(text)
        if self.action and re.search(self.start, text):
            action, self.action = self.action, None  # once is enough
            action()
        return len(text)


def kill():
    raise Killed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [4, 6])  # at an evaluation, and between two
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    train, command, trained, tmp_path, read_losses, capfd, number, at
):
    stopped = train(out=At(rf"^iter +{at} ", lambda: signal.raise_signal(number)))
    assert stopped.code == 128 + number
    assert "stopping after this iteration" in capfd.readouterr().err
    words = shlex.split(stopped.out.splitlines()[-1].partition("to continue: ")[2])
    assert words[:2] == [sys.orig_argv[0], "train.py"] and words[-1] == "--init_from=resume"
    assert read_losses(tmp_path / "out")[-1]["iter"] == 4
    check_resumed(command(*words[1:]), trained, tmp_path / "out", read_losses)


@pytest.mark.parametrize("at", [4, 6])
def test_a_killed_run_goes_on_from_its_last_evaluation(train, trained, tmp_path, read_losses, at):
    with pytest.raises(Killed):
        train(out=At(rf"^iter +{at} ", kill))
    check_resumed(train("--init_from=resume"), trained, tmp_path / "out", read_losses)


def check_resumed(resumed, trained, folder, read_losses):
    """A resumed run must end as the one that was never interrupted."""
    assert resumed.code == 0, resumed.err
    assert not re.search(r"^iter +[0-3] ", resumed.out, re.MULTILINE)
    rows = read_losses(folder)
    assert without_clock(rows)[1:] == without_clock(read_losses(trained.folder))[1:]
    assert [row["elapsed_seconds"] for row in rows] == sorted(row["elapsed_seconds"] for row in rows)
    for name in ("best.pt", "last.pt"):
        assert same_weights(folder / name, trained.folder / name)


def test_a_resumed_run_keeps_the_scale_of_its_gradients(train, tmp_path):
    flags = ["--dtype=float16", f"--out_dir={tmp_path / 'out'}"]
    scalers = []
    for runs in (["--max_iters=8"], ["--max_iters=4"], ["--max_iters=8", "--init_from=resume"]):
        done = train(*flags, *runs)
        assert done.code == 0, done.err
        scalers.append(torch.load(tmp_path / "out" / "last.pt", weights_only=True)["scaler"])
    assert scalers[0] == scalers[2] != scalers[1]


def test_a_finished_run_can_be_made_longer(finished, train, read_losses):
    before = read_losses(finished)
    done = train("--init_from=resume", "--max_iters=12")
    assert done.code == 0, done.err
    assert re.search("max_iters.*8.*12", done.out)
    rows = read_losses(finished)
    assert [row["iter"] for row in rows] == [0, 4, 8, 12]
    assert without_clock(rows)[1:3] == without_clock(before)[1:]


def test_a_finished_run_has_nothing_to_resume(finished, train, read_losses):
    before = read_losses(finished)
    done = train("--init_from=resume")
    assert done.code == 0 and "nothing left to do" in done.out and "next: " in done.out
    assert without_clock(read_losses(finished))[1:] == without_clock(before)[1:]


@pytest.mark.parametrize(
    "flags, harm, words",
    [
        (["--n_embd=32"], None, ["n_embd", "16", "32"]),
        (["--seed=2", "--batch_size=8"], None, ["seed", "1337", "batch_size", "4"]),
        (["--max_iters=2"], None, ["max_iters", "2", "8"]),
        ([], lambda out: (out / "last.pt").unlink(), ["last.pt", "train.py"]),
        ([], lambda out: (out / "best.pt").replace(out / "last.pt"), ["last.pt", "weights only"]),
        ([], lambda out: (out / "last.pt").write_bytes((out / "last.pt").read_bytes()[:1000]), ["last.pt"]),
        ([], lambda out: (out / "last.pt").write_text("hello world"), ["last.pt"]),
    ],
    ids=["another width", "another seed", "fewer iterations", "missing", "weights only", "cut off", "text"],
)
def test_what_cannot_be_resumed_is_told_and_left_as_it_is(
    finished, train, the_error, snapshot, flags, harm, words
):
    if harm:
        harm(finished)
    before = snapshot(finished)
    error = the_error(train("--init_from=resume", *flags), "train.py")
    assert all(word in error for word in words), error
    assert snapshot(finished) == before


def test_a_run_is_not_resumed_on_other_tokens(finished, prepared, train, the_error, snapshot, tmp_path):
    rng, before = np.random.default_rng(0), snapshot(finished)
    data = write_data(tmp_path / "other", rng.integers(900, 940, 300), rng.integers(900, 950, 60))
    told = the_error(train("--init_from=resume", f"--data_dir={data}"), "train.py")
    assert str(prepared.folder) in told and "set data_dir" in told
    assert snapshot(finished) == before


# --- what is refused ------------------------------------------------------------------------------


def resize(path, by):
    content = path.read_bytes()
    path.write_bytes(content + b"x" * by if by > 0 else content[:by])


def overwrite(path, places, token):
    ids = np.fromfile(path, "<u2")
    ids[places] = token
    ids.tofile(path)


@pytest.mark.parametrize(
    "harm, words",
    [
        (lambda data: shutil.rmtree(data), ["meta.json", "prepare.py"]),
        (lambda data: (data / "meta.json").write_text("{"), ["meta.json", "prepare.py"]),
        (lambda data: (data / "meta.json").write_text("[]"), ["meta.json", "prepare.py"]),
        (lambda data: (data / "meta.json").write_text("{}"), ["meta.json", "prepare.py"]),
        (lambda data: resize(data / "train.bin", 1), ["train.bin"]),
        (lambda data: resize(data / "val.bin", -2), ["val.bin"]),
        (lambda data: (data / "val.bin").unlink(), ["val.bin"]),
        (lambda data: overwrite(data / "train.bin", slice(None), 60000), ["train.bin", "60000"]),
        (lambda data: overwrite(data / "val.bin", -1, 60000), ["val.bin", "60000"]),
    ],
    ids=["no data", "half a meta.json", "a list", "an empty one", "an odd byte", "a token too few",
         "no val.bin", "no GPT-2 ids in train.bin", "no GPT-2 id in val.bin"],
)  # fmt: skip
def test_data_that_do_not_fit_are_told(train, prepared, the_error, tmp_path, harm, words):
    data = shutil.copytree(prepared.folder, tmp_path / "data")
    harm(data)
    error = the_error(train(f"--data_dir={data}"), "train.py")
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--block_size=100000"], ["train.bin", "too few", "block_size"]),
        (["--n_embd=15"], ["n_embd", "15", "n_head"]),
        (["--device=nonsense"], ["device", "'nonsense'"]),
        (["--seed=1000000000000000000000000"], ["seed"]),
        (["--init_from=resume"], ["last.pt", "train.py"]),
        (["--max_iters=0"], ["max_iters", "at least 1"]),
        (["--dtype=int8"], ["dtype", "'int8'", "bfloat16"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_settings_that_do_not_fit_are_told(train, the_error, tmp_path, flags, words):
    error = the_error(train(*flags), "train.py")
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


def test_a_batch_that_no_memory_holds_is_told(train, the_error):
    assert "batch_size" in the_error(train("--batch_size=100000000000000"), "train.py")
