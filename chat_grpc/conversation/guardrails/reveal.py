"""Messages that ask for what the model was told, or for keys."""

from __future__ import annotations

import re
from functools import cache

from chat_grpc.conversation.guardrails.phrases import Phrases, phrase
from chat_grpc.conversation.guardrails.text import Reading, Readings

_TELL = (
    "reveal show print repeat output display tell give write share recite disclose leak expose dump paste copy"
    " translate summarize summarise quote return echo what what's whats list describe state provide encode"
)
_KIND = "system initial hidden original secret internal developer base core exact full complete first pre"
_PROMPT = "prompt prompts instructions instruction message rules guidelines directives systemprompt configuration"
_SETTING = (
    "of in for from with to setting settings variable field option parameter text file i we is was can should that"
    " work works do does when and or a"
)

_CHINESE = re.compile(
    r"(?P<before>.{0,6})(?:显示|告诉我|输出|打印|重复|透露|泄露|说出|给我看|复述|展示)[^。!?\n]{0,6}?"
    r"(?:你的|您的|你收到的)[^。!?\n]{0,4}?(?:系统提示|提示词|初始指令|系统指令|提示|指令)"
)
_HOW = re.compile('如何|怎么|怎样|我们?能|["“「『]$')


@cache
def phrases() -> Phrases:
    """Return what is looked for."""
    return Phrases(
        (
            phrase(_TELL, 4, "your", 2, _KIND, 2, _PROMPT),
            phrase(_TELL, 4, "your", 0, "prompt systemprompt instructions", unless_next="on for to about regarding"),
            phrase(
                "reveal print repeat output display recite disclose leak expose dump echo show", 2, "the this that", 1,
                "system initial hidden original secret developer", 0, "prompt prompts instructions message",
                unless_next=_SETTING,
            ),
            phrase(
                "repeat output print echo recite copy reproduce dump write", 3,
                "words text everything all content contents sentences", 3, "above before preceding",
                unless_next="sentence paragraph table the",
            ),
            phrase(
                "what which", 1, "instructions prompt directives", 1, "you", 2,
                "given told receive received got", unless_next="about",
            ),
            phrase(
                _TELL, 3, "your the", 1, "api secret access private environment", 0,
                "key keys token tokens credentials variables", unless_next="of in for from with to is setting settings field option need needed required",
            ),
            phrase(
                "zeig zeige zeigen gib nenne wiederhole verrate schreibe drucke offenbare wie was", 3,
                "deinen deine dein deiner ihren ihre", 2,
                "systemprompt prompt anweisungen systemanweisungen systemnachricht instruktionen systemanweisung",
            ),
            phrase(
                "muestra muéstrame revela revélame dime imprime repite escribe cuál cuáles mostra revele", 3,
                "tu tus seu suas", 1, "prompt instrucciones instruções mensaje",
            ),
            phrase(
                "montre affiche révèle donne répète écris imprime quel quelles quelle", 3, "ton ta tes votre vos", 2,
                "prompt instructions consignes",
            ),
            phrase(
                "покажи выведи повтори раскрой напиши скажи назови какой каковы покажите выведите", 3,
                "твой твои свой свои системный ваш ваши", 2, "промпт промт инструкции инструкция инструкцию",
            ),
        )
    )  # fmt: skip


def says_reveal(reading: Reading) -> bool:
    """Tell whether a text asks its reader for what it was told."""
    if phrases().found_in(reading):
        return True
    if reading.text.isascii():
        return False
    return any(not _HOW.search(found["before"]) for found in _CHINESE.finditer(reading.text))


class Reveal:
    """Refuses what asks for the system prompt, or for the service's own keys."""

    id = "injection.reveal"

    def refuses(self, message: Readings) -> bool:
        """See InputRule."""
        return any(says_reveal(reading) for reading in message.plain)
