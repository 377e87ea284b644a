"""Reads the viewer's scripts and styles, which a page embeds or serves."""

from importlib.resources import files
from typing import Final

from trajectory_records.viewer.palette import PALETTE

_ASSETS: Final = files("trajectory_records.viewer") / "assets"


def viewer_script() -> str:
    """Return the scripts that draw a trajectory and the list of trajectories."""
    return "\n".join(_asset(name) for name in ("trajectory.js", "viewer.js"))


def viewer_markup() -> str:
    """Return the HTML of the list of trajectories, which the script fills."""
    return _asset("viewer.html")


def legend_markup() -> str:
    """Return the HTML that explains V, the boundary, H, a breach and t* in words."""
    return _asset("legend.html")


def viewer_style() -> str:
    """Return the colours in light and dark, and the styles that all pages share."""
    light = "".join(f"--{name}: {colour.light}; " for name, colour in PALETTE.items())
    dark = "".join(f"--{name}: {colour.dark}; " for name, colour in PALETTE.items())
    return (
        f":root {{ {light}}}\n@media (prefers-color-scheme: dark) {{\n  :root {{ {dark}}}\n}}\n"
        f"{_asset('viewer.css')}"
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
