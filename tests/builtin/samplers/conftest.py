"""A server that stands in for vLLM, and samplers on it."""

import pytest

from rlhf_peft.builtin.samplers.vllm_server import VllmServerOptions, VllmServerSampler
from rlhf_peft.kit.http import client as http

from .stub import StubServer
from .support import ModelView


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(http, "BACKOFF", 0.001)
    stub = StubServer()
    yield stub
    stub.close()


@pytest.fixture
def make(server):
    """Samplers on the stub, synced once unless told otherwise, closed at the end."""
    open_ones = []

    def make(sync=True, **options):
        sampler = VllmServerSampler(
            VllmServerOptions(**{"url": server.url, "retries": 2, "check_base": False, **options})
        )
        open_ones.append(sampler)
        if sync:
            sampler.sync(ModelView(None), 5)
        return sampler

    yield make
    server.failures.clear()
    for sampler in open_ones:
        sampler.close()
