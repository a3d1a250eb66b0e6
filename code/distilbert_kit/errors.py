"""One-line errors for users: what is wrong, where, and what to do."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pydantic takes time to import
    from pydantic import ValidationError

LONGEST = 2_000  # characters of a message
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # with halves of surrogate pairs


def one_line(text: str) -> str:
    """Text as one line of a terminal: white space is a space, control characters are escaped.

    Names and values of foreign files are shown, and a terminal would obey what is in them.
    """
    line = " ".join(text.split())
    line = _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), line)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


class UserError(Exception):
    """A problem the user can mend. The message is one line: what, where, what to do."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class NonFiniteError(Exception):
    """A loss, gradient or output of a model became NaN or infinite: the run failed."""


def problem_parts(error: "ValidationError", joint: str = ".") -> tuple[str, str]:
    """Of the first problem of a pydantic ValidationError: the way to it, and what is wrong there.

    The way is joined by `joint`, and "" for a problem that has no place.
    """
    first = error.errors()[0]
    return joint.join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")


def first_problem(error: "ValidationError", whole: str, joint: str = ".") -> str:
    """`problem_parts` as one line; `whole` names a problem that has no place."""
    where, what = problem_parts(error, joint)
    return f"{where or whole}: {what}"


@contextmanager
def refusing(path: Path, what: str, advice: str) -> Iterator[None]:
    """UserError `PATH: WHAT (the problem); ADVICE` for what pydantic refuses inside the block."""
    from pydantic import ValidationError  # takes time to import

    try:
        yield
    except ValidationError as error:
        problem = first_problem(error, "the file")
        raise UserError(f"{path}: {what} ({problem}); {advice}") from None


def raise_if_disk_full(error: BaseException) -> None:
    """Raise the OSError of a full disk or quota, if that is what an error was raised from.

    Libraries that fetch things wrap it in errors of their own.
    """
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise cause
        cause = cause.__cause__ or cause.__context__
