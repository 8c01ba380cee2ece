"""OpenAI's images API in front of a session: an ASGI application for one's own server, or for `nanobanana serve`."""

try:
    import python_multipart  # noqa: F401 - Starlette needs it for forms, and says so only when one comes

    from nanobanana_async.serve.app import make_app
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("python_multipart", "starlette"):
        raise
    raise ImportError("the images API needs Starlette: pip install 'nanobanana-async[serve]'") from None
from nanobanana_async.serve.bearer_tokens import Token, parse_tokens

__all__ = ["Token", "make_app", "parse_tokens"]
