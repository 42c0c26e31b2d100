"""What the scripts share: their settings, how they end, files that appear whole, text for the terminal.

    @dataclass(frozen=True)
    class Settings:
        batch_size: int = setting(32, "windows per batch", low=1, group="training")

    settings = load_settings(Settings, sys.argv[1:])
    with errors_in_one_line():
        main(settings)

A user types flags, --seed=7 or --seed 7, --muon or --muon=False, and presets, such as config/elon.py: Python
files of plain assignments, which are read and not run. Flags beat presets, and presets beat the defaults.
"""

import ast
import contextlib
import dataclasses
import difflib
import math
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", tuple: "a list"}
CONVERSIONS = {(str, int), (str, float), (int, float), (list, tuple)}  # from a type, to a type
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class UserError(Exception):
    """A mistake that the user can mend. The text names the thing, the place and the fix."""


# --- settings -------------------------------------------------------------------------------------


def setting(default, help, *, low=-math.inf, high=math.inf, choices=None, group=None, beats=None):
    """A field of a script's Settings: its default, its line of --help, and the values that it allows.

    Its type is that of the default; a tuple holds texts, one for each time that its flag is given. `low` and
    `high` are allowed themselves. `group` opens a section of --help. `beats` names another setting, which a
    preset may hold and this one replaces: train.py heeds max_iters before epochs, so without it --epochs=3
    after a preset with max_iters would do nothing.
    """
    about = {"help": help, "low": low, "high": high, "choices": choices, "group": group, "beats": beats}
    return dataclasses.field(default=default, metadata=about)


def load_settings(cls, argv, rest=None):
    """A `cls` with the values of the command line `argv`. `rest` names the setting, a tuple, that takes words
    without a name.

    A mistake ends the program with one line on stderr, and --help ends it with the list of the settings.
    """
    with errors_in_one_line():
        if "--help" in argv or "-h" in argv:
            print(help_text(cls))
            raise SystemExit(0)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        preset, flags = read_words(argv, fields, rest)
        settings = cls(**merged(preset, flags, fields))
    on_ctrl_c(signal.SIG_DFL)  # ends the program without a traceback from inside `import torch`
    return settings


def help_text(cls):
    """The script's docstring, then a line for each setting: its name, its default, what it is."""
    lines = [sys.modules[cls.__module__].__doc__.strip(), ""]
    for field in dataclasses.fields(cls):
        if field.metadata["group"]:
            lines.append(f"{field.metadata['group']}:")
        default = "" if field.default == () else field.default
        lines.append(f"  {f'--{field.name}={default}':34} {field.metadata['help']}")
    return "\n".join(lines)


def read_words(argv, fields, rest):
    """Two dicts {name: value}: what the presets in `argv` set, and what its other words set."""
    preset, flags, others = {}, {}, ()
    words = iter(argv)  # read_flag takes the value of `--seed 7` from it
    for word in words:
        if word.startswith("--"):
            name, value = read_flag(word, words, fields)
            if isinstance(value, tuple):
                value = flags.get(name, ()) + value
            flags[name] = value
        elif word.endswith(".py"):
            preset = merged(preset, read_preset(word, fields), fields)
        elif rest:
            others += (word,)
        else:
            raise UserError(f"unexpected {word!r}: a preset is a .py file, a setting is --name=value")
    if others:
        flags[rest] = flags.get(rest, ()) + others
    return preset, flags


def read_flag(flag, following, fields):
    """(name, value) of a flag; without an "=", the value is the next of the words `following` it."""
    name, equals, text = flag.removeprefix("--").partition("=")
    field = find_field(name, fields)
    if not equals and isinstance(field.default, bool):
        text = "True"
    elif not equals:
        text = next(following, None)
        if text is None or text.startswith("--"):
            raise UserError(f"{name}: no value is given; write --{name}=…")
    value = (text,) if isinstance(field.default, tuple) else text
    return name, checked(value, field)


