"""What a model is to be asked: what is the same whatever is found, and then the whole prompt."""

from __future__ import annotations

from chat_grpc.conversation import prompt
from chat_grpc.conversation.answering import Answering, Sending
from chat_grpc.conversation.guarding import Guarding
from chat_grpc.conversation.system_prompt import SystemPrompt
from chat_grpc.domain import ChatRequest, Retrieved
from chat_grpc.llm import Models, Prompt
from chat_grpc.llm.contexts import Contexts
from chat_grpc.llm.tokens import TokenCounter


class Prompting:
    """Makes the prompts. One instance serves all callers.

    Args:
        models: who writes the answers.
        system_prompt: what the model is told to be.
        contexts: how much a model reads at once.
        tokens: what counts them.
        guarding: tells what of a history that the caller sent no model is to read.
        max_tokens: how long an answer may get where the request does not say.
    """

    def __init__(
        self,
        *,
        models: Models,
        system_prompt: SystemPrompt,
        contexts: Contexts,
        tokens: TokenCounter,
        guarding: Guarding,
        max_tokens: int,
    ) -> None:
        self._models = models
        self._system_prompt = system_prompt
        self._contexts = contexts
        self._tokens = tokens
        self._guarding = guarding
        self._max_tokens = max_tokens

    async def sending(self, request: ChatRequest) -> Sending:
        """Return what goes to the model whatever is found, once it is known that the question fits.

        Raises:
            InvalidRequest: it does not.
        """
        model = self._models.full_name(request.options.model)
        max_tokens = request.options.max_tokens or self._max_tokens
        own = await self._system_prompt.text()
        system = prompt.system_of(own, request.system)
        budget = prompt.budget_of(await self._contexts.window(model), max_tokens)
        if not prompt.question_surely_fits(request.message, system=system, budget=budget):
            await self._tokens.load()
            prompt.check_question(request.message, system=system, budget=budget, count=self._tokens.count)
        return Sending(model, max_tokens, own, system, budget)

    async def prompt(self, answering: Answering, found: Retrieved | None) -> Prompt:
        """Return what a model is to be sent; ``found`` is None when the memory could not be reached.

        What does not fit into the model's context is left out.
        """
        sending, given = answering.sending, answering.request.history
        exchanges = answering.session.exchanges if given is None else self._guarding.harmless(given)
        draft = prompt.Draft(answering.request, found.passages if found else None, exchanges, system=sending.system)
        if not draft.fits_by_far(sending.budget):
            await self._tokens.load()
            draft.cut(sending.budget, self._tokens.count)
        return draft.prompt(model=answering.request.options.model, max_tokens=sending.max_tokens)
