"""One-line errors for users: what is wrong, where, and what to do."""

import argparse
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A problem the user can mend. The message is one line: what, where, what to do."""


class NonFiniteLossError(Exception):
    """The loss became NaN or infinite; the message names the step."""


def refuse_options(
    parser: argparse.ArgumentParser, given: argparse.Namespace, names: Iterable[str], reason: str
) -> None:
    """Raise UserError for the first of these options that is not at its default."""
    for name in names:
        if getattr(given, name) != parser.get_default(name):
            raise UserError(f"--{name.replace('_', '-')}: {reason}")


_DISK_ADVICE = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EFBIG: "allow larger files (ulimit -f) and run the same command again",
    errno.EDQUOT: "free some space and run the same command again",
    errno.EROFS: "point RESULTS_DIR at a folder that can be written",
    errno.EACCES: "check the permissions, or point RESULTS_DIR at a folder that can be written",
}


def entry_point(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a script's `main`: bad input ends with one line on stderr and exit status 2.

    A non-finite loss ends with status 3. Anything else is a defect of ours and keeps its traceback.
    """

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except UserError as error:
            code, message = 2, str(error)
        except NonFiniteLossError as error:
            code, message = 3, str(error)
        except OSError as error:
            if error.errno not in _DISK_ADVICE:
                raise
            where = error.filename or "the output folder"
            advice = _DISK_ADVICE[error.errno]
            code, message = 2, f"{os.strerror(error.errno)}: {where}: {advice}"
        else:
            return
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(code)

    return run
