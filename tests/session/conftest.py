from tests.stages.conftest import demonstrations, make_context, one_thread  # noqa: F401 (fixtures)
