"""Why a picture was not had this time; the caller of the library sees the `DownloadError` made of it."""


class Missed(Exception):
    """What hinders a picture: `again` if another attempt may help, `gone` if its link opens nothing any more.

    `wait_s` is what the server asked us to wait. `unwritable` says that the folder is at fault, not the image: no other
    image could be saved there either.
    """

    def __init__(
        self,
        why: str,
        *,
        again: bool = False,
        gone: bool = False,
        wait_s: float | None = None,
        unwritable: bool = False,
    ) -> None:
        super().__init__(why)
        self.why = why
        self.again = again
        self.gone = gone
        self.wait_s = wait_s
        self.unwritable = unwritable
