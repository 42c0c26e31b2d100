"""Measure what the README claims: ours beside its peers, in the same run and with as many threads.

    python tests/bench.py --csv=data/elon_musk_tweets.csv --nanogpt=../nanoGPT   # everything
    python tests/bench.py train sample --nanogpt=../nanoGPT                      # some parts, on data/
    python tests/bench.py large --csv=more.csv --nanogpt=../nanoGPT              # on a larger set
    python tests/bench.py --table            # only print README's table, from out/reference/bench.json

quality: bits per byte of the held-out tweets and CPU time, three seeds, beside nanoGPT and a 5-gram
large:   the same for config/large.py, one seed; only when it is named
train:   tokens a second and peak memory
sample:  seconds for ten tweets, and until `python sample.py` prints its first
prepare: seconds and peak memory for a million tweets

Prints a table a part and merges the figures into out/bench.json; quality and large also draw a picture.
Without --nanogpt=DIR, a checkout, nanoGPT is left out. Needs Linux, for /proc, and a machine at rest.
"""

import argparse
import collections
import functools
import itertools
import json
import math
import os
import pathlib
import re
import runpy
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

import train as training
from model import GPT, GPTConfig
from prepare import END_OF_TEXT, VOCAB_SIZE, encode, load_tokenizer
from sample import Settings, Writer

CONTENDERS = OURS, *_ = "elon-transformer", "nanoGPT", "transformers", "5-gram"
PRESET = "config/elon.py"
SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}  # where speed is compared
BATCH_SIZE, STEPS = 32, 16  # of which the second half is timed
# nanoGPT's settings where quality is compared: the best of those tried on the development part of the
# training tweets (see search.py), one seed: learning rates 5e-4, 1e-3 and 2e-3, falling over 300, 450 and 700
# iterations; 2, 4 and 6 layers; dropout 0.2 and 0.4; weight decay 0.1 and 1; 256 wide, for 200 iterations.
NANOGPT = SHAPE | {
    "n_layer": 2, "dropout": 0.2, "weight_decay": 0.1, "learning_rate": 1e-3, "min_lr": 1e-4, "beta2": 0.99,
    "warmup_iters": 100, "max_iters": 450, "lr_decay_iters": 450, "eval_interval": 50,
}  # fmt: skip
# and on a larger set, where it gets about the time that ours takes; these were not searched
NANOGPT_LARGE = NANOGPT | {"n_layer": 4, "max_iters": 600, "lr_decay_iters": 600, "eval_interval": 100}


# --- quality --------------------------------------------------------------------------------------


def quality(args, preset=PRESET, seeds=(1337, 1338, 1339), nanogpt=NANOGPT, picture="bench.png"):
    """Bits per byte of the held-out tweets, and the CPU seconds until there."""
    train, val = (np.fromfile(args.data_dir / f"{name}.bin", "<u2") for name in ("train", "val"))
    meta = json.loads((args.data_dir / "meta.json").read_text(encoding="utf-8"))
    bits = 1 / math.log(2) / meta["val_bytes"]  # per byte, for each nat of all val
    five_gram = kneser_ney(train.tolist(), val.tolist(), 5) * bits
    runs, goals = {}, {"the 5-gram's level": five_gram}
    if args.nanogpt:
        runs["nanoGPT"] = [nanogpt_curve(args, nanogpt, val, bits)]
        goals["nanoGPT's best"] = runs["nanoGPT"][0]["best"]
    runs[OURS] = [our_curve(args, preset, seed, val, bits) for seed in seeds]
    plot(runs, five_gram, args.out_dir / picture)

    rows = [row("held-out bits per byte, at best", "5-gram", five_gram, "bits/byte")]
    for of, curves in runs.items():
        rows += [
            row("held-out bits per byte, at best", of, [curve["best"] for curve in curves], "bits/byte"),
            row("the same at the end of the run", of, [curve["bits"][-1] for curve in curves], "bits/byte"),
            row("CPU time of the run", of, [curve["cpu"][-1] for curve in curves], "CPU seconds"),
        ]
        for goal, level in goals.items():  # on the line through the evaluations, NaN where it ends before
            there = functools.partial(np.interp, -level, right=math.nan)
            times = [there(-np.minimum.accumulate(curve["bits"]), curve["cpu"]) for curve in curves]
            rows.append(row(f"CPU time to {goal}", of, times, "CPU seconds"))
    return {"tweets": meta["tweets"], "rows": rows, "curves": runs}


