"""Settings for the three scripts: a dataclass, an optional preset file and --key=value flags.

    @dataclass(frozen=True)
    class Settings:
        batch_size: int = setting(32, "windows per iteration", within="[1, inf)", group="training")

    settings = load_settings(Settings, sys.argv[1:])

Flags beat the preset, and the preset beats the defaults. A preset is a Python file of plain
assignments. It is run, so use only presets that you trust. Beside the settings, this file holds
what every script needs at its edges: errors in one line, and files that appear whole or not at all.
"""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import itertools
import os
import pathlib
import runpy
import shlex
import sys
import traceback
import types
import unicodedata

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they change the direction
TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    tuple: "a list of texts",
}


class UserError(ValueError):
    """A mistake that the user can fix. The text names the thing, the place and the fix."""


@contextlib.contextmanager
def errors_in_one_line():
    """Turn a UserError, or an error of the file system, into `script.py: error: …` and exit 2."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (UserError, OSError) as error:
        text = printable(" ".join(str(error).split()))
        print(f"{pathlib.Path(sys.argv[0]).name}: error: {text}", file=sys.stderr)
        raise SystemExit(2) from None


@contextlib.contextmanager
def written_whole(path, mode="w"):
    """Open `path` for writing so that it appears whole or not at all.

    What is written goes to a file beside it, which is flushed to disk and then renamed; when the
    block raises, that file is removed and `path` stays as it was.
    """
    path = pathlib.Path(path)
    beside = path.with_name(path.name + ".tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        if beside.exists():
            beside.unlink()
        # torch.save hides a full disk behind a RuntimeError
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise UserError(f"cannot write {path}: {cause}; what was there before is untouched") from None
        raise


def printable(text):
    """`text` with those characters escaped that could control a terminal, end the line or reorder it."""
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDI
        else c
        for c in text
    )


def command(*words):
    """A command to paste that runs Python with `words`, whose .py files are beside the running script."""
    here = os.path.dirname(sys.argv[0])
    words = [os.path.join(here, word) if word.endswith(".py") else word for word in words]
    return shlex.join([sys.orig_argv[0], *words])


def setting(default, help, *, within=None, choices=None, group=None):
    """A dataclass field that carries its help text and the values that it allows.

    The type is that of `default`; a tuple makes a flag that may be repeated. `within` is an interval
    such as "[0, 1)"; `group` opens a section of --help that lasts until the next field that names one.
    """
    return dataclasses.field(
        default=default, metadata={"help": help, "within": within, "choices": choices, "group": group}
    )


def load_settings(cls, argv):
    """Make one `cls` from the preset named in `argv`, if any, and its --key=value flags.

    Unknown keys, wrong types and values out of range end the program with one line on stderr and
    exit status 2, before anything slow has been imported.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    sys.excepthook = _interrupted_in_one_line
    with errors_in_one_line():
        flags, unknown = _parser(cls).parse_known_args(_with_values(argv, fields))
        flags = vars(flags)
        preset = flags.pop("preset")
        if unknown and unknown[0].startswith("-"):
            raise UserError(_unknown(unknown[0].split("=")[0].lstrip("-"), fields))
        if unknown or (preset and not preset.endswith(".py")):
            raise UserError(
                f"unexpected argument {(unknown or [preset])[0]!r}: give at most one preset (a .py file) and "
                f"settings as --{next(iter(fields))}=…, without spaces or in quotes"
            )
        values = _read_preset(preset, fields) if preset else {}
        values |= {key: _parsed(fields[key], text) for key, text in flags.items()}
        return cls(**{key: _checked(fields[key], value) for key, value in values.items()})


