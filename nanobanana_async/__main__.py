"""`python -m nanobanana_async` is the command `nanobanana`."""

from nanobanana_async.cli import main

main()
