"""How every script of code/ ends: in one line, with a status, from its first imports on.

A script imports this before all that takes time to import (ruff sorts it there, see
pyproject.toml).
"""

import argparse
import errno
import functools
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .errors import NonFiniteError, UserError, one_line, problem_parts

if TYPE_CHECKING:  # pydantic takes time to import
    from pydantic import ValidationError

CODE = Path(__file__).resolve().parents[1]  # paths.py reads variables that a script may still set


class _Parser(argparse.ArgumentParser):
    """One whose errors are a line, as all others; argparse's own come with the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


def argument_parser(description: str | None, recipe: str = "") -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as it stands; `recipe`: the default of --recipe."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if recipe:
        parser.add_argument("--recipe", default=recipe, help=f"name or file (default: {recipe})")
    return parser


def refuse_options(
    parser: argparse.ArgumentParser, given: argparse.Namespace, names: Iterable[str], reason: str
) -> None:
    """Raise UserError for the first of these options that is not at its default."""
    for name in names:
        if getattr(given, name) != parser.get_default(name):
            raise UserError(f"--{name.replace('_', '-')}: {reason}")


class Stopped(BaseException):
    """A signal asks this process to end: what is half-written goes, as after Ctrl-C."""

    def __str__(self) -> str:  # in the record of the failed run
        return signal.Signals(self.args[0]).name


_ADVICE = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some space and run the same command again",
    errno.EFBIG: "allow larger files (ulimit -f) and run the same command again",
    errno.EMFILE: "allow more open files (ulimit -n) and run the same command again",
    errno.EROFS: "choose another place (an option, or RESULTS_DIR)",
    errno.EACCES: "check the permissions, or choose another place (an option, or RESULTS_DIR)",
    errno.EPERM: "check the permissions, or choose another place (an option, or RESULTS_DIR)",
    errno.EBUSY: "choose another place",
    errno.EIO: "the disk or its network fails: choose another place",
    errno.ESPIPE: "give a file, not a pipe",
} | dict.fromkeys(
    (
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.ENXIO,
    ),
    "check the path",
)


def _describe_settings_error(error: "ValidationError") -> str:
    """The first problem of a pydantic ValidationError: which setting, its value, what it may be.

    A setting that was given on the command line is called by its option.
    """
    (where, what), given = problem_parts(error), error.errors()[0]["input"]
    name = where or error.title
    option = f"--{name.replace('_', '-')}"
    if any(word.partition("=")[0] == option for word in sys.argv):
        name = option
    shown = repr(given) if isinstance(given, str) else str(given)
    value = f" {shown}" if where and len(shown) <= 40 else ""
    return f"{name}{value}: {what}"


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, or torch's, which on a CPU only the words tell."""
    words = str(error) if isinstance(error, RuntimeError) else ""
    said = "out of memory" in words or "can't allocate memory" in words
    return said or isinstance(error, MemoryError)


def _stopped_by(number: int) -> str:
    return f"stopped by {'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}"


def _end(error: BaseException) -> tuple[int, str] | None:
    """Exit status and message of what a user can understand; None for a defect of ours."""
    if isinstance(error, UserError):
        return 2, f"error: {error}"
    if "pydantic" in sys.modules:  # loaded by whatever could raise its errors
        from pydantic import ValidationError

        if isinstance(error, ValidationError):
            return 2, f"error: {_describe_settings_error(error)}"
    if isinstance(error, NonFiniteError):
        return 3, f"error: {error}"
    if _is_out_of_memory(error):
        return 2, "error: out of memory; lower batch_tokens or batch_size"
    if isinstance(error, KeyboardInterrupt | Stopped):
        number = error.args[0] if isinstance(error, Stopped) else signal.SIGINT
        return 128 + number, _stopped_by(number)
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE, ""  # as `yes | head -1` ends: without a word
    if isinstance(error, OSError) and error.errno in _ADVICE:
        where = error.filename or "the output"
        return 2, f"error: {os.strerror(error.errno)}: {where}: {_ADVICE[error.errno]}"
    return None


def _stop(number: int, _frame: object) -> None:
    raise Stopped(number)


def _leave(number: int, _frame: object) -> None:
    """End at once: an exception would end in the traceback of a half-imported library."""
    os.write(sys.stderr.fileno(), f"{_stopped_by(number)}\n".encode())
    os._exit(128 + number)


# While a script works, it ends by exceptions: what is half-written goes.
_WORKING = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: _stop,
    signal.SIGHUP: _stop,  # a closed terminal
}


@contextmanager
def _stopping_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the script as Ctrl-C does, not in mid-air."""
    taken = {}
    if threading.current_thread() is threading.main_thread():
        for number, handler in _WORKING.items():
            if signal.getsignal(number) in (signal.SIG_DFL, _leave):  # nohup ignores on purpose
                taken[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in taken.items():
            signal.signal(number, before)


def _check_words(words: Iterable[str]) -> None:
    """Refuse an argument of bytes that are no text: no record can hold it."""
    for number, word in enumerate(words, 1):
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"argument {number}: {word!r} is not UTF-8; rename or retype it"
            ) from None


def _check_processes() -> None:
    """Refuse several processes (torchrun tells their number) that would all write the same."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes not in ("", "1"):
        raise UserError(
            f"{processes} processes (WORLD_SIZE) would do the same work; start without torchrun"
        )


def _close_bars() -> None:
    """End the lines of progress bars: what is said next begins one of its own."""
    if tqdm := sys.modules.get("tqdm"):
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()


def _open_closed_streams() -> None:
    """A closed stream, which Python has as None, holds nothing and keeps nothing."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def entry_point(main: Callable[[], None], parallel: bool = False) -> Callable[[], None]:
    """Wrap a script's `main`: how it ends when something is wrong, in one line on stderr.

    `parallel`: whether several processes may share its work; other scripts refuse them.
    Status 2: bad input, a disk that refuses, or too little memory. 3: a non-finite loss. 130:
    Ctrl-C. 143: SIGTERM. 141: the reader of the output has gone. Anything else is a defect of ours
    and keeps its traceback.
    """

    @functools.wraps(main)
    def run() -> None:
        _open_closed_streams()
        # A terminal or a pipe that is not UTF-8 gets escapes of what it cannot show.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            _check_words(sys.argv[1:])
            if not parallel:
                _check_processes()
            with _stopping_signals():
                main()
                sys.stdout.flush()
        except BaseException as error:
            found = _end(error)
            if found is None:
                raise
            if isinstance(error, OSError):
                try:
                    sys.stdout.flush()
                except (OSError, ValueError):  # it would fail again at the exit
                    with suppress(OSError, ValueError):
                        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status, message = found
            if message:
                _close_bars()
                print(one_line(message), file=sys.stderr)
            sys.exit(status)

    return run


# From here to the end of its imports, and again after its work, a script has nothing to clear up.
# Tests import scripts too: their signals are left alone.
# An interactive session has no file, and keeps its signals too.
_file = getattr(sys.modules["__main__"], "__file__", None)
if _file and Path(_file).resolve().parent == CODE:
    for _number in _WORKING:
        if signal.getsignal(_number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(_number, _leave)
