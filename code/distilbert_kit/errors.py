"""One-line errors for users: what is wrong, where, and what to do."""


class UserError(Exception):
    """A problem the user can mend. The message is one line: what, where, what to do."""


class NonFiniteLossError(Exception):
    """The loss became NaN or infinite; the message names the step."""
