"""data."""

from __future__ import annotations

from posttrain.core.lazy import lazy_names

__all__ = [
    "EXAMPLES_FILE",
    "PREFERENCES_FILE",
    "PROMPTS_FILE",
    "Aspect",
    "BaseTextConfig",
    "Document",
    "ExampleRow",
    "PreferenceRow",
    "PromptRow",
    "Shot",
    "WordProblemSource",
    "check_disjoint",
    "check_examples",
    "check_not_asked",
    "check_prompts",
    "documents",
    "example_set_facts",
    "examples_to_jsonl",
    "is_tie",
    "judged_rows",
    "mixes_languages",
    "normal_question",
    "open_tasks",
    "problems",
    "read_examples",
    "read_preferences",
    "read_prompts",
    "target_language_share",
    "warm_up",
]

_HOMES = {
    "": ("open_tasks",),
    "base_text": ("BaseTextConfig", "Document", "documents"),
    "examples": (
        "EXAMPLES_FILE",
        "ExampleRow",
        "check_examples",
        "example_set_facts",
        "examples_to_jsonl",
        "read_examples",
    ),
    "languages": ("mixes_languages", "target_language_share", "warm_up"),
    "preferences": (
        "Aspect",
        "PREFERENCES_FILE",
        "PreferenceRow",
        "is_tie",
        "judged_rows",
        "read_preferences",
    ),
    "prompt_sources": ("Shot", "WordProblemSource"),
    "prompts": (
        "PROMPTS_FILE",
        "PromptRow",
        "check_disjoint",
        "check_not_asked",
        "check_prompts",
        "normal_question",
        "read_prompts",
    ),
    "word_problems": ("problems",),
}


__getattr__ = lazy_names(__name__, _HOMES)
