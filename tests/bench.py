"""Measure what the README claims: ours beside its peers, in the same run and with as many threads.

    python tests/bench.py --csv=data/elon_musk_tweets.csv --nanogpt=../nanoGPT   # everything
    python tests/bench.py train sample --nanogpt=../nanoGPT                      # some parts, on data/

quality: bits per byte of the held-out tweets for three seeds, and the CPU seconds until there, beside
         a 5-gram and nanoGPT
train:   tokens a second and peak memory
sample:  seconds for ten tweets, and until `python sample.py` prints its first
prepare: seconds and peak memory for up to a million tweets

Prints a table a part and merges the figures into out/bench.json; quality also draws out/bench.png. nanoGPT
runs as it is, from a checkout (--nanogpt=DIR), or is left out. Leave the machine alone meanwhile. Needs
Linux, which tells a process's CPU time and memory under /proc.
"""

import argparse
import collections
import contextlib
import importlib.util
import io
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import timeit
from statistics import fmean, median

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import GPT2Config, GPT2LMHeadModel

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model import GPT, GPTConfig
from prepare import END_OF_TEXT, VOCAB_SIZE, encode, load_tokenizer
from sample import Settings, TrainingTweets, write
from train import choose_dtype

PRESET = "config/elon.py"
SEEDS = (1337, 1338, 1339)
SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}  # where speed is compared
BATCH_SIZE, STEPS = 32, 16  # of which the second half is timed
# nanoGPT's settings where quality is compared: the best of those tried on the development part of the
# training tweets (see search.py), one seed, scored every 50 iterations. Tried one after the other: learning
# rates 5e-4, 1e-3 and 2e-3, falling over 300, 450 and 700 iterations; 2, 4 and 6 layers; dropout 0.2 and
# 0.4; weight decay 0.1 and 1; 256 wide, for 200 iterations. What is not here is as in its train.py.
NANOGPT = SHAPE | {
    "n_layer": 2, "dropout": 0.2, "weight_decay": 0.1, "learning_rate": 1e-3, "min_lr": 1e-4, "beta2": 0.99,
    "warmup_iters": 100, "max_iters": 450, "lr_decay_iters": 450, "eval_interval": 50,
}  # fmt: skip


# --- quality --------------------------------------------------------------------------------------


def quality(args):
    """Bits per byte of the held-out tweets, and the CPU seconds until there."""
    train, val = (np.fromfile(args.data_dir / f"{name}.bin", "<u2") for name in ("train", "val"))
    meta = json.loads((args.data_dir / "meta.json").read_text(encoding="utf-8"))
    bits = 1 / math.log(2) / meta["val_bytes"]  # per byte, for each nat of all val
    five_gram = kneser_ney(train.tolist(), val.tolist(), 5) * bits
    rows, curves, goals = [row("5-gram, Kneser-Ney", five_gram, "bits/byte")], {}, {}
    if args.nanogpt:
        curve = curves["nanoGPT"] = nanogpt_curve(args, val, bits)
        best, cpu = min(zip(curve["bits"], curve["cpu"], strict=True))
        rows += [row("nanoGPT at its best", best, "bits/byte"), row("nanoGPT until then", cpu, "CPU seconds")]
        goals["nanoGPT's best"] = best
    goals["the 5-gram's level"] = five_gram

    figures = collections.defaultdict(list)  # for each (name, unit) one a seed
    for seed in SEEDS:
        lines, history = train_ours(args, PRESET, f"--seed={seed}")
        cpu, model = {line.iter: line.cpu for line in lines}, GPT.load(args.scratch / "best.pt")
        levels, times = [p["bits_per_byte"] for p in history], [cpu[p["iter"]] for p in history]
        curves[f"ours, seed {seed}"] = {"cpu": times, "bits": levels}
        figures["best.pt", "bits/byte"].append(score(model.log_probs, val) * bits)
        figures["end of the run", "bits/byte"].append(levels[-1])
        figures["a whole run", "CPU seconds"].append(lines[-1].cpu)
        for goal, level in goals.items():  # on the line through the evaluations
            until = np.interp(-level, -np.minimum.accumulate(levels), times, right=math.nan)
            figures[f"until {goal}", "CPU seconds"].append(float(until))
    plot(curves, five_gram, args.out_dir / "bench.png")
    rows += [row(f"ours: {name}", values, unit) for (name, unit), values in figures.items()]
    return {"rows": rows, "curves": curves}


