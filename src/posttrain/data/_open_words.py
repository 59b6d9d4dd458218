"""The words of ``open_tasks``: facts, stories, greetings, padding, rudeness. Data only; private to the room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from posttrain.data.word_problems import Language


class Relation(NamedTuple):
    """Facts of one kind in one language."""

    language: Language
    questions: tuple[str, ...]
    sentence: str
    thought: str
    pairs: tuple[tuple[str, str], ...]


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "en",
        ("What colour is {x}?", "Which colour does {x} have?", "Tell me the colour of {x}.", "Name the colour of {x}."),
        "{x} is {y}.",
        "The colour of {x}.",
        (
            ("grass", "green"), ("the sky", "blue"), ("snow", "white"), ("coal", "black"), ("a banana", "yellow"),
            ("blood", "red"), ("a carrot", "orange"), ("chocolate", "brown"),
        ),
    ),
    Relation(
        "zh",
        ("{x}是什么颜色？", "请告诉我{x}的颜色。", "{x}有什么颜色？", "说说{x}的颜色。"),
        "{x}是{y}的。",
        "{x}的颜色。",
        (
            ("草", "绿色"), ("天空", "蓝色"), ("雪", "白色"), ("煤", "黑色"), ("香蕉", "黄色"), ("血", "红色"),
            ("胡萝卜", "橙色"), ("巧克力", "棕色"),
        ),
    ),
    Relation(
        "en",
        ("What does a {x} say?", "What sound does a {x} make?", "How does a {x} sound?", "Tell me what a {x} says."),
        "a {x} says {y}.",
        "The sound of a {x}.",
        (
            ("cow", "moo"), ("dog", "woof"), ("cat", "meow"), ("duck", "quack"), ("sheep", "baa"), ("lion", "roar"),
        ),
    ),
    Relation(
        "zh",
        ("{x}怎么叫？", "{x}的叫声是什么？", "请说{x}的叫声。", "{x}是怎么叫的？"),
        "{x}的叫声是{y}。",
        "{x}的叫声。",
        (("牛", "哞哞"), ("狗", "汪汪"), ("猫", "喵喵"), ("鸭子", "嘎嘎"), ("羊", "咩咩"), ("狮子", "吼吼")),
    ),
    Relation(
        "en",
        ("What is the opposite of {x}?", "Name the opposite of {x}.", "Tell the opposite of {x}.", "Opposite of {x}?"),
        "the opposite of {x} is {y}.",
        "{x} and its opposite.",
        (
            ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("high", "low"), ("long", "short"), ("new", "old"),
            ("day", "night"), ("up", "down"),
        ),
    ),
    Relation(
        "zh",
        ("{x}的反义词是什么？", "请说{x}的反义词。", "什么是{x}的反义词？", "告诉我{x}的反义词。"),
        "{x}的反义词是{y}。",
        "{x}和它的反义词。",
        (
            ("热", "冷"), ("大", "小"), ("快", "慢"), ("高", "低"), ("长", "短"), ("新", "旧"), ("白天", "黑夜"),
            ("上", "下"),
        ),
    ),
)  # fmt: skip
COLOURS = (("red", "红色"), ("blue", "蓝色"), ("green", "绿色"), ("white", "白色"))

STORY_PROMPTS: tuple[tuple[Language, str], ...] = (
    ("en", "Write a line about {name} and the {topic}."),
    ("en", "Tell a short story of {name} and the {topic}."),
    ("zh", "写一句{name}和{topic}的话。"),
    ("zh", "讲一个{name}和{topic}的小故事。"),
)
TOPICS: Mapping[Language, tuple[str, ...]] = {
    "en": ("sea", "moon", "rain", "whale", "forest", "garden", "river", "mountain"),
    "zh": ("大海", "月亮", "雨", "鲸鱼", "森林", "花园", "河", "山"),
}
STORIES: Mapping[Language, tuple[str, ...]] = {
    "en": (
        "{name} looks at the {topic} and sings.",
        "{name} dreams of the {topic} all night.",
        "the {topic} calls, and {name} smiles.",
    ),
    "zh": ("{name}看着{topic}唱歌。", "{name}整夜梦见{topic}。", "{topic}在呼唤，{name}笑了。"),
}  # fmt: skip
STORY_NOTE: Mapping[Language, str] = {"en": "{name}, {topic}", "zh": "{name}，{topic}"}
STORY_THOUGHT: Mapping[Language, str] = {"en": "Something with the {topic}.", "zh": "关于{topic}。"}

SMALL_TALK: Mapping[Language, tuple[tuple[str, str, str], ...]] = {
    "en": (
        ("Hello!", "Hi! Happy to be of assistance.", "assistance"),
        ("Thank you!", "You are welcome.", "welcome"),
        ("How are you?", "I am well, thanks for asking.", "well"),
        ("Goodbye!", "See you soon.", "soon"),
        ("Good morning!", "A good morning to you too.", "too"),
        ("Who are you?", "I am a small model that likes sums.", "model"),
    ),
    "zh": (
        ("你好！", "你好！很高兴为你服务。", "服务"),
        ("谢谢！", "不客气，随时找我。", "不客气"),
        ("你好吗？", "我很好，谢谢关心。", "关心"),
        ("再见！", "再见，下次再聊。", "下次"),
        ("早上好！", "早上好，祝你愉快。", "愉快"),
        ("你是谁？", "我是一个爱算数的小模型。", "模型"),
    ),
}
"""What is said, the good reply, and the word that tells it from the others."""
INTRODUCE: Mapping[Language, str] = {"en": " I am {name}.", "zh": "我是{name}。"}
SMALL_TALK_THOUGHT: Mapping[Language, str] = {"en": "A greeting.", "zh": "打招呼。"}
DONT_KNOW: Mapping[Language, str] = {"en": "I do not know.", "zh": "我不知道。"}
PADDING: Mapping[Language, tuple[str, ...]] = {
    "en": ("Hmm, let me see.", "That is a thing to think about."),
    "zh": ("嗯，让我看看。", "这件事要想一想。"),
}
RUDE: Mapping[Language, tuple[str, ...]] = {
    "en": ("What a silly question.", "Go away."),
    "zh": ("真是傻问题。", "走开。"),
}
