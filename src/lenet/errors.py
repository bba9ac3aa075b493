"""The exceptions that stand for a mistake or a circumstance that the user can mend."""

import difflib
import errno
import re
from collections.abc import Iterable

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}
"""The numbers of the OSErrors that come from where the program runs: a full disk, a folder that cannot be written."""


class UserError(Exception):
    """Says in one line which key or file, what is wrong, and what would be right.

    The command line prints the line and exits with status 1, without a traceback.
    """


class DivergenceError(UserError):
    """The loss or a weight became NaN or infinite."""


def printable(text: str) -> str:
    """The text as one line for a terminal, without the passwords in addresses."""
    text = re.sub(r"(://[^:/@\s]*:)[^/\s]+@", r"\1…@", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?` with the closest of the known words, or nothing if none is close."""
    meant = closest(word, known)
    return f"; did you mean {meant}?" if meant else ""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like this one; None if none is."""
    return next(iter(difflib.get_close_matches(word, sorted(known), n=1)), None)


def flat(error: BaseException) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
