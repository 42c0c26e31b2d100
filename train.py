"""Train a GPT on the tokens that prepare.py wrote.

    python train.py config/elon.py                    # the reference run
    python train.py config/elon.py --batch_size=64    # flags beat the preset
    python train.py config/tiny.py                    # 10 seconds, to try things out
    python train.py config/elon.py --init_from=resume # continue from out/last.pt
    python train.py config/finetune.py                # start from GPT-2's own weights
    torchrun --standalone --nproc_per_node=8 train.py config/elon.py   # on eight GPUs

Writes to out/: best.pt (the weights with the lowest val loss), last.pt (what a resumed run needs), loss.csv
and loss.png.
"""

import dataclasses
import io
import json
import math
import os
import pathlib
import shlex
import signal
import sys
import time
from dataclasses import dataclass

from config import UserError, command, errors_in_one_line, load_settings, setting, written_whole


@dataclass(frozen=True)
class Settings:
    data_dir: str = setting("data", "the folder with train.bin, val.bin and meta.json", group="files")
    out_dir: str = setting("out", "the folder for checkpoints, loss.csv and loss.png")
    init_from: str = setting("scratch", "or resume, or gpt2, gpt2-medium, …, or a folder with such weights")

    block_size: int = setting(64, "tokens per window: the longest context", low=2, group="the model")
    n_layer: int = setting(4, "transformer blocks", low=1)
    n_head: int = setting(4, "attention heads per block", low=1)
    n_embd: int = setting(128, "size of each token's vector; a multiple of n_head", low=1)
    dropout: float = setting(0.2, "fraction of activations zeroed in training", low=0, high=0.99)
    noise: float = setting(0.0, "how strongly training replaces input tokens at random", low=0, high=1)
    separate_tweets: bool = setting(False, "hide earlier tweets from each tweet")
    cut: float = setting(0.0, "chance that training cuts a tweet in two before a token", low=0, high=1)
    n_before: int = setting(0, "how many tokens before it each token takes in at once", low=0)
    compact_vocab: bool = setting(False, "a vector for each token seen twice, shared ones for the others")
    spelling: int = setting(0, "vectors for groups of letters, at most 32,767; 0 for none", low=0, high=32767)

    batch_size: int = setting(32, "windows per batch, over all processes", low=1, group="training")
    gradient_accumulation_steps: int = setting(1, "batches averaged per step", low=1)
    epochs: float = setting(40.0, "how often to go through the training tokens", low=0, beats="max_iters")
    max_iters: int = setting(0, "iterations in total, instead of epochs", low=0)
    learning_rate: float = setting(1e-3, "at its peak; it falls to 0 along a cosine", low=0)
    warmup_iters: int = setting(20, "iterations to reach learning_rate", low=0)
    weight_decay: float = setting(0.1, "AdamW's, for matrices only", low=0)
    muon: bool = setting(False, "Muon instead of AdamW for the matrices of the blocks")
    muon_decay: float = setting(1.0, "Muon's weight decay", low=0)
    beta2: float = setting(0.99, "AdamW's decay rate for squared gradients", low=0, high=1)
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 for no limit", low=0)

    eval_interval: int = setting(0, "iterations between evaluations; 0 for 12 in all", low=0, group="reports")
    patience: int = setting(0, "stop after so many evaluations without a better one; 0 for never", low=0)

    device: str = setting("auto", "auto, cpu, cuda, cuda:1, …", group="the machine")
    dtype: str = setting(
        "auto", "of matrix products: float32, bfloat16, float16; auto picks the fastest",
        choices=("auto", "float32", "bfloat16", "float16"),
    )  # fmt: skip
    compile: bool = setting(False, "use torch.compile: slow to start, then faster on a GPU")
    seed: int = setting(1337, "of everything random", low=0, high=10**18)


if __name__ == "__main__":  # here, so that mistakes are told before the slow import of torch
    settings = load_settings(Settings, sys.argv[1:])
    # read when torch is imported; without it, two threads on a busy core take up to ten times as long as one
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from model import GPT, GPTConfig, choose_device, describe
from prepare import token_texts

FREE_TO_CHANGE = {  # on resuming; anything else would make it a different run
    "data_dir", "out_dir", "init_from", "epochs", "max_iters", "learning_rate", "warmup_iters",
    "eval_interval", "patience", "device", "dtype", "compile",
}  # fmt: skip


