"""The cues that mended prompts have instead of the study's.

A cue is mended where it is the wrong word: another sense of the English one, a verb where the answer is meant, a word
of another language. A cue that is one fair choice among several stays, and so does one for which no certain word was
found. Left so: Swahili `Nguzo: ` (a pillar, also said for a premise); Hindi `आधार: `, Thai `ฐาน: ` and Bengali
`ভিত্তি: ` (the basis of a conclusion), Russian `Предпосылка: ` and Bulgarian `Предпоставка: ` (a presupposition, also a
premise); Slovene `Stavek 1: ` (a clause, in common speech a sentence).
"""

from collections.abc import Mapping

MENDED_CUES: Mapping[tuple[str, str, str], str] = {
    # (task, language, field name or "answer"): cue
    ("snli", "fr", "answer"): "Réponse: ",  # répondre: to answer
    ("snli", "ru", "answer"): "Ответ: ",  # отвечать: to answer
    ("snli", "sl", "premise"): "Premisa: ",  # predpogoj: a prerequisite
    ("snli", "sl", "answer"): "Odgovor: ",  # odgovori: answer! or answers
    ("snli", "ms", "answer"): "Jawapan: ",  # jawab: to answer
    ("snli", "is", "answer"): "Svar: ",  # svaraðu: answer!
    ("snli", "sw", "hypothesis"): "Nadharia tete: ",  # left in English
    ("paws", "fr", "answer"): "Réponse: ",
    ("paws", "es", "sentence1"): "Oración 1: ",  # sentencia: a judge's sentence
    ("paws", "es", "sentence2"): "Oración 2: ",
    ("paws", "ru", "sentence1"): "Предложение 1: ",  # приговор: a judge's sentence
    ("paws", "ru", "sentence2"): "Предложение 2: ",
    ("paws", "ru", "answer"): "Ответ: ",  # ответить: to answer
    ("paws", "sl", "answer"): "Odgovor: ",
    ("paws", "ms", "answer"): "Jawapan: ",
    ("paws", "is", "answer"): "Svar: ",
}
