"""What a check of `nanobanana doctor` found."""

from typing import Literal

from attrs import frozen

Verdict = Literal["ok", "note", "problem"]


@frozen
class Finding:
    """What one check found, and what to do if that is a problem."""

    subject: str
    verdict: Verdict
    text: str
    advice: str = ""