def main(settings):
    """The whole run: evaluate, save, take a step, and again, to the end or to a signal to stop."""
    device, rank, world_size = join_processes(settings)
    train_data, val_data, meta = load_data(settings)
    run = Run(settings, train_data, device)
    n_parameters = sum(parameter.numel() for parameter in run.model.parameters())
    print(f"device {device}, dtype {run.dtype}; {n_parameters:,} parameters")
    n_epochs = f"{run.max_iters / run.iters_per_epoch:.1f} epochs"
    print(f"{len(train_data):,} training tokens; {run.max_iters:,} iterations: {n_epochs}", flush=True)
    model = DistributedDataParallel(run.model, broadcast_buffers=False) if world_size > 1 else run.model
    model = torch.compile(model) if settings.compile else model
    signals = catch_signals() if world_size == 1 else []  # torchrun stops all processes by itself
    hide = True if rank else None  # None: where there is no terminal
    bar = tqdm(total=run.max_iters, initial=run.iteration, disable=hide)
    began = time.perf_counter()
    while True:
        if run.is_due():
            loss_sum = run.loss_sum.item() / world_size  # waits for the GPU, so that its seconds are counted
            seconds = time.perf_counter() - began  # of training since the last evaluation
            val_loss = evaluate(run.model, val_data) if rank == 0 else 0.0
            losses = torch.tensor([loss_sum, val_loss], device=device)
            if world_size > 1:
                dist.all_reduce(losses)  # sums them over the processes
            bits_per_loss = (len(val_data) - 1) / math.log(2) / meta["val_bytes"]
            run.record(*losses.tolist(), bits_per_loss, seconds, time.perf_counter() - began)
            if rank == 0 and run.iteration:
                run.save()
            bar.write(run.report())  # after saving: a printed line means a saved run
            sys.stdout.flush()
            began = time.perf_counter()
        if signals or run.is_over():
            break
        run.loss_sum += train_step(run, model, train_data, rank, world_size)
        run.iteration += 1
        bar.update()
    bar.close()
    if world_size > 1:
        dist.destroy_process_group()
    if signals:
        run.save()
        words = [word for word in sys.argv if word != "--init_from=resume"]
        again = shlex.join([sys.orig_argv[0], *words, "--init_from=resume"])
        print(f"stopped at iteration {run.iteration:,}; to continue: {again}")
        raise SystemExit(128 + signals[0])
    print(
        f"best val loss {run.best['val_loss']:.4f} nats per token, {run.best['bits_per_byte']:.4f} bits per "
        f"byte, at iteration {run.best['iter']:,}: {run.out_dir}/best.pt"
    )
    where = [] if settings.out_dir == "out" else [f"--out_dir={settings.out_dir}"]
    print(f"next: {command('sample.py', *where)}")


# --- data -----------------------------------------------------------------------------------------


def load_data(settings):
    """Read-only memmaps of train.bin and val.bin (uint16), and what meta.json tells of them."""
    folder = pathlib.Path(settings.data_dir)
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        train_data, val_data = (np.memmap(folder / f"{name}.bin", "<u2", "r") for name in ("train", "val"))
    except FileNotFoundError as error:
        missing = f"data_dir: there is no {error.filename}"
        raise UserError(f"{missing}; run prepare.py --data_dir={folder} first") from None
    if len(train_data) <= settings.block_size:
        raise UserError(
            f"{folder}/train.bin holds {len(train_data)} tokens, too few for a window; "
            f"use more tweets or a block_size below {settings.block_size}"
        )
    return train_data, val_data, meta


def as_tensor(tokens):
    """uint16 tokens of a memmap as int64, which an embedding takes."""
    return torch.from_numpy(tokens.astype(np.int64))


def get_batch(data, settings, number, device, rank=0, world_size=1):
    """Random windows of block_size tokens and the tokens after each: two (batch_size, block_size) int64.

    What is drawn depends on the seed and the batch's number alone, so a resumed run needs no state for it.
    Of several processes each takes its share of the windows: (batch_size / world_size, block_size).
    """
    rng = np.random.default_rng((settings.seed, number))
    starts = rng.integers(len(data) - settings.block_size, size=(settings.batch_size, 1))[rank::world_size]
    windows = as_tensor(data[starts + np.arange(settings.block_size + 1)])
    if device.type == "cuda":
        windows = windows.pin_memory().to(device, non_blocking=True)
    return windows[:, :-1].to(device), windows[:, 1:].to(device)


# --- optimization ---------------------------------------------------------------------------------


