"""The paper's comparison, end to end, on models small enough to train on a CPU."""
