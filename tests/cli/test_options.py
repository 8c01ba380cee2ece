"""Messages about options name the options."""

from nanobanana_async import ConfigurationError
from nanobanana_async.cli.options import setting_message, with_option_names


def test_arguments_are_named_as_options() -> None:
    sentence = "max_credits is 5, 5 are spent, and a job for 8 would pass it; expected_credits sets another estimate"
    assert with_option_names(sentence) == (
        "--max-credits is 5, 5 are spent, and a job for 8 would pass it; --expected-credits sets another estimate"
    )


def test_only_the_first_word_of_a_setting_message_is_an_option() -> None:
    error = ConfigurationError("max_jobs must be a whole number, not 'max_jobs'")
    assert setting_message(error) == "--max-jobs must be a whole number, not 'max_jobs'"
    assert setting_message(ConfigurationError("base_url_of is wrong")) == "base_url_of is wrong"
