"""The abstract methods of transformers' cache layers are those that ours give."""

import inspect

from transformers.cache_utils import Cache, CacheLayerMixin

from rlhf_peft.engine.compat.cache import CacheLayer
from rlhf_peft.engine.fast.shared_prefix import PrefixLayer
from rlhf_peft.engine.kv_cache import GrowingLayer


def test_every_abstract_method_is_given():
    missing = CacheLayerMixin.__abstractmethods__ - set(vars(CacheLayer))
    assert not missing, f"transformers wants {missing} of a cache layer: see engine/compat/cache.py"
    PrefixLayer(), GrowingLayer(4)


def test_a_cache_is_made_of_ready_layers():
    assert "layers" in inspect.signature(Cache.__init__).parameters, (
        "transformers' Cache takes no layers any more"
    )
