"""environments: the frozen world in which a model is judged: cases, tools with recorded replies, files, an index.

Here: what a case and an answer are (``records``), and what answers run against. Not here: grading an answer and running
a suite (``evaluation``).
"""

from posttrain.environments.records import Answer, Case, ToolCall
from posttrain.environments.suites.slice_records import SliceSpec, ToolSpec, call_key

__all__ = ["Answer", "Case", "SliceSpec", "ToolCall", "ToolSpec", "call_key"]
