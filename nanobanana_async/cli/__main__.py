"""`python -m nanobanana_async.cli` is the command `nanobanana`."""

from nanobanana_async.cli import main

main()
