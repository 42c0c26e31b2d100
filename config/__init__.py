"""What the three scripts share: settings, errors in one line, files that appear whole, text to print.

    @dataclass(frozen=True)
    class Settings:
        batch_size: int = setting(32, "windows per batch", low=1, group="training")

    settings = load_settings(Settings, sys.argv[1:])

Flags (--batch_size=64 or --batch_size 64) beat the preset, and the preset beats the defaults. A preset is a
Python file of plain assignments, such as config/elon.py; its values are read, and nothing in it is run.
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
CASTS = {(str, int), (str, float), (str, bool), (int, float), (list, tuple)}  # given, wanted
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def setting(default, help, *, low=-math.inf, high=math.inf, choices=None, group=None, beats=None):
    """A field of a script's Settings: its default, its line of --help, and the values that it allows.

    Its type is the default's; a tuple holds texts, and its flag may be repeated. `low` and `high` are allowed
    themselves. `group` opens a section of --help. The flag overrules a preset on the setting `beats`, too.
    """
    about = {"help": help, "low": low, "high": high, "choices": choices, "group": group, "beats": beats}
    return dataclasses.field(default=default, metadata=about)


def load_settings(cls, argv, rest=None):
    """Make a `cls` of the words of a command: flags, presets, and others for the setting `rest`, a tuple.

    A mistake ends the program with one line on stderr, before anything slow has been imported.
    """
    if hasattr(sys.stdout, "reconfigure"):  # not every terminal knows emoji
        sys.stdout.reconfigure(errors="backslashreplace")
    with errors_in_one_line():
        if {"-h", "--help"} & set(argv):
            print(help_text(cls))
            raise SystemExit(0)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        preset, flags = read_words(argv, fields, rest)
        for name in flags:  # --epochs beats a preset's max_iters
            preset.pop(fields[name].metadata["beats"], None)
        return cls(**preset | flags)


def help_text(cls):
    """The script's docstring, then a line for each setting: its name, its default, what it is."""
    lines = [sys.modules[cls.__module__].__doc__.strip(), ""]
    for field in dataclasses.fields(cls):
        lines += [f"{field.metadata['group']}:"] if field.metadata["group"] else []
        default = "" if field.default == () else field.default
        lines.append(f"  {f'--{field.name}={default}':34} {field.metadata['help']}")
    return "\n".join(lines)


def read_words(argv, fields, rest):
    """Two dicts {name: value}: of the presets named in `argv`, and of its flags and other words."""
    preset, flags, left = {}, {}, list(argv)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            if word.endswith(".py"):
                preset |= read_preset(word, fields)
            elif rest:
                left.append(f"--{rest}={word}")  # behind the flags
            else:
                raise UserError(f"unexpected {word!r}: a preset is a .py file, a setting is --name=value")
            continue
        name, equals, value = word[2:].partition("=")
        kind = type(fields[name].default) if name in fields else None  # `checked` refuses it
        if kind is bool and not equals and not (left and left[0].lower() in BOOLEANS):
            value = "true"  # a flag alone
        elif kind and not equals:
            if not left or left[0].startswith("--"):
                raise UserError(f"{name}: no value is given; write --{name}=…")
            value = left.pop(0)
        value = (*flags.get(name, ()), value) if kind is tuple else value
        flags[name] = checked(name, value, fields)
    return preset, flags


def read_preset(path, fields):
    """{name: value} of a Python file whose statements are all `name = literal`."""
    values = {}
    try:
        for statement in ast.parse(pathlib.Path(path).read_text(encoding="utf-8-sig"), path).body:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                continue  # a docstring
            (target,) = statement.targets
            values[target.id] = checked(target.id, ast.literal_eval(statement.value), fields)
    except (OSError, SyntaxError, UnicodeError) as error:
        raise UserError(f"preset {path} cannot be read: {error}") from None
    except (AttributeError, ValueError, UserError) as error:
        why = error if isinstance(error, UserError) else "not of the form name = value"
        raise UserError(f"preset {path}, line {statement.lineno}: {why}") from None
    return values


def checked(name, value, fields):
    """A flag's text, or the value in a preset, as the type of the setting `name` and within its limits."""
    if name not in fields:
        close = difflib.get_close_matches(name, fields, n=1)
        fix = f"did you mean {close[0]!r}?" if close else "--help lists them all"
        raise UserError(f"unknown setting {name!r}; {fix}")
    kind, about = type(fields[name].default), fields[name].metadata
    with contextlib.suppress(KeyError, ValueError):  # told below
        if (type(value), kind) in CASTS:
            value = BOOLEANS[value.lower()] if kind is bool else kind(value)
    if type(value) is not kind:
        raise UserError(f"{name}: {value!r} is not {KINDS[kind]}")
    if about["choices"] and value not in about["choices"]:
        raise UserError(f"{name}: {value!r} is not one of {', '.join(about['choices'])}")
    if kind in (int, float) and not (about["low"] <= value <= about["high"] and math.isfinite(value)):
        raise UserError(f"{name}: {value} is not between {about['low']} and {about['high']}")
    return value


class UserError(Exception):
    """A mistake that the user can fix. The text names the thing, the place and the fix."""


@contextlib.contextmanager
def errors_in_one_line():
    """Turn a UserError, or an error of the file system, into `script.py: error: …` and exit status 2.

    Ctrl-C prints `stopped`, status 130; after the block, while torch is imported, it just ends the program.
    """
    # not Python's own handler itself, by which a block inside this one would take itself for the outermost
    outer = signal.signal(signal.SIGINT, lambda *about: signal.default_int_handler(*about))
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
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if outer is signal.default_int_handler else outer)


@contextlib.contextmanager
def written_whole(path, mode="w"):
    """Open `path` for writing: it is replaced when the block ends, and untouched if the block raises."""
    beside = pathlib.Path(f"{path}.tmp")
    beside.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(beside, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": "\n"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save wraps it
        if isinstance(cause, OSError):
            raise UserError(f"cannot write {path}: {cause}; what was there before is untouched") from None
        raise


def printable(text):
    """`text` with those characters escaped that could control a terminal, end the line or reorder it."""
    control = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    return re.sub(control, lambda match: match[0].encode("unicode_escape").decode(), text)


quoted = subprocess.list2cmdline if os.name == "nt" else shlex.join  # words to a line for the shell


def command(*words):
    """A line to paste that runs Python with `words`, whose .py files are beside the running script."""
    here = os.path.dirname(sys.argv[0])
    return quoted([sys.orig_argv[0], *(os.path.join(here, w) if w.endswith(".py") else w for w in words)])
