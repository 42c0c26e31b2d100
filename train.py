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

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import signal
import sys
import tempfile
import time
from dataclasses import dataclass

from config import (
    UserError,
    command,
    errors_in_one_line,
    load_settings,
    printable,
    quoted,
    setting,
    written_whole,
)

DTYPES = ("auto", "float32", "bfloat16", "float16")


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
    separate_tweets: bool = setting(False, "hide earlier tweets from each tweet")
    cut: float = setting(0.0, "chance that training cuts a tweet in two before a token", low=0, high=1)
    noise: float = setting(0.0, "how strongly training replaces input tokens at random", low=0, high=1)
    noise_fall: float = setting(0.0, "the last fraction of the run, in which noise falls to 0", low=0, high=1)
    compact_vocab: bool = setting(False, "a vector for each token seen twice or more, shared ones for others")
    spelling: int = setting(0, "vectors for groups of letters, at most 32,767; 0 for none", low=0, high=32767)

    batch_size: int = setting(32, "windows per batch, over all processes", low=1, group="training")
    gradient_accumulation_steps: int = setting(1, "batches averaged per step", low=1)
    # max_iters counts, where it is given; but --epochs after a preset with max_iters cancels that
    epochs: float = setting(40.0, "how often to read each token, on average", low=0.001, beats="max_iters")
    max_iters: int = setting(0, "iterations in total, instead of epochs", low=0)
    learning_rate: float = setting(1e-3, "at its peak; it falls to 0 along a cosine", low=0)
    warmup_iters: int = setting(20, "iterations to reach learning_rate", low=0)
    weight_decay: float = setting(0.1, "of matrices, in AdamW; a quarter of it in Muon", low=0)
    muon: bool = setting(False, "Muon instead of AdamW for the matrices of the blocks")
    beta2: float = setting(0.99, "AdamW's decay rate for squared gradients", low=0, high=0.9999)
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 for no limit", low=0)

    eval_interval: int = setting(0, "iterations per evaluation; 0: about 12 in all", low=0, group="reports")
    patience: int = setting(0, "stop after so many evaluations without a better one; 0 for never", low=0)

    device: str = setting("auto", "auto, cpu, cuda, cuda:1, …", group="the machine")
    dtype: str = setting("auto", "float32, bfloat16 or float16; auto: the fastest here", choices=DTYPES)
    compile: bool = setting(False, "use torch.compile: slow to start, then faster on a GPU")
    seed: int = setting(1337, "of everything random", low=0, high=10**18)


if __name__ == "__main__":  # here, so that mistakes are told before the slow import of torch
    TYPED = load_settings(Settings, sys.argv[1:])
    # read when torch is imported; without it, two threads on a busy core take up to ten times as long as one
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from model import END_OF_TEXT, GPT, GPTConfig, choose_device, token_tables
from prepare import count_bytes, load_tokenizer, token_texts


def main(settings):
    """Evaluate and save when it is time, step, repeat, until all is done or a signal says stop."""
    device, rank, world_size = join_processes(settings)
    train_data, val_data, val_bytes = load_data(settings)
    if settings.init_from == "resume":
        run = resume(settings, train_data, device)
    else:
        run = Run(settings, make_model(settings, train_data), device)
    pathlib.Path(settings.out_dir).mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=settings.out_dir).close()  # where none can be written, fail now
    n_parameters = sum(parameter.numel() for parameter in run.model.parameters())
    print(f"device {device}, dtype {run.dtype}; {n_parameters:,} parameters")
    n_epochs = f"{run.max_iters / run.iters_per_epoch:.1f} epochs"
    print(f"{len(train_data):,} training tokens; {run.max_iters:,} iterations: {n_epochs}")
    model = torch.compile(run.model) if settings.compile else run.model
    model = DistributedDataParallel(model, broadcast_buffers=False) if world_size > 1 else model
    signals = catch_signals() if world_size == 1 else []  # torchrun stops all processes by itself
    # only the first process shows a bar, and only on a terminal, which None asks for
    bar = tqdm(total=run.max_iters, initial=run.iteration, disable=True if rank else None)
    while True:
        if is_due(run):
            evaluate_and_save(run, val_data, val_bytes, rank, bar)
        if signals or is_over(run):
            break
        train_step(run, model, train_data, rank, world_size)
        bar.update()
    bar.close()
    if dist.is_initialized():
        dist.destroy_process_group()
    if signals and not is_over(run):
        stop(run, signals[0])
    best, out_dir = best_of(run.history), settings.out_dir
    loss = f"{best['val_loss']:.4f} nats per token, {best['bits_per_byte']:.4f} bits per byte"
    print(f"best val loss {loss}, at iteration {best['iter']:,}: {pathlib.Path(out_dir, 'best.pt')}")
    print(f"next: {command('sample.py', f'--out_dir={out_dir}')}")


