"""Message-Ids and commits on a page as links to lore.kernel.org and git.kernel.org.

A link loads nothing, so a page with links still needs no network. A commit is
linked if the text of the notebook or the package's own lists name it: twelve
digits may just as well be an address. Of a Message-Id the notebooks write the part
that git-send-email made of time and process; what follows it is the sender's.

Source: lore.kernel.org/r/MSGID and git.kernel.org/linus/COMMIT, the short addresses of either
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from html import escape
from urllib.parse import quote

from mmulab.kvm.behaviours import CHANGES
from mmulab.kvm.bugs import BUGS
from mmulab.kvm.roles.design import DESIGNS
from mmulab.kvm.validity import VALIDITIES

__all__ = ["commits_in", "linked"]

_SENDERS = {
    "20210918005636.3675": "jiangshanlai@gmail.com",
    "20211125014944.536398": "seanjc@google.com",
    "20220203010051.2813563": "dmatlack@google.com",
    "20220204115718.14934": "pbonzini@redhat.com",
    "20220330132152.4568": "jiangshanlai@gmail.com",
    "20220420131204.2850": "jiangshanlai@gmail.com",
    "20220422210546.458943": "dmatlack@google.com",
    "20220503150735.32723": "jiangshanlai@gmail.com",
    "20220516232138.1783324": "dmatlack@google.com",
    "20240408231115.1387279": "seanjc@google.com",
}
"""By time and process: who sent the series."""
_COMMIT = r"(?<![\w.@+-])(?=[0-9]*[a-f])[0-9a-f]{12}(?![\w@+-]|\.\w)"
_HOST = r"@[\w-]+(?:\.[\w-]+)+"
_SENT = rf"(?<![\w.@+-])(?P<series>20\d{{12}}\.\d+)-\d+(?P<sender>-[\w.+-]+{_HOST})?(?![\w@-])"
_OTHER_MESSAGE = rf"(?<![\w.@+-])(?=[\w.+-]*\d)[\w.+-]{{16,}}{_HOST}"
_CITED = re.compile(f"(?P<sent>{_SENT})|(?P<message>{_OTHER_MESSAGE})|(?P<commit>{_COMMIT})")
_TAG = re.compile(r"""(<!--.*?-->|<(?:[^<>"']|"[^"]*"|'[^']*')*>)""", re.DOTALL)
_NAME = re.compile(r"</?([a-zA-Z][\w:-]*)")
_ALONE = frozenset({"a", "button", "label", "script", "style", "summary", "svg", "textarea", "title"})
"""Elements in which a link cannot be, or would do something else than what a click does there."""


def commits_in(text: str) -> set[str]:
    """Return the words of `text` that can be commits: twelve hexadecimal digits, not all of them decimal.

    Examples
    --------
    >>> commits_in("mended by 84e5ffd045f3 at 0x6c8000188000")
    {'84e5ffd045f3'}
    """
    return set(re.findall(_COMMIT, text))


@cache
def _cited() -> frozenset[str]:
    """Return the commits that the package's lists of changes, bugs and designs name."""
    named = [change.commit for change in CHANGES.values()]
    named += [f"{bug.commit} {bug.introduced_by} {bug.source}" for bug in BUGS.values()]
    named += [design.source for design in DESIGNS.values()]
    named += [validity.source for validity in VALIDITIES.values()]
    return frozenset(commits_in(" ".join(named)))


def linked(html: str, commits: set[str] | None = None) -> str:
    """Return a page with its Message-Ids and commits as links.

    Parameters
    ----------
    html : str
        Whole, or a part with all its tags closed.
    commits : set of str, optional
        Known ones beside those that the package names.
    """
    known = _cited() | (commits or set())
    return "".join(_parts(html, known))


def _parts(html: str, known: frozenset[str] | set[str]) -> Iterator[str]:
    inside = ""
    depth = 0
    for part in _TAG.split(html):
        name = _NAME.match(part)
        if name is None:
            yield part if inside or part.startswith("<!") else _CITED.sub(lambda m: _link(m, known), part)
            continue
        tag = name[1].lower()
        if not inside and tag in _ALONE and not part.startswith("</") and not part.endswith("/>"):
            inside, depth = tag, 1
        elif tag == inside and not part.endswith("/>"):
            depth += -1 if part.startswith("</") else 1
            inside = inside if depth else ""
        yield part


def _link(found: re.Match[str], known: frozenset[str] | set[str]) -> str:
    text = found[0]
    if found["commit"]:
        if text not in known:
            return text
        return f'<a href="https://git.kernel.org/linus/{text}">{text}</a>'
    message = text
    if found["sent"] and not found["sender"]:
        sender = _SENDERS.get(found["series"])
        if sender is None:
            return text
        message = f"{text}-{sender}"
    return f'<a href="https://lore.kernel.org/r/{escape(quote(message, safe="@"))}">{text}</a>'