def our_curve(args, preset, seed, val, bits):
    """Train with a preset; the bits per byte and the CPU seconds at each evaluation, and those of best.pt."""
    lines, history = train_ours(args, preset, f"--seed={seed}")
    cpu, model = {line.iter: line.cpu for line in lines}, GPT.load(args.scratch / "best.pt")
    times, levels = [cpu[at["iter"]] for at in history], [at["bits_per_byte"] for at in history]
    return {"seed": seed, "cpu": times, "bits": levels, "best": score(model, val) * bits}


def kneser_ney(train, val, order):
    """-ln p of all of `val` (lists of ids) but its first token, by interpolated Kneser-Ney smoothing: every
    order takes one discount from each count and hands what it took to the order below, the lowest to all ids
    evenly. Below the highest order a gram counts once for each token that it follows."""
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


def score(model, val):
    """-ln p of all of `val` but its first token: windows move on by half a block, and each scores the tokens
    that none before it has scored."""
    tokens, block_size, total, done = training.as_tensor(val), model.config.block_size, 0.0, 0
    for start in itertools.count(0, block_size // 2):
        stop = min(start + block_size, len(val) - 1)
        with torch.inference_mode():
            found = model.log_probs(tokens[None, start:stop])[0, done - start :]
        total -= found.gather(1, tokens[done + 1 : stop + 1, None]).double().sum().item()
        done = stop
        if done == len(val) - 1:
            return total


def nanogpt_curve(args, settings, val, bits):
    """The same for nanoGPT, of which every checkpoint is scored."""
    folder, cpu, levels = args.scratch / "nanogpt", {}, []
    for line in train_nanogpt(args, folder, settings):
        # it prints "step N" after N steps, then writes ckpt.pt, then prints "iter N"
        if found := re.match(r"step ([1-9]\d*)", line.text):
            cpu[int(found[1])] = line.cpu
        if line.iter and line.iter in cpu:  # set the checkpoint aside before there is another
            (folder / "out" / "ckpt.pt").rename(folder / f"{line.iter}.pt")
    for number in cpu:
        checkpoint = torch.load(folder / f"{number}.pt", weights_only=True)
        model = nanogpt_model(args, checkpoint["model_args"])
        model.load_state_dict(checkpoint["model"])
        levels.append(score(model, val) * bits)
    return {"cpu": list(cpu.values()), "bits": levels, "best": min(levels)}


def plot(runs, five_gram, path):
    """Bits per byte against CPU seconds, the time on a log scale."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    labels = {"xlabel": "CPU seconds since the start", "ylabel": "bits per byte of held-out tweets"}
    axes = figure.add_subplot(xscale="log", **labels)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axhline(five_gram, color="tab:gray", linestyle="--", label=f"5-gram: {five_gram:.3f}")
    for name, curves in runs.items():
        for curve in curves:
            how = {"color": "tab:blue" if name == OURS else "tab:orange", "linewidth": 1}
            axes.plot(curve["cpu"], curve["bits"], ".-", **how, label=f"{name}: {curve['best']:.3f} at best")
    axes.set_ylim(top=2.8)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


# --- speed ----------------------------------------------------------------------------------------


def train(args):
    """Tokens a second and peak memory of training at one shape."""
    shape, half = SHAPE | {"batch_size": BATCH_SIZE, "dropout": 0.2, "max_iters": STEPS}, STEPS // 2
    flags, rows = [f"--{key}={value}" for key, value in shape.items()], []

    def measured(name, of, lines, speed=None):
        lines = list(lines)
        if speed is None:  # peers print a line a step
            first, last = (line.wall for line in lines if line.iter in (half, STEPS))
            speed = BATCH_SIZE * SHAPE["block_size"] * half / (last - first)
        rows.extend([row(name, of, speed, "tokens/s"), row(name, of, lines[-1].peak, "MB")])

    def ours(name, *flags):
        lines, history = train_ours(args, *flags, f"--eval_interval={half}")
        measured(name, OURS, lines, history[-1]["tokens_per_second"])

    # bfloat16 only where the CPU has instructions for it
    for dtype in sorted({training.choose_dtype(torch.device("cpu")), "float32"}):
        name = f"training at one shape, {dtype}"
        ours(name, *flags, f"--dtype={dtype}")
        worker = [__file__, f"--data_dir={args.data_dir}", f"--threads={args.threads}", f"--worker={dtype}"]
        measured(name, "transformers", watch(worker))
        if args.nanogpt and dtype == "float32":
            like_gpt2 = shape | {"bias": True, "eval_interval": 2 * STEPS}
            measured(name, "nanoGPT", train_nanogpt(args, args.scratch / "nanogpt-speed", like_gpt2))
    ours(f"training, {PRESET}", PRESET, f"--max_iters={STEPS}")
    return {"rows": rows}


def train_transformers(args):
    """A process of its own: GPT2LMHeadModel under AdamW, doing in a step what the others do in one."""
    data = np.fromfile(args.data_dir / "train.bin", "<u2")
    settings = training.Settings(batch_size=BATCH_SIZE, **SHAPE)
    model = transformers_model(settings.block_size, dropout=0.2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS + 1):
        idx, _ = training.get_batch(data, settings, step, model.device)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.worker == "bfloat16"):
            loss = model(input_ids=idx, labels=idx).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(f"iter {step}", flush=True)


def sample(args):
    """Seconds for ten samples of 64 tokens by models of one shape, and by the preset as it is used."""
    prompt = torch.tensor([[END_OF_TEXT, *encode(load_tokenizer(), "Tesla")]] * 10)
    how = {"max_new_tokens": 64, "temperature": 0.8, "top_k": 200}
    all_64 = how | {"pad_token_id": END_OF_TEXT, "eos_token_id": None, "do_sample": True, "use_cache": True}
    full = GPT(GPTConfig(**SHAPE)).eval()
    theirs = transformers_model(2 * SHAPE["block_size"])  # where the others' window slides, it goes on
    train_ours(args, PRESET, "--max_iters=100", "--eval_interval=100")  # enough to end its tweets
    preset = GPT.load(args.scratch / "best.pt")
    writer = Writer(preset, Settings())
    name = "ten samples of 64 tokens"
    contenders = {
        (name, OURS): lambda: full.generate(prompt, **how, banned=[END_OF_TEXT]),
        (name, "transformers"): lambda: theirs.generate(prompt, **all_64),
        (f"ten tweets, {PRESET}", OURS): lambda: list(writer.write("Tesla")),
    }
    if args.nanogpt:
        nanogpt = nanogpt_model(args, SHAPE | {"vocab_size": VOCAB_SIZE, "bias": True})
        contenders[name, "nanoGPT"] = lambda: nanogpt.generate(prompt, **how)
    # in turns; the first warms up
    taken = [{who: timeit.timeit(go, number=1) for who, go in contenders.items()} for _ in range(8)][1:]
    rows = [row(*who, median(seconds[who] for seconds in taken), "seconds") for who in contenders]

    ours = ["sample.py", "--start=Tesla", f"--out_dir={args.scratch}"]
    torch_alone = ["-c", "import torch; print('Tesla')"]
    for name, command in (("`sample.py`, to the first tweet", ours), ("of it, importing torch", torch_alone)):
        runs = [list(watch(command)) for _ in range(5)]
        first = median(next(line.wall for line in lines if "Tesla" in line.text) for lines in runs)
        rows.append(row(name, OURS, first, "seconds"))
    return {"rows": rows}


def prepare(args):
    """Seconds and memory of prepare.py for a million tweets."""
    real = (args.data_dir / "processed.txt").read_text(encoding="utf-8").split("\n")[:-1]
    texts = (f"@someone {tweet} {n} https://t.co/x" for n, tweet in enumerate(itertools.cycle(real)))
    source, name = args.scratch / "many.csv", "`prepare.py`, a million tweets"
    pd.DataFrame({"text": itertools.islice(texts, 1_000_000)}).to_csv(source, index=False)
    command = ["prepare.py", f"--input={source}", f"--data_dir={args.scratch / 'prepared'}"]
    runs = [list(watch(command))[-1] for _ in range(3)]
    seconds, peak = median(line.wall for line in runs), max(line.peak for line in runs)
    return {"rows": [row(name, OURS, seconds, "seconds"), row(name, OURS, peak, "MB")]}


# --- the contenders, and how they are measured ----------------------------------------------------


def train_ours(args, *flags):
    """Run train.py; the Lines it printed and the rows of its loss.csv."""
    command = ["train.py", *flags, f"--data_dir={args.data_dir}", f"--out_dir={args.scratch}", "--device=cpu"]
    return list(watch(command)), pd.read_csv(args.scratch / "loss.csv").to_dict("records")


def train_nanogpt(args, folder, settings):
    """Run nanoGPT's own train.py, unmodified, in a copy of its tree with our bins as its data."""
    shutil.copytree(args.data_dir, folder / "data" / "tweets")
    for name in ("train.py", "model.py", "configurator.py"):
        shutil.copy(args.nanogpt / name, folder)
    always = {
        "device": "cpu", "dtype": "float32", "compile": False, "dataset": "tweets", "batch_size": BATCH_SIZE,
        "gradient_accumulation_steps": 1, "eval_iters": 1, "log_interval": 1,
    }  # fmt: skip
    return watch(["train.py", *(f"--{k}={v}" for k, v in (always | settings).items())], folder)


def nanogpt_model(args, shape):
    theirs = runpy.run_path(str(args.nanogpt / "model.py"))
    model = theirs["GPT"](theirs["GPTConfig"](**shape)).eval()
    # without the ids beyond GPT-2's, which it adds for speed
    model.log_probs = lambda idx: model(idx, idx)[0][..., :VOCAB_SIZE].log_softmax(-1)
    return model


def transformers_model(n_positions, dropout=0.0):
    shape = {key: value for key, value in SHAPE.items() if key != "block_size"}
    rates = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(n_positions=n_positions, **rates, **shape)).eval()


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


