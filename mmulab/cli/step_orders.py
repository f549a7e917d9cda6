"""What the keys of ``mmulab step`` do to a session, whether they are pressed or typed line by line."""

from __future__ import annotations

from collections.abc import Callable

from mmulab.errors import InputError
from mmulab.trace.search import SEARCHES, Grain
from mmulab.widgets.session import Session

__all__ = ["ASK", "HELP", "QUIT", "Orders", "hexadecimal"]

HELP = """\
n p  next, previous event       f F  next, previous fault     o O  next, previous operation
w W  next, previous wrong access                              g    go to moment N
/    search: WHAT [ARGUMENT]    s S  again: next, previous    a    follow a gva (none: as it comes)
h    this help                  q    quit
On a terminal also:  → ←  as n p    ↓ ↑ PgDn PgUp  scroll    Home End  first, last moment
WHAT is one of: """ + ", ".join(
    f"{name} {search.argument.upper()}".strip() for name, search in SEARCHES.items()
)
ASK = {"/": "search", "g": "moment", "a": "gva"}
"""Keys that want words behind them."""
QUIT = ("q", "\x04")
_STEPS = {
    "n": (Grain.EVENT, False),
    "right": (Grain.EVENT, False),
    "p": (Grain.EVENT, True),
    "left": (Grain.EVENT, True),
    "f": (Grain.FAULT, False),
    "F": (Grain.FAULT, True),
    "o": (Grain.OPERATION, False),
    "O": (Grain.OPERATION, True),
}


def hexadecimal(text: str) -> int:
    """Return a guest-virtual address.

    Raises
    ------
    InputError
        It is no hexadecimal number.
    """
    try:
        return int(text, 16)
    except ValueError as error:
        raise InputError(f"gva {text!r} is no hexadecimal number") from error


class Orders:
    """Obeys keys.

    Parameters
    ----------
    session : Session
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._searched: tuple[str, str] | None = None

    def obey(self, key: str, words: str = "") -> str:
        """Do what a key says and return a message.

        Raises
        ------
        InputError
            The words behind the key say nothing that could be done.
        """
        if key in _STEPS:
            grain, back = _STEPS[key]
            self.session.step(grain, back=back)
            return ""
        obey = self._orders().get(key)
        return f"no such key: {key!r}; h: help" if obey is None else obey(words)

    def _orders(self) -> dict[str, Callable[[str], str]]:
        return {
            "/": self._search,
            "s": lambda words: self._again(back=False),
            "S": lambda words: self._again(back=True),
            "w": lambda words: self._find("wrong", "", back=False),
            "W": lambda words: self._find("wrong", "", back=True),
            "g": self._goto,
            "home": lambda words: self._goto("0"),
            "end": lambda words: self._goto(str(self.session.last)),
            "a": self._follow,
            "h": lambda words: HELP,
        }

    def _search(self, words: str) -> str:
        what, _, argument = words.strip().partition(" ")
        message = self._find(what, argument.strip(), back=False)
        self._searched = (what, argument.strip())
        return message

    def _again(self, *, back: bool) -> str:
        if self._searched is None:
            return "nothing was looked for yet: / first"
        return self._find(*self._searched, back=back)

    def _find(self, what: str, argument: str, *, back: bool) -> str:
        if self.session.find(what, argument, back=back):
            return ""
        where = "before" if back else "after"
        return f"none {where} this moment" if len(self.session.found) else "none in this recording"

    def _goto(self, words: str) -> str:
        if not words.isdecimal():
            raise InputError(f"moment {words!r} is no number")
        self.session.goto(int(words))
        return ""

    def _follow(self, words: str) -> str:
        self.session.address = hexadecimal(words) if words else None
        return ""