def evaluate_and_save(run, val_data, val_bytes, rank, bar):
    """Add a row to the history; the first process saves the run, then tells about it."""
    run.history.append(evaluated(run, val_data, val_bytes))
    run.loss_sum.zero_()
    if rank == 0:
        if run.iteration:
            save(run)
        bar.write(report(run))
        bar.write(f"    it writes: {some_tweet(run.model, run.iteration)}")
    run.began = time.perf_counter()


def stop(run, number):
    """Save the run that a signal interrupted, tell how to go on, and exit with status 128 + its number."""
    if run.iteration:
        save(run)
        words = [word for word in sys.argv if word != "--init_from=resume"]
        again = quoted([sys.orig_argv[0], *words, "--init_from=resume"])
        print(f"stopped at iteration {run.iteration:,}; to continue: {again}")
    else:
        print("stopped before the first iteration; nothing is saved yet")
    raise SystemExit(128 + number)


# --- data -----------------------------------------------------------------------------------------


def load_data(settings):
    """Read-only memmaps of train.bin and val.bin (uint16), and how many bytes the val tweets have."""
    folder = pathlib.Path(settings.data_dir)
    again = f"run {command('prepare.py', f'--data_dir={folder}')}"
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        train_data, val_data = (np.memmap(folder / f"{name}.bin", "<u2", "r") for name in ("train", "val"))
        val_bytes = count_bytes(load_tokenizer(), val_data)
        if (meta["train_sha256"], meta["val_bytes"]) != (hashlib.sha256(train_data).hexdigest(), val_bytes):
            raise ValueError("they were not made together")
    except FileNotFoundError as error:
        raise UserError(f"data_dir: there is no {error.filename}; {again} first") from None
    except (ValueError, KeyError, TypeError) as error:
        why = f"train.bin, val.bin and meta.json do not fit ({error})"
        raise UserError(f"data_dir: {folder} is damaged: {why}; {again} again") from None
    if not val_bytes:
        raise UserError(f"{folder}/val.bin holds no tweet; use a few hundred tweets or more")
    if len(train_data) <= settings.block_size:
        why = f"{folder}/train.bin holds {len(train_data)} tokens, too few for a window"
        raise UserError(f"{why}; use more tweets or a block_size below {settings.block_size}")
    return train_data, val_data, val_bytes


def as_tensor(tokens):
    """uint16 tokens of a memmap as int64, which an embedding takes."""
    return torch.from_numpy(tokens.astype(np.int64))


def get_batch(data, settings, iteration, device, part=0, n_parts=1):
    """Random windows of block_size tokens and the tokens after each: two (windows, block_size) int64.

    All windows of an iteration are drawn together, by the seed and the iteration alone, so that a resumed run
    needs no state for them. Of these are returned every n_parts-th from `part` on: a batch of one process.
    """
    rng = np.random.default_rng((settings.seed, iteration))
    n_windows = settings.batch_size * settings.gradient_accumulation_steps
    starts = rng.integers(len(data) - settings.block_size, size=(n_windows, 1))[part::n_parts]
    windows = as_tensor(data[starts + np.arange(settings.block_size + 1)])
    if device.type == "cuda":  # from pinned memory, so that the copy need not wait
        windows = windows.pin_memory().to(device, non_blocking=True)
    windows = windows.to(device)
    return windows[:, :-1], windows[:, 1:]


# --- the run --------------------------------------------------------------------------------------


