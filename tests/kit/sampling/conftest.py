from tests.builtin.conftest import tiny_base, view  # noqa: F401 (fixtures)
