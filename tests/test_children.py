"""The tests' own children can use torch from several threads."""

import os
import threading

import pytest
import torch

from .children import in_child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_threads_of_a_child_may_begin_with_torch_at_once():
    def work():
        errors, begin = [], threading.Barrier(16)

        def use():
            begin.wait()
            try:
                torch.ones(300_000)
            except RuntimeError as error:
                errors.append(error)

        threads = [threading.Thread(target=use) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(errors)

    before = torch.get_num_threads()
    torch.set_num_threads(2)  # A pool of one thread is made too quickly for a second one to ask meanwhile.
    try:
        assert [in_child(work) for _ in range(60)] == [0] * 60
    finally:
        torch.set_num_threads(before)
