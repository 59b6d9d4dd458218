"""serving: the one door to the models, through which candidates meet real traffic and from which the flywheel learns.

``gateway`` one worker process: HTTP, upstreams, lanes. ``traffic`` the durable log and its index. ``rollout`` events,
triggers, plan. ``drivers`` engines and adapters. ``guardrails``, ``access``, ``router``. ``control`` the process above
the workers: snapshots, rollback, admin surface. May import every room up to ``promotion``.
"""
