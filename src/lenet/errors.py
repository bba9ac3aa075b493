"""The exceptions that stand for a mistake or a circumstance the user can mend."""

import re


class UserError(Exception):
    """Says in one line which key or file, what was wrong, and what would be right.

    The command line prints the line and exits with status 1, without a traceback.
    """


class DivergenceError(UserError):
    """Training left the range of finite numbers."""


def without_passwords(text: str) -> str:
    """The same, but for the passwords in addresses: that of a database is nobody else's affair."""
    return re.sub(r"(://[^:/@\s]*:)[^/\s]+@", r"\1…@", text)


def printable(text: str) -> str:
    """As one line that a terminal shows and does not obey, without passwords."""
    return without_passwords("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
