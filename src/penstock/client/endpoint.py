"""Other endpoints, called from a model's own code: `fraud = penstock.endpoint("fraud")`, `await fraud(x=array)`.

A graph in Python is a model whose `async def predict` calls others. Each call has what is left of the caller's deadline
and passes the caller's trace on; when the caller leaves, it is cancelled. Where endpoints are, the platform says in
`PENSTOCK_ENDPOINTS_URL` (the key in `PENSTOCK_ENDPOINTS_KEY`), or `url` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.client.asynchronous import AsyncClient
from penstock.client.tensors import ArrayLike, Result
from penstock.core.errors import InvalidInput, PenstockError
from penstock.core.messages import Parameter


class Endpoint:
    """One endpoint. Connections are kept, and may be used by any number of tasks of one loop."""

    def __init__(
        self,
        name: str,
        *,
        url: str | None = None,
        api_key: str | None = None,
        version: str | int = "",
        timeout_s: float | None = None,
        retries: int = 2,
    ) -> None:
        """Calls nothing yet; where the endpoint is, is looked up at the first call."""
        self.name = name
        self._url = url
        self._api_key = api_key
        self._version = version
        self._timeout_s = timeout_s
        self._retries = retries
        self._client: AsyncClient | None = None

    async def __call__(
        self,
        inputs: Mapping[str, ArrayLike] | None = None,
        /,
        *,
        parameters: Mapping[str, Parameter] | None = None,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
        **named: ArrayLike,
    ) -> Result:
        """The endpoint's outputs. Inputs are one mapping, keywords, or both; `outputs` the names wanted, empty is all.

        Raises:
            PenstockError: of the endpoint, or of the way there; its message begins with the endpoint's name.
        """
        client = self._connect()
        try:
            return await client.infer(
                self.name,
                {**(inputs or {}), **named},
                version=self._version,
                parameters=parameters,
                outputs=outputs,
                timeout_s=self._timeout_s if timeout_s is None else timeout_s,
            )
        except PenstockError as error:
            message = f"endpoint '{self.name}': {error.message}"
            raise type(error)(message, retry_after_s=error.retry_after_s) from error

    async def close(self) -> None:
        """Closes the connections that are not in use; a later call opens new ones."""
        if self._client is not None:
            await self._client.close()

    def _connect(self) -> AsyncClient:
        if self._client is None:
            from penstock import config

            environ = config.environment()
            url = self._url or environ.get("PENSTOCK_ENDPOINTS_URL")
            if not url:
                raise InvalidInput(
                    f"endpoint '{self.name}': PENSTOCK_ENDPOINTS_URL does not say where endpoints are; set it to the "
                    "platform's or a server's address, or give endpoint(…, url=…)"
                )
            key = self._api_key
            if key is None and self._url is None:  # the platform's key is for the platform's address only
                key = environ.get("PENSTOCK_ENDPOINTS_KEY") or None
            self._client = AsyncClient(url, api_key=key, timeout_s=None, retries=self._retries)
        return self._client


def endpoint(
    name: str,
    *,
    url: str | None = None,
    api_key: str | None = None,
    version: str | int = "",
    timeout_s: float | None = None,
    retries: int = 2,
) -> Endpoint:
    """The endpoint called `name`, to be awaited as a function of its inputs."""
    return Endpoint(name, url=url, api_key=api_key, version=version, timeout_s=timeout_s, retries=retries)
