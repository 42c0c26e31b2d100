"""What nobody should trust: strangers' checkpoints, damaged files, settings out of range, control characters.

python -m pytest tests/test_hostile.py            # some places in a checkpoint
python -m pytest tests/test_hostile.py -m long -s # thousands of them
"""

import dataclasses
import json
import math
import random
import shutil

import pytest
import torch

import prepare
import sample
import train
from config import UserError
from model import GPT, read_checkpoint

SCRIPTS = {"prepare.py": prepare, "train.py": train, "sample.py": sample}
SPELLED = ["--spelling=64", "--max_iters=1", "--separate_tweets"]


@pytest.fixture(scope="module")
def good(command, trained, tmp_path_factory):
    """A checkpoint that has all there can be in one."""
    out = tmp_path_factory.mktemp("good")
    done = command("train.py", *trained.flags, *SPELLED, f"--out_dir={out}")
    assert done.code == 0, done.err
    return out / "best.pt"


def tried(path):
    """Load a checkpoint and use it in every way; None, or the text of the UserError that refused it."""
    try:
        model = GPT.load(path)
    except UserError as error:
        assert path.name in str(error)
        return str(error)
    idx = torch.tensor([[50256, 11, 262, 40000]])
    model(idx, idx)
    model.train()(idx, idx)
    try:
        model.eval().generate(idx, 4, seeds=[1])
    except UserError as error:
        return str(error)
    return None


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("number", [60, pytest.param(5000, marks=pytest.mark.long)])
def test_a_checkpoint_cut_short_at_any_byte_is_refused(good, tmp_path, number):
    whole, cut = good.read_bytes(), tmp_path / "cut.pt"
    ends = [
        *range(20),
        *range(len(whole) - 20, len(whole)),
        *random.Random(1).sample(range(len(whole)), number),
    ]
    for end in ends:
        cut.write_bytes(whole[:end])
        assert tried(cut), f"cut after {end} of {len(whole)} bytes, and loaded"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [100, pytest.param(5000, marks=pytest.mark.long)])
def test_a_checkpoint_with_a_wrong_byte_is_refused_or_usable(good, tmp_path, number):
    whole, wrong, draw, refused = good.read_bytes(), tmp_path / "wrong.pt", random.Random(2), 0
    for place in draw.sample(range(len(whole)), number):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        wrong.write_bytes(damaged)
        refused += tried(wrong) is not None
    print(f"{number} checkpoints with a wrong bit: {refused} refused, the others usable")


