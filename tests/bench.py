"""Measure what the README claims: ours beside its peers, in the same run and with as many threads.

    python tests/bench.py --csv=data/elon_musk_tweets.csv --nanogpt=../nanoGPT   # everything
    python tests/bench.py train sample --nanogpt=../nanoGPT                      # some parts, on data/
    python tests/bench.py --quick                                                # does it run at all?

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
from statistics import fmean, median, stdev

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

SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}  # where speed is compared
BATCH_SIZE = 32
SEEDS = (1337, 1338, 1339)
# nanoGPT's settings where quality is compared: the best of those tried on the development part of the
# training tweets (see search.py), one seed, scored every 50 iterations. Tried one after the other: learning
# rates 5e-4, 1e-3 and 2e-3, falling over 300, 450 and 700 iterations; 2, 4 and 6 layers; dropout 0.2 and
# 0.4; weight decay 0.1 and 1; 256 wide, for 200 iterations. What is not here is as in its train.py.
NANOGPT = {
    "n_layer": 2, "n_embd": 128, "dropout": 0.2, "weight_decay": 0.1, "learning_rate": 1e-3, "min_lr": 1e-4,
    "beta2": 0.99, "warmup_iters": 100, "max_iters": 450, "lr_decay_iters": 450,
}  # fmt: skip


# --- quality --------------------------------------------------------------------------------------


def quality(args):
    """Bits per byte of the held-out tweets, and the CPU seconds until there."""
    train, val, bits = read_data(args)
    five_gram = kneser_ney(train.tolist(), val.tolist(), 5) * bits
    rows = [row("5-gram, Kneser-Ney", five_gram, "bits/byte")]
    curves, goals = {}, {"the 5-gram's level": five_gram}
    if args.nanogpt:
        curve = curves["nanoGPT"] = nanogpt_curve(args)
        best, cpu, iteration = min(zip(curve["bits"], curve["cpu"], curve["iter"], strict=True))
        rows.append(row("nanoGPT at its best", best, "bits/byte"))
        rows.append(row("nanoGPT until its best", cpu, "CPU seconds"))
        rows.append(row("nanoGPT until its best", iteration, "iterations"))
        goals["nanoGPT's best"] = best

    figures = collections.defaultdict(list)  # for each (name, unit) one a seed
    for seed in few(args, SEEDS, SEEDS[:1]):
        out = args.scratch / f"seed-{seed}"
        flags = [args.preset, f"--seed={seed}", *few(args, [], ["--max_iters=6"])]
        lines, history = train_ours(args, out, *flags)
        cpu, model = {line.iter: line.cpu for line in lines}, GPT.load(out / "best.pt")
        levels, times = [p["bits_per_byte"] for p in history], [cpu[p["iter"]] for p in history]
        curves[f"ours, seed {seed}"] = {"cpu": times, "bits": levels}
        figures["best.pt", "bits/byte"].append(score(model.log_probs, val, model.config.block_size) * bits)
        figures["end of the run", "bits/byte"].append(levels[-1])
        figures["a whole run", "seconds"].append(lines[-1].wall)
        figures["a whole run", "CPU seconds"].append(lines[-1].cpu)
        for goal, level in goals.items():  # on the line through the evaluations
            until = np.interp(-level, -np.minimum.accumulate(levels), times, right=math.nan)
            figures[f"until {goal}", "CPU seconds"].append(float(until))
    rows += [row(f"ours: {name}", values, unit) for (name, unit), values in figures.items()]
    plot(curves, five_gram, args.out_dir / f"{args.name}.png")
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


def score(log_probs, val, block_size=64):
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


def nanogpt_curve(args):
    """Train nanoGPT as NANOGPT says and score each of its checkpoints by `score`."""
    folder, cpu, levels = args.scratch / "nanogpt-quality", {}, []
    every, lengths = few(args, (50, {}), (3, {"max_iters": 6, "batch_size": 2}))
    for line in train_nanogpt(args, folder, SHAPE | NANOGPT | {"eval_interval": every} | lengths):
        # it prints "step N" after N steps, then writes ckpt.pt, then prints "iter N"
        if found := re.match(r"step (\d+)", line.text):
            cpu[int(found[1])] = line.cpu
        if line.iter and line.iter % every == 0:  # set the checkpoint aside before there is another
            (folder / "out" / "ckpt.pt").rename(folder / f"{line.iter}.pt")
    _, val, bits = read_data(args)
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
    """Tokens a second and peak memory of training at one shape; the second half of the steps counts."""
    steps, batch = few(args, (16, BATCH_SIZE), (4, 2))
    half, out = steps // 2, args.scratch / "train"
    shape = SHAPE | {"batch_size": batch, "dropout": 0.2, "max_iters": steps, "eval_interval": half}
    flags = [f"--{key}={value}" for key, value in shape.items()]
    worker = [__file__, f"--data_dir={args.data_dir}", f"--threads={args.threads}"]
    worker += few(args, [], ["--quick"])

    def ours(*flags):
        lines, history = train_ours(args, out, *flags)
        return history[-1]["tokens_per_second"], lines[-1].peak

    def peer(lines):  # one for each step
        first, last = (line for line in lines if line.iter in (half, steps))
        return batch * SHAPE["block_size"] * (steps - half) / (last.wall - first.wall), last.peak

    contenders = {
        "ours": lambda: ours(*flags),
        "ours, float32": lambda: ours(*flags, "--dtype=float32"),
        "nanoGPT": lambda: peer(
            train_nanogpt(args, args.scratch / "nanogpt", shape | {"bias": True, "eval_interval": 2 * steps})
        ),
        "transformers, float32": lambda: peer(watch([*worker, "--worker=float32"])),
        "transformers, bfloat16": lambda: peer(watch([*worker, "--worker=bfloat16"])),
        "the preset": lambda: ours(args.preset, f"--max_iters={steps}", f"--eval_interval={half}"),
    }
    if not args.nanogpt:
        del contenders["nanoGPT"]
    found = {name: go() for name, go in contenders.items()}
    speed = {name: speed for name, (speed, _) in found.items()}
    peak = {name: peak for name, (_, peak) in found.items()}
    return {"rows": compared("training", speed, "tokens/s") + compared("training", peak, "MB at the peak")}


def train_transformers(args):
    """A process of its own: GPT2LMHeadModel under AdamW, doing in a step what the others do in one."""
    data, rng, block_size = read_data(args)[0], np.random.default_rng(0), SHAPE["block_size"]
    steps, batch = few(args, (16, BATCH_SIZE), (4, 2))
    model = transformers_model(block_size, dropout=0.2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps + 1):
        starts = rng.integers(len(data) - block_size, size=(batch, 1))
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
    how = {"max_new_tokens": few(args, 64, 4), "temperature": 0.8, "top_k": 200}
    all_64 = how | {"pad_token_id": END_OF_TEXT, "eos_token_id": None, "do_sample": True, "use_cache": True}
    full = GPT(GPTConfig(**SHAPE)).eval()
    theirs = transformers_model(2 * SHAPE["block_size"])  # where the others' window slides, it goes on
    out, iterations = args.scratch / "sample", few(args, 100, 2)  # enough to end its tweets
    train_ours(args, out, args.preset, f"--max_iters={iterations}", f"--eval_interval={iterations}")
    preset = GPT.load(out / "best.pt")
    known = TrainingTweets(tokenizer.decode(preset.tokens.tolist()))
    contenders = {
        "ours": lambda: full.generate(prompt, **how, banned=[END_OF_TEXT]),
        "transformers": lambda: theirs.generate(prompt, **all_64),
        "the preset": lambda: list(write(preset, tokenizer, known, "Tesla", Settings(), generator)),
    }
    if args.nanogpt:
        nanogpt = nanogpt_model(args, SHAPE | {"vocab_size": VOCAB_SIZE, "bias": True})
        contenders["nanoGPT"] = lambda: nanogpt.generate(prompt, **how)
    rows = compared("10 samples", alternate(contenders, few(args, 7, 1)), "seconds")

    commands = {
        "`python sample.py` until its first tweet": ["sample.py", "--start=Tesla", f"--out_dir={out}"],
        "`python -c 'import torch'`": ["-c", "import torch; print('Tesla')"],
    }
    for name, command in commands.items():
        runs = [list(watch(command)) for _ in range(few(args, 5, 1))]
        first = median(next(line.wall for line in lines if "Tesla" in line.text) for lines in runs)
        rows.append(row(name, first, "seconds"))
    return {"rows": rows}


# --- prepare --------------------------------------------------------------------------------------


def prepare(args):
    """Seconds and memory of prepare.py for ever more tweets."""
    rows, processed = [], args.data_dir / "processed.txt"
    real = processed.read_text(encoding="utf-8").split("\n")[:-1]
    for size in few(args, (10_000, 100_000, 1_000_000), (1_000, 2_000, 4_000)):
        source = args.scratch / f"{size}.csv"
        texts = (f"@someone {tweet} {n} https://t.co/x" for n, tweet in enumerate(itertools.cycle(real)))
        pd.DataFrame({"text": itertools.islice(texts, size)}).to_csv(source, index=False)
        command = ["prepare.py", f"--input={source}", f"--data_dir={args.scratch / 'prepared'}"]
        runs = [list(watch(command))[-1] for _ in range(few(args, 3, 1))]
        rows.append(row(f"{size:,} tweets", median(line.wall for line in runs), "seconds"))
        rows.append(row(f"{size:,} tweets", max(line.peak for line in runs), "MB at the peak"))
    return {"rows": rows}


# --- the contenders -------------------------------------------------------------------------------


def train_ours(args, out, *flags):
    """Run train.py; the Lines it printed and the rows of its loss.csv."""
    shutil.rmtree(out, ignore_errors=True)
    command = ["train.py", *flags, f"--data_dir={args.data_dir}", f"--out_dir={out}", "--device=cpu"]
    return list(watch(command)), pd.read_csv(out / "loss.csv").to_dict("records")


def train_nanogpt(args, folder, settings):
    """Run nanoGPT's own train.py, unmodified, in a copy of its tree with our bins as its data."""
    (folder / "data" / "tweets").mkdir(parents=True, exist_ok=True)
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


