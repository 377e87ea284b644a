"""Says how many random cases a test tries: few in the profile `fast`, many in `thorough`."""

from typing import Final

from hypothesis import settings

FAST: Final = "fast"
THOROUGH: Final = "thorough"
_SHARE: Final = 20
_MANY: Final = 10_000


def num_cases(num: int) -> int:
    """As many; a twentieth of them in the profile `fast`, and at least 10,000 in `thorough`."""
    profile = settings.get_current_profile_name()
    if profile == FAST:
        return max(num // _SHARE, 1)
    return max(num, _MANY) if profile == THOROUGH else num