class Run:
    """A model in training: first what follows from the settings, then what changes, which last.pt holds."""

    def __init__(self, settings, model, device):
        self.settings, self.device, self.model = settings, device, model.to(device)
        windows_per_iter = settings.batch_size * settings.gradient_accumulation_steps
        self.tokens_per_iter = windows_per_iter * settings.block_size
        self.iters_per_epoch = len(model.tokens) / self.tokens_per_iter
        self.max_iters = settings.max_iters or math.ceil(settings.epochs * self.iters_per_epoch)
        self.eval_interval = settings.eval_interval or math.ceil(self.max_iters / 12)
        self.dtype = choose_dtype(device) if settings.dtype == "auto" else settings.dtype
        self.optimizers = make_optimizers(model, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == "float16")
        self.iteration = 0  # steps done
        self.history = []  # the rows of loss.csv, one an evaluation
        self.early = None  # the weights from before the noise fell, for sample.py
        self.is_saved = False  # whether out_dir holds this run; before, it may hold an earlier one
        # of the steps since the last evaluation: when they began, and the sum of their train losses, which is
        # a tensor, because a GPU stalls when a number is read from it
        self.began, self.loss_sum = time.perf_counter(), torch.zeros((), device=device)

    def n_new(self):
        """How many steps were done since the last evaluation."""
        return self.iteration - self.history[-1]["iter"] if self.history else 0

    def seconds(self):
        """Seconds since the last evaluation, also those of a run that was stopped and resumed."""
        return time.perf_counter() - self.began


def make_model(settings, train_data):
    """The GPT that a run starts from: with random weights, or with those of a GPT-2."""
    torch.manual_seed(settings.seed)
    names = {field.name for field in dataclasses.fields(GPTConfig)} - {"vocab_size"}
    shape = {name: getattr(settings, name) for name in names}
    tokens = as_tensor(train_data)
    if settings.init_from == "scratch":
        tables = token_tables(token_texts(), settings.spelling) if settings.compact_vocab else None
        return GPT(GPTConfig(**shape), tokens, tables)
    if settings.compact_vocab:
        fix = "use config/finetune.py, or add --compact_vocab=False --spelling=0"
        raise UserError(f"GPT-2's weights fit no compact_vocab; {fix}")
    given = {name: shape.pop(name) for name in ("n_layer", "n_head", "n_embd")}
    model = GPT.from_pretrained(settings.init_from, tokens, **shape)
    for name, value in given.items():
        theirs, default = getattr(model.config, name), getattr(Settings, name)
        if value not in (theirs, default):  # the default may just not have been given
            raise UserError(f"{name}: {settings.init_from} has {theirs}, not {value}; leave {name} out")
    return model


# what may change when a run is resumed; with other changes it would be another run
FREE_TO_CHANGE = {
    "data_dir", "out_dir", "init_from", "epochs", "max_iters", "learning_rate", "warmup_iters",
    "eval_interval", "patience", "device", "dtype", "compile",
}  # fmt: skip


