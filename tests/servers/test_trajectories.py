"""Whole trajectories on real servers, which are students and teachers of each other."""

import pytest

from tests.servers.real import MESSAGES, PAIRS, post


@pytest.mark.parametrize("model", PAIRS)
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_whole_trajectories_come_out_right(base_url: str, model: str, threshold: float) -> None:
    body = {
        "model": model,
        "messages": MESSAGES,
        "temperature": 0.6,
        "seed": 1,
        "max_tokens": 100,
        "motab": {"base_threshold": threshold, "boundary": "static"},
    }
    answer = post(base_url, "motab/chat/completions", body)
    (choice,) = answer["choices"]
    text, trace = choice["message"]["content"], choice["motab"]
    assert "".join(text[span["start"] : span["end"]] for span in trace["spans"]) == text
    teacher = model.partition("+")[2]
    others = {"llama": "forced_decode", "openai": "echo"}
    assert trace["scoring"] == others.get(teacher, "prompt_logprobs")
    roles = [span["role"] for span in trace["spans"]]
    usage = answer["usage"]["motab"]
    if threshold:
        assert (trace["breach"], roles) == (0, ["flawed", "revise", "teacher"])
        assert usage["correction_calls"] == 1
    else:
        assert (trace["breach"], roles) == (None, ["student"])
        assert trace["steps"]
        assert usage["student_tokens"] == usage["student_tokens_discarded"] + sum(
            step["student_tokens"] for step in trace["steps"]
        )
    assert usage["score_calls"] <= len(trace["steps"])
    assert usage["teacher_cached_tokens"] is not None
