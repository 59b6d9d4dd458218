"""engines: what completes conversations. Contract in ``records``; transformers and llama.cpp on this machine."""

from posttrain.engines.records import Completion, Conversation, Engine, Sampling

__all__ = ["Completion", "Conversation", "Engine", "Sampling"]