def read_preset(path, fields):
    """{name: value} of a Python file that holds nothing but a docstring and lines of `name = literal`."""
    try:
        statements = ast.parse(pathlib.Path(path).read_text(encoding="utf-8-sig"), path).body
    except (OSError, SyntaxError, UnicodeError) as error:
        raise UserError(f"preset {path} cannot be read: {error}") from None
    values = {}
    for statement in statements:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # the docstring
        try:
            name, value = assignment(statement)
            values[name] = checked(value, find_field(name, fields))
        except UserError as error:
            raise UserError(f"preset {path}, line {statement.lineno}: {error}") from None
    return values


def assignment(statement):
    """(name, value) of a statement `name = literal`."""
    match statement:
        case ast.Assign([ast.Name(name)], value):
            with contextlib.suppress(ValueError, TypeError):  # not a literal
                return name, ast.literal_eval(value)
    raise UserError("not of the form name = value")


def merged(lower, higher, fields):
    """All values of both dicts, but of `lower` those alone that `higher` neither replaces nor `beats`."""
    beaten = {fields[name].metadata["beats"] for name in higher}
    return {name: value for name, value in lower.items() if name not in beaten} | higher


def find_field(name, fields):
    """The field of the setting `name`."""
    if name not in fields:
        close = difflib.get_close_matches(name, fields, n=1)
        fix = f"did you mean {close[0]!r}?" if close else "--help lists them all"
        raise UserError(f"unknown setting {name!r}; {fix}")
    return fields[name]


def checked(value, field):
    """A flag's text, or the value in a preset, as the type of its setting and within its limits."""
    name, kind, about = field.name, type(field.default), field.metadata
    # text that cannot be converted stays text, and is refused below
    with contextlib.suppress(KeyError, ValueError, OverflowError):
        if kind is bool and isinstance(value, str):
            value = BOOLEANS[value.lower()]
        elif (type(value), kind) in CONVERSIONS:
            value = kind(value)
    if type(value) is not kind:
        raise UserError(f"{name}: {value!r} is not {KINDS[kind]}")
    if about["choices"] and value not in about["choices"]:
        raise UserError(f"{name}: {value!r} is not one of {', '.join(about['choices'])}")
    if kind in (int, float) and not (about["low"] <= value <= about["high"] and abs(value) < math.inf):
        low, high = about["low"], about["high"]
        allowed = f"{low} or more" if high == math.inf else f"between {low} and {high}"
        raise UserError(f"{name}: {value} is not {allowed}")
    return value


# --- how a script ends, what it writes and prints -------------------------------------------------


@contextlib.contextmanager
def errors_in_one_line():
    """End the program without a traceback: for a UserError or an error of the file system with the line
    `script.py: error: …` and exit status 2, for Ctrl-C with `stopped` and status 130, and when nobody reads
    what it prints any more with status 1. What a terminal cannot show is printed as its code."""
    if hasattr(sys.stdout, "reconfigure"):
        # line by line, so that a pipe that nobody reads is noticed at once, not at exit
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    on_ctrl_c(signal.default_int_handler)  # raises KeyboardInterrupt
    try:
        yield
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (UserError, OSError) as error:
        script, text = pathlib.Path(sys.argv[0]).name, " ".join(str(error).split())
        print(f"{script}: error: {printable(text)}", file=sys.stderr)
        raise SystemExit(2) from None


def on_ctrl_c(handler):
    """Let `handler` answer Ctrl-C, unless the program was started to ignore it, as with & in a script."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def written_whole(path, mode="w"):
    """Open `path` for writing: it is replaced when the block ends, and untouched if the block raises."""
    beside = pathlib.Path(f"{path}.tmp")
    beside.parent.mkdir(parents=True, exist_ok=True)
    how = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(beside, mode, **how) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        # torch.save answers an OSError with a RuntimeError of its own
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise UserError(f"cannot write {path}: {cause}; what was there before is untouched") from None
        raise


def printable(text):
    """`text` with the characters escaped that control a terminal, end the line, turn its direction, or are
    lone surrogates."""
    control = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    return re.sub(control, lambda match: match[0].encode("unicode_escape").decode(), text)


quoted = subprocess.list2cmdline if os.name == "nt" else shlex.join  # words as one line for the shell


def command(*words):
    """A line to paste that runs Python with `words`; .py files are those beside the script that runs now."""
    here = os.path.dirname(sys.argv[0])
    words = [os.path.join(here, word) if word.endswith(".py") else word for word in words]
    return quoted([sys.orig_argv[0], *words])
