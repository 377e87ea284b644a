"""Tests the words of servers for a refusal, quoted from their trackers and from golden answers."""

from typing import Any

import orjson
import pytest

from proxy.backends.transport.refusals import (
    is_context_overflow,
    refusal_of,
    stream_failure_of,
    words_of,
)
from proxy.errors import (
    ContentRefused,
    ContextExceeded,
    MotabError,
    RequestError,
    UnknownToken,
    UpstreamDenied,
    UpstreamFailed,
    UpstreamRefused,
)

# Where each stands in public: a tracker's issue or pull request, or the maker's own answer.
TOO_LONG = {
    "vllm-project/vllm #20409": (
        "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens"
        " (112946 in the messages, 10000 in the completion). Please reduce the length of the"
        " messages or completion."
    ),
    "vllm-project/vllm #4667": "max_tokens must be at least 1, got -186.",
    "unslothai/unsloth #2666": (
        "The decoder prompt (length 5000) is longer than the maximum model length of 2048. Make"
        " sure that `max_model_len` is no smaller than the number of text tokens."
    ),
    "vllm-project/vllm #12600": (
        "Prompt length of 2061 is longer than the maximum model length of 2048."
    ),
    "vllm-project/vllm #33418": (
        "You passed 1193 input tokens and requested 700 output tokens. However, the model's"
        " context length is only 1500 tokens, resulting in a maximum input length of 800 tokens."
    ),
    "vllm-project/vllm #12165": (
        "The prompt (total length 5000) is too long to fit into the model (context length 2048)."
    ),
    "AIDotNet/OpenCowork #82": (
        "This model's maximum context length is 262144 tokens. However, you requested 128000"
        " output tokens and your prompt contains at least 134145 input tokens"
    ),
    "QwenLM/Qwen3 #1321": (
        "The input (61709 tokens) is longer than the model's context length (40960 tokens)."
    ),
    "sgl-project/sglang #4048": (
        "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens)."
    ),
    "anomalyco/opencode #25230": (
        "Requested token count exceeds the model's maximum context length of 202752 tokens."
    ),
    "ggml-org/llama.cpp #15780": (
        "the request exceeds the available context size. try increasing the context size or enable"
        " context shift"
    ),
    "ggml-org/llama.cpp, within a stream": "Context size has been exceeded.",
    "fedora-copr/logdetective-website #193": (
        "Requested tokens (2285) exceed context window of 2048"
    ),
    "huggingface/text-generation-inference": (
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8192. Given: 9000"
        " `inputs` tokens and 512 `max_new_tokens`"
    ),
    "huggingface/text-generation-inference, the prompt alone": (
        "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000"
    ),
    "fierceX/Document_QA #3": (
        "This model's maximum context length is 8191 tokens, however you requested 8238 tokens"
        " (8238 in your prompt; 0 for the completion). Please reduce your prompt; or completion"
        " length."
    ),
    "OpenAI, Responses": (
        "Your input exceeds the context window of this model. Please adjust your input and try"
        " again."
    ),
    "OpenAI, newer": (
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in"
        " 300000 tokens. Please reduce the length of the messages."
    ),
    "kortix-ai/suna #217": "prompt is too long: 205668 tokens > 200000 maximum",
    "docker/docker-agent #569": (
        "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000, decrease"
        " input length or `max_tokens` and try again"
    ),
    "xAI": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "Google": (
        "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575)."
    ),
    "refly-ai/refly #1177": (
        "This endpoint's maximum context length is 32768 tokens. However, you requested about"
        " 42832 tokens (42832 of text input)."
    ),
    "Groq": "Please reduce the length of the messages or completion.",
    "Fireworks": "The prompt is too long: 140000, model maximum context length: 131071",
    "Mistral": (
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum"
        " context length"
    ),
    "Bedrock": "Input is too long for requested model.",
    "Moonshot": "Invalid request: Your request exceeded model token limit: 262144",
    "MiniMax": "invalid params, context window exceeds limit (2013)",
    "Cerebras": "Current length is 9000 while limit is 8192",
    "Copilot": "prompt token count of 70000 exceeds the limit of 64000",
    "LM Studio": (
        "The number of tokens to keep from the initial prompt is greater than the context length."
    ),
    "DashScope": "Range of input length should be [1, 30720]",
    "TensorRT-LLM": (
        "The sum of prompt length (9000.0), query length (0) should not exceed max_num_tokens"
        " (8192)"
    ),
    "Ollama": "the input length exceeds the context length",
    "bare, with the limit": "too many tokens: max is 4096",
    "bare, with both numbers": "Too many tokens: 5000 > 4096",
    "bare, of the input": "too many input tokens: max 4096",
    "bare, without a number": "too many tokens in prompt",
    "Cohere": (
        "too many tokens: total number of tokens in the prompt exceeds the limit of 4081. Try using"
        " a shorter prompt"
    ),
    "in brackets": "too many prompt tokens (5000), limit 4096",
    "the number": "The number of tokens (5000) is more than the maximum of 4096 tokens",
    "the prompt": "prompt exceeds the maximum of 4096 tokens",
    "the prompt's own number": "Prompt has 5000 tokens, limit is 4096",
    "the request": "tokens in request more than max tokens allowed",
    "the request's number": "Request exceeds the maximum number of tokens (4096)",
    "a token limit": "Token limit exceeded: 5000 > 4096",
    "a sequence": "sequence length 5000 is longer than the maximum of 4096",
    "a sequence that is too long": "input sequence is too long",
    "a window's number": "Requested 9000 tokens, but the context window is 8192 tokens",
    "a total": "total tokens 5000 exceed the 4096 limit",
}
NOT_TOO_LONG = [
    "max_tokens is too large: 32768. This model supports at most 16384 completion tokens.",
    "Requested 25 logprobs, allowed are 20",
    "context deadline exceeded",
    "Rate limit reached for tokens per min (TPM): Limit 30000, Used 29000, Requested 2000.",
    "Too many tokens, please wait before trying again.",
    "Too many tokens per minute: max is 30000",
    "Rate limit exceeded: too many tokens: max is 4096 per minute",
    "too many tokens in logit_bias: max is 300",
    "too many stop sequences: max is 4",
    "Too many images: max is 4",
    "monthly token limit exceeded",
    "The 20 top tokens of every position are too many",
    "The requested number of output tokens (99999) is larger than the maximum (16384)",
    "The model `x` does not exist.",
    "top_p must be in (0, 1]",
    "the connection was closed before the context was written",
    "stop: the list is too long",
    "Invalid 'user': string too long. Expected a string with maximum length 64.",
]
TEMPLATES = [
    "Conversation roles must alternate user/assistant/user/assistant/...",
    "After the optional system message, conversation roles must alternate user and assistant",
    "System role not supported",
    "System messages are not supported by this model",
    "Only user and assistant roles are supported!",
    "Unexpected message role.",
    "Jinja Exception: No user query found in messages.",
    "jinja2.exceptions.TemplateError: roles are wrong",
    "As of transformers v4.44, default chat template is no longer allowed",
]


