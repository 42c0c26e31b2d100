"""Train a GPT on the tokens that prepare.py wrote.

    python train.py config/elon.py                    # the reference run
    python train.py config/elon.py --batch_size=64    # flags beat the preset
    python train.py config/tiny.py                    # 10 seconds, to try things out
    python train.py config/elon.py --init_from=resume # continue from out/last.pt
    python train.py config/finetune.py                # start from GPT-2's own weights
    torchrun --standalone --nproc_per_node=8 train.py config/elon.py   # on eight GPUs

Writes to out/: best.pt (the weights with the lowest val loss), last.pt (everything that a resumed run
needs), loss.csv and loss.png.
"""

import contextlib
import copy
import csv
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shlex
import shutil
import signal
import sys
import time
from dataclasses import dataclass

from config import UserError, command, errors_in_one_line, load_settings, setting, written_whole


@dataclass(frozen=True)
class Settings:
    data_dir: str = setting("data", "the folder with train.bin, val.bin and meta.json", group="files")
    out_dir: str = setting("out", "the folder for checkpoints, loss.csv and loss.png")
    init_from: str = setting(
        "scratch",
        "scratch; resume, from out_dir/last.pt; or gpt2, gpt2-medium, gpt2-large, gpt2-xl or a path to such "
        "weights, which set n_layer, n_head, n_embd, bias and gelu",
    )

    block_size: int = setting(
        64, "tokens per window: the longest context", within="[2, inf)", group="the model"
    )
    n_layer: int = setting(4, "transformer blocks", within="[1, inf)")
    n_head: int = setting(4, "attention heads per block", within="[1, inf)")
    n_embd: int = setting(128, "size of each token's vector; a multiple of n_head", within="[1, inf)")
    dropout: float = setting(0.2, "fraction of activations zeroed in training", within="[0, 1)")
    bias: bool = setting(True, "biases in Linear and LayerNorm, as GPT-2 has them")
    gelu: str = setting("exact", "form of GELU; GPT-2's weights need tanh", choices=("exact", "tanh"))
    separate_tweets: bool = setting(False, "hide earlier tweets from each tweet")
    output_bias: bool = setting(False, "a bias per token, initialised to its log frequency")
    compact_vocab: bool = setting(False, "an embedding for each token seen twice or more, one for all others")
    spelling: int = setting(0, "size of the hash table of spelling vectors; 0 for none", within="[0, inf)")
    ngram_order: int = setting(0, "mix in an n-gram model of this order; 0 for none", within="[0, inf)")
    ngram_weight: float = setting(0.5, "the n-gram model's share of each prediction", within="(0, 1)")
    noise: float = setting(0.0, "how strongly training replaces input tokens at random", within="[0, 1)")

    batch_size: int = setting(
        32, "windows per batch, over all processes", within="[1, inf)", group="training"
    )
    gradient_accumulation_steps: int = setting(1, "batches averaged per step of AdamW", within="[1, inf)")
    max_iters: int = setting(2000, "iterations in total", within="[1, inf)")
    learning_rate: float = setting(1e-3, "AdamW's, at its peak", within="(0, inf)")
    min_lr: float = setting(1e-4, "the learning rate at the end, reached along a cosine", within="[0, inf)")
    warmup_iters: int = setting(50, "iterations to reach learning_rate", within="[0, inf)")
    weight_decay: float = setting(0.1, "AdamW's, for matrices only", within="[0, inf)")
    beta2: float = setting(0.99, "AdamW's decay rate for squared gradients", within="[0, 1)")
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 for no limit", within="[0, inf)")
    average_decay: float = setting(0.0, "evaluate a running mean of the weights; 0 for none", within="[0, 1)")

    eval_interval: int = setting(100, "iterations between evaluations", within="[1, inf)", group="reports")
    log_interval: int = setting(10, "iterations between progress lines", within="[1, inf)")
    checkpoint_interval: int = setting(
        0, "iterations between saves of last.pt; 0 for every evaluation", within="[0, inf)"
    )

    device: str = setting("auto", "auto, cpu, cuda, cuda:1, …", group="the machine")
    dtype: str = setting(
        "auto",
        "precision of matrix products; auto picks the fastest",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    compile: bool = setting(False, "use torch.compile: slow to start, then faster on a GPU")
    seed: int = setting(1337, "of everything random", within="[0, 1e18]")


if __name__ == "__main__":  # here, so that typos are reported before the slow import of torch
    settings = load_settings(Settings, sys.argv[1:])
    # read when torch is imported; without it, two threads on a busy core take up to ten times as long as one
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from tqdm import tqdm  # noqa: E402

from model import GPT, GPTConfig, choose_device, corpus_tables, make_gpt, read_checkpoint  # noqa: E402
from prepare import token_texts  # noqa: E402

FREE_TO_CHANGE = {  # on resuming; anything else would make it a different run
    "data_dir", "out_dir", "init_from", "max_iters", "learning_rate", "min_lr", "warmup_iters",
    "eval_interval", "log_interval", "checkpoint_interval", "device", "dtype", "compile",
}  # fmt: skip


def main(settings):
    with processes(settings.device) as device:
        train(settings, device)


def train(settings, device):
    """The whole run: evaluate, save, take a step, and again, up to max_iters or a signal to stop."""
    dtype = choose_dtype(device) if settings.dtype == "auto" else settings.dtype
    train_data, val_data, meta = load_data(settings)
    if settings.batch_size % world_size():
        raise UserError(
            f"batch_size: {settings.batch_size} windows cannot be split evenly among {world_size()} "
            f"processes; use a multiple of {world_size()}"
        )
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    run = Run(settings, device, dtype, meta, train_data)
    if settings.init_from != "resume" and rank() == 0:
        set_aside(run.out_dir)
    describe(run, device, dtype, train_data, val_data)

    model = DistributedDataParallel(run.model, forward_sync_buffers=False) if world_size() > 1 else run.model
    model = torch.compile(model) if settings.compile else model
    if run.iteration == settings.max_iters:
        print(f"nothing left to do: all {run.iteration:,} iterations are done; raise max_iters to continue")
    progress = Progress(run, len(train_data))
    with stop_signals() as signals:
        while True:
            if is_due := run.is_due():
                progress.measure_speed()
                val_loss, bits_per_byte = evaluate(run.averaged, val_data, meta["val_bytes"])
                run.record(progress.row(val_loss, bits_per_byte))
            run.save_if_due()
            if is_due:  # after saving: a printed line means a saved run, and that is not timed as training
                progress.report()
            elif run.iteration % settings.log_interval == 0:
                progress.log()
            signal_number = signal_agreed_on(signals, run.iteration, settings, device)
            if signal_number or run.iteration == settings.max_iters:
                break
            loss = train_step(model, run.optimizer, run.scaler, train_data, run.iteration, settings, dtype)
            run.count_step(loss)
            progress.step()
    progress.bar.close()
    if signal_number:
        run.save()
        resume = "--init_from=resume"
        again = shlex.join([sys.orig_argv[0], *(word for word in sys.argv if word != resume), resume])
        again = again if world_size() == 1 else f"the same command and {resume}"
        print(f"stopped at iteration {run.iteration:,}; to continue: {again}")
        raise SystemExit(128 + signal_number)
    best = run.best
    where = [] if settings.out_dir == "out" else [f"--out_dir={settings.out_dir}"]
    print(
        f"best val loss {best['val_loss']:.4f} nats per token, {best['bits_per_byte']:.4f} bits per byte, "
        f"at iteration {best['iter']:,}: {run.out_dir}/best.pt\n"
        f"next: {command('sample.py', *where)}"
    )


# --- data -----------------------------------------------------------------------------------------


def load_data(settings):
    """Read-only memmaps of train.bin and val.bin (uint16), and meta.json with two additions: `counts`, how
    often each id is in train.bin (50257,), and `sha256` of the file itself."""
    folder = pathlib.Path(settings.data_dir)
    try:
        raw = (folder / "meta.json").read_bytes()
        meta = json.loads(raw)
        counts = torch.zeros(GPTConfig.vocab_size, dtype=torch.int64)
        for token, count in meta["train_token_counts"].items():
            counts[int(token)] = count
        sizes = int(meta["val_bytes"]), int(meta["val_tokens"]) - 1
        if counts.min() < 0 or counts.sum() != meta["train_tokens"] or min(sizes) < 1:
            raise ValueError("its numbers do not add up")
    except OSError as error:
        raise UserError(
            f"data_dir: {folder}/meta.json cannot be read ({error.strerror}); "
            f"run prepare.py --data_dir={folder} first"
        ) from None
    except (LookupError, TypeError, AttributeError, RuntimeError, OverflowError, ValueError) as error:
        raise UserError(f"{folder}/meta.json is damaged ({error}); run prepare.py again") from None
    splits = []
    for name in ("train", "val"):
        path = folder / f"{name}.bin"
        size = path.stat().st_size if path.is_file() else 0
        if size % 2 or size // 2 != meta.get(f"{name}_tokens"):
            raise UserError(f"{path} does not match meta.json ({size} bytes); run prepare.py again")
        if name == "train" and size // 2 <= settings.block_size:
            raise UserError(
                f"{path} holds {size // 2} tokens, too few for a window; "
                f"use more tweets or a block_size below {settings.block_size}"
            )
        splits.append(np.memmap(path, "<u2", "r"))
    return *splits, meta | {"counts": counts, "sha256": hashlib.sha256(raw).hexdigest()}


def checked(tokens, name):
    """(…) uint16 from a memmap as int64; raises UserError for ids that GPT-2 lacks."""
    if tokens.max(initial=0) >= GPTConfig.vocab_size:
        raise UserError(f"{name}.bin holds the id {tokens.max()}, which GPT-2 lacks; run prepare.py again")
    return torch.from_numpy(tokens.astype(np.int64))


def get_batch(data, settings, number, device):
    """Random windows of block_size tokens and the tokens after each: two (batch_size, block_size) int64.

    What is drawn depends on the seed and the batch's number alone, so a resumed run needs no state for it.
    Of several processes each takes its share of the windows: (batch_size / processes, block_size).
    """
    rng = np.random.default_rng((settings.seed, number))
    starts = rng.integers(len(data) - settings.block_size, size=(settings.batch_size, 1))
    starts = starts[rank() :: world_size()]
    windows = checked(data[starts + np.arange(settings.block_size + 1)], "train")
    if device.type == "cuda":
        windows = windows.pin_memory()
    windows = windows.to(device, non_blocking=device.type == "cuda")
    return windows[:, :-1], windows[:, 1:]


# --- optimization ---------------------------------------------------------------------------------


def make_optimizer(model, settings):
    """AdamW (Loshchilov & Hutter 2019), with weight decay on matrices, not on biases and LayerNorms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=True)


def learning_rate_at(iteration, settings):
    """A line up to learning_rate over warmup_iters, then half a cosine down to min_lr at max_iters."""
    if iteration < settings.warmup_iters:
        return settings.learning_rate * (iteration + 1) / settings.warmup_iters
    progress = (iteration - settings.warmup_iters) / max(1, settings.max_iters - settings.warmup_iters)
    share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return settings.min_lr + share * (settings.learning_rate - settings.min_lr)


def train_step(model, optimizer, scaler, data, iteration, settings, dtype):
    """One iteration: the gradient of one global batch, clipped, and a step of AdamW. Returns the loss."""
    model.train()
    # dropout and noise are reseeded at each step, so a resumed run needs no random state
    seed = np.random.SeedSequence((settings.seed, iteration, rank())).generate_state(1)
    torch.manual_seed(int(seed[0]))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(iteration, settings)
    batches, total = settings.gradient_accumulation_steps, 0.0
    device = next(model.parameters()).device
    for number in range(iteration * batches, (iteration + 1) * batches):
        idx, targets = get_batch(data, settings, number, device)
        alone = world_size() > 1 and (number + 1) % batches  # exchange gradients after the last batch only
        with model.no_sync() if alone else contextlib.nullcontext():
            with torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
                _, loss = model(idx, targets)
            # the scaler keeps small float16 gradients from becoming 0; for other dtypes it does nothing
            scaler.scale(loss / batches).backward()
        total += loss.detach() / batches
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip or math.inf)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return total


@torch.inference_mode()
def evaluate(model, data, n_bytes, batch_size=512):
    """(val loss in nats per token, bits per byte) over all of `data`, in float32 and without dropout.

    Every token but the first is scored once: windows advance by half a block, and each but the first scores
    its newer half, so that (past the start) every token has at least half a block before it, of which
    `separate_tweets` hides other tweets from the network. Several processes share the windows.
    """
    model.eval()
    block_size, device = model.config.block_size, next(model.parameters()).device
    n_targets, stride, offsets = len(data) - 1, block_size // 2, np.arange(block_size)
    starts = np.arange(0, max(n_targets - block_size, 0) + stride, stride)[:, None]  # (windows, 1)
    starts = starts[rank() :: world_size()]
    total = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    for start in np.split(starts, range(batch_size, len(starts), batch_size)):
        places = start + offsets  # (batch_size, block_size)
        scored = ((start == 0) | (offsets >= block_size - stride)) & (places < n_targets)
        tokens = checked(data[np.minimum(start + np.arange(block_size + 1), n_targets)], "val")
        targets = tokens[:, 1:].where(torch.from_numpy(scored), -1)
        _, loss = model(tokens[:, :-1].to(device), targets.to(device))
        if scored.any():  # a process may have no windows, and the mean of nothing is NaN
            total += loss * int(scored.sum())
    total = summed(total)
    return total / n_targets, total / math.log(2) / n_bytes


# --- the run and its files -------------------------------------------------------------------------


class Run:
    """The state that changes during training, and how it is saved and restored: out/last.pt holds it all."""

    def __init__(self, settings, device, dtype, meta, train_data):
        torch.manual_seed(settings.seed)
        self.settings, self.out_dir = settings, pathlib.Path(settings.out_dir)
        self.data_sha256 = meta["sha256"]
        saved = self.read_last() if settings.init_from == "resume" else None
        if saved:
            model = GPT.from_checkpoint(saved, self.out_dir / "last.pt")
        else:
            model = make_model(settings, meta["counts"], train_data)
        self.model = model.to(device)
        self.averaged = self.model  # what is evaluated and kept: the running mean of the weights, if any
        if settings.average_decay:
            shared = {id(table): table for table in self.model.buffers()}  # only the weights are copied
            self.averaged = copy.deepcopy(self.model, shared)
        self.optimizer = make_optimizer(self.model, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
        self.iteration = 0  # steps done
        self.losses = []  # since the last evaluation: kept as tensors, because reading a number stalls a GPU
        self.history = []  # the rows of loss.csv
        self.best = {"iter": 0, "val_loss": math.inf, "bits_per_byte": math.inf}
        if saved:
            self.restore(saved)

    def count_step(self, loss):
        """Count a step and update the mean of the weights; `loss` is from before the step."""
        self.iteration += 1
        self.losses.append(loss)
        if self.averaged is not self.model:
            # the first step replaces the random start, which should not linger in the mean
            share = 1 - self.settings.average_decay if self.iteration > 1 else 1.0
            with torch.no_grad():
                for mean, now in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                    mean.lerp_(now, share)

    def train_loss(self):
        """The mean loss since the last evaluation; raises UserError when it is no longer finite."""
        if not self.losses:
            return math.nan
        return self.check_finite(summed(torch.stack(self.losses).mean()) / world_size())

    def check_finite(self, loss):
        if not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} by iteration {self.iteration:,}; lower learning_rate, or set "
                f"grad_clip to 1. {self.out_dir}/last.pt holds the state that was saved last"
            )
        return loss

    def is_due(self):
        """Whether to evaluate now, unless that was done before the run was resumed."""
        last = self.iteration == self.settings.max_iters
        return not self.is_evaluated() and (last or self.iteration % self.settings.eval_interval == 0)

    def is_evaluated(self):
        return bool(self.history) and self.history[-1]["iter"] == self.iteration

    def record(self, row):
        """Take the results of an evaluation; write loss.csv, loss.png and, if it is the best, best.pt."""
        self.losses = []
        self.history.append(row)
        if self.check_finite(row["val_loss"]) < self.best["val_loss"]:
            self.best = {key: row[key] for key in self.best}
        if rank() > 0:
            return
        with written_whole(self.out_dir / "loss.csv") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.history)
        plot_losses(self.history, self.best, self.out_dir / "loss.png")
        if self.best["iter"] == self.iteration:
            self.averaged.save(self.out_dir / "best.pt", **self.notes())

    def notes(self):
        own = {"data_dir": self.settings.data_dir, "data": self.data_sha256, "leading_space": True}
        return own | self.best

    def save_if_due(self):
        every = self.settings.checkpoint_interval
        due = self.iteration % every == 0 if every else self.is_evaluated()
        if due or self.iteration == self.settings.max_iters:
            self.save()

    def save(self):
        """Write last.pt."""
        self.train_loss()  # stops before broken weights overwrite good ones
        if not all(bool(weights.isfinite().all()) for weights in self.model.parameters()):
            self.check_finite(math.nan)
        losses = self.losses
        if world_size() > 1:  # all processes will take up the file of the first
            losses = [torch.tensor(summed(loss) / world_size()) for loss in losses]
        state = {
            "settings": dataclasses.asdict(self.settings),
            "data": self.data_sha256,
            "iteration": self.iteration,
            "losses": losses,
            "history": self.history,
            "best": self.best,
            "averaged": {name: mean.detach() for name, mean in self.averaged.named_parameters()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if rank() == 0:
            with written_whole(self.out_dir / "last.pt", "wb") as file:
                torch.save(self.model.checkpoint(**self.notes()) | state, file)

    def read_last(self):
        """What last.pt holds; raises UserError if it belongs to another run."""
        path = self.out_dir / "last.pt"
        saved = read_checkpoint(path)
        if not isinstance(saved.get("settings"), dict):
            raise UserError(f"{path} holds weights only; a run is resumed from its last.pt")
        before, now = saved["settings"], dataclasses.asdict(self.settings)
        changed = {key for key in now if now[key] != before.get(key)}
        if refused := sorted(changed - FREE_TO_CHANGE):
            shown = ", ".join(f"{key} changed from {before.get(key)} to {now[key]}" for key in refused)
            raise UserError(f"cannot resume {path}: {shown}; give the same preset and flags, or start anew")
        if saved.get("data") != self.data_sha256:
            raise UserError(
                f"cannot resume {path}: it was trained on other tweets (then in {before.get('data_dir')}) "
                f"than those now in {self.settings.data_dir}; set data_dir to the former, or start anew"
            )
        for key in sorted(changed - {"init_from"}):
            print(f"changed since {path} was written: {key} from {before[key]} to {now[key]}")
        return saved

    def restore(self, saved):
        """Restore the state saved in last.pt."""
        try:
            weights = {name: saved["averaged"][name] for name, _ in self.averaged.named_parameters()}
            self.averaged.load_state_dict(self.model.state_dict() | weights)
            self.optimizer.load_state_dict(saved["optimizer"])
            for parameter, moments in self.optimizer.state.items():
                if any(moments[name].shape != parameter.shape for name in ("exp_avg", "exp_avg_sq")):
                    raise ValueError("the optimizer's moments do not fit the weights")
            if saved["scaler"]:  # empty unless the dtype was float16
                self.scaler.load_state_dict(saved["scaler"])
            device = next(self.model.parameters()).device
            self.iteration, self.losses = int(saved["iteration"]), [x.to(device) for x in saved["losses"]]
            self.history, self.best = list(saved["history"]), dict(saved["best"])
            names, rows = ("iter", "val_loss", "bits_per_byte"), [*self.history, self.best]
            torch.tensor(
                [row[name] for row in rows for name in names] + self.losses
            )  # raises unless all are numbers
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            why = str(error).split("\n")[0]
            raise UserError(
                f"{self.out_dir}/last.pt is damaged and cannot be resumed ({why}); start anew"
            ) from None
        if self.iteration > self.settings.max_iters:
            raise UserError(
                f"max_iters: {self.settings.max_iters:,} is less than the {self.iteration:,} iterations that "
                f"{self.out_dir}/last.pt has already done; raise it, or start anew"
            )


def make_model(settings, counts, train_data):
    """The GPT that a run starts from: with random weights, or with those of a GPT-2."""
    if settings.init_from != "scratch":
        for name in ("compact_vocab", "output_bias", "spelling", "ngram_order", "noise"):
            if value := getattr(settings, name):
                raise UserError(f"{name}: GPT-2 has no such part; set it to {type(value)(0)}")
        changes = {name: getattr(settings, name) for name in ("block_size", "dropout", "separate_tweets")}
        return GPT.from_pretrained(settings.init_from, **changes)
    shape = [f.name for f in dataclasses.fields(GPTConfig) if hasattr(settings, f.name)]
    config = GPTConfig(**{name: getattr(settings, name) for name in shape})
    texts = token_texts() if config.spelling else None
    tokens = checked(train_data, "train") if config.ngram_order else None
    return make_gpt(config, corpus_tables(config, counts, texts, tokens))


def set_aside(out_dir):
    """Move what an earlier run left in `out_dir` to out_dir/previous, replacing what is there."""
    names = ("best.pt", "last.pt", "loss.csv", "loss.png", "samples.txt", "attention.png")
    found = [out_dir / name for name in names if (out_dir / name).exists()]
    if not found:
        return
    previous, collecting = out_dir / "previous", out_dir / "previous.tmp"
    if previous.exists() and not previous.is_dir():
        raise UserError(f"{previous} is not a folder, so the earlier run cannot go there; move it away")
    if previous.exists() and is_untrained(out_dir):
        return  # a run that failed at once should not replace the one before it
    replaced = " (replacing the one that was there)" if previous.exists() else ""
    collecting.mkdir(exist_ok=True)  # there already if an earlier move was cut short: then complete it
    for path in found:
        path.replace(collecting / path.name)
    shutil.rmtree(previous, ignore_errors=True)
    collecting.replace(previous)
    print(
        f"the earlier run in {out_dir} is now in {previous}{replaced}; to continue it instead, "
        f"move it back and add --init_from=resume"
    )


def is_untrained(out_dir):
    """Whether the run in `out_dir` was saved before its first step, and never after."""
    paths = [path for name in ("best.pt", "last.pt") if (path := out_dir / name).exists()]
    try:
        saved = [read_checkpoint(path) for path in paths]
        return bool(saved) and not any(c.get("iteration") or c["notes"]["iter"] for c in saved)
    except (UserError, LookupError, TypeError):
        return False


# --- reports --------------------------------------------------------------------------------------


def describe(run, device, dtype, train_data, val_data):
    """Print what the run will do before it starts."""
    settings, tokens = run.settings, tokens_per_iteration(run.settings)
    parameters = sum(p.numel() for p in run.model.parameters())
    shape = run.model.config
    print(
        f"device {device}, dtype {dtype}{', compiled' if settings.compile else ''}"
        f"{f', {world_size()} processes' if world_size() > 1 else ''}; {shape.n_layer} layers, "
        f"{shape.n_head} heads, {shape.n_embd} channels, windows of {shape.block_size} tokens; "
        f"{parameters:,} parameters, {run.model.wte.num_embeddings:,} rows in the vocabulary\n"
        f"{len(train_data):,} training tokens, {len(val_data):,} held-out; {tokens:,} tokens per iteration, "
        f"{settings.max_iters:,} iterations: {settings.max_iters * tokens / len(train_data):.1f} epochs",
        flush=True,
    )


def tokens_per_iteration(settings):
    return settings.batch_size * settings.gradient_accumulation_steps * settings.block_size


class Progress:
    """Times the run and shows it: a bar on a terminal, plain lines in a pipe, a row for each evaluation."""

    def __init__(self, run, n_tokens):
        self.run, self.n_tokens, self.has_bar = run, n_tokens, sys.stderr.isatty()
        self.elapsed_before = run.history[-1]["elapsed_seconds"] if run.history else 0.0
        hidden = not self.has_bar or rank() > 0
        self.bar = tqdm(total=run.settings.max_iters, initial=run.iteration, disable=hidden)
        self.began = self.reported = time.perf_counter()
        self.reported_iter, self.first_done = run.iteration, None

    def step(self):
        self.bar.update()
        self.first_done = self.first_done or (time.perf_counter(), self.run.iteration)

    def measure_speed(self):
        """Note how fast the steps since the last evaluation were, before the next one takes its time."""
        steps, now = self.run.iteration - self.reported_iter, time.perf_counter()
        self.tokens_per_second = steps * tokens_per_iteration(self.run.settings) / (now - self.reported)

    def row(self, val_loss, bits_per_byte):
        """A row of loss.csv; the train loss is the mean over the batches since the row before."""
        iteration, settings = self.run.iteration, self.run.settings
        return {
            "iter": iteration,
            "epoch": iteration * tokens_per_iteration(settings) / self.n_tokens,
            "train_loss": self.run.train_loss(),
            "val_loss": val_loss,
            "bits_per_byte": bits_per_byte,
            "lr": learning_rate_at(iteration, settings),
            "tokens_per_second": self.tokens_per_second,
            "elapsed_seconds": self.elapsed_before + time.perf_counter() - self.began,
        }

    def time_left(self):
        """As [hours:]minutes:seconds, estimated from all iterations but the first, which is slow."""
        began, first = self.first_done or (0.0, self.run.iteration)
        if self.run.iteration == first:
            return ""
        pace = (time.perf_counter() - began) / (self.run.iteration - first)
        return f"{tqdm.format_interval(pace * (self.run.settings.max_iters - self.run.iteration))} left"

    def log(self):
        """Print the train loss between evaluations, where there is no bar."""
        if self.run.iteration > self.reported_iter and (world_size() > 1 or not self.has_bar):
            loss = self.run.train_loss()  # for which all processes exchange theirs, wherever they print
            if not self.has_bar:
                print(f"iter {self.run.iteration:5,}  train {loss:.4f} nats  {self.time_left()}", flush=True)

    def report(self):
        """Print the evaluation that was recorded last."""
        row, is_best = self.run.history[-1], self.run.best["iter"] == self.run.iteration
        train_loss = "  -   " if math.isnan(row["train_loss"]) else f"{row['train_loss']:.4f}"
        self.bar.write(
            f"iter {row['iter']:5,}  epoch {row['epoch']:5.1f}  train {train_loss}  "
            f"val {row['val_loss']:.4f} nats  {row['bits_per_byte']:.4f} bits/byte  lr {row['lr']:.1e}  "
            f"{row['tokens_per_second']:6,.0f} tokens/s  {self.time_left()}{'  *best' if is_best else ''}"
        )
        sys.stdout.flush()
        self.reported, self.reported_iter = time.perf_counter(), self.run.iteration


def plot_losses(history, best, path):
    """Train and val loss against iterations; perplexity on the right; the best point marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="iteration", ylabel="loss (nats per token; lower is better)")
    iterations = [row["iter"] for row in history]
    for name, label in (
        ("train_loss", "train (noise and dropout on)"),
        ("val_loss", "val (held-out tweets)"),
    ):
        axes.plot(iterations, [row[name] for row in history], ".-", label=label)
    label = f"best: {best['val_loss']:.3f}, {best['bits_per_byte']:.3f} bits per byte"
    axes.plot(best["iter"], best["val_loss"], "o", color="tab:red", label=label)
    axes.secondary_yaxis(
        "right", functions=(lambda x: np.exp(np.clip(x, -50, 50)), lambda x: np.log(np.maximum(x, 1e-22)))
    ).set_ylabel("perplexity")
    axes.grid(alpha=0.3)
    axes.legend()
    with written_whole(path, "wb") as file:
        figure.savefig(file, dpi=100, format="png")


