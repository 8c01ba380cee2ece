"""Messages about options name the options."""

import pytest

from nanobanana_async import ConfigurationError
from nanobanana_async.cli.options import extra_of, setting_message, with_option_names


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