def kneser_ney(train, val, order):
    """-ln p of all of `val` (lists of ids) but its first token, by interpolated Kneser-Ney smoothing.

    Every order takes one discount from each count and hands what it took to the order below, the
    lowest to all ids evenly. Below the highest order a gram counts once for each token that it follows.
    """
    orders, grams = [], collections.Counter(zip(*(train[i:] for i in range(order)), strict=False))
    for _ in range(order):
        once, twice = (sum(count == n for count in grams.values()) for n in (1, 2))
        totals, kinds = collections.Counter(), collections.Counter()
        for gram, count in grams.items():
            totals[gram[:-1]] += count
            kinds[gram[:-1]] += 1
        orders.insert(0, (grams, totals, kinds, once / (once + 2 * twice)))
        grams = collections.Counter(gram[1:] for gram in grams)
    loss = 0.0
    for place in range(1, len(val)):
        p = 1 / VOCAB_SIZE
        for length, (grams, totals, kinds, discount) in enumerate(orders[: place + 1]):
            context = tuple(val[place - length : place])
            if context not in totals:
                break
            count = grams.get((*context, val[place]), 0)
            p = (max(count - discount, 0) + discount * kinds[context] * p) / totals[context]
        loss -= math.log(p)
    return loss


def score(log_probs, val, block_size=SHAPE["block_size"]):
    """-ln p of all of `val` but its first token; log_probs: ids (1, T) -> (1, T, vocabulary).

    Windows move on by half a block, and each scores the tokens that none before it has scored.
    """
    tokens, total, done = torch.from_numpy(val.astype(np.int64)), 0.0, 0
    for start in itertools.count(0, block_size // 2):
        stop = min(start + block_size, len(val) - 1)
        with torch.inference_mode():
            found = log_probs(tokens[None, start:stop])[0, done - start :]
        total -= found.gather(1, tokens[done + 1 : stop + 1, None]).double().sum().item()
        done = stop
        if done == len(val) - 1:
            return total


def nanogpt_curve(args, val, bits):
    """Train nanoGPT as NANOGPT says and score each of its checkpoints by `score`."""
    folder, cpu, levels = args.scratch / "nanogpt", {}, []
    for line in train_nanogpt(args, folder, NANOGPT):
        # it prints "step N" after N steps, then writes ckpt.pt, then prints "iter N"
        if found := re.match(r"step (\d+)", line.text):
            cpu[int(found[1])] = line.cpu
        if line.iter and line.iter in cpu:  # set the checkpoint aside before there is another
            (folder / "out" / "ckpt.pt").rename(folder / f"{line.iter}.pt")
    del cpu[0]
    for number in cpu:
        checkpoint = torch.load(folder / f"{number}.pt", weights_only=True)
        model = nanogpt_model(args, checkpoint["model_args"])
        model.load_state_dict(checkpoint["model"])

        def log_probs(idx, model=model):  # without the ids beyond GPT-2's, which it adds for speed
            return model(idx, idx)[0][..., :VOCAB_SIZE].log_softmax(-1)

        levels.append(score(log_probs, val) * bits)
    return {"iter": list(cpu), "cpu": list(cpu.values()), "bits": levels}


def plot(curves, five_gram, path):
    """Bits per byte against CPU seconds, the time on a log scale."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="CPU seconds since the start (log scale)")
    axes.set_ylabel("bits per byte of held-out tweets (lower is better)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axhline(five_gram, color="tab:gray", linestyle="--", label=f"5-gram: {five_gram:.3f}")
    for name, curve in curves.items():
        how = {"color": "tab:orange" if name == "nanoGPT" else "tab:blue", "linewidth": 1}
        axes.plot(curve["cpu"], curve["bits"], ".-", **how, label=f"{name}: {min(curve['bits']):.3f} at best")
    axes.set_ylim(top=2.8)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


# --- train ----------------------------------------------------------------------------------------


def train(args):
    """Tokens a second and peak memory of training at one shape."""
    shape, half = SHAPE | {"batch_size": BATCH_SIZE, "dropout": 0.2, "max_iters": STEPS}, STEPS // 2
    flags = [f"--{key}={value}" for key, value in shape.items()]
    worker = [__file__, f"--data_dir={args.data_dir}", f"--threads={args.threads}"]

    def ours(*flags):
        lines, history = train_ours(args, *flags, f"--eval_interval={half}")
        return history[-1]["tokens_per_second"], lines[-1].peak

    def peer(lines):  # one for each step
        first, last = (line for line in lines if line.iter in (half, STEPS))
        return BATCH_SIZE * SHAPE["block_size"] * half / (last.wall - first.wall), last.peak

    found = {"ours": ours(*flags), "ours, float32": ours(*flags, "--dtype=float32")}
    if args.nanogpt:
        like_gpt2 = shape | {"bias": True, "eval_interval": 2 * STEPS}
        found["nanoGPT"] = peer(train_nanogpt(args, args.scratch / "nanogpt-speed", like_gpt2))
    for dtype in ("float32", "bfloat16"):
        found[f"transformers, {dtype}"] = peer(watch([*worker, f"--worker={dtype}"]))
    found["the preset"] = ours(PRESET, f"--max_iters={STEPS}")
    speeds = [row(f"training: {name}", speed, "tokens/s") for name, (speed, _) in found.items()]
    return {"rows": speeds + [row(f"training: {name}", peak, "MB") for name, (_, peak) in found.items()]}


def train_transformers(args):
    """A process of its own: GPT2LMHeadModel under AdamW, doing in a step what the others do in one."""
    data, rng = np.fromfile(args.data_dir / "train.bin", "<u2"), np.random.default_rng(0)
    model, block_size = transformers_model(SHAPE["block_size"], dropout=0.2).train(), SHAPE["block_size"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS + 1):
        starts = rng.integers(len(data) - block_size, size=(BATCH_SIZE, 1))
        idx = torch.from_numpy(data[starts + np.arange(block_size)].astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.worker == "bfloat16"):
            loss = model(input_ids=idx, labels=idx).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(f"iter {step}", flush=True)


# --- sample ---------------------------------------------------------------------------------------


def sample(args):
    """Seconds for ten samples of 64 tokens by models of one shape, and by the preset as it is used."""
    tokenizer, generator = load_tokenizer(), torch.Generator().manual_seed(0)
    prompt = torch.tensor([[END_OF_TEXT, *encode(tokenizer, "Tesla")]] * 10)
    how = {"max_new_tokens": 64, "temperature": 0.8, "top_k": 200}
    all_64 = how | {"pad_token_id": END_OF_TEXT, "eos_token_id": None, "do_sample": True, "use_cache": True}
    full = GPT(GPTConfig(**SHAPE)).eval()
    theirs = transformers_model(2 * SHAPE["block_size"])  # where the others' window slides, it goes on
    train_ours(args, PRESET, "--max_iters=100", "--eval_interval=100")  # enough to end its tweets
    preset = GPT.load(args.scratch / "best.pt")
    known = TrainingTweets(tokenizer.decode(preset.tokens.tolist()))
    contenders = {
        "ours": lambda: full.generate(prompt, **how, banned=[END_OF_TEXT]),
        "transformers": lambda: theirs.generate(prompt, **all_64),
        "the preset": lambda: list(write(preset, tokenizer, known, "Tesla", Settings(), generator)),
    }
    if args.nanogpt:
        nanogpt = nanogpt_model(args, SHAPE | {"vocab_size": VOCAB_SIZE, "bias": True})
        contenders["nanoGPT"] = lambda: nanogpt.generate(prompt, **how)
    taken = {name: [] for name in contenders}
    for _ in range(8):  # in turns; the first warms up
        for name, go in contenders.items():
            taken[name].append(timeit.timeit(go, number=1))
    rows = [row(f"10 samples: {name}", median(taken[name][1:]), "seconds") for name in taken]

    ours = ["sample.py", "--start=Tesla", f"--out_dir={args.scratch}"]
    torch_alone = ["-c", "import torch; print('Tesla')"]
    for name, command in {"`sample.py` to its first tweet": ours, "importing torch": torch_alone}.items():
        runs = [list(watch(command)) for _ in range(5)]
        first = median(next(line.wall for line in lines if "Tesla" in line.text) for lines in runs)
        rows.append(row(name, first, "seconds"))
    return {"rows": rows}


# --- prepare --------------------------------------------------------------------------------------


def prepare(args):
    """Seconds and memory of prepare.py for ever more tweets."""
    rows, real = [], (args.data_dir / "processed.txt").read_text(encoding="utf-8").split("\n")[:-1]
    for size in (10_000, 100_000, 1_000_000):
        source = args.scratch / f"{size}.csv"
        texts = (f"@someone {tweet} {n} https://t.co/x" for n, tweet in enumerate(itertools.cycle(real)))
        pd.DataFrame({"text": itertools.islice(texts, size)}).to_csv(source, index=False)
        command = ["prepare.py", f"--input={source}", f"--data_dir={args.scratch / 'prepared'}"]
        runs = [list(watch(command))[-1] for _ in range(3)]
        rows.append(row(f"{size:,} tweets", median(line.wall for line in runs), "seconds"))
        rows.append(row(f"{size:,} tweets", max(line.peak for line in runs), "MB"))
    return {"rows": rows}


# --- the contenders -------------------------------------------------------------------------------


def train_ours(args, *flags):
    """Run train.py; the Lines it printed and the rows of its loss.csv."""
    command = ["train.py", *flags, f"--data_dir={args.data_dir}", f"--out_dir={args.scratch}", "--device=cpu"]
    return list(watch(command)), pd.read_csv(args.scratch / "loss.csv").to_dict("records")


def train_nanogpt(args, folder, settings):
    """Run nanoGPT's own train.py, unmodified, in a copy of its tree with our bins as its data."""
    (folder / "data" / "tweets").mkdir(parents=True)
    for name in ("train.py", "model.py", "configurator.py"):
        shutil.copy(args.nanogpt / name, folder)
    for name in ("train.bin", "val.bin"):
        shutil.copy(args.data_dir / name, folder / "data" / "tweets")
    always = {
        "device": "cpu", "dtype": "float32", "compile": False, "dataset": "tweets", "batch_size": BATCH_SIZE,
        "gradient_accumulation_steps": 1, "eval_iters": 1, "log_interval": 1,
    }  # fmt: skip
    return watch(["train.py", *(f"--{k}={v}" for k, v in (always | settings).items())], folder)


def nanogpt_model(args, shape):
    spec = importlib.util.spec_from_file_location("nanogpt_model", args.nanogpt / "model.py")
    module = importlib.util.module_from_spec(spec)
    with contextlib.redirect_stdout(io.StringIO()):
        spec.loader.exec_module(module)
        return module.GPT(module.GPTConfig(**shape)).eval()


def transformers_model(n_positions, dropout=0.0):
    shape = {key: value for key, value in SHAPE.items() if key != "block_size"}
    rates = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(n_positions=n_positions, **rates, **shape)).eval()