# --- the machine ----------------------------------------------------------------------------------


@contextlib.contextmanager
def stop_signals():
    """Record Ctrl-C and SIGTERM in a list, so that the iteration can finish; a second one acts at once."""
    received, before = [], {}

    def note(number, frame):
        received.append(number)
        signal.signal(number, before[number])
        if rank() == 0:  # os.write, because print may be what was interrupted
            os.write(
                2, b"\nstopping after this iteration; interrupt again to stop now and lose unsaved work\n"
            )

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def processes(device_name):
    """Join the other processes if torchrun has started several; yield the torch.device of this one."""
    device = choose_device(device_name)
    if "RANK" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    # only the first process prints
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if rank() else sys.stdout):
        yield device
    dist.destroy_process_group()


def rank():
    """The number of this process; the first, 0, is the one that prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def summed(number):
    """The sum of a one-element tensor over all processes, as a float. It stalls a GPU."""
    if world_size() > 1:
        number = number.double()
        dist.all_reduce(number)
    return float(number)


def signal_agreed_on(signals, iteration, settings, device):
    """The signal to stop for, or 0. Several processes ask each other, every log_interval iterations."""
    mine = signals[0] if signals else 0
    if world_size() == 1:
        return mine
    if iteration % settings.log_interval:
        return 0
    anyone = torch.tensor(mine, device=device)
    dist.all_reduce(anyone, dist.ReduceOp.MAX)
    return int(anyone)


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
            if settings.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                why = str(error).strip().split("\n")[0]
                raise UserError(f"compile: torch.compile fails here ({why}); leave out --compile") from None
            known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
            if not known and not any(words in str(error) for words in ("allocate memory", "overflow")):
                raise
            raise UserError("out of memory; lower batch_size, block_size, n_embd or n_layer") from None
