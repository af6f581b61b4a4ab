"""The Python client of chat.v1.

    import asyncio
    from contextlib import aclosing

    from chat_grpc.client import ChatClient, Delta


    async def main() -> None:
        async with ChatClient("localhost:50052") as client:
            async with aclosing(client.chat("How do I run it?")) as events:
                async for event in events:
                    if isinstance(event, Delta):
                        print(event.text, end="", flush=True)


    asyncio.run(main())

Events and messages are the dataclasses of protos/chat/v1. Every method raises
ChatError when the service, or the way to it, fails.
"""

from __future__ import annotations

from chat_grpc.client._gen.chat.v1 import (
    Completed,
    Component,
    ComponentHealth,
    Delta,
    FinishReason,
    GetHealthResponse,
    GetHealthResponseStatus,
    Message,
    MessageStatus,
    Passage,
    Retrieval,
    Started,
    SuggestedQuestion,
    Usage,
)
from chat_grpc.client.client import Answer, ChatClient, Event
from chat_grpc.client.errors import ChatError, Violation

__all__ = [
    "Answer",
    "ChatClient",
    "ChatError",
    "Completed",
    "Component",
    "ComponentHealth",
    "Delta",
    "Event",
    "FinishReason",
    "GetHealthResponse",
    "GetHealthResponseStatus",
    "Message",
    "MessageStatus",
    "Passage",
    "Retrieval",
    "Started",
    "SuggestedQuestion",
    "Usage",
    "Violation",
]