@pytest.mark.parametrize("server", TOO_LONG)
@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_a_context_that_is_too_long_is_the_clients_in_any_servers_words(
    server: str, status: int
) -> None:
    body = orjson.dumps({"error": {"message": TOO_LONG[server], "type": "t", "code": status}})
    error = refusal_of("up", status, words_of(body), "shown")
    assert isinstance(error, ContextExceeded)
    assert str(error) == "upstream 'up': shown"


@pytest.mark.parametrize("words", NOT_TOO_LONG)
def test_other_words_are_not_taken_for_it(words: str) -> None:
    assert not is_context_overflow(words)
    assert type(refusal_of("up", 400, words, "shown")) is UpstreamRefused


@pytest.mark.parametrize(
    ("words", "window", "num_prompt"),
    [
        (TOO_LONG["vllm-project/vllm #20409"], 16384, 112946),
        (TOO_LONG["vllm-project/vllm #12600"], 2048, None),
        (TOO_LONG["vllm-project/vllm #33418"], 1500, 1193),
        (TOO_LONG["vllm-project/vllm #12165"], 2048, None),
        (TOO_LONG["AIDotNet/OpenCowork #82"], 262144, None),
        (TOO_LONG["QwenLM/Qwen3 #1321"], 40960, 61709),
        (TOO_LONG["sgl-project/sglang #4048"], 59862, None),
        (TOO_LONG["fierceX/Document_QA #3"], 8191, 8238),
        (TOO_LONG["huggingface/text-generation-inference"], 8192, 9000),
        (TOO_LONG["docker/docker-agent #569"], 200000, 178959),
        (TOO_LONG["Mistral"], 32768, None),
        (TOO_LONG["TensorRT-LLM"], None, None),
        (TOO_LONG["Ollama"], None, None),
        (TOO_LONG["MiniMax"], None, None),
        (TOO_LONG["bare, with the limit"], 4096, None),
        (TOO_LONG["bare, with both numbers"], 4096, 5000),
        (TOO_LONG["bare, of the input"], 4096, None),
        (TOO_LONG["bare, without a number"], None, None),
        (TOO_LONG["Cohere"], 4081, None),
        (TOO_LONG["in brackets"], 4096, 5000),
        (TOO_LONG["the number"], 4096, 5000),
        (TOO_LONG["the prompt"], 4096, None),
        (TOO_LONG["the prompt's own number"], 4096, 5000),
        (TOO_LONG["the request's number"], None, None),
        (TOO_LONG["a token limit"], 4096, None),
        (
            "max_tokens=32768 cannot be greater than max_model_len=max_total_tokens=2048.",
            *(2048, None),
        ),
    ],
)
def test_the_numbers_of_an_overflow_are_read(
    words: str, window: int | None, num_prompt: int | None
) -> None:
    error = refusal_of("up", 400, words, "shown")
    assert isinstance(error, ContextExceeded)
    assert (error.window, error.num_prompt) == (window, num_prompt)


