"""One frozen settings object, validated once: environment variables ASR_STREAM_*, overridden by arguments."""

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import Field, FilePath, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from asr.biasing import MAX_BEAM, MAX_PROMPT_CHARS, checked_hotwords
from streaming.session import DEFAULT_DELAY_MS, DELAY_MS


class Settings(BaseSettings):
    """How the server runs. Raises pydantic's ValidationError (a ValueError) that names the wrong setting."""

    model_config = SettingsConfigDict(env_prefix="ASR_STREAM_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8765, ge=0, le=65_535)  # 0 takes a free one
    tls_cert: FilePath | None = None  # PEM; with tls_key the server speaks wss
    tls_key: FilePath | None = None
    api_key: SecretStr | None = Field(None, min_length=1)
    origins: Annotated[tuple[str, ...], NoDecode] = ()  # browsers' origins besides our own; "*" allows all

    model: str = "tiny.en"
    adapter: str | None = None  # a folder; None takes the shipped one
    slots: int = Field(32, ge=1)  # conversations at once
    threads: int | None = Field(None, ge=1)  # of the model; None leaves it to torch
    chunk_ms: int = Field(300, ge=100, le=1000, multiple_of=20)  # unless the client asks otherwise
    final_pass: Literal["full", "none"] = "full"
    delay_ms: int = Field(DEFAULT_DELAY_MS, ge=DELAY_MS[0], le=DELAY_MS[1], multiple_of=20)
    beam: int = Field(1, ge=1, le=MAX_BEAM)  # unless the client asks otherwise, as what follows
    prompt: str = Field("", max_length=MAX_PROMPT_CHARS)
    hotwords: Annotated[tuple[str, ...], NoDecode] = ()

    max_frame_bytes: int = Field(2**20, ge=1024)
    max_backlog_s: float = Field(5.0, gt=0)  # audio not yet decoded, per session; then its socket is not read
    max_upload_bytes: int = Field(25 * 2**20, ge=1024)  # a file over HTTP
    max_upload_s: float = Field(3 * 3600.0, gt=0)  # of audio in it, however small it is
    max_unsent_events: int = Field(256, ge=1)  # messages the client has not taken, per session
    idle_timeout_s: float = Field(10.0, gt=0)  # without audio or keepalive
    drain_timeout_s: float = Field(10.0, ge=0)  # for open sessions to finish when the server ends

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @field_validator("origins", "hotwords", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """The environment gives lists as one string, separated by commas."""
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("hotwords")
    @classmethod
    def _checked(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checked_hotwords(value)

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key are given together or not at all")
        return self

    @property
    def exposed(self) -> bool:
        """Whether anyone on the network may use the server: no key, and not bound to loopback."""
        if self.api_key is not None or self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a host name: it may be anything
            return True
