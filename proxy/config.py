"""Reads and checks the configuration file: YAML with `${ENV}` expanded. Unknown keys are errors."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from proxy.complaints import complaints_of
from proxy.errors import ConfigError
from proxy.near_names import did_you_mean
from proxy.options import (
    Effort,
    OptionsError,
    parse_options,
    parse_sampling,
    split_sampling,
    template_kwargs,
)
from proxy.remote_config import (
    ApiKey,
    CalledServer,
    ScorerConfig,
    checked_url,
    require_different,
    scorer_name,
)
from proxy.secrets import (
    hide,
    keys_in_url,
    secrets_of_environment,
    secrets_of_url,
    without_userinfo,
)
from proxy.server_config import Section, ServerConfig
from proxy.variables import expanded
from proxy.yaml_file import load_yaml

_Reasoning = Literal["auto", "none", "think", "harmony"]


class _Upstream(CalledServer):
    chat_template: str | None = None
    """A Jinja template, in place of the model's own."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables of the template, such as `enable_thinking`; a request may give others."""
    reasoning_effort: Effort | None = None
    """How long the model should think, where its template or its API knows that."""
    context_tokens: int | None = Field(None, ge=16)
    """Tokens of its model's window, prompt and answer together; None: as the server says. The lower
    of both holds."""
    max_output_tokens: int | None = Field(None, ge=1)
    """The most tokens that its model writes in one answer; None: as the server says."""
    stall_timeout_s: float = Field(120, gt=0)
    """Seconds without a byte after which a stream that has begun to write is given up."""

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """All variables that its chat template gets from here."""
        return template_kwargs(self.chat_template_kwargs, self.reasoning_effort)

    @model_validator(mode="after")
    def _variables_are_its_own(self) -> Self:
        try:
            _ = self.template_kwargs
        except OptionsError as error:
            raise ValueError(str(error)) from error
        return self


def _server_root(url: str) -> str:
    root = checked_url(url)
    if root.endswith("/v1"):
        raise ValueError(f"is the server's root: leave '/v1' out of '{without_userinfo(url)}'")
    return root


_Root = Annotated[str, AfterValidator(_server_root)]


class RemoteUpstream(_Upstream):
    """A server, or replicas of one, that someone else runs."""

    base_urls: list[_Root] | None = Field(None, min_length=1, repr=False)
    """The roots of several replicas, which serve the same model, in the place of `base_url`."""
    base_url: _Root | None = Field(None, repr=False, validate_default=True)
    """The server's root, without `/v1`."""
    model: str
    api_key: ApiKey | None = Field(None, repr=False)

    @property
    def urls(self) -> list[str]:
        """The roots of all its servers."""
        return [self.base_url] if self.base_url else self.base_urls or []

    @field_validator("base_urls")
    @classmethod
    def _are_different(cls, urls: list[str] | None) -> list[str] | None:
        return None if urls is None else require_different(urls)

    @field_validator("base_url")
    @classmethod
    def _is_one_or_several(cls, url: str | None, info: ValidationInfo) -> str | None:
        several = info.data.get("base_urls", ())  # missing if it is wrong already
        if url is None and several is None:
            raise PydanticCustomError("missing", "Field required")
        if url is not None and several:
            raise ValueError("is there as well as base_urls: leave one out")
        return url


class _TokenServer(RemoteUpstream):
    """A server that takes token ids."""

    tokenizer: str = Field("server", min_length=1)
    """Where token ids come from: `server`, or a Hugging Face name, a folder, `tiktoken:NAME`."""
    reasoning: _Reasoning = "auto"
    """How its model thinks; `auto` finds out from its chat template."""


class LlamaCppConfig(_TokenServer):
    """A llama.cpp server that someone else runs."""

    kind: Literal["llamacpp"]


class VllmConfig(_TokenServer):
    """A vLLM server."""

    kind: Literal["vllm"]


class SGLangConfig(_TokenServer):
    """An SGLang server."""

    kind: Literal["sglang"]