@pytest.mark.parametrize(
    ("words", "most"),
    [
        ("max_tokens is too large: 9. This model supports at most 8 completion tokens.", 8),
        (
            "max_tokens: 9 > 8, which is the maximum allowed number of output tokens for claude",
            8,
        ),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", 8192),
        ("`max_tokens` must be less than or equal to `8192`, the maximum value", 8192),
        ("The maximum tokens you requested exceeds the model limit of 8192.", 8192),
        (
            "maxOutputTokens: the supported range is from 1 (inclusive) to 65537 (exclusive).",
            65536,
        ),
        ("max_completion_tokens is too large: 9. This model supports at most 8 tokens", 8),
        ("max_tokens (9) exceeds the maximum output tokens (8) for this model", 8),
        ("max_tokens should be between 1 and 8", 8),
        ("max_tokens cannot exceed 8", 8),
        ("maximum value of max_tokens is 8", 8),
        ("max_tokens 9 is greater than the maximum of 8", 8),
        ("requested 9 output tokens, but the model can generate at most 8 tokens", 8),
        ("The requested number of output tokens (9) is larger than the maximum (8)", 8),
        ("max_output_tokens too high: limit is 8", 8),
        ("max_tokens exceeds model limit of 8", 8),
        ("the model's maximum output length is 8 tokens, but 9 were requested", 8),
        ("max_tokens must be an integer", None),
        ("max_tokens is too large", None),
        ("Requested 25 logprobs, allowed are 20", None),
    ],
)
def test_the_most_that_a_model_writes_is_read(words: str, most: int | None) -> None:
    error = refusal_of("up", 400, words, "shown")
    assert isinstance(error, UpstreamRefused)
    assert error.most_output == most


@pytest.mark.parametrize("words", TEMPLATES)
@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_template_that_refuses_the_messages_is_a_400_of_theirs(words: str, status: int) -> None:
    error = refusal_of("up", status, words, "shown")
    assert type(error) is RequestError
    assert (error.status, error.param) == (400, "messages")


@pytest.mark.parametrize(
    "words",
    [
        "Token id 999999 is out of vocabulary",
        "The input_ids [1, 999999] contains values greater than the vocab size (49152).",
        "Prompt contains invalid tokens",
        "piece id is out of range.",
        "token_ids contain out-of-vocab token ids. Vocabulary size: 49152",
        "Invalid token ids: 999999",
    ],
)
@pytest.mark.parametrize("status", [400, 500])
def test_a_token_that_the_model_does_not_have_is_known_as_such(words: str, status: int) -> None:
    error = refusal_of("up", status, words, "shown")
    assert type(error) is UnknownToken
    assert error.http_status == 400


def test_tokens_of_other_kinds_are_not_taken_for_it() -> None:
    for words in ("invalid token", "the token has expired", "logit_bias is out of range"):
        assert type(refusal_of("up", 400, words, "shown")) is UpstreamRefused


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "filtered", "code": "content_filter"}},
        {"error": {"message": "rejected as a result of our safety system"}},
        {"error": {"code": "content_policy_violation", "message": "no"}},
    ],
)
def test_a_policy_that_refuses_the_messages_is_a_400_of_theirs(body: Any) -> None:
    error = refusal_of("up", 400, words_of(orjson.dumps(body)), "shown")
    assert isinstance(error, ContentRefused)
    assert (error.status, error.param) == (400, "messages")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, UpstreamRefused),
        (401, UpstreamDenied),
        (402, UpstreamDenied),
        (403, UpstreamDenied),
        (404, UpstreamRefused),
        (413, ContextExceeded),
        (429, UpstreamFailed),
        (500, UpstreamFailed),
        (503, UpstreamFailed),
    ],
)
def test_other_refusals_are_told_apart_by_their_status(status: int, kind: type[MotabError]) -> None:
    assert type(refusal_of("up", status, "no", "no")) is kind


def test_a_rate_limit_is_no_overflow() -> None:
    words = "Request too large for model: the prompt is too long. Limit 30000 tokens per min (TPM)"
    assert type(refusal_of("up", 429, words, "shown")) is UpstreamFailed


def test_the_input_that_a_server_repeats_is_not_read_as_its_words() -> None:
    prompt = "What is the maximum context length? Roles must alternate."
    body = {"detail": [{"loc": ["body", "seed"], "msg": "not an integer", "input": prompt}]}
    assert words_of(orjson.dumps(body)) == "not an integer"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "the engine died", "code": 500}, UpstreamFailed),
        ({"message": "the engine died"}, UpstreamFailed),
        ("the engine died", UpstreamFailed),
        ({"message": "top_p is odd", "code": 400}, UpstreamRefused),
        ({"message": "slow down", "code": 429}, UpstreamFailed),
        ({"message": "prompt is too long", "code": "x"}, ContextExceeded),
        ({"message": "the context", "type": "exceed_context_size_error"}, ContextExceeded),
    ],
)
def test_an_error_inside_a_stream_is_read_by_its_own_status(
    error: object, kind: type[MotabError]
) -> None:
    assert type(stream_failure_of("up", error)) is kind
