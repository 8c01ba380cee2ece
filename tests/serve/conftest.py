"""Skip these tests where what they serve with, or OpenAI's client, is missing."""

import pytest

for _package in ("openai", "starlette", "uvicorn", "python_multipart"):
    pytest.importorskip(_package, reason=f"{_package} is missing: pip install -e '.[test]'")