def make_model(settings, train_data):
    """The GPT that a run starts from: with random weights, or with those of a GPT-2."""
    shape = {
        f.name: getattr(settings, f.name) for f in dataclasses.fields(GPTConfig) if f.name != "vocab_size"
    }
    tokens = as_tensor(train_data)
    if settings.init_from == "scratch":
        tables = describe(token_texts(), settings.spelling) if settings.compact_vocab else None
        return GPT(GPTConfig(**shape), tokens, tables)
    if settings.compact_vocab or settings.n_before:
        raise UserError("GPT-2's weights fit no compact_vocab and no n_before; leave both out")
    changes = {name: shape[name] for name in ("block_size", "dropout", "noise", "separate_tweets", "cut")}
    return GPT.from_pretrained(settings.init_from, tokens, **changes)


def make_optimizers(model, settings):
    """AdamW (Loshchilov & Hutter 2019); with `muon`, Muon (Jordan et al. 2024) for the blocks' matrices."""
    matrices, others, in_blocks = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            others.append(parameter)  # biases and LayerNorms do not decay
        else:
            (in_blocks if settings.muon and name.startswith("h.") else matrices).append(parameter)
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    how = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    optimizers = [torch.optim.AdamW(groups, betas=(0.9, settings.beta2), fused=True, **how)]
    if in_blocks:
        how["weight_decay"] = settings.muon_decay
        optimizers.append(torch.optim.Muon(in_blocks, adjust_lr_fn="match_rms_adamw", **how))
    return optimizers


def learning_rate_at(iteration, max_iters, settings):
    """A line up to learning_rate over warmup_iters, then half a cosine down to 0 at max_iters."""
    if iteration < settings.warmup_iters:
        return settings.learning_rate * (iteration + 1) / settings.warmup_iters
    progress = (iteration - settings.warmup_iters) / max(1, max_iters - settings.warmup_iters)
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def train_step(run, model, data, rank=0, world_size=1):
    """One iteration: the gradient of one global batch, clipped, and a step. Returns the loss, a tensor."""
    model.train()
    settings, scaler, device = run.settings, run.scaler, run.loss_sum.device
    # dropout and noise are reseeded at each step, so a resumed run needs no random state
    torch.manual_seed(int(np.random.SeedSequence((settings.seed, run.iteration, rank)).generate_state(1)[0]))
    batches, total = settings.gradient_accumulation_steps, 0.0
    for number in range(run.iteration * batches, (run.iteration + 1) * batches):
        idx, targets = get_batch(data, settings, number, device, rank, world_size)
        with torch.autocast(device.type, getattr(torch, run.dtype), enabled=run.dtype != "float32"):
            _, loss = model(idx, targets)
        # the scaler keeps small float16 gradients from becoming 0; for other dtypes it does nothing
        scaler.scale(loss / batches).backward()
        total += loss.detach() / batches
    for optimizer in run.optimizers:
        scaler.unscale_(optimizer)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(run.iteration, run.max_iters, settings)
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip or math.inf)
    for optimizer in run.optimizers:
        scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return total


@torch.inference_mode()
def evaluate(model, data, batch_size=32):
    """The val loss over all of `data`, in nats per token, in float32 and without dropout.

    Every token but the first is scored once: windows advance by half a block, and each but the first scores
    its newer half, so that (past the start) every token has at least half a block before it, of which
    `separate_tweets` hides other tweets.
    """
    model.eval()
    block_size, device = model.config.block_size, model.wpe.weight.device
    n_targets, stride = len(data) - 1, block_size // 2
    n_windows = math.ceil(max(n_targets - block_size, 0) / stride) + 1
    tokens, to_fill = as_tensor(data), (n_windows - 1) * stride + block_size - n_targets
    idx = F.pad(tokens[:-1], (0, to_fill)).unfold(0, block_size, stride)  # (n_windows, block_size)
    targets = F.pad(tokens[1:], (0, to_fill), value=-1).unfold(0, block_size, stride).clone()
    targets[1:, :-stride] = -1  # the window before scores them
    total = 0.0
    for x, y in zip(idx.split(batch_size), targets.split(batch_size), strict=True):
        _, loss = model(x.to(device), y.to(device))
        total += float(loss) * int((y >= 0).sum())
    return total / n_targets


# --- the run and its files -------------------------------------------------------------------------


