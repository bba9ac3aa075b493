"""The exceptions that stand for a mistake or a circumstance the user can mend."""


class UserError(Exception):
    """Says in one line which key or file, what was wrong, and what would be right.

    The command line prints the line and exits with status 1, without a traceback.
    """


class DivergenceError(UserError):
    """Training left the range of finite numbers."""
