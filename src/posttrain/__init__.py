"""posttrain: train, judge, gate, serve, watch, roll back and relearn a post-trained language model.

The rooms, in import order (a room may import those before it, never those after): ``core`` · ``artifacts`` ·
``data`` · ``rewards`` · ``engines`` · ``training`` · ``evaluation`` · ``pipelines`` · ``cli``.

Nothing is imported here: ``posttrain --help`` must answer at once, and torch loads only inside the function that runs.
"""

__version__ = "0.1.0"
