"""HTTP clients with a time limit, a size limit and retries, for rewards and samplers that ask a server."""

from .async_client import AsyncJsonClient, environment_secret, plain_url
from .client import HttpError, JsonClient, server_root

__all__ = ["AsyncJsonClient", "HttpError", "JsonClient", "environment_secret", "plain_url", "server_root"]