class Run:
    """What changes during training: out/last.pt holds all of it."""

    def __init__(self, settings, train_data, device):
        torch.manual_seed(settings.seed)
        self.settings, self.out_dir = settings, pathlib.Path(settings.out_dir)
        self.dtype = choose_dtype(device) if settings.dtype == "auto" else settings.dtype
        self.tokens_per_iter = (
            settings.batch_size * settings.gradient_accumulation_steps * settings.block_size
        )
        self.iters_per_epoch = len(train_data) / self.tokens_per_iter
        self.max_iters = settings.max_iters or math.ceil(settings.epochs * self.iters_per_epoch)
        self.is_new = settings.init_from != "resume"
        self.model = make_model(settings, train_data) if self.is_new else self.read_last(train_data)
        self.model.to(device)
        self.optimizers = make_optimizers(self.model, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == "float16")
        self.iteration = 0  # steps done
        self.history = []  # the rows of loss.csv
        self.loss_sum = torch.zeros((), device=device)  # since the last evaluation; reading it stalls a GPU
        if not self.is_new:
            saved, self.model.notes = self.model.notes, {}  # frees what the optimizers copy
            self.iteration, self.history = saved["iteration"], saved["history"]
            self.loss_sum += saved["loss_sum"].to(device)
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            if saved["scaler"]:  # empty unless the dtype was float16
                self.scaler.load_state_dict(saved["scaler"])

    def read_last(self, train_data):
        """The model in last.pt, whose notes hold the rest; raises UserError if it belongs to another run."""
        path = self.out_dir / "last.pt"
        model = GPT.load(path)
        if "settings" not in model.notes:
            why = "it holds weights only, or is of an earlier version"
            raise UserError(f"cannot resume {path}: {why}; start anew")
        before, now = model.notes["settings"], dataclasses.asdict(self.settings)
        changed = sorted(key for key in now.keys() - FREE_TO_CHANGE if now[key] != before.get(key))
        if changed:
            why = ", ".join(f"{key} changed from {before.get(key)} to {now[key]}" for key in changed)
            raise UserError(f"cannot resume {path}: {why}; give the same preset and flags, or start anew")
        if not np.array_equal(model.tokens.numpy(), train_data):
            why = f"it was trained on other tweets than those in {self.settings.data_dir}"
            raise UserError(f"cannot resume {path}: {why}; set data_dir to theirs, or start anew")
        if (done := model.notes["iteration"]) > self.max_iters:
            why = f"{done:,} iterations are done, of {self.max_iters:,}"
            raise UserError(f"cannot resume {path}: {why}; raise max_iters or epochs")
        return model

    @property
    def evaluated(self):
        """The iteration of the last evaluation, or None."""
        return self.history[-1]["iter"] if self.history else None

    @property
    def best(self):
        """The row with the lowest val loss, but for that of the untrained model."""
        return min(self.history[1:] or self.history, key=lambda row: row["val_loss"])

    def is_due(self):
        """Whether to evaluate now, unless that was done before the run was resumed."""
        interval = self.settings.eval_interval or math.ceil(self.max_iters / 12)
        is_time = self.iteration % interval == 0 or self.iteration == self.max_iters
        return is_time and self.evaluated != self.iteration

    def is_over(self):
        """Whether all iterations are done, or `patience` is out."""
        since_best = len(self.history) - 1 - self.history.index(self.best)
        return self.iteration == self.max_iters or 0 < self.settings.patience <= since_best

    def record(self, loss_sum, val_loss, bits_per_loss, seconds, elapsed):
        """Add a row to the history; raises UserError if the loss is no longer finite.

        loss_sum: of the train losses since the last evaluation; bits_per_loss: bits per byte for each nat
        per token; seconds, elapsed: since the last evaluation, without and with this one.
        """
        if not math.isfinite(val_loss):
            why = f"the loss became {val_loss} by iteration {self.iteration:,}; lower learning_rate"
            raise UserError(f"{why}. {self.out_dir}/last.pt is as it was saved last")
        before = self.history[-1] if self.history else {"iter": 0, "elapsed_seconds": 0.0}
        n_iters = self.iteration - before["iter"]
        row = {
            "iter": self.iteration,
            "epoch": self.iteration / self.iters_per_epoch,
            "train_loss": loss_sum / n_iters if n_iters else math.nan,
            "val_loss": val_loss,
            "bits_per_byte": val_loss * bits_per_loss,
            "lr": learning_rate_at(self.iteration, self.max_iters, self.settings),
            "tokens_per_second": n_iters * self.tokens_per_iter / seconds,
            "elapsed_seconds": before["elapsed_seconds"] + elapsed,
        }
        self.history.append(row)
        self.loss_sum.zero_()

    def report(self):
        """The last row, for people."""
        row, n_left = self.history[-1], (self.max_iters - self.iteration) * self.tokens_per_iter
        text = f"iter {row['iter']:5,}  epoch {row['epoch']:4.1f}"
        text += f"  train {row['train_loss']:.4f}" if row["iter"] else "  train   -   "
        text += f"  val {row['val_loss']:.4f} nats  {row['bits_per_byte']:.4f} bits/byte  lr {row['lr']:.1e}"
        if speed := row["tokens_per_second"]:
            text += f"  {speed:6,.0f} tokens/s  {tqdm.format_interval(n_left / speed)} left"
        return text + "  *best" * (row is self.best and row["iter"] > 0)

    def save(self):
        """Write last.pt; after an evaluation also loss.csv, loss.png and, if it is the best, best.pt."""
        if self.is_new:  # here, so that a run that fails at once takes no other's place
            set_aside(self.out_dir)
            self.is_new = False
        notes = {key: self.best[key] for key in ("iter", "val_loss", "bits_per_byte")}
        if self.evaluated == self.iteration:
            with written_whole(self.out_dir / "loss.csv") as file:
                pd.DataFrame(self.history).to_csv(file, index=False)
            plot_losses(self.history, self.best, self.out_dir / "loss.png")
            if self.best["iter"] == self.iteration:
                self.model.save(self.out_dir / "best.pt", **notes)
        self.model.save(
            self.out_dir / "last.pt",
            **notes,
            settings=dataclasses.asdict(self.settings),
            iteration=self.iteration,
            history=self.history,
            loss_sum=self.loss_sum,
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
            scaler=self.scaler.state_dict(),
        )


