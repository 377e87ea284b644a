"""Unit tests of `synth_client.report`."""
