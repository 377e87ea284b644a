"""Helpers of the tests of `synth_client`."""
