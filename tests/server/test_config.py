"""Settings: read once, validated once."""

from pathlib import Path

import pytest
import trustme

from server.config import ConfigError, Settings, read_settings, unknown_variables


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_flags_are_over_the_environment_over_the_file_over_defaults(monkeypatch, tmp_path):
    file = written(tmp_path / "s.toml", 'port = 1\nslots = 2\nbeam = 3\norigins = ["https://a.example"]\n')
    monkeypatch.setenv("ASR_STREAM_PORT", "10")
    monkeypatch.setenv("ASR_STREAM_SLOTS", "20")
    settings = read_settings(file, port=100)
    assert (settings.port, settings.slots, settings.beam, settings.chunk_ms) == (100, 20, 3, 300)
    assert settings.origins == ("https://a.example",)
    assert settings.model_fields_set == {"port", "slots", "beam", "origins"}
    assert read_settings().beam == 1


def test_the_environment_sets_and_arguments_override(monkeypatch):
    monkeypatch.setenv("ASR_STREAM_PORT", "9000")
    monkeypatch.setenv("ASR_STREAM_ORIGINS", "https://a.example, https://b.example")
    assert Settings().port == 9000
    assert Settings(port=0).port == 0
    assert Settings().origins == ("https://a.example", "https://b.example")
    monkeypatch.setenv("ASR_STREAM_HOTWORDS", "Ada, Mont Blanc")
    assert Settings().hotwords == ("Ada", "Mont Blanc")
    monkeypatch.setenv("ASR_STREAM_ALLOWED_HOSTS", "asr.example, 2001:db8::7")
    assert Settings().allowed_hosts == ("asr.example", "2001:db8::7")


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70_000},
        {"slots": 0},
        {"chunk_ms": 310},
        {"tls_cert": __file__},
        {"colour": "red"},
        {"beam": 9},
        {"hotwords": "?"},
        {"allowed_hosts": "https://asr.example"},
        {"allowed_hosts": "asr.example:8765"},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


def test_settings_are_frozen_and_do_not_show_the_key():
    settings = Settings(api_key="secret")
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = 70_000", "s.toml: port must be 0 to 65535, not 70000"),
        ("slot = 4", "s.toml: slot: no such setting: is it slots?"),
        ('final_pass = "half"', "s.toml: final_pass must be one of full, rescore, none, not half"),
        ("max_backlog_s = 0", "s.toml: max_backlog_s must be more than 0, not 0"),
        (f'prompt = "{"a" * 3000}"', "s.toml: prompt may have 2000 characters, not 3000"),
        ("host = 5", "s.toml: host: Input should be a valid string"),
        ("[server]\nport = 1", "s.toml: server: no such setting"),
        ("port = ", "s.toml: Invalid value"),
        ('prompt = "\xff"', "s.toml: 'utf-8' codec can't decode"),
        ('tls_cert = "/no/such.pem"', "s.toml: tls_cert: there is no file /no/such.pem"),
        ('tls_key = "/"', "s.toml: tls_key: there is no file /"),
        ('api_key = " , "', "api_key holds no key"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it_and_the_key(tmp_path, text, words):
    (tmp_path / "s.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as refused:
        read_settings(tmp_path / "s.toml")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_wrong_variable_is_named_as_such(monkeypatch, tmp_path):
    monkeypatch.setenv("ASR_STREAM_SLOTS", "none")
    with pytest.raises(ConfigError, match=r"^ASR_STREAM_SLOTS must be 1 or more, not none$"):
        read_settings(written(tmp_path / "s.toml", "slots = 0"))
    with pytest.raises(ConfigError, match=r"^slots must be 1 or more, not 0$"):
        read_settings(slots=0)
    monkeypatch.delenv("ASR_STREAM_SLOTS")
    with pytest.raises(ConfigError, match=r"^delay_ms must be 0 to 600 in steps of 20, not 30$"):
        read_settings(delay_ms=30)
    with pytest.raises(
        ConfigError, match=r"^chunk_ms must be 100 to 1000 in steps of 20, not 5; beam must be"
    ):
        read_settings(chunk_ms=5, beam=0)
    monkeypatch.setenv("ASR_STREAM_API_KEY", "")
    with pytest.raises(ConfigError, match=r"^ASR_STREAM_API_KEY is empty: set a key, or leave it out$"):
        read_settings()


def test_a_file_that_is_not_there_is_not_an_empty_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_settings(tmp_path / "s.toml")


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "api_key_file"])
def test_a_file_that_cannot_be_read_is_named(monkeypatch, tmp_path, name):
    """Permissions bind no root, as whom tests may run: the system's answer is played."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    file = written(tmp_path / "secret", "of others")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=rf"{name}: {file} cannot be read: Permission denied$"):
        read_settings(**{name: file})


def test_a_misspelt_variable_is_found(monkeypatch):
    monkeypatch.setenv("ASR_STREAM_SLOTS", "4")
    monkeypatch.setenv("ASR_STREAM_CACHE", "/tmp")
    monkeypatch.setenv("ASR_STREAM_SLOT", "4")
    assert unknown_variables() == ["ASR_STREAM_SLOT"]


def test_keys_come_from_both_places_and_are_several(tmp_path):
    file = written(tmp_path / "keys", "# since March\nthird\n\n fourth \n  # of nobody\n")
    assert Settings(api_key="first, second", api_key_file=file).keys == ("first", "second", "third", "fourth")
    assert Settings().keys == ()


def test_a_file_without_keys_does_not_open_the_door(tmp_path):
    with pytest.raises(ConfigError, match="keys holds no key"):
        read_settings(api_key_file=written(tmp_path / "keys", "# none yet\n"))


def test_a_file_of_keys_is_text_as_windows_writes_it_too(tmp_path):
    file = written(tmp_path / "keys", "\ufefffirst\r\nsecond\r\n")
    assert read_settings(api_key_file=file).keys == ("first", "second")
    (tmp_path / "keys").write_bytes(b"secret\xff")
    with pytest.raises(ConfigError, match=r"keys is no text: keys are one a line$") as refused:
        read_settings(api_key_file=tmp_path / "keys")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("key", ["kéy", "ключ", "a\x07b", "first, kéy"])
def test_a_key_that_no_header_can_carry_is_refused_at_once(key):
    with pytest.raises(ConfigError, match=r"^key \d of \d has characters that no HTTP header") as refused:
        read_settings(api_key=key)
    assert key not in str(refused.value)


def test_a_certificate_is_proven_at_once(tmp_path):
    ca = trustme.CA()
    ours, others = (ca.issue_cert("asr.example") for _ in range(2))
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    ours.cert_chain_pems[0].write_to_path(str(cert))
    ours.private_key_pem.write_to_path(str(key))
    assert read_settings(tls_cert=cert, tls_key=key).tls_cert == cert
    others.private_key_pem.write_to_path(str(key))
    with pytest.raises(ConfigError, match=r"must be a certificate and its key, PEM.*\(KEY_VALUES_MISMATCH\)"):
        read_settings(tls_cert=cert, tls_key=key)


@pytest.mark.parametrize(
    ("host", "key", "exposed"),
    [
        ("127.0.0.1", None, False),
        ("::1", None, False),
        ("localhost", None, False),
        ("0.0.0.0", None, True),
        ("asr.example", None, True),
        ("0.0.0.0", "key", False),
    ],
)
def test_a_server_is_exposed_without_a_key_beyond_loopback(host, key, exposed):
    assert Settings(host=host, api_key=key).exposed is exposed