# --- measuring ------------------------------------------------------------------------------------

# what a process printed; N if that is "iter N …"; seconds since its start, CPU seconds, peak memory in MB
Line = collections.namedtuple("Line", "text iter wall cpu peak")


def watch(command, cwd=ROOT):
    """Run Python with `command`, and yield a Line as soon as it is printed."""
    began, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(
        [sys.executable, *command], cwd=cwd, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
    )  # fmt: skip
    proc, text = pathlib.Path(f"/proc/{process.pid}"), ""
    with process:
        for text in process.stdout:
            wall = time.perf_counter() - began
            ticks = (proc / "stat").read_text().rpartition(")")[2].split()[11:13]  # as user, as system
            if found := re.search(r"VmHWM:\s+(\d+)", (proc / "status").read_text()):  # not once it has ended
                peak = int(found[1]) * 1024 / 1e6
            number = re.match(r"iter +([\d,]+)", text)
            number = int(number[1].replace(",", "")) if number else None
            yield Line(text, number, wall, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), peak)
    if process.returncode:
        raise SystemExit(f"bench.py: error: {' '.join(map(str, command))} failed: {text}")


def row(name, value, unit):
    """A line of a table and of bench.json; of several values, one a seed, the mean and the deviation."""
    if isinstance(value, list):
        return row(name, fmean(value), unit) | {"spread": np.std(value, ddof=1).item(), "seeds": value}
    return {"name": name, "value": value, "unit": unit}


