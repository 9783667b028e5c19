"""Where the shipped files lie that are not Python: templates/, requirements/ and docs/security/.

Knows: beside the package in a wheel, at the repository's root in a checkout or a plugin.
Does not know: what is in them.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The folder `templates`, `requirements` or `docs/security`, wherever this copy of peftsmith keeps it."""
    for parent in (_PACKAGE, _PACKAGE.parent.parent):
        if (parent / name).is_dir():
            return parent / name
    raise FileNotFoundError(f"this installation of peftsmith lacks its folder {name}")
