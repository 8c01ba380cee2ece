"""What a check of `nanobanana doctor` found."""

from typing import Literal

from attrs import evolve, frozen

Verdict = Literal["ok", "note", "problem"]


@frozen
class Finding:
    """What one check found, and what to do if that is a problem."""

    subject: str
    verdict: Verdict
    text: str
    advice: str = ""

    def of_account(self, account: str) -> "Finding":
        """Return this finding with the account in its text, where several are checked."""
        return evolve(self, text=f"{account}: {self.text}")