class LiteLLMConfig(_Upstream):
    """A hosted chat API, through the litellm library."""

    kind: Literal["litellm"]
    model: str
    """With litellm's name of the provider in front: `openrouter/openai/gpt-oss-120b`."""
    api_key: ApiKey | None = Field(None, repr=False)
    """None: the provider's own environment variable holds it."""
    base_url: Annotated[str, AfterValidator(checked_url)] | None = Field(None, repr=False)
    """The API's address, if it is not the provider's own; with `/v1` if the API has it."""
    tokenizer: str = Field("tiktoken:o200k_base", min_length=1)
    """The tokenizer that counts tokens; they are sent nowhere."""
    continuation: Literal["prefill", "continue_final_message", "instruct"] | None = None
    """The way to make the model continue a text; None if litellm's model list knows it."""
    reasoning: Literal["keep", "drop"] = "keep"
    """Whether thoughts that the API sends separately are part of the text, in `<think>` tags."""
    chat_template: None = None
    """The API renders messages itself."""

    @property
    def urls(self) -> list[str]:
        """The API's address, if it is configured."""
        return [] if self.base_url is None else [self.base_url]


class OpenAIConfig(RemoteUpstream):
    """A server with an OpenAI-style `/v1/completions` that takes text."""

    kind: Literal["openai"]
    tokenizer: str = Field(min_length=1)
    """The model's own: a Hugging Face name, a folder, `tiktoken:NAME`."""
    reasoning: _Reasoning = "auto"
    """How its model thinks; `auto` finds out from its chat template."""

    @field_validator("tokenizer")
    @classmethod
    def _is_in_the_proxy(cls, tokenizer: str) -> str:
        if tokenizer == "server":
            raise ValueError("such a server gives no tokens: name the model's tokenizer")
        return tokenizer


class EmbeddedConfig(_Upstream):
    """A llama.cpp server that motab starts itself."""

    kind: Literal["embedded"]
    model: str
    """A GGUF file, or a Hugging Face folder with a Llama: a path, `package:NAME` for the file of an
    installed package, or `package:NAME/PATH` for a path inside a package."""
    reasoning: _Reasoning = "auto"
    """How its model thinks; `auto` finds out from its chat template."""
    slots: int = Field(4, ge=1)
    """Requests decoded at once, each with a context of its own."""
    context_tokens: int = Field(4096, ge=16)
    """Tokens a slot's context holds."""
    dequantize: bool = False
    """Serve the weights as 16-bit floats, for exact scoring."""
    threads: int | None = Field(None, ge=1)
    """Processor threads; None divides the machine's threads among the embedded servers."""


UpstreamConfig = Annotated[
    LlamaCppConfig | VllmConfig | SGLangConfig | OpenAIConfig | LiteLLMConfig | EmbeddedConfig,
    Field(discriminator="kind"),
]


class ModelConfig(Section):
    """A pair that clients can name."""

    student: str
    teacher: str
    scoring: ScorerConfig | None = None
    """A scorer in the place of the teacher's own ways; None: the teacher scores."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Defaults of the `motab` object and of the student's sampling for this pair."""

    @property
    def options(self) -> dict[str, Any]:
        """The defaults of the `motab` object."""
        return split_sampling(self.params)[1]

    @property
    def sampling(self) -> dict[str, Any]:
        """The defaults of the student's sampling."""
        return split_sampling(self.params)[0]

    @field_validator("params")
    @classmethod
    def _params_are_options(cls, params: dict[str, Any]) -> dict[str, Any]:
        sampling, options = split_sampling(params)
        try:
            parse_sampling(sampling)
            asks_for_events = parse_options(options).events
        except OptionsError as error:
            raise ValueError(str(error)) from error
        if asks_for_events:
            message = (
                "events: true belongs to a request that streams: a model that had it would refuse"
                " all other requests"
            )
            raise ValueError(message)
        return params