def _interrupted_in_one_line(kind, error, trace):
    """For Ctrl-C while a script still imports torch, before its errors_in_one_line()."""
    if kind is KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _parser(cls):
    parser = argparse.ArgumentParser(
        description=sys.modules[cls.__module__].__doc__,
        epilog="Each setting is followed by its default. A True/False setting without a value means True.",
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=34),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        usage="%(prog)s [preset.py] [--setting=value …]",
    )
    parser.error = _raise_user_error
    parser.add_argument("preset", nargs="?", default=None, help="a Python file of settings: key = value")
    group = parser
    for field in dataclasses.fields(cls):
        info = field.metadata
        if info["group"]:
            group = parser.add_argument_group(info["group"])
        allowed = ", ".join(info["choices"] or ()) or _in_words(info["within"])
        group.add_argument(
            f"--{field.name}",
            action="append" if isinstance(field.default, tuple) else "store",
            metavar="…" if field.default in ("", ()) else str(field.default),
            help=f"{info['help']}{allowed and f' ({allowed})'}".replace("%", "%%"),
        )
    return parser


def _in_words(within):
    """The interval "[0, 1)" is "at least 0 and below 1"; no interval is ""."""
    if not within:
        return ""
    low, high = within[1:-1].split(", ")
    low = f"{'at least' if within[0] == '[' else 'above'} {low}"
    return low if high == "inf" else f"{low} and {'at most' if within[-1] == ']' else 'below'} {high}"


def _raise_user_error(message):
    raise UserError(message)


def _with_values(argv, fields):
    """Read `--compile` as `--compile=True` unless True or False follows."""
    lone = {f"--{name}" for name, field in fields.items() if isinstance(field.default, bool)}
    pairs = itertools.pairwise([*argv, ""])
    return [f"{arg}=True" if arg in lone and after.lower() not in BOOLEANS else arg for arg, after in pairs]


def _read_preset(path, fields):
    if not os.path.isfile(path):
        raise UserError(f"preset {path!r} is not a file; name one such as config/elon.py")
    try:
        found = runpy.run_path(path)
    except (
        Exception,
        SystemExit,
        GeneratorExit,
    ) as error:  # whatever the user's file raises is a mistake in that file
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
        raise UserError(f"preset {path}, line {line}: {type(error).__name__}: {error}") from None
    found = {key: value for key, value in found.items() if not key.startswith("_")}
    helpers = {k for k, v in found.items() if callable(v) or isinstance(v, types.ModuleType)} - fields.keys()
    values = {key: value for key, value in found.items() if key not in helpers}
    for key in values.keys() - fields.keys():
        raise UserError(f"preset {path}: {_unknown(key, fields)}")
    return values


def _unknown(key, fields):
    close = difflib.get_close_matches(key, fields, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "--help lists them all"
    return f"unknown setting {key!r}; {hint}"


def _parsed(field, text):
    """The value that the flag `--key=text` means."""
    if isinstance(text, list):  # of a flag that may be repeated, or for a lone `--`, which _checked refuses
        return text
    kind = type(field.default)
    try:
        return BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise UserError(f"{field.name}: {text!r} is not {TYPE_NAMES[kind]}") from None


def _checked(field, value):
    """`value`, if its type and range are the field's; whole numbers pass as floats, lists as tuples."""
    kind, choices, within = type(field.default), field.metadata["choices"], field.metadata["within"]
    if (type(value), kind) in ((int, float), (list, tuple)):
        value = kind(value)
    if type(value) is not kind or (kind is tuple and not all(isinstance(part, str) for part in value)):
        raise UserError(f"{field.name}: {value!r} is not {TYPE_NAMES[kind]}")
    if choices and value not in choices:
        raise UserError(f"{field.name}: {value!r} is not one of {', '.join(choices)}")
    if within:
        within = within.replace("inf", str(2**31)) if kind is int else within  # no machine has use for more
        low, high = (float(end) for end in within[1:-1].split(","))
        above = value >= low if within[0] == "[" else value > low
        below = value <= high if within[-1] == "]" else value < high
        if not (above and below):  # NaN is neither
            raise UserError(f"{field.name}: {value} is out of range; it must be {_in_words(within)}")
    return value
