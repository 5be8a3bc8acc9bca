"""Settings: read once, validated once."""

import pytest

from server.config import Settings


def test_the_environment_sets_and_arguments_override(monkeypatch):
    monkeypatch.setenv("ASR_STREAM_PORT", "9000")
    monkeypatch.setenv("ASR_STREAM_ORIGINS", "https://a.example, https://b.example")
    assert Settings().port == 9000
    assert Settings(port=0).port == 0
    assert Settings().origins == ("https://a.example", "https://b.example")
    monkeypatch.setenv("ASR_STREAM_HOTWORDS", "Ada, Mont Blanc")
    assert Settings().hotwords == ("Ada", "Mont Blanc")


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
