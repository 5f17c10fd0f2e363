import pytest
from fastapi.testclient import TestClient

from serve.fakes import FakeEmbedder, FakeGallery
from trireid.serve.app import create_app


@pytest.fixture
def served(tmp_path):
    """Starts an app on fakes; gives its client, and `client.gallery` and `client.embedder`."""
    clients = []

    def start(*, embedder=None, gallery=None, **options):
        embedder = embedder or FakeEmbedder()
        gallery = FakeGallery() if gallery is None else gallery  # an empty gallery has a length of 0
        app = create_app(embedder, gallery, media=tmp_path / "media", **options)
        client = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        client.gallery, client.embedder = gallery, embedder
        client.__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)
