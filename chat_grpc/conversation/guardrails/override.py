"""Messages that tell the model to leave what it was told."""

from __future__ import annotations

import re
from functools import cache

from chat_grpc.conversation.guardrails.phrases import Phrases, phrase
from chat_grpc.conversation.guardrails.text import Reading, Readings

_DROP = (
    "ignore ignoring disregard disregarding forget override overwrite overrule bypass discard erase neglect"
    " ignoriere ignorier ignoriert vergiss vergesst missachte missachtet überschreibe umgehe verwirf"
    " ignora ignorad olvida olvide olvidad olvídate desatiende descarta desconsidera esqueça"
    " ignorez oublie oubliez outrepasse dimentica dimenticate scorda"
    " игнорируй игнорируйте проигнорируй проигнорируйте забудь забудьте отбрось отбросьте"
)
_TOLD = (
    "instructions instruction prompts prompt directions directives directive rules guidelines commands orders"
    " constraints restrictions programming context"
    " anweisungen anweisung instruktionen befehle regeln vorgaben richtlinien prompts"
    " instrucciones indicaciones reglas órdenes directrices instruções regras istruzioni regole"
    " instructions consignes règles directives ordres"
    " инструкции инструкций инструкцию указания указаний указаниям инструкциям правилам командам команды правила промпт промпты подсказки"
)
_EARLIER = (
    "previous prior above earlier preceding foregoing former initial original existing system"
    " vorherigen vorherige vorigen bisherigen obigen früheren vorangegangenen ursprünglichen deine deiner"
    " anteriores anterior previas previos precedentes iniciales originales tus suas tuas"
    " précédentes précédents antérieures initiales préalables tes vos dessus precedenti tue"
    " предыдущие предыдущих предыдущую предыдущим прежним прежние прошлые вышеуказанные свои твои ваши своим твоим"
)
_ALL_TOLD = (
    "instructions directives anweisungen instruktionen befehle vorgaben instrucciones consignes инструкции указания"
)

_CHINESE = re.compile(
    r"(?P<before>.{0,4})(?:忽略|无视|無視|忘记|忘記|忘掉|忽视|不要理会|抛弃|绕过)[^。!?\n]{0,8}?"
    r"(?:之前|以上|上面|前面|先前|上述|此前|原有|所有|一切|你的)[^。!?\n]{0,8}?"
    r"(?:指令|指示|说明|說明|提示|规则|規則|命令|设定|設定|要求|限制)(?P<after>.{0,16})"
    r"|(?P<japanese>(?:前の|以前の|これまでの|上記の)(?:すべての|全ての)?(?:指示|命令|ルール).{0,6}無視して)"
)
_SPOKEN_OF = re.compile("[我们們]|什么意思|甚麼意思|是什么|如何|怎么|为什么|翻译")
_QUOTED = re.compile("[\"“「『'《]$")
_COMPACT = re.compile(
    "(?:ignore|disregard|forget)(?:all|any|the|your|of){0,4}(?:previous|prior|earlier|above)"
    "(?:instructions|prompts?|rules|directives)"
)


@cache
def phrases() -> Phrases:
    """Return what is looked for."""
    return Phrases(
        (
            phrase(_DROP, 4, _EARLIER, 3, _TOLD),
            phrase(_DROP, 4, _TOLD, 3, _EARLIER, unless_next="a an the each every"),
            phrase(_DROP, 1, "all any every alle todas toutes все tutte", 2, _ALL_TOLD),
            phrase(
                _DROP, 2, "your", 2, "instructions training programming guidelines rules restrictions constraints"
                " limitations policies filters safety safeguards",
            ),
            phrase(_DROP, 2, "everything anything all alles todo tout всё все tutto", 3, "above before previous told"
                   " instructed prior earlier bisher gesagt wurde anterior précède выше сказано precedente"),
            phrase(_DROP, 1, "above foregoing obige", 1, "and instead now then say print tell", 3,
                   "say print tell reveal output write respond answer do show"),
            phrase(
                "don't dont not never stop quit", 1, "follow following obey obeying adhere", 4,
                "previous prior above earlier your original system", 2,
                "instructions instruction rules guidelines prompt directives programming",
            ),
            phrase("ignorieren vergessen missachten", 0, "sie", 4, _EARLIER, 3, _TOLD),
            phrase("your", 0, "new updated real true", 1, "instructions instruction directive directives prompt rules"),
            phrase("haz", 0, "caso", 0, "omiso", 6, _TOLD),
            phrase("не", 0, "следуй следуйте выполняй выполняйте", 3, _EARLIER, 2, _TOLD),
        )
    )  # fmt: skip


def says_override(reading: Reading) -> bool:
    """Tell whether a text tells its reader to leave what it was told before."""
    if phrases().found_in(reading) or _COMPACT.search(reading.text):
        return True
    if reading.text.isascii():
        return False
    return any(not _is_spoken_of(found) for found in _CHINESE.finditer(reading.text))


def _is_spoken_of(found: re.Match[str]) -> bool:
    before, after = found["before"] or "", found["after"] or ""
    if _QUOTED.search(before):
        return _SPOKEN_OF.search(before + after) is not None
    return _SPOKEN_OF.search(before) is not None


class Override:
    """Refuses what tells the model to leave its instructions: "ignore all previous instructions", in nine languages."""

    id = "injection.override"

    def refuses(self, message: Readings) -> bool:
        """See InputRule."""
        return any(says_override(reading) for reading in message.plain)
