"""The TFDS data set `question_translation`: question pairs as ArrayRecord files, with no need of TensorFlow."""

from jaxalign.data.question_translation.builder import QuestionTranslation, QuestionTranslationConfig

__all__ = ["QuestionTranslation", "QuestionTranslationConfig"]