def machine():
    """The kind of CPU: with bfloat16 instructions, training is more than twice as fast."""
    name = re.search(r"model name\s*: (.*)|$", pathlib.Path("/proc/cpuinfo").read_text())[1]
    has = "with" if choose_dtype(torch.device("cpu")) == "bfloat16" else "without"
    return f"{name}, {has} bfloat16 instructions, {os.cpu_count()} cores, torch {torch.__version__}"


PARTS = {"quality": quality, "train": train, "sample": sample, "prepare": prepare}


def main(args):
    print(f"{machine()}, threads: {args.threads}; load {os.getloadavg()[0]:.1f} before we begin")
    path = args.out_dir / "bench.json"
    if args.csv:
        args.data_dir = args.scratch / "data"
        list(watch(["prepare.py", f"--input={args.csv}", f"--data_dir={args.data_dir}"]))
    for part in args.part or PARTS:
        print(f"\n{part} …", flush=True)
        about = {"machine": machine(), "threads": args.threads, "when": time.strftime("%Y-%m-%d %H:%M")}
        result = PARTS[part](args)
        shown = pd.DataFrame(result["rows"]).drop(columns="seeds", errors="ignore")
        print(shown.to_string(index=False, na_rep="", float_format="{:,.3f}".format), flush=True)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps(kept | {part: about | result}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; all when none is named")
    parser.add_argument("--nanogpt", help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--csv", help="the tweets, to be prepared into a folder of its own")
    parser.add_argument("--data_dir", default="data", help="or what prepare.py has written")
    parser.add_argument("--out_dir", default="out", help="where bench.json and .png go")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for everyone")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the dtype of train_transformers
    args = parser.parse_intermixed_args()
    for name in ("nanogpt", "csv", "data_dir", "out_dir"):
        if path := getattr(args, name):
            setattr(args, name, pathlib.Path(path).resolve())
    torch.set_num_threads(args.threads)
    for name in ("OMP", "MKL", "RAYON"):  # for the processes that this one starts, and for tokenizers
        os.environ[f"{name}_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        args.scratch = pathlib.Path(scratch)
        train_transformers(args) if args.worker else main(args)
