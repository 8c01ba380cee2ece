"""The network that the environment describes: authorities and proxies, for the gateway and for images alike."""

from pathlib import Path

import pytest
from PIL import Image

from tests.http.test_lent import gateway
from tests.support.command import environment, in_a_process, nanobanana
from tests.support.peers import CERTIFICATE, KEY, Peer

pytestmark = pytest.mark.slow


async def test_ssl_cert_file_is_trusted_for_gateway_and_images(tmp_path: Path) -> None:
    async with Peer(gateway, tls=True) as peer:
        environ = environment(APIMALL_API_KEY=KEY, SSL_CERT_FILE=str(CERTIFICATE), NANOBANANA_EXPECTED_JOB_S="0.1")
        environ |= {"NANOBANANA_BASE_URL": peer.url}
        said = await in_a_process("generate", "a fox", "-o", "out", environ=environ, folder=tmp_path)
    assert (said.code, said.err.count("\n")) == (0, 1)
    assert said.err.startswith("1 image, 8 credits, ")
    with Image.open(tmp_path / said.out.strip()) as image:
        assert image.format == "PNG"


async def test_help_names_the_variables_of_the_network() -> None:
    said = await nanobanana("--help")
    for name in ("HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "NANOBANANA_ALLOW_NETWORKS"):
        assert name in said.out