def alternate(contenders, rounds):
    """Median seconds of each function, {name: seconds}: one call of each to warm up, then in turns."""
    taken = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, go in contenders.items():
            taken[name].append(timeit.timeit(go, number=1))
    return {name: median(seconds[1:]) for name, seconds in taken.items()}


def read_data(args):
    """The ids of train.bin, those of val.bin, and by what to multiply the latter's loss for bits per byte."""
    train, val = (np.fromfile(args.data_dir / f"{name}.bin", "<u2") for name in ("train", "val"))
    meta = json.loads((args.data_dir / "meta.json").read_text(encoding="utf-8"))
    return train, val, 1 / math.log(2) / meta["val_bytes"]


def few(args, full, quick):
    return quick if args.quick else full


# --- the report -----------------------------------------------------------------------------------


def row(name, value, unit, peer=""):
    """A line of a table and of bench.json; of several values, one a seed, the mean and the deviation."""
    seeds = value if isinstance(value, list) else [value]
    spread = stdev(seeds) if len(seeds) > 1 else None
    return {"name": name, "value": fmean(seeds), "spread": spread, "unit": unit, "peer": peer, "seeds": seeds}


def compared(what, values, unit):
    """A row for each {contender: value}, and for each peer one of how ours compares with it."""
    rows = [row(f"{what}: {name}", value, unit) for name, value in values.items()]
    peers = [name for name in values if not name.startswith(("ours", "the preset"))]
    return rows + [
        row(f"{what}: ours", values["ours"] / values[name], "times", f"{name} = 1") for name in peers
    ]


