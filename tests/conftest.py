"""Registers how many cases Hypothesis tries, which no slowness of the machine makes fail."""

from hypothesis import HealthCheck, settings

from tests.support.cases import FAST, THOROUGH

_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("whole", _PATIENT)
settings.register_profile(FAST, _PATIENT, max_examples=20)
settings.register_profile(THOROUGH, _PATIENT)
# `--hypothesis-profile` takes another later.
settings.load_profile("whole")