def resume(settings, train_data, device):
    """The Run that last.pt holds; raises UserError if it is another one than the settings describe."""
    path = pathlib.Path(settings.out_dir, "last.pt")
    model, refusal = GPT.load(path), f"cannot resume {path}:"
    saved, model.notes = model.notes, {}  # so that the memory is free once they are read
    if "settings" not in saved:
        raise UserError(f"{refusal} it holds weights only, or is of an earlier version; start anew")
    before, now = saved["settings"], dataclasses.asdict(settings)
    changed = sorted(key for key in now.keys() - FREE_TO_CHANGE if now[key] != before.get(key))
    if changed:
        why = ", ".join(f"{key} changed from {before.get(key)} to {now[key]}" for key in changed)
        raise UserError(f"{refusal} {why}; give the same preset and flags, or start anew")
    if not np.array_equal(model.tokens.numpy(), train_data):
        raise UserError(f"{refusal} it was trained on other tweets; set data_dir to theirs, or start anew")
    run = Run(settings, model, device)
    run.is_saved = True
    run.iteration, run.history, run.early = saved["iteration"], saved["history"], saved["early"]
    if run.iteration > run.max_iters:
        why = f"{run.iteration:,} iterations are done, of {run.max_iters:,}"
        raise UserError(f"{refusal} {why}; raise max_iters or epochs")
    run.began -= saved["seconds"]  # so that seconds count on
    run.loss_sum += saved["loss_sum"].to(device)
    for optimizer, state in zip(run.optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    if saved["scaler"]:  # empty unless the dtype was float16
        run.scaler.load_state_dict(saved["scaler"])
    return run


def best_of(history):
    """The row with the lowest val loss, but for that of before the training."""
    return min(history[1:] or history, key=lambda row: row["val_loss"])


def is_due(run):
    """Whether to evaluate now; not if that was done before the run was stopped."""
    is_time = run.iteration % run.eval_interval == 0 or run.iteration == run.max_iters
    return is_time and (run.n_new() > 0 or not run.history)


def is_over(run):
    """Whether all iterations are done, or `patience` is out."""
    best_at = run.history.index(best_of(run.history))
    n_since_best = len(run.history) - 1 - best_at  # evaluations
    return run.iteration == run.max_iters or 0 < run.settings.patience <= n_since_best


def evaluated(run, val_data, val_bytes):
    """The row of loss.csv for the network as it is now; UserError if its loss is no number."""
    # each process trained on its share; all evaluate all of val, and must agree on when to stop
    train_loss = mean_over_processes(run.loss_sum.item() / run.n_new() if run.n_new() else math.nan)
    seconds = run.seconds()  # after .item(), which waits for a GPU
    val_loss = mean_over_processes(evaluate(run.model, val_data))
    if not math.isfinite(val_loss):
        raise UserError(f"the loss became {val_loss} by iteration {run.iteration:,}; lower learning_rate")
    earlier = run.history[-1]["elapsed_seconds"] if run.history else 0.0
    return {
        "iter": run.iteration,
        "epoch": run.iteration / run.iters_per_epoch,
        "train_loss": train_loss,
        "val_loss": val_loss,
        "bits_per_byte": val_loss * (len(val_data) - 1) / math.log(2) / val_bytes,
        "lr": learning_rate_at(run.iteration, run.max_iters, run.settings),
        "tokens_per_second": run.n_new() * run.tokens_per_iter / max(seconds, 1e-9),
        # of training and evaluating, without the saving
        "elapsed_seconds": earlier + run.seconds(),
    }


def report(run):
    """The last row, as a line of text."""
    row, tokens_left = run.history[-1], (run.max_iters - run.iteration) * run.tokens_per_iter
    text = f"iter {row['iter']:5,}  epoch {row['epoch']:4.1f}"
    text += f"  train {row['train_loss']:.4f}" if row["iter"] else "  train   -   "
    text += f"  val {row['val_loss']:.4f} nats  {row['bits_per_byte']:.4f} bits/byte  lr {row['lr']:.1e}"
    if speed := row["tokens_per_second"]:
        text += f"  {speed:6,.0f} tokens/s  {tqdm.format_interval(tokens_left / speed)} left"
    if row is best_of(run.history) and row["iter"] > 0:
        text += "  *best"
    return text


# --- training and evaluating ----------------------------------------------------------------------


def make_optimizers(model, settings):
    """AdamW (Loshchilov & Hutter 2019); with `muon`, Muon (Jordan et al. 2024) for the blocks' matrices."""
    decayed, not_decayed, for_muon = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            not_decayed.append(parameter)  # biases and LayerNorms
        elif settings.muon and name.startswith("h."):
            for_muon.append(parameter)
        else:
            decayed.append(parameter)
    lr, decay = settings.learning_rate, settings.weight_decay
    groups = [{"params": decayed, "weight_decay": decay}, {"params": not_decayed, "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, settings.beta2), fused=True)]
    if settings.muon:
        has_bfloat16 = choose_dtype(for_muon[0].device) == "bfloat16"
        optimizers.append(Muon(for_muon, lr, decay / 4, torch.bfloat16 if has_bfloat16 else torch.float32))
    return optimizers


class Muon(torch.optim.Optimizer):
    """Moves a matrix in all directions alike: with the momentum's singular vectors, but singular values of
    about 1 (Jordan et al. 2024). Steps are as long as AdamW's, so that one learning rate fits both (Liu et
    al. 2025, "Muon is Scalable for LLM Training").

    The same as torch.optim.Muon, which knows only bfloat16: 30 times slower on a CPU that must emulate it.
    """

    def __init__(self, parameters, lr, weight_decay, dtype):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                state, grad = self.state[weight], weight.grad
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(grad)
                momentum = state["momentum_buffer"].lerp_(grad, 0.05)
                direction = orthogonal(grad.lerp(momentum, 0.95).to(self.dtype))  # Nesterov's look ahead
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))


def orthogonal(matrix):
    """A matrix with the same singular vectors, and singular values near 1: five of Newton and Schulz's
    iterations, each of which maps every singular value s to 3.4445 s - 4.775 s^3 + 2.0315 s^5."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=1e-7)  # so that no singular value exceeds 1
    for _ in range(5):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x.T if is_tall else x


def learning_rate_at(iteration, max_iters, settings):
    """A line up to learning_rate over warmup_iters, then half a cosine down to 0 at max_iters."""
    if iteration < settings.warmup_iters:
        return settings.learning_rate * (iteration + 1) / settings.warmup_iters
    progress = (iteration - settings.warmup_iters) / max(1, max_iters - settings.warmup_iters)
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def noise_strength_at(iteration, max_iters, noise_fall):
    """1, but over the last part of the run, `noise_fall`, a line down to 0."""
    left = (max_iters - iteration) / max_iters
    return left / noise_fall if left < noise_fall else 1.0


def set_noise(run):
    """Give the noise its strength. Once it falls, keep the weights from before, in half precision: sample.py
    draws with them, and writes what the final weights find likelier."""
    strength = noise_strength_at(run.iteration, run.max_iters, run.settings.noise_fall)
    run.model.noise.strength.fill_(strength)
    if strength == 1.0:
        run.early = None  # also in a run that was made longer
    elif run.early is None:
        run.early = {name: tensor.half() for name, tensor in run.model.state_dict().items()}


def train_step(run, model, data, rank=0, world_size=1):
    """One iteration: the gradient of one global batch, clipped, and a step of each optimizer.

    model: run.model, or what compiles it or shares it among processes.
    """
    model.train()
    settings, scaler, n_batches = run.settings, run.scaler, run.settings.gradient_accumulation_steps
    # dropout and noise are reseeded at each step, so a resumed run needs no random state
    torch.manual_seed(int(np.random.SeedSequence((settings.seed, run.iteration, rank)).generate_state(1)[0]))
    if settings.noise:
        set_noise(run)
    for n in range(n_batches):
        part, n_parts = n * world_size + rank, n_batches * world_size
        idx, targets = get_batch(data, settings, run.iteration, run.device, part, n_parts)
        if world_size > 1:  # average the processes' gradients once a step, after the last batch
            model.require_backward_grad_sync = n == n_batches - 1
        with torch.autocast(run.device.type, getattr(torch, run.dtype), enabled=run.dtype != "float32"):
            loss = model(idx, targets)[1] / n_batches
        # the scaler keeps small float16 gradients from becoming 0; for other dtypes it does nothing
        scaler.scale(loss).backward()
        run.loss_sum += loss.detach()
    lr = learning_rate_at(run.iteration, run.max_iters, settings)
    for optimizer in run.optimizers:
        scaler.unscale_(optimizer)
        for group in optimizer.param_groups:
            group["lr"] = lr
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip or math.inf)
    # a scale that was too large for float16 shows in the norm, and shrinks. Then no optimizer steps, as if
    # there were only one; scaler.step would let those step whose own gradients are finite
    if not scaler.is_enabled() or norm.isfinite():
        for optimizer in run.optimizers:
            optimizer.step()
    scaler.update()
    model.zero_grad(set_to_none=True)
    run.iteration += 1


@torch.inference_mode()
def evaluate(model, data, batch_size=32):
    """The val loss over all of `data`, in nats per token, without dropout, in float32 (on a GPU TF32).

    Every token but the first is scored once: windows advance by half a block, and each but the first scores
    its newer half, so that (past the start) every token has at least half a block before it. With a block
    of 4, for the targets a to i, where . is not scored:

        a b c d
            . . e f
                . . g h
                    . . i .
    """
    model.eval()
    block_size, stride = model.config.block_size, model.config.block_size // 2
    tokens = as_tensor(data).to(model.wpe.weight.device)
    # padded, so that the last window is whole; then (windows, block_size)
    idx = F.pad(tokens[:-1], (0, block_size)).unfold(0, block_size, stride)
    targets = F.pad(tokens[1:], (0, block_size), value=-1).unfold(0, block_size, stride)
    targets = targets.clone()  # unfold's windows share their memory where they overlap
    targets[1:, :-stride] = -1  # the window before scores them
    total = 0.0
    for x, y in zip(idx.split(batch_size), targets.split(batch_size), strict=True):
        hidden, is_scored = model.hidden_states(x), y >= 0
        total += model.vocabulary.loss(hidden[is_scored], y[is_scored]).sum().item()
    return total / (len(data) - 1)


def some_tweet(model, seed):
    """One tweet as the network writes it now, drawn with a generator of its own, so that no loss changes.
    The model must be in eval mode."""
    device = model.wpe.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    start = torch.tensor([[END_OF_TEXT]], device=device)
    ids = model.generate(start, 40, min_p=0.05, min_new_tokens=1, generator=generator)[0].tolist()
    text = load_tokenizer().decode([token for token in ids if token != END_OF_TEXT])
    return printable(text.strip())


# --- files ----------------------------------------------------------------------------------------


def save(run):
    """Write last.pt; after an evaluation also loss.csv, loss.png and, if it is the best, best.pt. An earlier
    run is set aside only now, so one that fails at once does not take its place."""
    out_dir, best = pathlib.Path(run.settings.out_dir), best_of(run.history)
    if not run.is_saved:
        set_aside(out_dir)
        run.is_saved = True
    if run.n_new() == 0:
        write_history(run.history, out_dir / "loss.csv")
        plot_losses(run.history, out_dir / "loss.png")
        if best["iter"] == run.iteration:
            about = {key: best[key] for key in ("iter", "val_loss", "bits_per_byte")}
            run.model.save(out_dir / "best.pt", early=run.early, **about)
    run.model.save(
        out_dir / "last.pt",
        early=run.early,
        settings=dataclasses.asdict(run.settings),
        iteration=run.iteration,
        history=run.history,
        seconds=run.seconds() if run.n_new() else 0.0,
        loss_sum=run.loss_sum,
        optimizers=[optimizer.state_dict() for optimizer in run.optimizers],
        scaler=run.scaler.state_dict(),
    )


def set_aside(out_dir):
    """Move an earlier run from `out_dir` to out_dir/previous, in place of the one there; but not a run that
    was stopped before its first evaluation, and so has no best.pt."""
    if not (out_dir / "best.pt").exists():
        return
    previous = out_dir / "previous"
    previous.mkdir(exist_ok=True)
    for name in ("loss.csv", "loss.png", "last.pt", "best.pt"):
        (previous / name).unlink(missing_ok=True)
        if (out_dir / name).exists():
            (out_dir / name).replace(previous / name)


def write_history(history, path):
    """A CSV with a line for each evaluation."""
    with written_whole(path) as file:
        table = csv.DictWriter(file, history[0], lineterminator="\n")
        table.writeheader()
        table.writerows(history)


def plot_losses(history, path):
    """Train and val loss against iterations; perplexity on the right; the best point marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="iteration", ylabel="loss (nats per token; lower is better)")
    labels = {"train_loss": "train (noise and dropout on)", "val_loss": "val (held-out tweets)"}
    for name, label in labels.items():
        axes.plot([row["iter"] for row in history], [row[name] for row in history], ".-", label=label)
    best = best_of(history)
    label = f"best: {best['val_loss']:.3f}, {best['bits_per_byte']:.3f} bits per byte"
    axes.plot(best["iter"], best["val_loss"], "o", color="tab:red", label=label)
    # clipped, because matplotlib also tries losses and perplexities that cannot be
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
        if signal.getsignal(number) != signal.SIG_IGN:  # a script that starts a run with & ignores Ctrl-C
            signal.signal(number, note)
    return received


