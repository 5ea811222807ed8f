"""Find the packages that others need, in the versions installed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(names: Iterable[str], without: Callable[[str], bool], where: dict[str, str] | None = None) -> dict[str, str]:
    """Return distribution -> its public version here, for `names` and all they require.

    Args:
        without: returns whether a distribution, by its canonical name, is left out, and with it what only it needs.
        where: markers of another environment, such as `python_version`; missing markers are those of this environment.

    Raises:
        PackageNotFoundError: one is not installed here, so that its version is not known.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(name) for name in names]
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if without(name) or (name, extras) in seen:
            continue
        seen.add((name, extras))
        installed = distribution(name)
        versions[name] = installed.version.split("+")[0]
        for text in installed.requires or []:
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate((where or {}) | {"extra": e}) for e in extras or {""}):
                todo.append(child)
    return versions
