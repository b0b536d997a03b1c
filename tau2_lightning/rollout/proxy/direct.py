"""The direct form of the policy client: a call of the chat service in this process, without a socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tau2_lightning.rollout.episode.client import PolicyClient

from .chat_service import ChatService
from .errors import APIError


class DirectPolicyClient(PolicyClient):
    """Asks ``service`` as the owner of ``api_key``."""

    def __init__(self, service: ChatService, api_key: str, timeout: float) -> None:
        super().__init__(timeout)
        self._service, self._key = service, api_key

    async def _ask(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        try:
            return 200, await self._service.answer(self._key, body)
        except APIError as error:
            return error.status, error.body
