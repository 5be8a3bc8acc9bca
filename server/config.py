"""One frozen settings object, validated once: arguments over the environment over a TOML file over defaults."""

import difflib
import ipaddress
import os
import ssl
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from asr.limits import MAX_BEAM, MAX_PROMPT_CHARS, checked_hotwords, checked_name
from streaming.session import DEFAULT_DELAY_MS, DEFAULT_PAUSE_MS, DELAY_MS, PAUSE_MS, SessionOptions

PREFIX = "ASR_STREAM_"
LIMITS = ("ge", "gt", "le", "multiple_of")  # as pydantic calls them
OTHER_VARIABLES = {"ASR_STREAM_CACHE", "ASR_STREAM_CONFIG"}  # of asr/weights.py and of the command line


class ConfigError(ValueError):
    """Settings that cannot be: one line that says which, and where they were set."""


class Settings(BaseSettings):
    """How the server runs. Raises pydantic's ValidationError (a ValueError) that names the wrong setting."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8765, ge=0, le=65_535)  # 0 takes a free one
    tls_cert: Path | None = None  # PEM; with tls_key the server speaks wss
    tls_key: Path | None = None
    # one, or several separated by commas: any of them opens
    api_key: SecretStr | None = Field(None, min_length=1)
    api_key_file: Path | None = None  # one a line, besides those of api_key; read once
    origins: Annotated[tuple[str, ...], NoDecode] = ()  # browsers' origins besides our own; "*" allows all
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()  # names that lead here, besides `host`

    model: str = "tiny.en"
    adapter: str | None = None  # a folder; None takes the shipped one
    device: str = "auto"  # cpu, cuda, cuda:1; auto: a GPU if there is one
    slots: int = Field(32, ge=1)  # conversations at once
    # that decode, each with its share of the slots; None: as many as cores
    engines: int | None = Field(None, ge=1)
    chunk_ms: int = Field(300, ge=100, le=1000, multiple_of=20)  # unless the client asks otherwise
    final_pass: Literal["full", "rescore", "none"] = "full"
    # likewise; None, of `serve` alone: the model has learnt when to wait
    delay_ms: int | None = Field(DEFAULT_DELAY_MS, ge=DELAY_MS[0], le=DELAY_MS[1], multiple_of=20)
    pause_ms: int = Field(DEFAULT_PAUSE_MS, ge=PAUSE_MS[0], le=PAUSE_MS[1])
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

    _keys: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What comes first wins."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("tls_cert", "tls_key", "api_key_file")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        """What pydantic's FilePath does not: it is named, and may be read."""
        if value is None:
            return None
        if not os.path.isfile(value):
            raise ValueError(f"there is no file {value}")
        try:
            value.open("rb").close()
        except OSError as error:
            raise ValueError(f"{value} cannot be read: {error.strerror}") from None
        return value

    @field_validator("origins", "allowed_hosts", "hotwords", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """The environment gives lists as one string, separated by commas."""
        return _listed(value.split(",")) if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _bare(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """What is compared is the name alone: with more, it would never match."""
        for name in value:
            if "/" in name or name.count(":") == 1:  # IPv6 addresses have more
                raise ValueError(f"{name!r} is more than a name: leave scheme and port out")
        return value

    @field_validator("device")
    @classmethod
    def _named(cls, value: str) -> str:
        return checked_name(value)

    @field_validator("hotwords")
    @classmethod
    def _checked(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checked_hotwords(value)

    @model_validator(mode="after")
    def _chosen_from(self) -> Self:
        """What clients get that do not say must be possible."""
        SessionOptions(final_pass=self.final_pass, beam=self.beam)
        return self

    @model_validator(mode="after")
    def _paired(self) -> Self:
        """A wrong certificate is found before the model is loaded, and no password is asked for."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key are given together or not at all")
        if self.tls_cert is not None and self.tls_key is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                    self.tls_cert, self.tls_key, lambda: ""
                )
            except ssl.SSLError as error:
                raise ValueError(
                    f"tls_cert {self.tls_cert} and tls_key {self.tls_key} must be a certificate and its key, PEM,"
                    f" without a password ({error.reason or 'unreadable'})"
                ) from None
        return self

    @model_validator(mode="after")
    def _collected(self) -> Self:
        """A file without keys is a mistake, and must not open the door to all."""
        if self.api_key is not None:
            self._keys = _listed(self.api_key.get_secret_value().split(","))
        if self.api_key_file is not None:
            try:
                lines = _listed(self.api_key_file.read_text(encoding="utf-8-sig").splitlines())
            except UnicodeDecodeError:
                raise ValueError(f"{self.api_key_file} is no text: keys are one a line") from None
            self._keys += tuple(line for line in lines if not line.startswith("#"))
        for number, key in enumerate(self._keys, 1):
            if not (key.isascii() and key.isprintable()):
                raise ValueError(
                    f"key {number} of {len(self._keys)} has characters that no HTTP header can carry: use ASCII"
                )
        if not self._keys and (self.api_key is not None or self.api_key_file is not None):
            raise ValueError(f"{'api_key' if self.api_key else self.api_key_file} holds no key")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """What clients may show, any of them; none if everybody may come in."""
        return self._keys

    @property
    def exposed(self) -> bool:
        """Whether anyone on the network may use the server: no key, and not bound to loopback."""
        return not (self.keys or self._on_loopback)

    @property
    def private(self) -> bool:
        """Whether it is for the programs of this machine alone, and knows them by nothing else than that."""
        return not self.keys and self._on_loopback

    @property
    def _on_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a host name: it may be anything
            return False


def read_settings(file: Path | None = None, **given: Any) -> Settings:
    """The settings as `given`, else as in the environment, else as in a TOML file.

    Raises:
        ConfigError: they cannot be.
        OSError: a file cannot be read.
    """

    class Configured(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    if file is not None:
        file.open("rb").close()  # pydantic-settings takes a file that is not there for an empty one
    try:
        return Configured(**given)
    except ValidationError as error:
        raise ConfigError("; ".join(_in_words(each, file, given) for each in error.errors())) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None


def unknown_variables() -> list[str]:
    """Names in the environment that look like settings and are none: nothing else would tell of a misspelling."""
    known = OTHER_VARIABLES | {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(
        name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known
    )


def _in_words(error: Any, file: Path | None, given: dict[str, Any]) -> str:
    """One error of pydantic's, as sessions say theirs where it is about a limit."""
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return str(message)
    name = str(error["loc"][0])
    where = name
    if name not in given:
        if (variable := PREFIX + name.upper()) in map(str.upper, os.environ):
            where = variable
        elif file is not None:
            where = f"{file}: {name}"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Settings.model_fields, n=1)
        return f"{where}: no such setting" + (f": is it {near[0]}?" if near else "")
    if name == "api_key":  # which is never shown
        empty = error["type"] == "too_short"
        return f"{where} is empty: set a key, or leave it out" if empty else f"{where}: {message}"
    if error["type"] == "string_too_long":
        return f"{where} may have {error['ctx']['max_length']} characters, not {len(error['input'])}"
    if error["type"] != "value_error" and (allowed := _allowed(name)):
        return f"{where} must be {allowed}, not {error['input']}"
    return f"{where}: {message}"


def _allowed(name: str) -> str:
    """What a setting may be; nothing if it has neither choices nor limits."""
    field = Settings.model_fields[name]
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(get_args(field.annotation))}"
    limits = {kind: getattr(each, kind) for each in field.metadata for kind in LIMITS if hasattr(each, kind)}
    match limits:
        case {"ge": least, "le": most}:
            between = f"{least} to {most}"
        case {"ge": least}:
            between = f"{least} or more"
        case {"gt": bound}:
            between = f"more than {bound}"
        case _:
            return ""
    return between + (f" in steps of {limits['multiple_of']}" if "multiple_of" in limits else "")


def _listed(items: list[str]) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, items)))
