"""Property tests without a deadline a case: these machines are shared, and slow is not wrong."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