def row(name, of, value, unit):
    """A figure of a contender, in bench.json; of several, one a seed, the mean."""
    if isinstance(value, list):
        return row(name, of, fmean(value), unit) | {"seeds": value}
    return {"name": name, "of": of, "value": value, "unit": unit}


def results_table(parts):
    """README's table of results in Markdown, of what bench.json holds and nothing else."""
    table = collections.defaultdict(lambda: collections.defaultdict(list))
    for part in filter(parts.get, PARTS):
        about = f"{parts[part]['tweets']:,} tweets: " if part == "large" else ""
        for one in parts[part]["rows"]:
            if part == "large" and one["name"] != "held-out bits per byte, at best":
                continue  # bench.json has the rest
            decimals = {"bits/byte": 3, "seconds": 2}.get(one["unit"], 0)
            unit = {"bits/byte": "", "CPU seconds": " s", "seconds": " s"}.get(one["unit"], f" {one['unit']}")
            text = "not reached" if math.isnan(one["value"]) else f"{one['value']:,.{decimals}f}{unit}"
            text += f" ± {stdev(one['seeds']):.3f}" if decimals == 3 and len(one.get("seeds", "")) > 1 else ""
            table[about + one["name"]][one["of"]].append(text)
    lines = [("", *CONTENDERS), ("---",) * 5]
    lines += [(name, *("; ".join(cells[of]) for of in CONTENDERS)) for name, cells in table.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine():
    """The kind of CPU: with bfloat16 instructions, training is more than twice as fast."""
    name = re.search(r"model name\s*: (.*)|$", pathlib.Path("/proc/cpuinfo").read_text())[1]
    has = "with" if training.choose_dtype(torch.device("cpu")) == "bfloat16" else "without"
    return f"{name}, {has} bfloat16 instructions, {os.cpu_count()} cores, torch {torch.__version__}"


large = functools.partial(
    quality, preset="config/large.py", seeds=[1337], nanogpt=NANOGPT_LARGE, picture="bench-large.png"
)
PARTS = {"quality": quality, "large": large, "train": train, "sample": sample, "prepare": prepare}


def main(args):
    if args.table:
        print(results_table(json.loads((ROOT / "out/reference/bench.json").read_text("utf-8"))))
        return
    path = args.out_dir / "bench.json"
    if args.csv:
        args.data_dir = args.scratch / "data"
        list(watch(["prepare.py", f"--input={args.csv}", f"--data_dir={args.data_dir}"]))
    for part in args.part or [part for part in PARTS if part != "large"]:
        about = {"machine": machine(), "threads": args.threads, "when": time.strftime("%Y-%m-%d %H:%M")}
        print(f"\n{part}: {about}, load {os.getloadavg()[0]:.1f} before it begins", flush=True)
        result = PARTS[part](args)
        print(results_table({part: result}), flush=True)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps(kept | {part: about | result}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    full_path = pathlib.Path.cwd().joinpath
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; if none is named, all but large")
    parser.add_argument("--table", action="store_true", help="only print README's table")
    parser.add_argument("--nanogpt", type=full_path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--csv", type=full_path, help="the tweets, to be prepared into a folder of its own")
    parser.add_argument("--data_dir", type=full_path, default="data", help="or what prepare.py has written")
    parser.add_argument("--out_dir", type=full_path, default="out", help="where the figures and pictures go")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for everyone")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the dtype of train_transformers
    args = parser.parse_intermixed_args()
    torch.set_num_threads(args.threads)
    for name in ("OMP", "MKL", "RAYON"):  # for the processes that this one starts, and for tokenizers
        os.environ[f"{name}_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        args.scratch = pathlib.Path(scratch)
        train_transformers(args) if args.worker else main(args)