class Config(Section):
    """A whole configuration file."""

    server: ServerConfig = ServerConfig()
    upstreams: dict[str, UpstreamConfig] = Field(min_length=1)
    models: dict[str, ModelConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _hide_secrets(self) -> Self:
        """Whoever has a configuration shows none of its secrets."""
        hide((*self.server.api_keys, *secrets_of_environment()))
        for where, server in self.called().items():
            if isinstance(server, EmbeddedConfig):
                continue
            hide({key for url in server.urls for key in keys_in_url(url)})
            of_urls = {secret for url in server.urls for secret in secrets_of_url(url)}
            key = server.api_key
            hide(of_urls if key is None else {key, *of_urls})
            if of_urls and key is not None:
                address = "http" if isinstance(server, ScorerConfig) else "base_url"
                message = f"{address} has a user, who is sent in the key's place: leave one out"
                raise ValueError(f"{where}.api_key: {message}")
        return self

    def called(self) -> dict[str, UpstreamConfig | ScorerConfig]:
        """Return the sections of all servers that motab calls, by their paths."""
        models = self.models.items()
        return {
            **{f"upstreams.{name}": one for name, one in self.upstreams.items()},
            **{f"models.{name}.scoring": m.scoring for name, m in models if m.scoring is not None},
        }

    @property
    def scorers(self) -> dict[str, ScorerConfig]:
        """The scorers of the models, by their names among the upstreams."""
        models = self.models.items()
        return {scorer_name(name): one.scoring for name, one in models if one.scoring is not None}

    @model_validator(mode="after")
    def _params_are_within_the_cap(self) -> Self:
        cap = self.server.max_total_tokens
        for name, model in self.models.items():
            asked = model.params.get("max_total_tokens", 0)
            if asked > cap:
                where = f"models.{name}.params.max_total_tokens"
                message = f"{asked} is more than server.max_total_tokens allows ({cap})"
                raise ValueError(f"{where}: {message}")
        return self

    @model_validator(mode="after")
    def _models_name_upstreams(self) -> Self:
        for name, model in self.models.items():
            if name.startswith(("student/", "teacher/")):
                raise ValueError(f"models.{name}: that name stands for the upstream alone")
            if model.scoring is not None and (own := scorer_name(name)) in self.upstreams:
                raise ValueError(f"upstreams.{own}: that name stands for the model's scorer")
            for role, upstream in (("student", model.student), ("teacher", model.teacher)):
                if upstream not in self.upstreams:
                    known = ", ".join(self.upstreams)
                    meant = did_you_mean(upstream, self.upstreams)
                    message = f"models.{name}.{role}: no upstream '{upstream}'; there are {known}"
                    raise ValueError(message + meant)
        return self

    def with_server(self, changes: dict[str, Any]) -> Self:
        """Return a copy with other values under `server`, checked as in a file."""
        try:
            server = ServerConfig.model_validate({**self.server.model_dump(), **changes})
        except ValidationError as error:
            raise ConfigError(_sentence(error, ServerConfig, "server")) from error
        return self.model_copy(update={"server": server})


def load_config(path: Path) -> Config:
    """Read a file. Raises `ConfigError` with one line that names the file, the key and the cure."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason})") from error
    return parse_config(text, path)


def parse_config(text: str, path: Path) -> Config:
    """Read the text of the file at `path`. Raises the error of `load_config`."""
    try:
        raw = load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold the keys server, upstreams and models")
    try:
        return Config.model_validate(expanded(raw, ""))
    except ValidationError as error:
        raise ConfigError(f"{path}: {_sentence(error, Config)}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _sentence(error: ValidationError, model: type, *above: str) -> str:
    """The first complaint, with the path of its key, which lies under `above`."""
    complaints = complaints_of(error, model)
    first, num_others = complaints[0], len(complaints) - 1
    # A discriminated union adds the kind to the path, right after the upstream's name.
    loc = [*above, *(str(part) for part in first.loc)]
    if loc[:1] == ["upstreams"] and len(loc) > 2:
        del loc[2]
    more = f" (and {num_others} more)" if num_others else ""
    return first.about(".".join(loc)) + more
