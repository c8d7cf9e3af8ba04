"""What counts as a credential, and what does not."""

import time

import pytest

from rlhf_peft.redact import is_secret_name, scrub

S = "Zq8vT3kLmN0pRsW2xYbA7cDe"


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://u:pa@ss@h", "https://***@h"),
        ("https://u:p/w@h", "https://***@h"),
        ("https://u:p/w@h.org:8000/x", "https://***@h.org:8000/x"),
        ("https://u:p?w#x@h/y", "https://***@h/y"),
        ("https://u:p@a/s@h/y", "https://***@h/y"),
        ("https://u:12/34@h", "https://***@h"),
        ("https://u:'\"(p)@h", "https://***@h"),
        ("https://token@h/x", "https://***@h/x"),
        ("postgresql+psycopg://u:p@db.local/x", "postgresql+psycopg://***@db.local/x"),
        ("see (http://u:p@h) and http://h", "see (http://***@h) and http://h"),
        ("/home/me/https:/u:p@h/data.jsonl", "/home/me/https:/***@h/data.jsonl"),
    ],
)
def test_userinfo_of_any_characters_is_hidden(url, clean):
    assert scrub(url) == clean


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/org/model@main",
        "http://localhost:8000/v1@main",
        "http://10.0.0.1:8000/a@b",
        "s3://bucket/key@v2",
        "hf://datasets/org/name@main/x.parquet",
        "https://h.org/x?y=1#z",
        "somebody@example.org",
        "C:/Users/somebody@home/x",
        "path:/home/somebody/a@b",
        "eos_token: <|im_end|>, pad_token: <pad>, max_tokens: 12345678",
        "api_key: OPENAI_API_KEY",
        "tokens_per_second 12345678.5",
        "a secret is kept; the password is long; secretary: Mr. Somebody",
        "scikit-learn sk-learn task-aligned-representations",
        "/home/somebody/keys/a",
    ],
)
def test_what_is_no_secret_stays(text):
    assert scrub(text) == text


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_KEY",
        "DB_PASS",
        "HF_TOKEN_2",
        "GITHUB_PAT",
        "DB_PWD",
        "AWS_SECRET_ACCESS_KEY",
        "githubPat",
        "MYAPIKEY",
        "GOOGLE_CREDENTIALS",
        "KEY_OF_MINE",
        "wandb_api_key",
        "GITHUBTOKEN",
        "Some-Secret",
    ],
)
def test_what_environment_variables_hold_is_hidden(monkeypatch, name):
    monkeypatch.setenv(name, S)
    assert scrub(f"x {S} y") == "x *** y"
    assert scrub({"a": [f"-{S}-"]}) == {"a": ["-***-"]}


@pytest.mark.parametrize(
    "name", ["PWD", "OLDPWD", "TOKENIZERS_PARALLELISM", "KEYBOARD", "MONKEYS", "PASSENGER", "PATH"]
)
def test_other_variables_are_not(name):
    assert not is_secret_name(name)


def test_a_path_is_no_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("KEY_FOLDER", str(tmp_path))
    assert scrub(f"written to {tmp_path}/x") == f"written to {tmp_path}/x"


def test_each_line_of_a_key_is_hidden(monkeypatch):
    monkeypatch.setenv("SIGNING_KEY", f"first-{S}\nsecond-{S}")
    assert scrub(f"second-{S}") == "***"


@pytest.mark.parametrize(
    "token",
    [
        f"hf_{S}",
        f"sk-{S}",
        f"sk-proj-{S}-{S}",
        f"sk-ant-api03-{S}",
        f"ghp_{S}",
        f"gho_{S}",
        f"github_pat_{S}",
        f"glpat-{S}",
        f"xoxb-123456789012-{S}",
        "AKIAIOSFODNN7EXAMPLE",
        f"AIza{S}abcdefghijk",
        f"ya29.{S}",
        f"npm_{S}",
        f"pypi-{S}",
        f"dckr_pat_{S}",
        f"SG.{S}.{S}",
        f"gsk_{S}",
        f"nvapi-{S}",
        f"eyJhbGciOiJIUzI1NiJ9.{S}.{S}",
        "12345678:AAabcdefghijklmnopqrstuvwxyzABCDEFG",
        f"https://hooks.slack.com/services/T000/B000/{S}",
    ],
)
def test_tokens_of_known_forms_are_hidden(token):
    for text in (f"with {token} in it", f'{{"x": "{token}"}}', f"key={token}"):
        found = scrub(text)
        assert "***" in found and S not in found and token not in found


@pytest.mark.parametrize(
    "text",
    [
        f"X-Api-Key: {S}",
        f"x-goog-api-key: {S}",
        f"'X-Auth-Token': '{S}'",
        f'"api_key": "{S}"',
        f"api_key={S}",
        f"password: {S}",
        f"DB_PASSWORD={S}",
        f"client_secret = {S}",
        f"Authorization: Bearer {S}",
        f"Authorization: Basic {S}",
        f"https://h/x?api_key={S}&y=1",
        f"https://h/x?X-Amz-Signature={S}",
    ],
)
def test_what_is_assigned_to_a_key_is_hidden(text):
    assert S not in scrub(text) and "***" in scrub(text)


def test_keys_of_mappings():
    written = {
        "api_key": S,
        "headers": {"X-Api-Key": S, "Authorization": S},
        "password": S,
        "key": "final_answer",
    }
    assert scrub(written) == {
        "api_key": "***",
        "headers": {"X-Api-Key": "***", "Authorization": "***"},
        "password": "***",
        "key": "final_answer",
    }
    kept = {
        "eos_token": "<|im_end|>",
        "api_key": "OPENAI_API_KEY",
        "token": "answer_token",
        "secret": "short",
    }
    assert scrub(kept) == kept


def test_a_private_key_is_hidden_even_where_its_end_is_cut():
    assert scrub(f"-----BEGIN RSA PRIVATE KEY-----\n{S}\n{S}") == "-----BEGIN RSA PRIVATE KEY-----***"


@pytest.mark.parametrize(
    "text",
    [
        "a" * 300_000,
        "a." * 150_000,
        "http://" * 40_000,
        "-" * 300_000,
        "x-" * 150_000,
        "secret" * 50_000,
        "api_" * 70_000,
        "eyJ" * 100_000,
        "a@" * 150_000,
    ],
)
def test_no_text_takes_long(text):
    begun = time.monotonic()
    scrub(text)
    assert time.monotonic() - begun < 3