def join_processes(settings):
    """(torch.device, rank, world_size) of this process, which torchrun may have started with others. Each
    takes its share of every batch, and their gradients are averaged; the first, rank 0, writes."""
    is_one_of_several = "RANK" in os.environ
    name = settings.device
    if is_one_of_several and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{os.environ['LOCAL_RANK']}"  # before anything touches the first GPU
    device = choose_device(name)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    if not is_one_of_several:
        return device, 0, 1
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if settings.batch_size % world_size:
        why = f"{settings.batch_size} windows cannot be split evenly among {world_size} processes"
        raise UserError(f"batch_size: {why}; use a multiple of {world_size}")
    if rank:
        sys.stdout = io.StringIO()  # what it prints is not seen: the first process prints the same
    return device, rank, world_size


def mean_over_processes(value):
    """The mean of a number that each process has of its own."""
    if not dist.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def choose_dtype(device):
    """The fastest dtype for this device; bfloat16 is slow on a CPU without instructions for it."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    has = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") else "float32"


@contextlib.contextmanager
def machine_errors(settings):
    """Tell, as a UserError, that memory is out or that torch.compile does not work here."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        why = str(error).strip().split("\n")[0]
        if settings.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise UserError(f"compile: torch.compile fails here ({why}); leave out --compile") from None
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in why:
            raise UserError("out of memory; lower batch_size, block_size, n_embd or n_layer") from None
        raise


if __name__ == "__main__":
    with errors_in_one_line(), machine_errors(TYPED):
        main(TYPED)