HARMS = {
    "an id twice": ("tables.id_of_place", lambda t: t.index_fill(0, torch.tensor([0]), int(t[1]))),
    "places in another order": ("tables.id_of_place", lambda t: t.flip(0)),
    "an id out of range": ("tables.id_of_place", lambda t: t + 1),
    "negative counts": ("tables.token_counts", lambda t: -t),
    "fewer counts": ("tables.token_counts", lambda t: t[:-1].clone()),
    "counts that are no whole numbers": ("tables.token_counts", lambda t: t.float()),
    "a group too high": ("tables.group_of", lambda t: t + 10**6),
    "a negative group": ("tables.group_of", lambda t: t - 1),
    "pieces out of range": ("tables.spelling", lambda t: t + 64),
    "too few pieces": ("tables.spelling", lambda t: t[:-1].clone()),
    "ends that fall": ("tables.spelling_ends", lambda t: t.flip(0)),
    "tokens without a piece": ("tables.spelling_ends", lambda t: t // 2),
    "keys that do not rise": ("ngrams.keys2", lambda t: t.flip(0)),
    "keys out of range": ("ngrams.keys3", lambda t: t + 10**9),
    "too few symbols": ("ngrams.keys1", lambda t: t[:-1].clone()),
    "probabilities above 1": ("ngrams.probs2", lambda t: t + 1),
    "too few probabilities": ("ngrams.probs3", lambda t: t[:-1].clone()),
    "negative backoff": ("ngrams.backoff2", lambda t: t - 1),
    "NaN in the weights": ("wte.weight", lambda t: t * math.nan),
    "infinity in the weights": ("h.0.mlp.c_fc.bias", lambda t: t + math.inf),
    "one row less": ("wte.weight", lambda t: t[:-1].clone()),
    "complex weights": ("wpe.weight", lambda t: t.to(torch.complex64)),
    "weights of a terabyte that fill four bytes": (
        "wpe.weight",
        lambda t: torch.zeros(1).expand(2**20, 2**18),
    ),
    "sparse weights": ("wpe.weight", lambda t: t.to_sparse()),
    "a list for weights": ("wpe.weight", lambda t: t.tolist()),
    "no weights": ("wpe.weight", None),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", HARMS)
def test_tables_and_weights_that_do_not_fit_are_refused(good, tmp_path, kind):
    name, harm = HARMS[kind]
    checkpoint = torch.load(good, weights_only=True)
    if harm:
        checkpoint["model"][name] = harm(checkpoint["model"][name])
    else:
        del checkpoint["model"][name]
    torch.save(checkpoint, tmp_path / "harmed.pt")
    assert tried(tmp_path / "harmed.pt")


def test_weights_that_overflow_are_told_while_sampling(good, command, the_error, tmp_path):
    checkpoint = torch.load(good, weights_only=True)
    checkpoint["model"]["ln_f.weight"].fill_(3e38)
    torch.save(checkpoint, tmp_path / "best.pt")
    assert "probably damaged" in the_error(command("sample.py", f"--out_dir={tmp_path}"), "sample.py")


@pytest.mark.parametrize(
    "changed",
    [{"n_layer": 10**12}, {"n_embd": 2**40}, {"block_size": 2**40}, {"vocab_size": 2**40},
     {"spelling": 2**40}, {"ngram_order": 10**6}, {"n_head": 3}, {"dropout": math.nan}, {"gelu": "none"},
     {"compact_vocab": False}, {"bias": False}, {"output_bias": False}],
    ids=str,
)  # fmt: skip
def test_a_config_that_does_not_fit_the_weights_is_refused(good, tmp_path, changed):
    checkpoint = torch.load(good, weights_only=True)
    checkpoint["config"] |= changed
    torch.save(checkpoint, tmp_path / "changed.pt")
    assert tried(tmp_path / "changed.pt")


@pytest.mark.parametrize("notes", [None, 1, "data", [1]])
def test_notes_that_are_no_dictionary_are_refused(good, tmp_path, notes):
    torch.save(torch.load(good, weights_only=True) | {"notes": notes}, tmp_path / "notes.pt")
    assert tried(tmp_path / "notes.pt")


@pytest.mark.parametrize(
    "key, value",
    [("iteration", "three"), ("iteration", None), ("losses", 1), ("losses", [1, "x"]), ("history", 7),
     ("history", [1]), ("history", [{}]), ("history", [{"iter": "x"}]), ("best", None), ("best", {}),
     ("optimizer", {}), ("optimizer", None), ("averaged", {}), ("settings", 5)],
)  # fmt: skip
def test_a_run_with_damaged_parts_is_not_resumed(command, trained, the_error, snapshot, tmp_path, key, value):
    out = shutil.copytree(trained.folder, tmp_path / "out")
    torch.save(torch.load(out / "last.pt", weights_only=True) | {key: value}, out / "last.pt")
    before = snapshot(out)
    flags = [*trained.flags, f"--out_dir={out}", "--init_from=resume", "--max_iters=9"]
    assert "last.pt" in the_error(command("train.py", *flags), "train.py")
    assert snapshot(out) == before


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [{"val_bytes": 0}, {"val_bytes": "many"}, {"val_bytes": None}, {"train_tokens": -1}, {"val_tokens": "x"},
     {"train_token_counts": []}, {"train_token_counts": {"0": -1}}, {"train_token_counts": {"-1": 1}},
     {"train_token_counts": {"x": 1}}, {"train_token_counts": {"0": "y"}},
     {"train_token_counts": {"60000": 1}}, {"train_token_counts": {"0": 10**30}},
     {"train_token_counts": {"0": 1.5}}],
    ids=str,
)  # fmt: skip
def test_a_meta_json_that_lies_is_told(command, trained, prepared, the_error, tmp_path, changed):
    data = shutil.copytree(prepared.folder, tmp_path / "data")
    meta = json.loads((data / "meta.json").read_text(encoding="utf-8")) | changed
    (data / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    done = command("train.py", *trained.flags, f"--data_dir={data}", f"--out_dir={tmp_path / 'out'}")
    assert "run prepare.py" in the_error(done, "train.py")
    assert not (tmp_path / "out").exists()


# --- settings -------------------------------------------------------------------------------------


def values_out_of_range():
    """A flag with a value that its setting does not allow, for every setting of every script."""
    for script, module in SCRIPTS.items():
        for field in dataclasses.fields(module.Settings):
            wrong = []
            if type(field.default) in (int, float, bool):
                wrong += ["", "x", "--", "0x10", "nan", "1e999"]
            if type(field.default) is int:
                wrong += ["1.5"]
            if field.metadata["choices"]:
                wrong += ["", "nonsense"]
            if within := field.metadata["within"]:
                low, high = (float(end) for end in within[1:-1].split(","))
                step = 1 if type(field.default) is int else 1e-6
                least = low - step if within[0] == "[" else low
                most = high + max(step, abs(high) * 1e-6) if within[-1] == "]" else high
                as_text = (lambda x: str(int(x))) if type(field.default) is int else str
                wrong += [as_text(x) for x in (least, most, -1e18) if math.isfinite(x)]
            yield from ((script, f"--{field.name}={value}") for value in wrong)


def test_every_setting_refuses_what_is_out_of_its_range(command, the_error, tmp_path, monkeypatch):
    cases = list(values_out_of_range())
    for script, flag in cases:
        folder = "--data_dir" if script == "prepare.py" else "--out_dir"
        error = the_error(command(script, f"{folder}={tmp_path / 'none'}", flag), script)
        assert flag[2:].split("=")[0] in error, error
    assert len(cases) > 150 and not (tmp_path / "none").exists()


# --- what happens while training ------------------------------------------------------------------


@pytest.fixture
def run(trained, tmp_path):
    """train.main with the settings of `trained` and others, in a copy of its folder."""
    flags = dict(flag[2:].split("=") if "=" in flag else (flag[2:], "True") for flag in trained.flags)
    kinds = {field.name: type(field.default) for field in dataclasses.fields(train.Settings)}
    values = {
        key: value == "True" if kinds[key] is bool else kinds[key](value) for key, value in flags.items()
    }
    out = shutil.copytree(trained.folder, tmp_path / "out")

    def start(**changes):
        train.main(train.Settings(**values | {"out_dir": str(out), "init_from": "resume"} | changes))

    start.out = out
    return start


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "where, interval", [("in training", 0), ("in training", 1), ("in an evaluation", 0)], ids=str
)
def test_a_loss_that_is_no_number_overwrites_nothing(run, snapshot, monkeypatch, bad, where, interval):
    before = snapshot(run.out)

    def spoilt(model, idx, targets=None):
        logits, loss = GPT.forward(model, idx, targets)
        return logits, loss * bad if model.training == (where == "in training") else loss

    monkeypatch.setattr(GPT, "__call__", spoilt)
    with pytest.raises(UserError, match=r"lower learning_rate.*last\.pt holds the state that was saved"):
        run(max_iters=12, checkpoint_interval=interval)
    after = snapshot(run.out)
    assert after.pop("last.pt")  # which a resumed run writes again
    assert after.items() <= before.items()
    checkpoint = read_checkpoint(run.out / "last.pt")
    assert checkpoint["iteration"] == 8 and all(t.isfinite().all() for t in checkpoint["model"].values())


def test_attempts_that_fail_before_a_step_do_not_replace_the_run_before(run, monkeypatch):
    good = (run.out / "best.pt").read_bytes()

    def no_memory(model, idx, targets=None):
        if model.training:
            raise MemoryError
        return GPT.forward(model, idx, targets)

    monkeypatch.setattr(GPT, "__call__", no_memory)
    for _ in range(3):
        with pytest.raises(MemoryError):
            run(init_from="scratch")
    assert (run.out / "previous" / "best.pt").read_bytes() == good


def test_weights_that_are_not_finite_are_never_saved(run):
    wild = {"learning_rate": 1e38, "grad_clip": 0.0, "warmup_iters": 0, "checkpoint_interval": 1}
    with pytest.raises(UserError, match="lower learning_rate"):
        run(init_from="scratch", **wild)
    assert GPT.load(run.out / "last.pt").config.n_layer == 1


def test_a_run_goes_on_in_float16_where_it_began_in_float32(run):
    run(max_iters=12, dtype="float16")
    assert read_checkpoint(run.out / "last.pt")["iteration"] == 12


def test_a_checkpoint_of_matrices_larger_than_its_file_is_refused_before_they_are_made(run):
    checkpoint = read_checkpoint(run.out / "best.pt")
    checkpoint["config"]["n_embd"] = 80_000
    checkpoint["model"]["wpe.weight"] = torch.zeros(checkpoint["config"]["block_size"], 80_000)
    torch.save(checkpoint, run.out / "best.pt")
    with pytest.raises(UserError, match="c_attn"):
        GPT.load(run.out / "best.pt")


def test_too_little_memory_on_a_gpu_is_told(command, trained, the_error, monkeypatch, tmp_path):
    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(GPT, "forward", no_memory)
    error = the_error(command("train.py", *trained.flags, f"--out_dir={tmp_path}"), "train.py")
    assert all(name in error for name in ("out of memory", "batch_size", "block_size"))


# --- the terminal ---------------------------------------------------------------------------------


NASTY = "\x1b[2J\x07\u202egnp.exe\u2066\x9b31m\u2028"


def test_a_prompt_and_a_known_tweet_cannot_drive_the_terminal(command, trained, the_error, tmp_path):
    out = shutil.copytree(trained.folder, tmp_path / "out")
    done = command("sample.py", f"--start=Tesla {NASTY}", "--num_samples=2", f"--out_dir={out}")
    assert done.code == 0, done.err
    assert "Tesla \\x1b[2J\\x07\\u202egnp.exe\\u2066\\x9b31m" in done.out
    assert not set(NASTY) & set("\x1b\x07\u202e\u2066\x9b") & set(done.out + done.err)
    error = the_error(command("sample.py", f"--start=FILE:{NASTY}"), "sample.py")
    assert not set("\x1b\x07\u202e\u2066\x9b") & set(error)