def machine():
    """The kind of CPU: with bfloat16 instructions, training is more than twice as fast."""
    name = re.search(r"model name\s*: (.*)|$", pathlib.Path("/proc/cpuinfo").read_text())[1]
    has = "with" if choose_dtype(torch.device("cpu")) == "bfloat16" else "without"
    return f"{name}, {has} bfloat16 instructions, {os.cpu_count()} cores, torch {torch.__version__}"


def main(args):
    print(f"{machine()}, threads: {args.threads}; load {os.getloadavg()[0]:.1f} before we begin")
    path = args.out_dir / f"{args.name}.json"
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for part in args.part or PARTS:
        print(f"\n{part} …", flush=True)
        about = {"machine": machine(), "threads": args.threads, "when": time.strftime("%Y-%m-%d %H:%M")}
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            args.scratch = pathlib.Path(scratch)
            if args.csv:
                args.data_dir = args.scratch / "data"
                list(watch(["prepare.py", f"--input={args.csv}", f"--data_dir={args.data_dir}"]))
            result = PARTS[part](args)
        shown = pd.DataFrame(result["rows"]).drop(columns="seeds").astype({"spread": float})
        print(shown.to_string(index=False, na_rep="", float_format="{:,.3f}".format), flush=True)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        text = json.dumps(kept | {part: about | result}, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def arguments():
    def path(text):
        return pathlib.Path(text).resolve()

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; all when none is named")
    parser.add_argument("--nanogpt", type=path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--csv", type=path, help="the tweets, to be prepared into a folder of its own")
    parser.add_argument("--data_dir", type=path, default=path("data"), help="or what prepare.py has written")
    parser.add_argument("--out_dir", type=path, default=path("out"), help="where bench.json and .png go")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for everyone")
    parser.add_argument("--quick", action="store_true", help="tiny counts: does it run at all?")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the dtype of train_transformers
    args = parser.parse_intermixed_args()
    if unknown := set(args.part) - PARTS.keys():
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    args.preset = few(args, "config/elon.py", "config/tiny.py")
    args.name = few(args, "bench", "bench-quick")  # so that a smoke test replaces no figures
    return args


PARTS = {"quality": quality, "train": train, "sample": sample, "prepare": prepare}

if __name__ == "__main__":
    args = arguments()
    torch.set_num_threads(args.threads)
    for name in ("OMP", "MKL", "RAYON"):  # for the processes that this one starts, and for tokenizers
        os.environ[f"{name}_NUM_THREADS"] = str(args.threads)
    if args.quick:
        SHAPE |= {"n_layer": 1, "n_embd": 16}
    train_transformers(args) if args.worker else main(args)
