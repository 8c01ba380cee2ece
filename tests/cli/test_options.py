"""Messages about options name the options."""

import pytest

from nanobanana_async import ConfigurationError, InvalidRequest, NanoBananaError
from nanobanana_async.cli.options import extra_of, in_cli_words, setting_message, with_option_names
from tests.support.rows import each_row


def test_arguments_are_named_as_options() -> None:
    sentence = "max_credits is 5, 5 are spent, and a job for 8 would pass it; expected_credits sets another estimate"
    assert with_option_names(sentence) == (
        "--max-credits is 5, 5 are spent, and a job for 8 would pass it; --expected-credits sets another estimate"
    )


def test_only_the_first_word_of_a_setting_message_is_an_option() -> None:
    error = ConfigurationError("max_jobs must be a whole number, not 'max_jobs'")
    assert setting_message(error) == "--max-jobs must be a whole number, not 'max_jobs'"
    assert setting_message(ConfigurationError("base_url_of is wrong")) == "base_url_of is wrong"


def test_arguments_of_python_are_not_advice() -> None:
    error = ConfigurationError("base_url must use https (allow_http=True or NANOBANANA_ALLOW_HTTP=1 permits that)")
    assert setting_message(error) == "--base-url must use https (NANOBANANA_ALLOW_HTTP=1 permits that)"


def test_wrong_option_is_said_without_the_advice_for_requests() -> None:
    assert setting_message(InvalidRequest("aspect_ratio is 17")) == "--aspect-ratio is 17"
    assert setting_message(InvalidRequest("bad", status=400)) == "bad [400] (change the request)"


def test_extra_options_are_json_where_they_can_be() -> None:
    options = ["seed=7", "quality=high", "box=[1, 2]", "formula=a=b", "empty="]
    assert extra_of(options) == {"seed": 7, "quality": "high", "box": [1, 2], "formula": "a=b", "empty": ""}
    assert extra_of(None) == {}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["seed"], "--extra must be NAME=VALUE, such as --extra seed=7, not 'seed'"),
        (["=7"], "--extra must be NAME=VALUE"),
        (["seed=7", "seed=8"], "--extra seed is given twice"),
    ],
)
def test_extra_option_without_a_name_of_its_own_is_refused(options: list[str], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        extra_of(options)


@each_row(
    ("given", "shown"),
    [
        ("no answer (check base_url and the network)", "no answer (check --base-url and the network)"),
        ("[403] (ask for access, and check base_url)", "[403] (ask for access, and check --base-url)"),
        ("[404] (check the task id, and base_url)", "[404] (check the task id, and --base-url)"),
        ("check proxy= or HTTPS_PROXY", "check HTTPS_PROXY"),
        ("pass per='day', or use another name", "write NAME=CREDITS/day, or use another name"),
        ("pass per=None, or use another name", "write NAME=CREDITS without /day, or use another name"),
        ("with tls= or SSL_CERT_FILE", "with SSL_CERT_FILE"),
        (
            "allow_networks=['10.0.0.5/32'] or NANOBANANA_ALLOW_NETWORKS=10.0.0.5/32 allows it",
            "NANOBANANA_ALLOW_NETWORKS=10.0.0.5/32 allows it",
        ),
        ("ledger base_url/max_jobs.sqlite is locked", "ledger base_url/max_jobs.sqlite is locked"),
        (
            "the gateway knows its task t; call `resume` to poll it",
            "the gateway knows its task t; `jobs resume` polls it",
        ),
        (
            "defapi does not take aspect_ratio: pass extra={'aspect_ratio': ...} if the model takes it",
            "defapi does not take aspect_ratio: pass --extra aspect_ratio=VALUE if the model takes it",
        ),
    ],
)
def test_errors_of_the_library_name_what_the_command_line_has(given: str, shown: str) -> None:
    assert in_cli_words(NanoBananaError(given)) == shown
