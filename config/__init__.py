"""Settings for the three scripts, and what each of them needs at its edges.

    @dataclass(frozen=True)
    class Settings:
        batch_size: int = setting(32, "windows per iteration", low=1, group="training")

    settings = load_settings(Settings, sys.argv[1:])

Flags (--key=value or --key value) beat the preset, and the preset beats the defaults. A preset is a Python
file of plain assignments; its values are read, and nothing in it is run.
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
import sys

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", tuple: "some texts"}
# what could drive a terminal, end the line, or turn the direction of the text
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """A mistake that the user can fix. The text names the thing, the place and the fix."""


@contextlib.contextmanager
def errors_in_one_line():
    """Turn a UserError, or an error of the file system, into `script.py: error: …` and exit status 2."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(beside, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": "\n"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        # torch.save hides a full disk behind a RuntimeError
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise UserError(f"cannot write {path}: {cause}; what was there before is untouched") from None
        raise


def printable(text):
    """`text` with those characters escaped that could control a terminal, end the line or reorder it."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def command(*words):
    """A command to paste that runs Python with `words`, whose .py files are beside the running script."""
    here = os.path.dirname(sys.argv[0])
    words = [os.path.join(here, word) if word.endswith(".py") else word for word in words]
    return shlex.join([sys.orig_argv[0], *words])


def setting(default, help, *, low=-math.inf, high=math.inf, choices=None, group=None):
    """A dataclass field with its line of --help and the values that it allows.

    The type is that of `default`; a tuple makes a flag that may be repeated. `low` and `high` are the least
    and the largest value; `group` opens a section of --help that lasts until the next field that names one.
    """
    about = {"help": help, "low": low, "high": high, "choices": choices, "group": group}
    return dataclasses.field(default=default, metadata=about)


def load_settings(cls, argv, rest=None):
    """Make one `cls` from the preset named in `argv`, if any, and its flags.

    Words that are neither go to the setting `rest`, a tuple. A mistake ends the program with one line on
    stderr and exit status 2, before anything slow has been imported.
    """
    for stream in (sys.stdout, sys.stderr):  # not every terminal knows emoji
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    with errors_in_one_line():
        if {"-h", "--help"} & set(argv):
            print(help_text(cls))
            raise SystemExit(0)
        words, flags = read_flags(argv, fields)
        preset = words.pop(0) if words and words[0].endswith(".py") else None
        if words and not rest:
            raise UserError(
                f"unexpected argument {words[0]!r}: a preset is a .py file, a setting is --name=value"
            )
        flags |= {rest: flags.get(rest, ()) + tuple(words)} if words else {}
        values = (read_preset(preset, fields) if preset else {}) | flags
        settings = cls(**{key: checked(fields[key], value) for key, value in values.items()})
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch is imported: no traceback
    return settings


def help_text(cls):
    """The script's docstring, then a line for each setting: its name, its default, what it is."""
    lines = [sys.modules[cls.__module__].__doc__.strip(), ""]
    for field in dataclasses.fields(cls):
        about = field.metadata
        lines += [f"{about['group']}:"] if about["group"] else []
        default = "" if field.default in ("", ()) else field.default
        lines.append(f"  {f'--{field.name}={default}':34} {about['help']}")
    return "\n".join(lines)


def read_flags(argv, fields):
    """Split `argv` into words that are no flags and {setting: value}; a lone flag is True."""
    words, flags, left = [], {}, list(argv)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        key, equals, text = word[2:].partition("=")
        if key not in fields:
            raise UserError(unknown(key, fields))
        kind = type(fields[key].default)
        if not equals:
            if kind is bool and not (left and left[0].lower() in BOOLEANS):
                text = "true"
            elif left and not left[0].startswith("--"):
                text = left.pop(0)
            else:
                raise UserError(f"{key}: no value is given; write --{key}=…")
        try:
            if kind is tuple:
                flags[key] = (*flags.get(key, ()), text)
            else:
                flags[key] = BOOLEANS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise UserError(f"{key}: {text!r} is not {KINDS[kind]}") from None
    return words, flags


def read_preset(path, fields):
    """{setting: value} of a Python file whose statements are all `name = literal`."""
    try:
        statements = ast.parse(pathlib.Path(path).read_text(encoding="utf-8")).body
    except FileNotFoundError:
        raise UserError(f"preset {path!r} does not exist; name one such as config/elon.py") from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"preset {path}, line {getattr(error, 'lineno', '?')}: {error}") from None
    values = {}
    for statement in statements:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        try:
            (target,) = statement.targets
            key, value = target.id, ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            raise UserError(f"preset {path}, line {statement.lineno}: not of the form name = value") from None
        if key not in fields:
            raise UserError(f"preset {path}, line {statement.lineno}: {unknown(key, fields)}")
        values[key] = value
    return values


def unknown(key, fields):
    close = difflib.get_close_matches(key, fields, n=1)
    return f"unknown setting {key!r}; {f'did you mean {close[0]!r}?' if close else '--help lists them all'}"


def checked(field, value):
    """`value`, if its type and range are the field's; whole numbers pass as floats, lists as tuples."""
    kind, about = type(field.default), field.metadata
    if (type(value), kind) in ((int, float), (list, tuple)):
        value = kind(value)
    if type(value) is not kind:
        raise UserError(f"{field.name}: {value!r} is not {KINDS[kind]}")
    if about["choices"] and value not in about["choices"]:
        raise UserError(f"{field.name}: {value!r} is not one of {', '.join(about['choices'])}")
    if kind in (int, float) and not about["low"] <= value <= about["high"]:  # NaN is not, either
        raise UserError(f"{field.name}: {value} is not between {about['low']} and {about['high']}")
    return value