def set_aside(out_dir):
    """Move what an earlier run left in `out_dir` to out_dir/previous, replacing what is there."""
    paths = [out_dir / name for name in ("best.pt", "last.pt", "loss.csv", "loss.png")]
    for path in filter(pathlib.Path.exists, paths):
        (out_dir / "previous").mkdir(exist_ok=True)
        path.replace(out_dir / "previous" / path.name)


def plot_losses(history, best, path):
    """Train and val loss against iterations; perplexity on the right; the best point marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="iteration", ylabel="loss (nats per token; lower is better)")
    labels = {"train_loss": "train (noise and dropout on)", "val_loss": "val (held-out tweets)"}
    for name, label in labels.items():
        axes.plot([row["iter"] for row in history], [row[name] for row in history], ".-", label=label)
    label = f"best: {best['val_loss']:.3f}, {best['bits_per_byte']:.3f} bits per byte"
    axes.plot(best["iter"], best["val_loss"], "o", color="tab:red", label=label)
    perplexity = (lambda x: np.exp(np.clip(x, -50, 50)), lambda x: np.log(np.maximum(x, 1e-22)))
    axes.secondary_yaxis("right", functions=perplexity).set_ylabel("perplexity")
    axes.grid(alpha=0.3)
    axes.legend()
    with written_whole(path, "wb") as file:
        figure.savefig(file, dpi=100, format="png")


# --- the machine ----------------------------------------------------------------------------------


def catch_signals():
    """A list that Ctrl-C and SIGTERM add to, so that the iteration can finish; a second one acts at once."""
    received = []

    def note(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return received


def join_processes(settings):
    """(torch.device, rank, world_size) of this process, which torchrun may have started with others.

    Each takes its share of every batch, and their gradients are averaged; the first, rank 0, evaluates and
    writes.
    """
    device = choose_device(settings.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    if "RANK" not in os.environ:
        return device, 0, 1
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if settings.batch_size % world_size:
        raise UserError(
            f"batch_size: {settings.batch_size} windows cannot be split evenly among {world_size} processes; "
            f"use a multiple of {world_size}"
        )
    if rank:
        sys.stdout = io.StringIO()  # the first process prints
    return device, rank, world_size


def choose_dtype(device):
    """The fastest dtype for this device; bfloat16 is slow on a CPU without instructions for it."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if device.type == "cpu" and has_bfloat16 else "float32"


if __name__ == "__main__":
    with errors_in_one_line():
        try:
            main(settings)
        except (RuntimeError, MemoryError) as error:
            why = str(error).strip().split("\n")[0]
            if settings.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise UserError(f"compile: torch.compile fails here ({why}); leave out --compile") from None
            if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in why:
                raise UserError("out of memory; lower batch_size, block_size, n_embd or n_layer") from None
            raise
