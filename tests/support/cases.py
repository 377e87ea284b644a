"""Says how many random cases a test tries: fewer in the profile `fast` than in the whole suite."""

from typing import Final

from hypothesis import settings

FAST: Final = "fast"
_SHARE: Final = 20


def num_cases(num: int) -> int:
    """As many, or a twentieth of them in the profile `fast`."""
    return max(num // _SHARE, 1) if settings.get_current_profile_name() == FAST else num
