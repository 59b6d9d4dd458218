"""serving: the gateway through which candidates meet real traffic.

``gateway`` is one worker process: HTTP, upstreams, lanes. ``control`` is the process above the workers: snapshots,
rollback, the admin surface. ``access`` holds keys, budgets and certificates; ``shadow`` judges pairs of answers. The log
is in the room ``traffic``, staged rollout in ``rollouts``, choosing a model in ``routing``, engines in ``engines.drivers``.
"""
